"""When pushes become part of the state: orders of arrival, refusals, staleness, overtaking."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mms_workloads.contract import Optimizer, ParameterServer
from mms_workloads.sync import consistency, optimizers
from mms_workloads.sync.compression import encode
from mms_workloads.sync.consistency import Relaxed, Synchronous
from mms_workloads.sync.cursors import Refusal
from mms_workloads.sync.layout import Layout, Table
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.sync.push import Delta, Push
from mms_workloads.sync.shard_state import ShardState, Update
from mms_workloads.train.merge import MOST_CURVATURE, merge_scale

TABLES = (Table("dense", 2000), Table("vectors", 12, 3, sparse=True))
SGD = optimizers.of(Optimizer(name="SGD"))
ADAMW = optimizers.of(Optimizer(name="AdamW"))


def state_of(tables=TABLES, rule=SGD, *, shard=0, shards=1, undo=True, blocks=10):
    state = ShardState(Layout(tables, shards), shard, rule, undo=undo)
    for table in tables:
        state.filled(table.name, *state.window(table.name))
    state.begin(0, Progress.none(blocks))
    return state


def pushes(members, step=0, wire="None", rng_seed=0):
    rng = torch.Generator().manual_seed(rng_seed)
    made = []
    for member in range(members):
        gradient = torch.randn(2000, generator=rng)
        rows = torch.rand(12, generator=rng).argsort()[:5].sort().values
        delta = Delta(rows, torch.randn(5, 3, generator=rng), torch.rand(5, generator=rng) * 400)
        samples = float(member + 1)
        gradients = {"dense": encode(gradient, wire)}
        made.append(
            Push(step, 0.1, samples, (Slice(0, member, 0, 2, 4),), {"rank": member}, gradients, {"vectors": delta})
        )
    return made


def take(mode, state, position, push):
    """Offers and applies. Returns what was decided."""
    decided = mode.offer(state, position, push)
    if isinstance(decided, Update):
        state.apply(decided)
        mode.settle(state, decided)
    return decided


# ---------------------------------------------------------------------- Synchronous


@pytest.mark.parametrize("wire", ["None", "BF16", "Int8"])
@pytest.mark.parametrize("members", [1, 2, 3, 4])
def test_the_same_bits_whatever_the_order_of_arrival(members, wire):
    results = []
    for order in itertools.permutations(range(members)):
        state, mode = state_of(rule=ADAMW), Synchronous(members)
        for step in range(2):
            made = pushes(members, step, wire, rng_seed=step)
            made = [
                Push(
                    p.step,
                    p.rate,
                    p.samples,
                    (Slice(0, i, 2 * step, 2 * step + 2, 4),),
                    p.contribution,
                    p.gradients,
                    p.deltas,
                )
                for i, p in enumerate(made)
            ]
            for count, position in enumerate(order, 1):
                assert mode.answer(state, position, made[position]) is None
                decided = take(mode, state, position, made[position])
                assert (decided is None) == (count < members)
                assert (
                    sorted(mode.awaited())
                    == sorted(set(range(members)) - set(order[:count]))[: members * (count < members)]
                )
        answer = mode.answer(state, 0, made[0])
        assert answer is not None
        assert answer.step == state.step == 2
        assert [c["rank"] for c in answer.contributions] == list(range(members))
        assert answer.included == (True,) * members
        assert state.progress.applied[:members] == [1] * members
        results.append(state.checksums())
    assert all(result == results[0] for result in results)


def test_the_mean_over_all_samples_and_the_ring_s_merge():
    state, mode, made = state_of(), Synchronous(3), pushes(3)
    expected = sum(p.gradients["dense"][0] for p in made) / 6
    touches, ranks, delta = torch.zeros(12), torch.zeros(12), torch.zeros(12, 3)
    for p in made:
        d = p.deltas["vectors"]
        touches[d.rows] += d.touches
        ranks[d.rows] += 1
        delta[d.rows] += d.values
    delta *= merge_scale(touches, ranks, 0.1)[:, None]
    for position, push in enumerate(made):
        take(mode, state, position, push)
    torch.testing.assert_close(state.part("dense", 0, 2000)["parameters"][:, 0], -0.1 * expected)
    torch.testing.assert_close(state.part("vectors", 0, 12)["parameters"], delta)


def test_members_without_data_and_rounds_without_any():
    state, mode, made = state_of(), Synchronous(2), pushes(2)
    take(mode, state, 0, Push(0, 0.1, contribution={"rank": 0}))
    take(mode, state, 1, made[1])
    alone = state_of()
    take(Synchronous(1), alone, 0, pushes(2)[1])
    assert state.checksums() == alone.checksums()
    before = state.checksums()
    for position in range(2):
        take(mode, state, position, Push(1, 0.1))
    assert (state.step, state.checksums()) == (2, before)
    state.rollback_to(1)
    assert state.checksums() == before


def test_who_is_judged_out_counts_as_seen():
    def judge(contributions):
        # A gradient that is not finite on one rank stops the round for all; else an outlier is left out.
        if any(c.get("finite") is False for c in contributions):
            return [False] * len(contributions)
        return [not c.get("outlier") for c in contributions]

    def run(first, second):
        state, mode = state_of(), Synchronous(2, judge)
        for position, (push, about) in enumerate(zip(pushes(2), (first, second), strict=True)):
            take(mode, state, position, Push(0, 0.1, push.samples, push.slices, about, push.gradients, push.deltas))
        answer = mode.answer(state, 0, Push(0))
        return state, answer.included

    untouched = state_of().checksums()
    state, included = run({}, {"finite": False})
    assert included == (False, False)
    assert (state.step, state.checksums()) == (1, untouched)
    assert state.progress.start(0) == state.progress.start(1) == 2
    state, included = run({"outlier": True}, {})
    assert included == (False, True)
    alone = state_of()
    take(Synchronous(1), alone, 0, pushes(2)[1])
    assert state.checksums() == alone.checksums()
    assert state.progress.start(0) == 2


def test_a_push_that_is_sent_again_is_answered_again_and_applied_once():
    state, mode, made = state_of(), Synchronous(2), pushes(2)
    assert take(mode, state, 0, made[0]) is None
    assert take(mode, state, 0, made[0]) is None
    assert mode.awaited() == [1]
    assert isinstance(take(mode, state, 1, made[1]), Update)
    after = state.checksums()
    for position in (1, 0, 1):
        assert take(mode, state, position, made[position]) is None
        assert mode.answer(state, position, made[position]).step == 1
    assert (state.step, state.checksums()) == (1, after)


def test_slices_that_the_shard_has_are_ignored_and_answered():
    # A master that has not heard of a step leases its samples again: to all shards alike.
    state, mode = state_of(), Synchronous(2)
    for position, push in enumerate(pushes(2)):
        take(mode, state, position, push)
    before = state.checksums()
    again = [Push(1, 0.1, p.samples, p.slices, {}, p.gradients, p.deltas) for p in pushes(2)]
    for position, push in enumerate(again):
        take(mode, state, position, push)
    answer = mode.answer(state, 0, again[0])
    assert answer.included == (False, False)
    assert (answer.step, state.checksums()) == (2, before)


REFUSED = {
    "a step behind": (Push(3), "the shard is at 5"),
    "a step ahead": (Push(6), "the shard is at 5"),
    "rate": (Push(5, math.nan), "rate of nan"),
    "samples": (Push(5, 0.1, -1), "-1 samples"),
    "table": (Push(5, 0.1, 1, gradients={"other": [torch.zeros(3)]}), "no dense table 'other'"),
    "sparse as dense": (Push(5, 0.1, 1, gradients={"vectors": [torch.zeros(36)]}), "no dense table 'vectors'"),
    "size": (Push(5, 0.1, 1, gradients={"dense": [torch.zeros(1999)]}), "2000 numbers"),
    "type": (Push(5, 0.1, 1, gradients={"dense": [torch.zeros(2000).double()]}), "2000 numbers"),
    "sparse table": (
        Push(5, deltas={"dense": Delta(torch.zeros(0), torch.zeros(0), torch.zeros(0))}),
        "no sparse table",
    ),
    "rows twice": (
        Push(5, deltas={"vectors": Delta(torch.tensor([1, 1]), torch.zeros(2, 3), torch.zeros(2))}),
        "not ascending",
    ),
    "rows of others": (
        Push(5, deltas={"vectors": Delta(torch.tensor([1, 12]), torch.zeros(2, 3), torch.zeros(2))}),
        "shard's rows 0 to 12",
    ),
    "values": (
        Push(5, deltas={"vectors": Delta(torch.tensor([1]), torch.zeros(1, 4), torch.zeros(1))}),
        "values are torch.float32 (1, 4)",
    ),
    "touches": (
        Push(5, deltas={"vectors": Delta(torch.tensor([1]), torch.zeros(1, 3), torch.zeros(2))}),
        "touches are",
    ),
    "a gap": (Push(5, slices=(Slice(0, 3, 3, 4, 10),)), "leaves out samples"),
    "applied in part": (Push(5, slices=(Slice(0, 2, 1, 4, 10),)), "applied in part, up to data epoch 0, sample 2"),
    "a later data epoch": (Push(5, slices=(Slice(1, 2, 0, 4, 10),)), "leaves out samples"),
    "some applied": (Push(5, slices=(Slice(0, 2, 0, 2, 10), Slice(0, 3, 0, 2, 10))), "push them one by one"),
    "no block": (Push(5, slices=(Slice(0, 10, 0, 2, 10),)), "a data set of 10 blocks"),
    "an empty slice": (Push(5, slices=(Slice(0, 1, 2, 2, 10),)), "no part of a data set"),
    "two members' block": (Push(5, slices=(Slice(0, 7, 0, 2, 10),)), "blocks [7] are in another member's push"),
}


@pytest.mark.parametrize(("push", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refused_push_changes_nothing(push, why):
    state, mode = state_of(), Synchronous(2)
    state.progress.commit([Slice(0, 2, 0, 2, 10)])
    state.step = 5
    assert mode.offer(state, 0, Push(5, slices=(Slice(0, 7, 0, 2, 10),))) is None
    before, progress = state.checksums(), state.progress.copy()
    decided = mode.offer(state, 1, push)
    assert isinstance(decided, Refusal)
    assert why in decided.message
    assert mode.awaited() == [1]
    assert (state.step, state.checksums(), state.progress) == (5, before, progress)


def test_other_samples_for_a_step_that_was_pushed_for():
    state, mode = state_of(), Synchronous(2)
    mode.offer(state, 0, Push(0, slices=(Slice(0, 1, 0, 1, 2),)))
    decided = mode.offer(state, 0, Push(0, slices=(Slice(0, 2, 0, 1, 2),)))
    assert isinstance(decided, Refusal)
    assert "has pushed other samples" in decided.message


# ---------------------------------------------------------------------- without synchrony


@pytest.mark.parametrize("staleness", [0, 1, 4, None])
def test_who_waits_for_whom(staleness):
    state, mode = state_of(), Relaxed(3, staleness)
    for count in range(1, 8):
        push = Push(count - 1, contribution={"n": count})
        assert mode.answer(state, 0, push) is None  # not before it has come
        assert take(mode, state, 0, push) is None
        waits = staleness is not None and count > staleness
        assert (mode.answer(state, 0, push) is None) == waits
        assert mode.awaited() == ([1, 2] if waits else [])
    if staleness is None:
        assert mode.answer(state, 0, push).contributions == ({"n": 7}, None, None)
        return
    last = push
    for count in range(7 - staleness):
        assert mode.answer(state, 0, last) is None
        for position in (1, 2):
            push = Push(count)
            take(mode, state, position, push)
            assert mode.answer(state, position, push) is not None or staleness == 0
    assert mode.answer(state, 0, last) is not None
    assert mode.awaited() == []


def test_nobody_waits_for_one_that_has_left():
    """Workers leave an epoch one by one: one that is ahead would never come to the end of its round."""
    state, mode = state_of(), Relaxed(3, 0)
    push = Push(0)
    take(mode, state, 0, push)
    take(mode, state, 1, push)
    assert mode.answer(state, 0, push) is None
    mode.leave(2)
    assert mode.awaited() == []
    assert mode.answer(state, 0, push) is not None
    last = Push(1)
    take(mode, state, 0, last)
    assert (mode.answer(state, 0, last), mode.awaited()) == (None, [1])
    mode.leave(1)
    assert mode.answer(state, 0, last) is not None
    mode.leave(0)
    assert mode.awaited() == []


def test_each_push_is_an_update_of_its_own():
    state, mode = state_of(rule=ADAMW, undo=False), Relaxed(2, 4)
    expected, slots = torch.zeros(2000), {name: torch.zeros(2000) for name in ADAMW.slots}
    for step in range(6):
        position = (0, 0, 1, 0, 1, 1)[step]
        push = pushes(2, (0, 1, 0, 2, 1, 2)[step], rng_seed=step)[position]
        gradient = push.gradients["dense"][0] / push.samples
        ADAMW.update_(expected, slots, gradient, 0.1, step + 1)
        decided = take(mode, state, position, Push(push.step, 0.1, push.samples, (), {}, push.gradients))
        assert isinstance(decided, Update)
        assert mode.answer(state, position, push).step == step + 1
    assert torch.equal(state.part("dense", 0, 2000)["parameters"][:, 0], expected)


def test_a_push_that_is_sent_again_counts_once():
    state, mode = state_of(), Relaxed(2, 0)
    push = pushes(1)[0]
    assert isinstance(take(mode, state, 0, push), Update)
    before = state.checksums()
    assert take(mode, state, 0, push) is None
    assert mode.answer(state, 0, push) is None
    take(mode, state, 1, Push(0))
    assert mode.answer(state, 0, push).step == 1
    assert state.checksums() == before
    decided = take(mode, state, 0, Push(2))
    assert isinstance(decided, Refusal)
    assert "does not follow the 1" in decided.message


def test_slices_that_the_shard_has_are_ignored_but_count_as_a_push():
    state, mode = state_of(), Relaxed(2, None)
    first = pushes(1)[0]
    take(mode, state, 0, first)
    before = state.checksums()
    again = Push(0, 0.1, first.samples, first.slices, {}, first.gradients, first.deltas)
    assert take(mode, state, 1, again) is None
    answer = mode.answer(state, 1, again)
    assert answer.included == (True, False)
    assert (answer.step, state.checksums()) == (1, before)


def test_judged_out_without_synchrony():
    state, mode = state_of(), Relaxed(1, None, lambda contributions: [c["rank"] != 0 for c in contributions])
    before = state.checksums()
    take(mode, state, 0, pushes(1)[0])
    assert mode.answer(state, 0, Push(0)).included == (False,)
    assert (state.checksums(), state.progress.start(0)) == (before, 2)


def test_modes():
    def made(**mode):
        return consistency.of(ParameterServer(**mode), 2)

    assert isinstance(made(), Synchronous)
    state, push = state_of(), Push(0)
    for mode, answered in (
        (made(consistency="BoundedStaleness", staleness=0), False),
        (made(consistency="BoundedStaleness", staleness=1), True),
        (made(consistency="Asynchronous", staleness=0), True),
    ):
        take(mode, state, 0, push)
        assert (mode.answer(state, 0, push) is not None) == answered


# ---------------------------------------------------------------------- deltas of workers that overtake each other


def converge(workers, periods, touches, *, rate=0.05, scaled=True, rounds=60, noise=0.0):
    """Distances to the goal over time, of one row, for workers that take turns of different lengths.

    The model of train.merge: k gradient steps close 1 - exp(-k rate curvature) of the gap to where the data pull.
    """
    table = (Table("vectors", 1, 1, sparse=True),)
    state, mode = state_of(table, undo=False), Relaxed(workers, None)
    rows, goal = torch.zeros(1, dtype=torch.int64), torch.tensor([[1.0]])
    closes = 1 - math.exp(-touches * rate * MOST_CURVATURE)
    rng = torch.Generator().manual_seed(0)
    base, made, due, gaps = [torch.zeros(1, 1)] * workers, [0] * workers, list(periods), []
    for worker in range(workers):
        mode.pulled(state, worker, "vectors", rows)
    for _ in range(rounds * workers):
        worker = min(range(workers), key=lambda w: (due[w], w))
        due[worker] += periods[worker]
        own = goal + noise * torch.randn(1, 1, generator=rng)
        delta = Delta(rows, (own - base[worker]) * closes, torch.tensor([float(touches)]))
        if scaled:
            take(mode, state, worker, Push(made[worker], rate, 0, (), {}, {}, {"vectors": delta}))
            made[worker] += 1
        else:
            state.sparse["vectors"].add(rows, delta.values)
        base[worker] = state.rows("vectors", rows)
        mode.pulled(state, worker, "vectors", rows)
        gaps.append(abs(float(goal - base[worker])))
    return gaps


SPEEDS = {"alike": (1.0, 1.0, 1.0, 1.0), "different": (1.0, 1.7, 2.9, 7.1), "one very slow": (1.0, 1.0, 1.0, 40.0)}


@pytest.mark.parametrize("speeds", SPEEDS.values(), ids=SPEEDS.keys())
@pytest.mark.parametrize("touches", [1, 20, 100, 1000, 100_000])
def test_deltas_converge_whatever_the_speeds_and_frequencies(speeds, touches):
    gaps = converge(4, speeds, touches, rounds=100 if touches > 1 else 600)
    assert gaps[-1] < 1e-3 if touches > 1 else gaps[-1] < 1e-2
    assert max(gaps) <= 1 + 1 / 2 + 1 / 3 + 1 / 4 - 1 + 1e-6 or max(gaps) <= 1.0  # the overshoot that is documented


def test_without_the_scale_frequent_rows_diverge():
    assert converge(4, SPEEDS["alike"], 1000, scaled=False)[-1] > 1e3
    assert converge(4, SPEEDS["alike"], 1000)[-1] < 1e-6


def test_rare_rows_learn_as_fast_as_with_a_plain_sum():
    scaled = converge(4, SPEEDS["alike"], 2, rounds=40)[-1]
    plain = converge(4, SPEEDS["alike"], 2, rounds=40, scaled=False)[-1]
    assert scaled == pytest.approx(plain, rel=0.2)
    assert scaled < 0.1


def test_noise_is_averaged_over_workers():
    # The mean of what n workers found varies less than what one of them found: no worker's work is thrown away.
    def spread(workers):
        gaps = converge(workers, (1.0,) * workers, 1000, rounds=400, noise=1.0)
        return math.sqrt(sum(g * g for g in gaps[100:]) / len(gaps[100:]))

    alone, together = spread(1), spread(4)
    assert alone == pytest.approx(1.0, rel=0.15)
    assert together < 0.75 * alone


def test_a_worker_that_nobody_overtook_is_not_scaled():
    state, mode = state_of(), Relaxed(2, None)
    rows = torch.tensor([2, 5])
    for step in range(3):
        mode.pulled(state, 0, "vectors", rows)
        before = state.rows("vectors", rows)
        delta = Delta(rows, torch.full((2, 3), 0.3), torch.full((2,), 1e6))
        take(mode, state, 0, Push(step, 0.1, deltas={"vectors": delta}))
        torch.testing.assert_close(state.rows("vectors", rows), before + 0.3)
    # The other one pulled nothing yet: three deltas came before its own.
    delta = Delta(rows[:1], torch.full((1, 3), 0.4), torch.full((1,), 1e6))
    before = state.rows("vectors", rows)
    take(mode, state, 1, Push(0, 0.1, deltas={"vectors": delta}))
    torch.testing.assert_close(state.rows("vectors", rows), before + torch.tensor([[0.1], [0.0]]))
