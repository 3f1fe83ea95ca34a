"""Dense models: flat parameters, buckets, and gradient descent on many ranks against one process with torch's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from mms_workloads.contract import Guard, Optimizer
from mms_workloads.sync.guard import LEARNED
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.train.communicator import NO_FLAGS, NOTHING, Contribution, Health, Stats
from mms_workloads.train.flat import FlatState
from mms_workloads.train.guarding import Comparisons, Guarding, PartedError
from mms_workloads.train.ring import Ring, Wire
from mms_workloads.train.state import agree, checksum
from tests.unit.train.table import Table, at_once, nothing

SAMPLES, FEATURES = 24, 5
RATE = 0.05
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "momentum": {"name": "SGD", "momentum": 0.9, "weightDecay": 0.01},
    "Adagrad": {"name": "Adagrad"},
    "AdamW": {"name": "AdamW", "weightDecay": 0.1},
}


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh(), nn.Linear(7, 1))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(SAMPLES, FEATURES, generator=rng)
    return x, x.sin().sum(1, keepdim=True)


def reference(optimizer: Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    if optimizer.name == "SGD":
        return torch.optim.SGD(
            module.parameters(), RATE, momentum=optimizer.momentum, weight_decay=optimizer.weightDecay
        )
    if optimizer.name == "Adagrad":
        return torch.optim.Adagrad(module.parameters(), RATE, weight_decay=optimizer.weightDecay)
    return torch.optim.AdamW(module.parameters(), RATE, weight_decay=optimizer.weightDecay)


def work(state: FlatState, chosen: torch.Tensor, scale: float = 1.0) -> Stats:
    x, y = (tensor.to(state.parameters.device) for tensor in data())
    loss = scale * (state.module(x[chosen]) - y[chosen]).square().sum()
    if chosen.numel():
        loss.backward()  # type: ignore[no-untyped-call]
    return Stats(chosen.numel(), float(chosen.numel()), 0.0)


def states(
    count: int, optimizer: Optimizer, bucket_bytes: int = 16, device: torch.device | None = None
) -> list[FlatState]:
    made = [FlatState(network().to(device), optimizer, bucket_bytes) for _ in range(count)]
    for state in made:
        agree(state, 0, "l", Progress.none(100))
    return made


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="takes a GPU")


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("staged", [None, "cpu", pytest.param("cuda", marks=GPU)])
def test_gradient_descent_on_many_ranks_is_that_of_one_process(name: str, ranks: int, staged: str | None) -> None:
    device = torch.device(staged) if staged else None
    optimizer = Optimizer.model_validate(OPTIMIZERS[name])
    alone = network()
    rule = reference(optimizer, alone)
    x, y = data()
    members, table = states(ranks, optimizer, device=device), Table(ranks)
    rings = table.rings(device)
    for ring, state in zip(rings, members, strict=True):
        ring.attach(state)
    for step in range(12):
        rule.zero_grad()
        (alone(x) - y).square().sum().div(SAMPLES).backward()
        rule.step()

        def one(rank: int, step: int = step) -> list[Contribution]:
            # Shares of different sizes, and in some steps a rank that has no data at all.
            cuts = (
                [0, 5, 5, SAMPLES] if step % 3 == 0 and ranks == 3 else [SAMPLES * i // ranks for i in range(ranks + 1)]
            )
            stats = work(members[rank], torch.arange(cuts[rank], cuts[rank + 1]))
            slices = (Slice(0, step * ranks + rank, 0, 1, 1),)
            return rings[rank].exchange(members[rank], Contribution(slices, stats), RATE, nothing)

        results = at_once(*(lambda r=r: one(r) for r in range(ranks)))  # type: ignore[misc]
        assert all(isinstance(result, list) for result in results), results
    expected = torch.cat([p.detach().reshape(-1) for p in alone.parameters()])
    for state in members:
        torch.testing.assert_close(state.parameters.cpu(), expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(state.parameters, members[0].parameters)
        assert state.agreement.step == 12
        assert float(state.gradient.abs().sum()) == 0
    for ring in rings:
        ring.close()


def test_parameters_and_gradients_are_views() -> None:
    (state,) = states(1, Optimizer())
    work(state, torch.arange(4))
    gradient = torch.cat([p.grad.reshape(-1) for p in state.module.parameters() if p.grad is not None])
    assert torch.equal(gradient, state.gradient)
    state.parameters.zero_()
    assert all(float(p.detach().abs().sum()) == 0 for p in state.module.parameters())


def test_buckets_cover_the_gradient_from_its_end_and_are_told_when_complete() -> None:
    (state,) = states(1, Optimizer())
    told: list[int] = []
    state.on_bucket = told.append
    work(state, torch.arange(4))
    assert told == list(range(len(state.buckets)))
    assert len(told) > 2
    covered = [i for bucket in reversed(state.buckets) for i in range(bucket.start, bucket.stop)]
    assert covered == list(range(state.parameters.numel()))


SAMPLES_EACH = 4
STILL = 1e-12


def round_of(
    members: list[FlatState], rings: list[Ring], step: int, factors: dict[int, float], rate: float = RATE
) -> list[Any]:
    """One round, in which the gradients of some ranks are multiplied."""

    def one(rank: int) -> list[Contribution]:
        mine = torch.arange(rank * SAMPLES_EACH, (rank + 1) * SAMPLES_EACH)
        stats = work(members[rank], mine, factors.get(rank, 1.0))
        contribution = Contribution((Slice(0, step * len(members) + rank, 0, 1, 1),), stats)
        return rings[rank].exchange(members[rank], contribution, rate, lambda: work(members[rank], mine))

    return at_once(*(lambda r=r: one(r) for r in range(len(members))))  # type: ignore[misc]


def attached(ranks: int, optimizer: Optimizer, wire: Wire = "None", guard: Guard | None = None) -> Any:
    members, table = states(ranks, optimizer), Table(ranks)
    rings = [Ring(ring._transport, wire, Guarding(guard or Guard())) for ring in table.rings()]
    for ring, state in zip(rings, members, strict=True):
        ring.attach(state)
    return members, rings


def without(optimizer: Optimizer, ranks: int, odd: set[int], steps: int) -> torch.Tensor:
    """Parameters of one process whose steps have the samples of all ranks but the odd ones."""
    alone = network()
    rule = reference(optimizer, alone)
    x, y = data()
    for _ in range(steps):
        rows = torch.cat([torch.arange(r * SAMPLES_EACH, (r + 1) * SAMPLES_EACH) for r in range(ranks) if r not in odd])
        rule.zero_grad()
        (alone(x[rows]) - y[rows]).square().sum().div(len(rows)).backward()
        rule.step()
    return torch.cat([p.detach().reshape(-1) for p in alone.parameters()])


@pytest.mark.parametrize("wire", ["None", "BF16", "Int8"])
@pytest.mark.parametrize(("ranks", "odd", "factor"), [(2, 1, math.inf), (2, 0, math.nan), (3, 2, 1000.0)])
def test_the_gradient_of_one_rank_is_left_out_on_all(ranks: int, odd: int, factor: float, wire: Wire) -> None:
    """Not finite, or far beyond the others': the step is made of the rest, and compression keeps nothing of it."""
    optimizer = Optimizer.model_validate({"name": "AdamW"})
    members, rings = attached(ranks, optimizer, wire)
    for step in range(3):
        for result in round_of(members, rings, step, {odd: factor}):
            assert isinstance(result, list), result
            assert [c.applied for c in result] == [r != odd for r in range(ranks)]
    expected = without(optimizer, ranks, {odd}, 3)
    tolerance = {"None": 1e-5, "BF16": 2e-2, "Int8": 5e-2}[wire]
    for state in members:
        torch.testing.assert_close(state.parameters, expected, rtol=0, atol=tolerance)
        assert torch.equal(state.parameters, members[0].parameters)
        assert state.agreement.progress.applied[: 3 * ranks] == [1] * (3 * ranks)  # seen, and not to be tried again
    for ring in rings:
        ring.close()


