"""A training as a plain loop: one process, all samples in memory, torch.optim.AdamW.

With the network, the samples, the global batch, the held-out blocks and the decay of the learning rate of a job.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mms_workloads import store as stores
from mms_workloads.data import readers, records
from mms_workloads.sync.counting import Counting
from mms_workloads.tasks import making, unfit
from mms_workloads.tasks.learner import joined
from mms_workloads.train.learner import decayed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mms_workloads.contract import JobFile
    from mms_workloads.sync.plan import Plan


@dataclass(frozen=True, slots=True)
class Loop:
    rate: float  # samples/s after the first `warm` steps
    losses: list[float]  # the mean over a step's samples
    metrics: Mapping[str, float]


def loop(training: JobFile, scratch: Path, *, warm: int = 0) -> Loop:
    given = training.optimizer
    assert given.name == "AdamW"
    learner = making.make(training, counted(training, scratch), scratch / "plain")
    network = learner.start().module
    whole = joined([learner.prepared(block) for block in learner.trained_on])
    optimizer = torch.optim.AdamW(network.parameters(), lr=given.learningRate, weight_decay=0.0)
    size, count = given.globalBatchSize, len(next(iter(whole.values())))
    generator = torch.Generator().manual_seed(given.seed)
    batches = [
        order[start : start + size]
        for order in (torch.randperm(count, generator=generator) for _ in range(given.epochs))
        for start in range(0, count, size)
    ]
    began, taken = time.perf_counter(), 0
    losses = []
    for step, chosen in enumerate(batches):
        if step == warm:
            began, taken = time.perf_counter(), 0
        for group in optimizer.param_groups:
            group["lr"] = decayed(given.learningRate, step / len(batches))
        optimizer.zero_grad()
        batch = {name: tensor[chosen] for name, tensor in whole.items()}
        loss = learner.task.loss(network, batch, generator) / len(chosen)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
        taken += len(chosen)
    rate = taken / (time.perf_counter() - began)
    network.eval()
    with torch.no_grad():
        metrics = learner.task.measure(network, learner.evaluated(list(learner.held_out), [], []))
    return Loop(rate, losses, metrics)


def counted(training: JobFile, scratch: Path) -> Plan:
    """The plan of a run, as the counting pass makes it."""
    counting = Counting.start(stores.glob(training.data.store), training.data)
    count(counting, training, scratch)
    return counting.plan(None, training.data.blockBytes)


def count(counting: Counting, training: JobFile, scratch: Path) -> None:
    """All tasks of a counting pass, one after the other."""
    while not counting.complete():
        number = counting.take(0)
        assert number is not None
        assert counting.format is not None
        segments = counting.tasks[number]
        reader = readers.counting(training.data.store, counting.uris(number), segments, scratch)
        judge = unfit.judge(training.task)
        counting.add_survey(number, *records.count(reader, segments, training.data, counting.format, judge))
