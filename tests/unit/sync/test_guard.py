"""What counts as an anomaly, and what the master makes of it."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mms_workloads.contract import Guard
from mms_workloads.sync.guard import LEARNED, History, Parting, Sign, Verdict, compare, included, judge, spiked
from mms_workloads.sync.leases import Slice
from mms_workloads.sync.watch import (
    MAX_ROLLBACKS,
    RATE_FACTOR,
    SLOW_ROUNDS,
    SPIKE_ROUNDS,
    Evict,
    Fail,
    Measure,
    Report,
    Rollback,
    Round,
    Watch,
)
from mms_workloads.train.dealing import MOST_MIXED

if TYPE_CHECKING:
    from collections.abc import Callable

GOOD, BAD, ODD = Verdict.GOOD, Verdict.NOT_FINITE, Verdict.OUTLIER


def signs(*norms: float, suspected: frozenset[int] = frozenset()) -> list[Sign]:
    return [Sign(4, n, math.isfinite(n), i in suspected) for i, n in enumerate(norms)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(signs(1, 2, 3), [GOOD] * 3, id="usual"),
        pytest.param(signs(1, math.nan, 1), [GOOD, BAD, GOOD], id="nan"),
        pytest.param(signs(1, 1, 100), [GOOD, GOOD, ODD], id="three"),
        pytest.param(signs(1, 100, 100), [GOOD] * 3, id="two of three: the median of the others is theirs"),
        pytest.param(signs(1, 1, 100, 100), [GOOD] * 4, id="a tie is nobody's fault"),
        pytest.param(signs(1, 100), [GOOD] * 2, id="two without history"),
        pytest.param(signs(1, 100, suspected=frozenset({1})), [GOOD, ODD], id="two, beyond its own history"),
        pytest.param(signs(100, 100, suspected=frozenset({0, 1})), [GOOD] * 2, id="two, both beyond"),
        pytest.param(signs(100, suspected=frozenset({0})), [GOOD], id="one alone"),
        pytest.param([Sign(1, 7), Sign(900, 200), Sign(900, 190)], [GOOD] * 3, id="a short block"),
        pytest.param([Sign(900, 900), Sign(1, 1), Sign(1, 1)], [GOOD] * 3, id="short blocks of the others"),
        pytest.param([Sign(4, 0), Sign(4, 0), Sign(4, 1)], [GOOD] * 3, id="no change of most"),
        pytest.param([Sign(0, 0.0), *signs(1, 1, 100)], [GOOD, GOOD, GOOD, ODD], id="a rank without data"),
        pytest.param([*signs(1, 100, suspected=frozenset({1})), Sign(0, 0.0)], [GOOD, ODD, GOOD], id="two with data"),
        pytest.param(signs(math.inf, 1, 100, suspected=frozenset({2})), [BAD, GOOD, ODD], id="two that are finite"),
    ],
)
def test_whose_gradient_counts(given: list[Sign], expected: list[Verdict]) -> None:
    assert judge(given, Guard()) == expected


def test_what_is_asked_for() -> None:
    given = signs(1, math.nan, 1, 100)
    assert judge(given, Guard(gradientOutlier="Off")) == [GOOD, BAD, GOOD, GOOD]
    assert [included(v, Guard(gradientOutlier="Report")) for v in (GOOD, BAD, ODD)] == [True, False, True]
    assert [included(v, Guard()) for v in (GOOD, BAD, ODD)] == [True, False, False]


@pytest.mark.parametrize(
    ("checksums", "expected"),
    [
        ([7], None),
        ([7, 7, 7], None),
        ([7, 8], Parting(frozenset({0, 1}), majority=False)),
        ([7, 8, 7], Parting(frozenset({1}), majority=True)),
        ([7, 8, 9], Parting(frozenset({0, 1, 2}), majority=False)),
        ([7, 7, 8, 8], Parting(frozenset({0, 1, 2, 3}), majority=False)),
        ([7, 7, 8, 7, 9], Parting(frozenset({2, 4}), majority=True)),
    ],
)
def test_who_is_outvoted(checksums: list[int], expected: Parting | None) -> None:
    assert compare(checksums) == expected


def test_a_spike_is_what_noise_is_not() -> None:
    rng = random.Random(0)
    for _ in range(50):
        losses = History()
        level = 5.0
        for _ in range(200):
            level *= 0.99
            loss = level * rng.uniform(0.9, 1.1)
            assert not spiked(losses, loss)
            losses.add(loss)
        assert spiked(losses, 3 * level)
        assert spiked(losses, math.nan)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_becomes_nothing_usual(value: float) -> None:
    """Before there is a history no loss is a spike, and all become part of it."""
    watch, losses = Watch(Guard()), History()
    for step, loss in enumerate([value, *[2.0] * (LEARNED - 1)]):
        assert watch.observe(usual(step, loss=loss)) == []
        losses.add(loss)
    assert list(watch.losses.values) == list(losses.values) == [2.0] * (LEARNED - 1)


def test_nothing_is_judged_before_there_is_a_history() -> None:
    losses = History()
    for _ in range(LEARNED - 1):
        losses.add(1.0)
    assert not spiked(losses, 1e9)
    losses.add(1.0)
    assert spiked(losses, 1e9)


MEMBERS = {0: 0, 1: 1, 2: 2}  # joined in this order


def usual(step: int, ranks: int = 3, loss: float | None = 1.0) -> Round:
    slices = tuple((Slice(0, step * ranks + r, 0, 4, 4),) for r in range(ranks))
    return Round(step, tuple(range(ranks)), (GOOD,) * ranks, (0.1,) * ranks, (4,) * ranks, slices, loss)


def odd(this: Round, rank: int, verdict: Verdict) -> Round:
    return replace(this, verdicts=tuple(verdict if r == rank else v for r, v in enumerate(this.verdicts)))


def seen(watch: Watch, *rounds: Round) -> list[Measure]:
    return [measure for one in rounds for measure in watch.observe(one)]


def test_gradients_that_are_not_finite_are_skipped_and_then_rolled_back() -> None:
    watch = Watch(Guard(patience=3))
    assert seen(watch, *(usual(i) for i in range(5))) == []
    (report,) = seen(watch, odd(usual(5), 1, BAD))
    assert isinstance(report, Report)
    assert (report.kind, report.rank) == ("NonFinite", 1)
    assert "block 16 [0, 4)" in report.action
    assert seen(watch, odd(usual(6), 1, BAD)) == []
    (back,) = seen(watch, odd(usual(7), 1, BAD))
    assert isinstance(back, Rollback)
    assert (back.before, back.blocks, back.rate_factor) == (5, frozenset({22}), RATE_FACTOR)
    watch.restarted(4, MEMBERS)
    assert seen(watch, usual(5)) == []


@pytest.mark.parametrize(("mode", "kind"), [("Rollback", Rollback), ("Fail", Fail)])
def test_gradients_that_are_not_finite_as_the_spec_says(mode: str, kind: type[Measure]) -> None:
    watch = Watch(Guard.model_validate({"nonFinite": mode}))
    (measure,) = seen(watch, odd(usual(1), 0, BAD))
    assert isinstance(measure, kind)


def test_of_a_round_of_several_blocks_only_its_samples_are_left_out() -> None:
    """One of them has those that did it, and nobody knows which. Of another rank's it is known."""
    mixed, alone, good = tuple(Slice(0, b, 0, 2, 9) for b in (7, 3)), (Slice(0, 5, 4, 6, 9), Slice(0, 5, 6, 9, 9)), ()
    this = replace(usual(1), slices=(mixed, alone, good), verdicts=(BAD, BAD, GOOD))
    (back,) = seen(Watch(Guard(nonFinite="Rollback")), this)
    assert isinstance(back, Rollback)
    assert (back.blocks, back.samples) == (frozenset({5}), (Slice(0, 3, 0, 2, 9), Slice(0, 7, 0, 2, 9)))


