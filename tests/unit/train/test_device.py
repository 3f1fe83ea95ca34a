"""Where a worker computes, and what it draws there."""

from __future__ import annotations

import torch

from mms_workloads.train import device


def test_what_is_drawn_follows_from_the_seed_and_changes_nothing_outside() -> None:
    torch.default_generator.manual_seed(1)
    expected = torch.rand(3)
    torch.default_generator.manual_seed(1)
    drawn = []
    for seed in (5, 5, 6):
        with device.seeded(seed):
            drawn.append(torch.nn.functional.dropout(torch.ones(64), 0.5))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.rand(3), expected)


def test_nothing_is_kept_of_a_round() -> None:
    queued = len(torch.cuda._queued_calls)
    for seed in range(3):
        with device.seeded(seed):
            torch.rand(1)
    assert len(torch.cuda._queued_calls) == queued
