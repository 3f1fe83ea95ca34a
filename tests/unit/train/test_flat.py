"""Dense models: flat parameters, buckets, and gradient descent on many ranks against one process with torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.train.table import Table, at_once
from torch import nn

from mms_workloads.contract import Optimizer
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.train.communicator import Contribution, Flag, Stats
from mms_workloads.train.flat import FlatState
from mms_workloads.train.state import agree

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
    x, y = data()
    loss = (state.module(scale * x[chosen]) - y[chosen]).square().sum()
    if chosen.numel():
        loss.backward()  # type: ignore[no-untyped-call]
    return Stats(chosen.numel(), float(chosen.numel()), 0.0)


def states(count: int, optimizer: Optimizer, bucket_bytes: int = 16) -> list[FlatState]:
    made = [FlatState(network(), optimizer, bucket_bytes) for _ in range(count)]
    for state in made:
        agree(state, 0, "l", Progress.none(100))
    return made


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradient_descent_on_many_ranks_is_that_of_one_process(name: str, ranks: int) -> None:
    optimizer = Optimizer.model_validate(OPTIMIZERS[name])
    alone = network()
    rule = reference(optimizer, alone)
    x, y = data()
    members, table = states(ranks, optimizer), Table(ranks)
    rings = table.rings()
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
            return rings[rank].exchange(members[rank], Contribution(slices, stats), RATE)

        results = at_once(*(lambda r=r: one(r) for r in range(ranks)))  # type: ignore[misc]
        assert all(isinstance(result, list) for result in results), results
    expected = torch.cat([p.detach().reshape(-1) for p in alone.parameters()])
    for state in members:
        torch.testing.assert_close(state.parameters, expected, rtol=1e-4, atol=1e-6)
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


def test_a_gradient_that_is_not_finite_changes_nothing_on_any_rank() -> None:
    members, table = states(2, Optimizer.model_validate({"name": "AdamW"})), Table(2)
    rings = table.rings()
    for ring, state in zip(rings, members, strict=True):
        ring.attach(state)
    before = members[0].parameters.clone()

    def one(rank: int) -> list[Contribution]:
        stats = work(members[rank], torch.arange(4), float("inf") if rank == 1 else 1.0)
        return rings[rank].exchange(members[rank], Contribution((Slice(0, rank, 0, 1, 1),), stats), RATE)

    results = at_once(lambda: one(0), lambda: one(1))
    for rank, result in enumerate(results):
        assert isinstance(result, list), result
        assert [c.applied for c in result] == [False, False]
        assert [Flag.NOT_FINITE in c.flags for c in result] == [False, True]
        assert torch.equal(members[rank].parameters, before)
        assert members[rank].agreement.progress.applied[:2] == [1, 1]  # seen, and not to be tried again
        assert members[rank].agreement.step == 1
        assert float(members[rank].slots["exp_avg"].abs().sum()) == 0


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
