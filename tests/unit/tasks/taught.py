"""A learner's steps and its artifact in this process, for what needs neither workers nor a master."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mms_workloads.tasks import making
from mms_workloads.tasks.learner import joined
from mms_workloads.tasks.starting import Start
from tests.unit.tasks import plain

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import JobFile
    from mms_workloads.tasks.learner import TaskLearner
    from mms_workloads.train.flat import FlatState


def learner(training: JobFile, scratch: Path) -> TaskLearner:
    scratch.mkdir()
    return making.make(training, plain.counted(training, scratch), scratch / "plain")


def steps(one: TaskLearner, count: int, rate: float) -> tuple[FlatState, list[float]]:
    """The state after so many steps over all samples, and the mean losses."""
    state = one.start()
    batch = joined([one.prepared(block) for block in one.trained_on])
    samples = len(next(iter(batch.values())))
    losses = []
    state.agreement.step = 0
    for _ in range(count):
        state.reset()
        loss = one.task.loss(state.module, batch, torch.Generator().manual_seed(1))
        loss.backward()  # type: ignore[no-untyped-call]
        state.update(samples, rate)
        state.agreement.step += 1
        losses.append(float(loss.detach()) / samples)
    return state, losses


def written(one: TaskLearner, state: FlatState, folder: Path) -> dict[str, float]:
    """Its files, as a run publishes them; the metrics."""
    folder.mkdir(parents=True)
    evaluation = one.evaluate(state)
    golden = one.write(state, evaluation, folder)
    assert golden.cases
    return dict(evaluation.metrics)


def start(folder: Path, kind: str | None = None, method: str = "Full") -> Start:
    """kind: of an artifact."""
    return Start(folder, f"file://{folder}", kind, method)