def test_an_incident_names_all_blocks_of_a_rank_s_round() -> None:
    of_round = [tuple(Slice(0, b, 0, 2, 9) for b in range(count)) for count in (MOST_MIXED, MOST_MIXED + 4)]
    said = []
    for slices in of_round:
        (report,) = seen(Watch(Guard()), replace(usual(1, 1), slices=(slices,), verdicts=(BAD,)))
        assert isinstance(report, Report)
        said.append(report.action)
    assert all(f"block {b} [0, 2)" in said[0] for b in range(MOST_MIXED))
    assert f"block {MOST_MIXED} " not in said[1]
    assert "and 4 more" in said[1]


def test_rounds_on_the_way_to_a_rollback_are_no_others() -> None:
    watch = Watch(Guard(nonFinite="Rollback"))
    assert len(seen(watch, *(odd(usual(i), 0, BAD) for i in range(4)))) == 1
    assert watch.rollbacks == 1


def test_rollbacks_come_to_an_end() -> None:
    watch = Watch(Guard(nonFinite="Rollback"))
    found = []
    for step in range(MAX_ROLLBACKS + 1):
        found += seen(watch, odd(usual(step), 0, BAD))
        watch.restarted(0, MEMBERS)
    assert [type(measure) for measure in found] == [Rollback] * MAX_ROLLBACKS + [Fail]
    assert isinstance(found[-1], Fail)
    assert "learningRate" in found[-1].action


