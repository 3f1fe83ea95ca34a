"""From what a membership epoch's shards start: nothing that anybody holds is given up, and all come to one step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_workloads.contract import CheckpointRef
from mms_workloads.sync.layout import Layout, Lost, Table, fetches
from mms_workloads.sync.leases import Progress
from mms_workloads.sync.shard_forming import HeldShard, ShardsBegin, Wanted, corrupt, decide

CHECKPOINT = (CheckpointRef(uri="file:///c", step=3, digest="sha256:0", time="t"), Progress([3]))
EMPTY = HeldShard()


def wanted(shards: int = 2, replicas: int = 2, *, synchronous: bool = True) -> Wanted:
    return Wanted(shards, replicas, synchronous, blocks=1)


def held(layout: int, step: int, *, replica: int | None = None, lineage: str = "a") -> HeldShard:
    """Of a layout of so many shards, with a replica at the same step unless another one is given."""
    second = step if replica is None else replica
    return HeldShard(layout, lineage, step, True, Progress([step]), second, Progress([max(second, 0)]))


def sources(begin: ShardsBegin) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    return begin.state, begin.replica


def test_nobody_holds_anything() -> None:
    begin = decide(wanted(), {0: EMPTY, 1: EMPTY}, None)
    assert sources(begin) == (("start", "start"), ("start", "start"))
    assert (begin.step, begin.progress, begin.settle) == (0, Progress([0]), False)
    begin = decide(wanted(), {0: EMPTY, 1: EMPTY}, CHECKPOINT)
    assert sources(begin) == (("load", "load"), ("load", "load"))
    assert (begin.step, begin.progress, begin.checkpoint) == (3, Progress([3]), CHECKPOINT[0])


def test_all_hold_the_same() -> None:
    begin = decide(wanted(), {0: held(2, 7), 1: held(2, 7)}, CHECKPOINT)
    assert sources(begin) == (("keep", "keep"), ("keep", "keep"))
    assert (begin.step, begin.progress, begin.checkpoint) == (7, Progress([7]), None)


def test_a_state_that_is_not_what_its_replica_is() -> None:
    """Shard 1's replica is on shard 0 (of two), shard 0's on shard 1."""
    equal = {
        0: replace(held(2, 7), checksum="a", replica_checksum="b"),
        1: replace(held(2, 7), checksum="b", replica_checksum="a"),
    }
    assert corrupt(equal) == []
    assert corrupt({**equal, 1: replace(equal[1], checksum="x")}) == [1]
    assert corrupt({**equal, 1: replace(equal[1], replica_checksum="x")}) == [0]
    behind = replace(equal[1], replica_step=6, replica_checksum="x")
    assert corrupt({**equal, 1: behind}) == [], "an earlier step"
    assert corrupt({**equal, 1: replace(equal[1], lineage="other", checksum="x")}) == []
    assert corrupt({0: equal[0], 1: EMPTY}) == []
    assert corrupt({0: held(2, 7), 1: held(2, 7)}) == [], "not compared"


def test_one_is_a_step_ahead() -> None:
    """It goes back: the others cannot be brought forward, since a push for that step was lost."""
    begin = decide(wanted(), {0: held(2, 8), 1: held(2, 7)}, CHECKPOINT)
    assert sources(begin) == (("keep", "keep"), ("keep", "keep"))
    assert (begin.step, begin.progress, begin.settle) == (7, Progress([7]), True)


@pytest.mark.parametrize("ahead", [held(2, 9), replace(held(2, 8), back=False)], ids=["too far", "it cannot go back"])
def test_steps_that_cannot_meet(ahead: HeldShard) -> None:
    begin = decide(wanted(), {0: ahead, 1: held(2, 7)}, CHECKPOINT)
    assert begin.state == ("load", "load")


def test_a_lost_shard_comes_back_from_its_copy() -> None:
    begin = decide(wanted(), {0: EMPTY, 1: held(2, 7)}, CHECKPOINT)
    assert sources(begin) == (("fetch", "keep"), ("fetch", "keep"))
    assert (begin.step, begin.before, begin.states, begin.replicas) == (7, 2, (1,), (1,))


def test_the_copy_of_a_lost_shard_is_a_step_ahead_of_the_others() -> None:
    begin = decide(wanted(), {0: EMPTY, 1: held(2, 7, replica=8)}, CHECKPOINT)
    assert (begin.step, begin.settle) == (7, True)
    assert begin.state == ("fetch", "keep")


def test_a_copy_that_is_behind_its_primary_is_made_anew() -> None:
    """The primary had applied a step that it could not forward any more."""
    begin = decide(wanted(), {0: held(2, 8), 1: held(2, 8, replica=7)}, CHECKPOINT)
    assert sources(begin) == (("keep", "keep"), ("keep", "fetch"))
    assert begin.replicas == (0,), "the copy itself is not what it is made from"


@pytest.mark.parametrize("synchronous", [False, True])
@pytest.mark.parametrize("shards", [2, 3])
def test_all_copies_are_behind(synchronous: bool, shards: int) -> None:
    """All shards have applied an update, and none has forwarded it. Nothing is made from their copies."""
    behind = {0: held(2, 8, replica=7), 1: held(2, 8, replica=7), 2: EMPTY}
    begin = decide(wanted(shards, synchronous=synchronous), {r: behind[r] for r in range(shards)}, CHECKPOINT)
    assert (begin.step, begin.states, begin.replicas) == (8, (0, 1), ())
    assert begin.replica == ("fetch",) * shards
    layouts = [Layout((Table("rows", 12),), count) for count in (2, shards)]
    for rank in range(shards):
        plan = fetches(*layouts, rank, states=begin.states, replicas=begin.replicas, near=(rank + 1) % shards)
        assert not isinstance(plan, Lost)
        assert not any(fetch.replica for fetch in plan)


def test_without_copies_a_lost_shard_takes_all_back_to_the_checkpoint() -> None:
    begin = decide(wanted(replicas=1), {0: EMPTY, 1: held(2, 7, replica=-1)}, CHECKPOINT)
    assert sources(begin) == (("load", "load"), (None, None))


def test_shards_that_were_cut_off_hold_less_than_the_checkpoint() -> None:
    """Those that went on without them are gone."""
    begin = decide(wanted(), {0: held(2, 2), 1: held(2, 2)}, CHECKPOINT)
    assert (begin.step, begin.checkpoint, begin.state) == (3, CHECKPOINT[0], ("load", "load"))
    # Without steps in common their numbers cannot be compared.
    begin = decide(wanted(synchronous=False), {0: held(2, 2), 1: held(2, 2)}, CHECKPOINT)
    assert begin.state == ("keep", "keep")


def test_a_shard_that_was_cut_off_brings_an_older_lineage() -> None:
    begin = decide(wanted(), {0: held(2, 5, lineage="old"), 1: held(2, 7)}, CHECKPOINT)
    assert sources(begin) == (("fetch", "keep"), ("fetch", "keep"))
    assert begin.states == (1,)


@pytest.mark.parametrize("after", [1, 3])
def test_another_number_of_shards(after: int) -> None:
    before = {0: held(2, 7), 1: held(2, 7)}
    if after == 3:
        before[2] = EMPTY
    begin = decide(wanted(after), before, CHECKPOINT)
    assert begin.state == ("fetch",) * after
    assert begin.replica == (("fetch",) * after if after > 1 else (None,))
    assert (begin.step, begin.before, begin.states) == (7, 2, (0, 1))


def test_without_synchrony_each_keeps_its_step_and_the_least_progress_counts() -> None:
    begin = decide(wanted(synchronous=False), {0: held(2, 12), 1: held(2, 9, replica=12)}, CHECKPOINT)
    assert sources(begin) == (("keep", "keep"), ("fetch", "keep"))
    assert (begin.progress, begin.settle) == (Progress([9]), False)


@pytest.mark.parametrize("after", [1, 3])
def test_rows_of_different_samples_stay_where_they_are(after: int) -> None:
    """Without synchrony one shard has a push that was cut off before the other got it."""
    before = {0: held(2, 12), 1: held(2, 9)}
    assert decide(wanted(after, 1, synchronous=False), before, CHECKPOINT).state == ("keep", "keep")
    gone = {1: held(2, 9, replica=11), 2: EMPTY}
    begin = decide(wanted(after, 2, synchronous=False), gone, CHECKPOINT)
    assert begin.state == ("load",) * after, "nobody could finish in the layout before"


@given(
    st.dictionaries(
        st.integers(0, 3),
        st.builds(
            HeldShard,
            layout=st.integers(0, 3),
            lineage=st.sampled_from("ab"),
            step=st.integers(-1, 4),
            back=st.booleans(),
            progress=st.just(Progress([0])),
            replica_step=st.integers(-1, 4),
            replica_progress=st.just(Progress([0])),
        ),
    ),
    st.integers(1, 3),
    st.integers(1, 2),
    st.booleans(),
)
def test_whatever_is_held_there_is_a_beginning(
    found: dict[int, HeldShard], shards: int, replicas: int, synchronous: bool
) -> None:
    for checkpoint in (None, CHECKPOINT):
        begin = decide(wanted(shards, replicas, synchronous=synchronous), found, checkpoint)
        assert len(begin.state) == len(begin.replica) == shards
        for rank in range(shards):
            if begin.state[rank] == "keep":
                assert found[rank].layout == shards
                assert not begin.settle or begin.step <= found[rank].step <= begin.step + 1
        assert ("load" in begin.state) == (begin.checkpoint is not None)


@given(st.integers(0, 3), st.integers(-1, 9), st.booleans())
def test_what_a_shard_holds_travels(layout: int, step: int, back: bool) -> None:
    one = HeldShard(layout, "l", step, back, Progress([1, 2], {1: (3, 4)}), -1, Progress([]))
    assert HeldShard.read(one.document()) == one
