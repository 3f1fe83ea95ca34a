"""A shard's memory: steps, the way back, replicas, copies while steps go on, other numbers of shards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_workloads.contract import Optimizer
from mms_workloads.sync import optimizers, shard_tables
from mms_workloads.sync.layout import Fetch, Layout, Lost, Table, fetches
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.sync.shard_state import Rows, ShardState, Update
from mms_workloads.sync.shard_tables import checksum

TABLES = (Table("dense", 23), Table("vectors", 31, 3, sparse=True))
RULES = {
    "SGD": optimizers.of(Optimizer(name="SGD")),
    "momentum": optimizers.of(Optimizer(name="SGD", momentum=0.9, weightDecay=0.01)),
    "Adagrad": optimizers.of(Optimizer(name="Adagrad")),
    "AdamW": optimizers.of(Optimizer(name="AdamW", weightDecay=0.01)),
}
BLOCKS = 100


@pytest.fixture(params=RULES.values(), ids=RULES.keys())
def rule(request):
    return request.param


def filled(layout, shard, rule, *, undo=True):
    """At step 0, with numbers that depend on the row only."""
    state = ShardState(layout, shard, rule, undo=undo)
    for table in layout.tables:
        start, stop = state.window(table.name)
        whole = torch.randn(table.rows, table.columns, generator=torch.Generator().manual_seed(table.rows))
        state.part(table.name, start, stop)["parameters"].copy_(whole[start:stop])
        state.filled(table.name, start, stop)
    state.begin(0, Progress.none(BLOCKS))
    return state


def update(state, step, *, empty=()):
    """The part of step `step` that belongs to the state's shard; the whole is the same for any number of shards."""
    rng = torch.Generator().manual_seed(1000 + step)
    gradient, values = torch.randn(23, generator=rng), torch.randn(31, 3, generator=rng)
    rows = torch.rand(31, generator=rng).argsort()[:11].sort().values
    start, stop = state.window("dense")
    first, last = state.window("vectors")
    rows = rows[(rows >= first) & (rows < last)]
    gradients = {} if "dense" in empty else {"dense": gradient[start:stop].clone()}
    deltas = {} if "vectors" in empty else {"vectors": Rows(rows, values[rows])}
    slices = (Slice(0, step % BLOCKS, 0, 5, 10), Slice(0, step % BLOCKS, 5, 10, 10), Slice(0, 99, step - 1, step, 1000))
    return Update(step, 0.1 / step, slices, gradients, deltas)


def apply(states, step, **options):
    for state in states:
        state.apply(update(state, step, **options))


def contents(*states):
    """All rows of all slots, in order, with step and progress: copies."""
    whole = {}
    for table in states[0].layout.tables:
        parts = [state.part(table.name, *state.window(table.name)) for state in states]
        for slot in parts[0]:
            whole[f"{table.name}.{slot}"] = torch.cat([part[slot] for part in parts])
    return whole, states[0].step, states[0].progress.copy().document()


def same(a, b):
    return a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
@pytest.mark.parametrize("at", [0, 1, 6])
def test_any_shards_that_are_a_step_ahead_go_back_to_the_bit(rule, shards, at):
    layout = Layout(TABLES, shards)
    for ahead in range(2**shards):
        states = [filled(layout, shard, rule) for shard in range(shards)]
        for step in range(1, at + 1):
            apply(states, step)
        expected = contents(*states)
        apply([state for shard, state in enumerate(states) if ahead >> shard & 1], at + 1)
        for state in states:
            state.rollback_to(at)
        assert same(contents(*states), expected)
        # and what follows is as if nothing had happened
        apply(states, at + 1)
        undisturbed = [filled(layout, shard, rule) for shard in range(shards)]
        for step in range(1, at + 2):
            apply(undisturbed, step)
        assert same(contents(*states), contents(*undisturbed))