def test_each_rank_by_itself_where_a_push_stands_alone() -> None:
    """Another one's good push between two bad ones makes neither good."""
    watch = Watch(Guard(patience=3))
    found = []
    for step in range(20):
        push = alone(step, step % 2)
        found += seen(watch, odd(push, 0, BAD) if push.ranks == (1,) else push)
    assert [type(one) for one in found] == [Report, Rollback]
    assert isinstance(found[-1], Rollback)
    assert found[-1].before == 1, "the first of those in a row"


def test_a_good_round_between_two_bad_ones() -> None:
    """Those in a row count."""
    watch = Watch(Guard(patience=3))
    found = seen(watch, *(odd(usual(step), 1, BAD) if step % 3 else usual(step) for step in range(20)))
    assert {type(one) for one in found} == {Report}


def test_what_other_members_made_is_no_row_of_these() -> None:
    """Two of three, then all, then the two again: in between their gradients were finite."""
    watch, pair = Watch(Guard(patience=3)), {0: 0, 1: 1}
    watch.restarted(0, pair)
    found = seen(watch, *(odd(usual(step, 2), 1, BAD) for step in (1, 2)))
    watch.restarted(2, MEMBERS)
    found += seen(watch, usual(3))
    watch.restarted(3, pair)
    found += seen(watch, *(odd(usual(step, 2), 1, BAD) for step in (4, 5)))
    assert [type(one) for one in found] == [Report, Report]


def alone(step: int, rank: int, seconds: float = 0.1) -> Round:
    return replace(usual(step, 1), ranks=(rank,), seconds=(seconds,))


def train(watch: Watch, loss: Callable[[int, float], float], *, rounds: int, every: int = 50) -> list[Measure]:
    """A run of one worker with a checkpoint every so many rounds. loss: by the number of the sample's block and the
    factor on the learning rate.
    """
    found: list[Measure] = []
    step, at, factor, left_out = 0, 0, 1.0, set[int]()
    checkpoints = {0: 0}  # step: block to go on from
    watch.restarted(0, {0: 0})
    while at < rounds and not any(isinstance(one, Fail) for one in found):
        at += at in left_out
        this = replace(usual(step + 1, 1), slices=((Slice(0, at, 0, 4, 4),),), loss=loss(at, factor))
        found += (new := seen(watch, this))
        step, at = step + 1, at + 1
        if step % every == 0:
            checkpoints[step] = at
        for back in (one for one in new if isinstance(one, Rollback)):
            step = max(s for s in checkpoints if s < back.before)
            at, factor = checkpoints[step], factor * back.rate_factor
            checkpoints = {s: b for s, b in checkpoints.items() if s <= step}
            left_out |= {s.block for s in back.samples}
            watch.restarted(step, {0: 0})
    return found