def test_of_two_ranks_the_one_beyond_its_own_history_is_left_out() -> None:
    # The rate is so small that what is applied does not matter to the next round.
    members, rings = attached(2, Optimizer())
    first = round_of(members, rings, 0, {1: 1000.0}, STILL)
    assert [c.applied for c in first[0]] == [True, True], "nothing is known yet, and there is no majority"
    for step in range(1, LEARNED + 1):
        round_of(members, rings, step, {}, STILL)
    both = round_of(members, rings, LEARNED + 1, {0: 1e4, 1: 1e4}, STILL)
    assert [c.applied for c in both[0]] == [True, True], "what both see is no outlier of one"
    found = round_of(members, rings, LEARNED + 2, {1: 1e4}, STILL)
    assert [[c.applied for c in each] for each in found] == [[True, False]] * 2
    for ring in rings:
        ring.close()


def test_where_all_are_bad_nothing_is_applied() -> None:
    members, rings = attached(2, Optimizer.model_validate({"name": "AdamW"}))
    before = members[0].parameters.clone()
    for result in round_of(members, rings, 0, {0: math.nan, 1: math.nan}):
        assert [c.applied for c in result] == [False, False]
    for state in members:
        assert torch.equal(state.parameters, before)
        assert (state.agreement.step, float(state.slots["exp_avg"].abs().sum())) == (1, 0)
    for ring in rings:
        ring.close()