def test_back_over_a_step_that_changed_nothing(rule):
    state = filled(Layout(TABLES, 1), 0, rule)
    apply([state], 1)
    before = contents(state)
    for empty in (("dense",), ("vectors",), ("dense", "vectors")):
        apply([state], 2, empty=empty)
        state.rollback_to(1)
        assert same(contents(state), before)
    apply([state], 2, empty=("dense", "vectors"))
    empty = contents(state)
    apply([state], 3)
    state.rollback_to(2)
    assert same(contents(state), empty)
    apply([state], 3)
    after, expected = contents(state), filled(Layout(TABLES, 1), 0, rule)
    apply([expected], 1)
    apply([expected], 2, empty=("dense", "vectors"))
    apply([expected], 3)
    assert same(after, contents(expected))


def test_how_far_back():
    state = filled(Layout(TABLES, 1), 0, RULES["AdamW"])
    assert not state.can_go_back
    apply([state], 1)
    apply([state], 2)
    state.rollback_to(2)
    assert state.can_go_back
    for wrong in (0, 3):
        with pytest.raises(ValueError, match="restore the last checkpoint"):
            state.rollback_to(wrong)
    state.rollback_to(1)
    with pytest.raises(ValueError, match="cannot go back to 0"):
        state.rollback_to(0)
    without = filled(Layout(TABLES, 1), 0, RULES["AdamW"], undo=False)
    apply([without], 1)
    with pytest.raises(ValueError, match="cannot go back"):
        without.rollback_to(0)


@pytest.mark.parametrize("undo", [True, False])
def test_an_update_that_does_not_follow_changes_nothing(rule, undo):
    state = filled(Layout(TABLES, 1), 0, rule, undo=undo)
    apply([state], 1)
    before = contents(state)
    with pytest.raises(ValueError, match="does not follow step 1"):
        state.apply(update(state, 3))
    with pytest.raises(ValueError, match="does not follow step 1"):
        state.apply(update(state, 1))
    with pytest.raises(ValueError, match="does not follow data epoch"):
        state.apply(Update(2, 0.1, (Slice(0, 50, 3, 6, 10),), {"dense": torch.ones(23)}))
    assert same(contents(state), before)
    apply([state], 2)


def test_the_same_with_and_without_a_way_back(rule):
    layout = Layout(TABLES, 2)
    with_undo, without = [[filled(layout, shard, rule, undo=undo) for shard in (0, 1)] for undo in (True, False)]
    for step in range(1, 8):
        apply(with_undo + without, step)
    assert same(contents(*with_undo), contents(*without))


def test_two_versions_are_enough(rule):
    # A step writes where the step before the last was: it costs no fresh memory.
    state = filled(Layout(TABLES, 1), 0, rule)
    seen = set()
    for step in range(1, 10):
        apply([state], step)
        seen |= {(slot, t.data_ptr()) for slot, t in state.dense["dense"].current.items()}
    assert len(seen) <= 2 * (1 + len(rule.slots))


@settings(deadline=None)
@given(
    numbers=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    name=st.sampled_from(sorted(RULES)),
    steps=st.integers(0, 4),
    lost=st.integers(0, 4),
)
def test_other_numbers_of_shards_keep_every_bit(numbers, name, steps, lost):
    """Parameters and slots, over changes of the number of shards in which one shard is lost and its replica used."""
    rule = RULES[name]

    def move(before, replicas, layout, gone):
        after = []
        alive = {shard for shard in range(len(before)) if shard != gone or len(before) == 1}
        for shard in range(layout.shards):
            plan = fetches(before[0].layout, layout, shard, states=alive, replicas=alive, near=shard)
            assert not isinstance(plan, Lost)
            after.append(take(plan, before, replicas, ShardState(layout, shard, rule, undo=True)))
        return after

    single = filled(Layout(TABLES, 1), 0, rule)
    states = [filled(Layout(TABLES, numbers[0]), shard, rule) for shard in range(numbers[0])]
    replicas = [filled(Layout(TABLES, numbers[0]), (shard - 1) % numbers[0], rule) for shard in range(numbers[0])]
    step = 0
    for number in numbers[1:]:
        for _ in range(steps):
            step += 1
            apply([single, *states, *replicas], step)
        layout = Layout(TABLES, number)
        states = move(states, replicas, layout, lost)
        replicas = [take([], states, [], ShardState(layout, (s - 1) % number, rule, undo=True)) for s in range(number)]
    for state in states:
        assert state.step == step
    whole, expected = contents(*states), contents(single)
    assert whole[1:] == expected[1:]
    # A vector instruction's last, shorter group may round otherwise, and it is elsewhere in another shard: that is in
    # the arithmetic of a step; moving rows changes nothing.
    for key in expected[0]:
        torch.testing.assert_close(whole[0][key], expected[0][key], rtol=1e-5, atol=1e-6)


