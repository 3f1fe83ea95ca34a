"""From how many blocks a round's samples come, and in which order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mms_workloads.contract import JobFile
from mms_workloads.train import dealing
from tests.unit.test_contract import JOB_FILE


def job(**data: Any) -> JobFile:
    return JobFile.model_validate({**JOB_FILE, "data": {**JOB_FILE["data"], "sharding": "Random", **data}})


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({}, 16),
        ({"batch": 8}, 8),
        ({"blocks": 12, "members": 2}, 3),
        ({"blocks": 3, "members": 2}, 1),
        ({"blocks": 0}, 1),
        ({"blockBytes": 4 << 20}, 4),
        ({"blockBytes": 64 << 20}, 1),
        ({"sharding": "Sequential"}, 1),
    ],
    ids=str,
)
def test_blocks_of_a_round(case: dict[str, Any], expected: int) -> None:
    data = {name: case[name] for name in case if name in {"blockBytes", "sharding"}}
    given = {"blocks": 1000, "batch": 32, "members": 1} | {name: case[name] for name in case if name not in data}
    assert dealing.mixed(job(**data), **given) == expected


def test_orders_are_those_of_the_seed() -> None:
    first = dealing.order(7, 0, 1, 50)
    assert sorted(first.tolist()) == list(range(50))
    others = [dealing.order(7, 1, 1, 50), dealing.order(7, 0, 2, 50), dealing.order(8, 0, 1, 50)]
    assert not any(torch.equal(first, other) for other in others)
    assert torch.equal(dealing.order(7, 0, 1, 50), first)