@pytest.mark.parametrize("every", [20, 50, 300])
@pytest.mark.parametrize("level", [1.6, 2.5])
def test_data_of_another_kind_is_no_divergence(level: float, every: int) -> None:
    """Corpora one after the other: from the 100th, the 200th, ... block on the loss is higher than before."""
    rng = random.Random(1)

    def loss(block: int, _: float) -> float:
        return level ** (block // 100) * rng.gauss(1, 0.03)

    found = train(Watch(Guard()), loss, rounds=450, every=every)
    assert not [one for one in found if isinstance(one, Fail)]
    said = [one.action for one in found if isinstance(one, Report)]
    assert said
    assert all("of another kind" in one for one in said)


def test_a_loss_that_the_learning_rate_drives_up_is_one() -> None:
    """It comes later at a lower rate, or is another one."""

    def loss(block: int, factor: float) -> float:
        return 1 + max(0.0, block - 60 / factor) * factor

    found = train(Watch(Guard()), loss, rounds=4000)
    assert [type(one) for one in found] == [Rollback] * MAX_ROLLBACKS + [Fail]


def test_a_loss_that_stays_high() -> None:
    watch = Watch(Guard())
    seen(watch, *(usual(i) for i in range(LEARNED)))
    assert seen(watch, usual(LEARNED, loss=9.0), usual(LEARNED + 1)) == [], "one hard batch"
    high = [usual(LEARNED + 2 + i, loss=9.0) for i in range(SPIKE_ROUNDS)]
    (back,) = seen(watch, *high)
    assert isinstance(back, Rollback)
    assert back.before == LEARNED + 1, "the update before the first high loss may have done it"
    assert set(back.samples) == {s for one in (usual(LEARNED + 1), high[0]) for each in one.slices for s in each}
    assert back.rate_factor == 1.0


def test_after_going_back_the_loss_is_what_it_was_then() -> None:
    """From the beginning, say: it is high again, and that is no spike."""
    watch = Watch(Guard())
    seen(watch, *(usual(i, loss=1.0) for i in range(LEARNED)))
    watch.restarted(LEARNED - 1, MEMBERS)
    (back,) = seen(watch, *(usual(LEARNED + i, loss=9.0) for i in range(SPIKE_ROUNDS)))
    assert isinstance(back, Rollback)
    watch.restarted(0, MEMBERS)
    assert seen(watch, *(usual(i, loss=9.0) for i in range(LEARNED))) == []


def test_a_checkpoint_in_between_hides_nothing() -> None:
    """Shards begin a membership epoch with each checkpoint, here right after the update that spoilt the parameters."""
    watch = Watch(Guard())
    seen(watch, *(usual(i) for i in range(LEARNED + 1)))
    assert seen(watch, usual(LEARNED + 1, loss=9.0)) == []
    watch.restarted(LEARNED + 1, MEMBERS)
    (back,) = seen(watch, *(usual(LEARNED + 2 + i, loss=9.0) for i in range(SPIKE_ROUNDS - 1)))
    assert isinstance(back, Rollback)
    assert back.before == LEARNED, "the checkpoint of step LEARNED + 1 is no good"


def test_rounds_without_samples_hide_nothing() -> None:
    watch = Watch(Guard())
    seen(watch, *(usual(i) for i in range(LEARNED + 1)))
    empty = [usual(LEARNED + 1 + i, loss=None) for i in range(3)]
    (back,) = seen(watch, *empty, *(usual(LEARNED + 4 + i, loss=9.0) for i in range(SPIKE_ROUNDS)))
    assert isinstance(back, Rollback)
    assert back.before == LEARNED


def test_loss_rules_that_are_off() -> None:
    for mode, kinds in (("Off", []), ("Report", [Report])):
        watch = Watch(Guard.model_validate({"lossSpike": mode}))
        seen(watch, *(usual(i) for i in range(LEARNED)))
        found = seen(watch, *(usual(LEARNED + i, loss=9.0) for i in range(2 * SPIKE_ROUNDS)))
        assert [type(one) for one in found] == kinds


def test_a_rank_with_outlier_after_outlier_is_evicted() -> None:
    watch = Watch(Guard(patience=3))
    found = seen(watch, *(odd(usual(i), 2, ODD) for i in range(3)))
    assert [type(one) for one in found] == [Report, Evict]
    assert isinstance(found[1], Evict)
    assert (found[1].kind, found[1].rank) == ("GradientOutlier", 2)
    again = Watch(Guard(patience=3))
    broken = [odd(usual(i), 2, ODD if i % 2 else GOOD) for i in range(9)]
    assert {type(one) for one in seen(again, *broken)} == {Report}


@pytest.mark.parametrize(("mode", "kind"), [("Report", Report), ("Replace", Evict)])
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_straggler(mode: str, kind: type[Measure], ranks: int) -> None:
    watch = Watch(Guard.model_validate({"straggler": mode}))
    slow = [replace(usual(i, ranks), seconds=(0.1,) * (ranks - 1) + (0.4,)) for i in range(2 * SLOW_ROUNDS)]
    (said,) = seen(watch, *slow)
    assert isinstance(said, kind)
    assert isinstance(said, Report | Evict)
    assert (said.kind, said.rank) == ("Straggler", ranks - 1)


def test_a_straggler_where_a_push_stands_alone() -> None:
    watch = Watch(Guard())
    watch.restarted(0, {0: 0, 1: 1})
    pushes = [alone(i, int(i % 5 == 4), 0.5 if i % 5 == 4 else 0.1) for i in range(5 * SLOW_ROUNDS)]
    (said,) = seen(watch, *pushes)
    assert isinstance(said, Report)
    assert (said.kind, said.rank) == ("Straggler", 1)


def behind(step: int) -> Round:
    return replace(usual(step), seconds=(0.1, 0.1, 0.4))


def test_checkpoints_in_between_hide_no_straggler_and_no_outliers() -> None:
    watch = Watch(Guard(patience=3))
    found = []
    for step in range(SLOW_ROUNDS):
        found += seen(watch, odd(behind(step), 1, ODD))
        watch.restarted(step, MEMBERS)
    assert [(type(one), one.kind) for one in found if isinstance(one, Report | Evict)] == [
        (Report, "GradientOutlier"), (Evict, "GradientOutlier"), (Report, "Straggler"),
    ]  # fmt: skip


def test_of_another_process_and_after_going_back_nothing_is_known() -> None:
    last = SLOW_ROUNDS - 1
    for step, members in ((last - 1, {**MEMBERS, 2: 3}), (last - 2, MEMBERS)):
        watch = Watch(Guard(patience=3))
        watch.restarted(0, MEMBERS)
        before = [behind(i) for i in range(last - 2)]
        seen(watch, *before, *(odd(behind(i), 2, ODD) for i in (last - 2, last - 1)))
        watch.restarted(step, members)
        (said,) = seen(watch, *(odd(behind(step + 1 + i), 2, ODD) for i in range(2)))
        assert isinstance(said, Report)
        assert said.kind == "GradientOutlier", "the first of them"


@pytest.mark.parametrize(("mode", "kind"), [("Report", Report), ("Replace", Evict)])
def test_a_successor_that_is_slow_too(mode: str, kind: type[Measure]) -> None:
    watch = Watch(Guard.model_validate({"straggler": mode}))
    found = []
    for joined in (2, 3):
        watch.restarted(0, {**MEMBERS, 2: joined})
        found += seen(watch, *(behind(i) for i in range(2 * SLOW_ROUNDS)))
    assert [type(one) for one in found] == [kind, kind]


@pytest.mark.parametrize(("seconds", "rounds"), [(0.4, 30), (4.0, 15), (12.0, 5), (600.0, 5)])
def test_long_rounds_count_for_several(seconds: float, rounds: int) -> None:
    watch = Watch(Guard())
    slow = [replace(usual(i), seconds=(seconds / 4, seconds / 4, seconds)) for i in range(rounds)]
    assert seen(watch, *slow[:-1]) == []
    (said,) = seen(watch, slow[-1])
    assert isinstance(said, Report)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param([(0.1, 0.2, 0.1)], id="less than twice and a half"),
        pytest.param([(0.001, 0.009, 0.001)], id="too short to matter"),
        pytest.param([(0.4, 0.1, 0.1), (0.1, 0.4, 0.1), (0.1, 0.1, 0.4)], id="in turn"),
    ],
)
def test_no_straggler(seconds: list[tuple[float, ...]]) -> None:
    watch = Watch(Guard())
    assert seen(watch, *(replace(usual(i), seconds=seconds[i % len(seconds)]) for i in range(300))) == []