def take(plan, states, replicas, state):
    """Fills a state with others' rows."""
    if not plan:
        owner = state.shard
        plan = [Fetch(owner, False, t.name, *state.layout.bounds(t.name, owner)) for t in state.layout.tables]
    for fetch in plan:
        source = (replicas if fetch.replica else states)[fetch.source]
        for slot, tensor in source.part(fetch.table, fetch.start, fetch.stop).items():
            state.part(fetch.table, fetch.start, fetch.stop)[slot].copy_(tensor)
        state.filled(fetch.table, fetch.start, fetch.stop)
    state.begin(states[0].step, states[0].progress)
    return state


@pytest.mark.parametrize("name", sorted(RULES))
def test_two_three_one_shards_to_the_bit(name):
    rule, sizes = RULES[name], (2, 3, 1)
    states = [filled(Layout(TABLES, 2), shard, rule) for shard in range(2)]
    for step in (1, 2, 3):
        apply(states, step)
    expected = contents(*states)
    for number in sizes[1:]:
        layout = Layout(TABLES, number)
        plans = [fetches(states[0].layout, layout, s, states=range(len(states)), near=s) for s in range(number)]
        states = [
            take(plan, states, [], ShardState(layout, shard, rule, undo=True)) for shard, plan in enumerate(plans)
        ]
        assert same(contents(*states), expected)


def test_what_is_missing():
    layout = Layout(TABLES, 2)
    state = ShardState(layout, 1, RULES["SGD"], undo=True)
    assert state.gaps() == ["dense 11-23", "vectors 15-31"]
    state.filled("dense", 20, 23)
    state.filled("dense", 11, 14)
    state.filled("vectors", 15, 31)
    assert state.gaps() == ["dense 14-20"]
    with pytest.raises(ValueError, match="has not got dense 14-20"):
        state.begin(0, Progress.none(1))
    state.filled("dense", 12, 22)
    state.begin(4, Progress.none(1))
    assert state.step == 4
    for start, stop in ((10, 12), (20, 24), (14, 13)):
        with pytest.raises(ValueError, match="shard 1, which has 11 to 23"):
            state.part("dense", start, stop)
    with pytest.raises(KeyError, match="no table"):
        state.part("other", 0, 1)


@pytest.mark.parametrize("undo", [True, False])
@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(RULES)),
    actions=st.lists(st.sampled_from(["step", "step", "empty", "back", "piece", "piece"]), max_size=25),
)
def test_a_snapshot_is_the_state_at_its_beginning(undo, name, actions):
    """Whatever is applied and undone while it is copied, in pieces of two rows."""
    state = filled(Layout(TABLES, 1), 0, RULES[name], undo=undo)
    apply([state], 1)
    apply([state], 2)
    expected, size = contents(state), shard_tables.PIECE_BYTES
    shard_tables.PIECE_BYTES = 2 * 3 * 4
    try:
        snapshot, complete = state.snapshot(), False
        step = 2
        for action in actions:
            if action == "back" and state.can_go_back:
                step -= 1
                state.rollback_to(step)
            elif action in {"step", "empty"}:
                step += 1
                apply([state], step, empty=("dense",) if action == "empty" else ())
            elif action == "piece" and not complete:
                complete = snapshot.advance()
        while not complete:
            complete = snapshot.advance()
    finally:
        shard_tables.PIECE_BYTES = size
    tables = snapshot.tables()
    found = {f"{name}.{slot}": t.clone() for name, slots in tables.items() for slot, t in slots.items()}
    assert same((found, snapshot.step, snapshot.progress.document()), expected)
    snapshot.release()
    # The memory goes round again.
    pointers = set()
    for _ in range(6):
        step += 1
        apply([state], step)
        pointers.add(state.dense["dense"].current["parameters"].data_ptr())
    assert len(pointers) <= 2


