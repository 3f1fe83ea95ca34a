"""A training as a plain loop: one process, all samples in memory, torch.optim.AdamW.

With the network, the samples, the global batch, the held-out blocks and the decay of the learning rate of a job.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from mms_workloads import store as stores
from mms_workloads.data import corpus, readers, records
from mms_workloads.language.learner import LanguageLearner, cross_entropy, cut_windows
from mms_workloads.sync.counting import Counting
from mms_workloads.tasks import unfit
from mms_workloads.tasks.learner import TaskLearner, joined
from mms_workloads.train import learner as learners
from mms_workloads.train.flat import FlatState
from mms_workloads.train.learner import decayed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from mms_workloads.contract import JobFile
    from mms_workloads.sync.plan import Plan
    from mms_workloads.tasks.task import Batch


@dataclass(frozen=True, slots=True)
class Loop:
    rate: float  # samples/s after the first `warm` steps
    losses: list[float]  # the mean over a step's samples
    metrics: Mapping[str, float]


def loop(training: JobFile, scratch: Path, *, warm: int = 0) -> Loop:
    given = training.optimizer
    assert given.name == "AdamW"
    pod: Any = SimpleNamespace(job=training, scratch=scratch)
    learner = learners.make(pod, counted(training, scratch), "plain")
    state = learner.start()
    assert isinstance(state, FlatState)
    network = state.module
    whole, loss_of = samples(learner)
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
        loss = loss_of(network, batch, generator) / len(chosen)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
        taken += len(chosen)
    rate = taken / (time.perf_counter() - began)
    return Loop(rate, losses, learner.evaluate(state).metrics)


def samples(learner: learners.Learner) -> tuple[Batch, Callable[[nn.Module, Batch, torch.Generator], Tensor]]:
    """All that is trained on, and the loss of some of it, summed over them."""
    if isinstance(learner, LanguageLearner):
        length = learner.task.contextLength
        texts = [torch.from_numpy(learner.corpus.bytes(block)) for block in learner.trained_on]
        windows = torch.cat([cut_windows(text, length) for text in texts]).long()
        return {"windows": windows}, lambda network, batch, _: cross_entropy(network, batch["windows"]) / length
    assert isinstance(learner, TaskLearner)
    return joined([learner.prepared(block) for block in learner.trained_on]), learner.task.loss


def counted(training: JobFile, scratch: Path) -> Plan:
    """The plan of a run, as the counting pass makes it."""
    of_records = None if training.task.languageModel else training.data
    counting = Counting.start(stores.glob(training.data.store), of_records)
    count(counting, training, scratch)
    return counting.plan(None, training.data.blockBytes)


def count(counting: Counting, training: JobFile, scratch: Path) -> None:
    """All tasks of a counting pass, one after the other."""
    while not counting.complete():
        number = counting.take(0)
        assert number is not None
        segments = counting.tasks[number]
        reader = readers.counting(training.data.store, counting.uris(number), segments, scratch)
        if counting.format is None:
            counting.add(number, {}, corpus.count(reader, segments, None)[1], 0)
        else:
            judge = unfit.judge(training.task)
            counting.add_survey(number, *records.count(reader, segments, training.data, counting.format, judge))