@pytest.mark.parametrize("ranks", [2, 3])
def test_flipped_bits_end_the_epoch_before_they_count(ranks: int) -> None:
    members, rings = attached(ranks, Optimizer())
    members[1].parameters.view(torch.int32)[5] ^= 1 << 20
    before = [state.parameters.clone() for state in members]

    def one(rank: int) -> object:
        health = Health(checksum=checksum(members[rank]))
        return rings[rank].exchange(members[rank], Contribution((), NOTHING, NO_FLAGS, health), RATE, nothing)

    found = at_once(*(lambda r=r: one(r) for r in range(ranks)))  # type: ignore[misc]
    assert all(isinstance(error, PartedError) for error in found), found
    assert [error.odd for error in found] == ([True, True] if ranks == 2 else [False, True, False])
    assert [error.parting.majority for error in found] == [ranks > 2] * ranks
    for state, was in zip(members, before, strict=True):
        assert torch.equal(state.parameters, was)
        assert state.agreement.step == 0
    for ring in rings:
        ring.close()


def test_tables_go_to_another_rank_and_back() -> None:
    first, second = states(2, Optimizer.model_validate({"name": "AdamW"}))
    first.parameters.add_(1)
    first.slots["exp_avg"].fill_(0.5)
    second.gradient.fill_(3.0)
    second.adopt({name: {slot: t.clone() for slot, t in slots.items()} for name, slots in first.tables().items()})
    assert torch.equal(second.parameters, first.parameters)
    assert torch.equal(second.slots["exp_avg"], first.slots["exp_avg"])
    assert float(second.gradient.sum()) == 0


def test_slots_that_a_checkpoint_does_not_have_start_at_zero() -> None:
    (state,) = states(1, Optimizer.model_validate({"name": "AdamW"}))
    state.slots["exp_avg"].fill_(0.5)
    state.adopt({"dense": {"parameters": state.parameters.clone()[:, None]}})
    assert float(state.slots["exp_avg"].sum()) == 0


def test_comparisons_are_due_by_rounds_and_by_time() -> None:
    def due(seconds: float) -> list[int]:
        comparisons, found = Comparisons(), []
        for index in range(200):
            if comparisons.due:
                found.append(index)
            comparisons.made([Contribution(health=Health(seconds=s)) for s in (seconds / 2, seconds)])
        return found

    assert due(0.001) == [0, 50, 100, 150]
    assert due(1.0)[:4] == [0, 3, 6, 9]
    assert due(5.0) == list(range(200))