def test_readers_keep_what_they_hold(rule):
    state = filled(Layout(TABLES, 1), 0, rule, undo=False)
    dense, held = state.dense["dense"], []
    for step in range(1, 6):
        held.append((dense.hold(["parameters"]), dense.current["parameters"].clone()))
        apply([state], step)
    held.append((dense.hold(["parameters"]), dense.current["parameters"].clone()))
    held.append((dense.hold(["parameters"]), dense.current["parameters"].clone()))
    for reader, then in held:
        assert torch.equal(reader["parameters"], then)
    for reader, _ in held:
        dense.release(reader)
    pointer = dense.current["parameters"].data_ptr()
    apply([state], 6)
    assert dense.current["parameters"].data_ptr() == pointer


def test_a_half_made_snapshot_that_is_dropped_costs_nothing_any_more():
    state = filled(Layout(TABLES, 1), 0, RULES["SGD"], undo=False)
    snapshot = state.snapshot()
    assert len(state.sparse["vectors"]._watchers) == 1
    snapshot.release()
    assert not state.sparse["vectors"]._watchers
    assert not state.dense["dense"]._holds


# ---------------------------------------------------------------------- checksums


def test_checksums_are_equal_for_replicas_and_tell_a_flipped_bit():
    layout = Layout((Table("dense", 20_000), Table("vectors", 3000, 4, sparse=True)), 1)
    rule = RULES["AdamW"]

    def made():
        state = ShardState(layout, 0, rule, undo=True)
        for table in layout.tables:
            state.part(table.name, 0, table.rows)["parameters"].copy_(torch.arange(table.rows)[:, None] / 7)
            state.filled(table.name, 0, table.rows)
        state.begin(0, Progress.none(1))
        gradient = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
        state.apply(Update(1, 0.1, (), {"dense": gradient}, {"vectors": Rows(torch.arange(5), torch.ones(5, 4))}))
        return state

    primary, replica = made(), made()
    sums = primary.checksums()
    assert sums == replica.checksums()
    assert set(sums) == {"dense.parameters", "dense.exp_avg", "dense.exp_avg_sq", "vectors.parameters"}
    for table, slot, row in (
        ("dense", "exp_avg_sq", 19_999),
        ("dense", "parameters", 4),
        ("vectors", "parameters", 2999),
    ):
        bits = replica.part(table, 0, layout.table(table).rows)[slot].view(torch.int32)
        bits[row, 0] ^= 1 << 3
        differing = {key for key in sums if sums[key] != replica.checksums()[key]}
        assert differing == {f"{table}.{slot}"}
        bits[row, 0] ^= 1 << 3
    assert sums == replica.checksums()


@given(st.integers(1, 40_000), st.integers(0, 39_999), st.integers(0, 31))
def test_every_bit_counts(size, element, bit):
    tensor = torch.zeros(size)
    before = checksum(tensor)
    tensor.view(torch.int32)[element % size] ^= -(2**31) if bit == 31 else 1 << bit
    assert checksum(tensor) != before


def test_shapes_and_places_count():
    assert checksum(torch.zeros(4)) != checksum(torch.zeros(2, 2))
    tensor = torch.arange(20_000.0)
    moved = tensor.roll(2)
    assert checksum(tensor) != checksum(moved)
