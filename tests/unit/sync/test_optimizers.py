"""The rules against torch.optim, in every way that they are used."""

from __future__ import annotations

import pytest
import torch

from mms_workloads.contract import Optimizer
from mms_workloads.sync import optimizers

STEPS = 60
CASES = {
    "SGD": Optimizer(name="SGD"),
    "SGD, weight decay": Optimizer(name="SGD", weightDecay=0.05),
    "SGD, momentum": Optimizer(name="SGD", momentum=0.9),
    "SGD, momentum, weight decay": Optimizer(name="SGD", momentum=0.9, weightDecay=0.05),
    "Adagrad": Optimizer(name="Adagrad"),
    "Adagrad, weight decay": Optimizer(name="Adagrad", weightDecay=0.05),
    "AdamW": Optimizer(name="AdamW"),
    "AdamW, weight decay": Optimizer(name="AdamW", weightDecay=0.05),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def optimizer(request):
    return request.param


def of_torch(optimizer, parameter):
    common = {"weight_decay": optimizer.weightDecay, "foreach": False, "fused": False}
    match optimizer.name:
        case "SGD":
            return torch.optim.SGD([parameter], 0.1, momentum=optimizer.momentum, **common)
        case "Adagrad":
            return torch.optim.Adagrad([parameter], 0.1, **common)
    return torch.optim.AdamW([parameter], 0.1, **common)


def gradients(size, seed=3):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=rng) for _ in range(STEPS)]


def rates():
    return [0.1 / (1 + step / 20) for step in range(STEPS)]


def zeros(rule, like):
    return {name: torch.zeros_like(like) for name in rule.slots}


def start(size):
    return torch.randn(size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [1, 7, 1024, 5000])
def test_as_torch(optimizer, size):
    expected = torch.nn.Parameter(start(size))
    theirs = of_torch(optimizer, expected)
    rule = optimizers.of(optimizer)
    parameters = start(size)
    slots = zeros(rule, parameters)
    for step, (gradient, rate) in enumerate(zip(gradients(size), rates(), strict=True), 1):
        theirs.param_groups[0]["lr"] = rate
        expected.grad = gradient.clone()
        theirs.step()
        after = torch.full_like(parameters, torch.nan)
        slots_after = {name: torch.full_like(parameters, torch.nan) for name in slots}
        rule.update(parameters, slots, gradient, rate, step, into=(after, slots_after))
        parameters, slots = after, slots_after
    torch.testing.assert_close(parameters, expected.detach(), rtol=2e-5, atol=2e-6)
    for name, slot in slots.items():
        key = "momentum_buffer" if name == "momentum" else name
        torch.testing.assert_close(slot, theirs.state[expected][key], rtol=2e-5, atol=2e-6)


def test_out_of_place_is_in_place_to_the_bit_and_leaves_what_was(optimizer):
    # A ring updates in place what a shard updates out of place: both must make the same model.
    rule = optimizers.of(optimizer)
    here, there = start(5000), start(5000)
    here_slots, there_slots = zeros(rule, here), zeros(rule, there)
    for step, gradient in enumerate(gradients(5000)[:10], 1):
        rule.update_(here, here_slots, gradient, 0.1, step)
        before, slots_before = there.clone(), {name: slot.clone() for name, slot in there_slots.items()}
        kept = gradient.clone()
        after, slots_after = torch.empty_like(there), zeros(rule, there)
        rule.update(there, there_slots, gradient, 0.1, step, into=(after, slots_after))
        assert torch.equal(there, before)
        assert torch.equal(gradient, kept)
        assert all(torch.equal(there_slots[name], slots_before[name]) for name in there_slots)
        there, there_slots = after, slots_after
    assert torch.equal(here, there)
    assert all(torch.equal(here_slots[name], there_slots[name]) for name in here_slots)


def test_some_outputs_may_be_the_inputs(optimizer):
    # A reader holds the parameters; the slots nobody reads.
    rule = optimizers.of(optimizer)
    parameters, expected = start(3000), start(3000)
    slots, expected_slots = zeros(rule, parameters), zeros(rule, parameters)
    for step, gradient in enumerate(gradients(3000)[:5], 1):
        rule.update_(expected, expected_slots, gradient, 0.1, step)
        after = torch.empty_like(parameters)
        rule.update(parameters, slots, gradient, 0.1, step, into=(after, slots))
        parameters = after
    assert torch.equal(parameters, expected)
    assert all(torch.equal(slots[name], expected_slots[name]) for name in slots)


def test_rows(optimizer):
    rule = optimizers.of(optimizer)
    parameters = start((50, 8))
    slots = zeros(rule, parameters)
    rows = torch.tensor([3, 4, 17, 49])
    expected = parameters[rows].clone()
    expected_slots = zeros(rule, expected)
    untouched = parameters.clone()
    for step, gradient in enumerate(gradients((4, 8))[:10], 1):
        rule.update_(expected, expected_slots, gradient, 0.1, step)
        rule.update_rows_(parameters, slots, rows, gradient, rate=0.1, step=step)
    torch.testing.assert_close(parameters[rows], expected, rtol=1e-6, atol=1e-7)
    others = [i for i in range(50) if i not in rows.tolist()]
    assert torch.equal(parameters[others], untouched[others])
    assert all(not slot[others].any() for slot in slots.values())


def test_the_result_does_not_depend_on_threads(optimizer):
    # A replica's pod may have another number of cores.
    rule, results, threads = optimizers.of(optimizer), [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            parameters = start(200_003)
            slots = zeros(rule, parameters)
            for step, gradient in enumerate(gradients(200_003)[:3], 1):
                rule.update_(parameters, slots, gradient, 0.1, step)
            results.append(parameters)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], result) for result in results)


def test_an_empty_shard(optimizer):
    rule = optimizers.of(optimizer)
    nothing = torch.zeros(0)
    rule.update(nothing, zeros(rule, nothing), nothing, 0.1, 1, into=(torch.zeros(0), zeros(rule, nothing)))
    rule.update_(nothing, zeros(rule, nothing), nothing, 0.1, 1)
