"""The learner of every task of this package: samples are records, the gradient is the sum over them."""

from __future__ import annotations

import copy
import inspect
import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional

from mms_workloads import golden_tensors, privacy
from mms_workloads.contract import Golden, JobFile, PrivacyReport, Reason
from mms_workloads.data import blocks, public
from mms_workloads.data.dealing import IDENTITY, MIXUP
from mms_workloads.data.dealing import chosen as chosen_transform
from mms_workloads.logs import logger
from mms_workloads.recent import Recent
from mms_workloads.store import JobError
from mms_workloads.sync.layout import Table
from mms_workloads.tasks import choosing, exporting, starting
from mms_workloads.tasks.networks import BATCH_NORMS
from mms_workloads.tasks.task import Keeping
from mms_workloads.train import dealing, device
from mms_workloads.train.communicator import NOTHING, Stats
from mms_workloads.train.flat import TABLE, FlatState
from mms_workloads.train.learner import Evaluation, Place, rate, share
from mms_workloads.train.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mms_workloads.data.schema import Schema
    from mms_workloads.sync.leases import Slice
    from mms_workloads.tasks.task import Batch, Task
    from mms_workloads.train.state import State

HELD_BYTES = 512 << 20  # of prepared samples in memory; of more, blocks are prepared again when they are needed
EVALUATION_SAMPLES = 4096
EVALUATION_BATCH = 64
GOLDEN_RECORDS = 4
GOLDEN_BYTES = 16 << 20  # of all that is asked, as it is; golden.json has it in base64


class Records(Protocol):
    """A data set in blocks, as data/records.py reads it."""

    @property
    def blocks(self) -> Sequence[object]: ...
    @property
    def schema(self) -> Schema: ...
    def records(self, block: int) -> Sequence[Mapping[str, Any]]: ...
    def count(self, block: int) -> int: ...


def _bytes(batch: Batch) -> int:
    return sum(tensor.nbytes for tensor in batch.values())


@dataclass(slots=True)
class TaskLearner:
    job: JobFile
    task: Task
    corpus: Records
    trained_on: Sequence[int]
    held_out: Sequence[int]
    kind: str
    transforms: Sequence[str] = ()
    _held: Recent[int, Batch] = field(default_factory=lambda: Recent(HELD_BYTES, _bytes))
    _trained: int | None = None
    _ordered: Recent[tuple[int, int], Batch] = field(init=False)  # by block and data epoch
    _precision: Precision = field(init=False)

    def __post_init__(self) -> None:
        self._precision = Precision("FP32" if self.job.privacy else self.job.optimizer.precision, self._pass)
        self._ordered = Recent(2 * self.mixed(Place(0, 1)) + 2)  # as many are read ahead as rounds are dealt from

    @classmethod
    def of(cls, job: JobFile, task: Task, corpus: Records) -> TaskLearner:
        trained_on, held_out = blocks.split(len(corpus.blocks), job.evaluation.split)
        return cls(job, task, corpus, trained_on, held_out, task.kind, job.data.augmentation.transforms)

    def start(self) -> FlatState:
        network = self.task.build(self.job.optimizer.seed).to(device.chosen())
        training_mode(network)
        if self.job.privacy is None:
            return FlatState(network, self.job.optimizer)
        from mms_workloads.tasks.private import PrivateState  # noqa: PLC0415 - Opacus is of use to few

        return PrivateState(network, self.job.optimizer, self.job.privacy, self._privacy(0).noiseMultiplier)

    def tables(self) -> Sequence[Table]:
        if self._trained is None:
            network = self.task.build(self.job.optimizer.seed)
            self._trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        return [Table(TABLE, self._trained)]

    def initial(self, table: str, start: int, stop: int) -> Mapping[str, Tensor]:
        return {slot: rows[start:stop] for slot, rows in self.start().tables()[table].items()}

    def rows(self, slices: Sequence[Slice]) -> Mapping[str, Tensor]:
        del slices
        return {}

    def size(self, block: int) -> int:
        """Records of the block; one that has none is one sample of nothing."""
        return max(1, _length(self.prepared(block)))

    def dead(self, block: int) -> str | None:
        """Where nothing tells its records apart. Other records of one label are none: sorted data has such blocks."""
        batch = self.prepared(block)
        given = [tensor for name, tensor in batch.items() if name not in TOLD]
        if _length(batch) < FEW or not all(bool((tensor == tensor[:1]).all()) for tensor in given):
            return None
        return f"all of its {_length(batch)} records are the same but for what is to be told of them"

    def batch(self, place: Place) -> int:
        return share(self.job, place)

    def mixed(self, place: Place) -> int:
        blocks, batch = len(self.trained_on), self.batch(place)
        return dealing.mixed(self.job, blocks=blocks, batch=batch, members=place.members)

    def rate(self, state: State, members: int) -> float:
        return rate(self.job, state.agreement, self.trained_on, members)

    def precision(self, state: State) -> str:
        assert isinstance(state, FlatState)  # noqa: S101 - made by `start`
        return self._precision.chosen(state.module)

    def _pass(self, network: nn.Module) -> object:
        """An example through the network."""
        module, example, _ = self.task.exported(network)
        return module(**{name: device.moved(tensor, device.chosen()) for name, tensor in example.items()})

    def compute(self, state: State, slices: Sequence[Slice], place: Place) -> Stats:
        assert isinstance(state, FlatState)  # noqa: S101 - made by `start`
        if self.job.privacy is not None:
            return self._compute_private(state, slices, place)
        batch, generator = self._drawn(slices)
        samples = _length(batch)
        if not samples:
            return NOTHING
        seed = int(torch.randint(2**62, (), generator=generator))
        with self._precision.products(state.module), device.seeded(seed):
            total = self.task.loss(state.module, batch, generator)
        total.backward()  # type: ignore[no-untyped-call] # once: buckets travel as soon as it has passed them
        return Stats(samples, float(samples), float(total.detach()) / samples)

    def _compute_private(self, state: State, slices: Sequence[Slice], place: Place) -> Stats:
        from mms_workloads.tasks.private import PrivateState  # noqa: PLC0415 - as above

        assert isinstance(state, PrivateState)  # noqa: S101 - made by `start`
        said = self._privacy(privacy.passes(state.agreement.progress, self.trained_on, slices))
        batch, generator = self._drawn(slices)
        samples, total = _length(batch), 0.0
        if samples:
            seed = int(torch.randint(2**62, (), generator=generator))
            total = state.add(batch, lambda network, given: self.task.loss(network, given, generator), seed)
        state.add_noise(place.members)  # without records too: the others count on its share
        return Stats(samples, float(samples), total / max(1, samples), said)

    def _privacy(self, passes: int) -> PrivacyReport:
        assert self.job.privacy is not None  # noqa: S101 - the caller has looked
        return privacy.report(self.job.privacy, self.job.optimizer.epochs, passes)

    @torch.no_grad()
    def evaluate(self, state: State) -> Evaluation:
        assert isinstance(state, FlatState)  # noqa: S101 - made by `start`
        chosen = list(self.held_out or self.trained_on)
        state.module.eval()
        used, sizes = list[int](), list[int]()
        batches = self.evaluated(chosen, used, sizes)
        try:
            if (first := next(batches, None)) is None:
                raise self._nothing("evaluate", chosen)
            metrics = self.task.measure(state.module, itertools.chain((first,), batches))
        finally:
            training_mode(state.module)
        if not self.held_out:
            metrics = {f"training{name[:1].upper()}{name[1:]}": value for name, value in metrics.items()}
        if self.job.privacy is not None:
            said = self._privacy(privacy.passes(state.agreement.progress, self.trained_on))
            metrics |= {"epsilonSpent": said.epsilonSpent, "noiseMultiplier": said.noiseMultiplier}
        there = sum(self.corpus.count(block) for block in used)
        if self.held_out and there == self.corpus.schema.records:
            raise self._nothing("train on", self.trained_on)
        report = {
            "records": sum(sizes),
            "leftOut": there - sum(sizes),  # the network cannot learn from them
            "heldOutBlocks": sorted(used) if self.held_out else [],
            "method": inspect.getdoc(self.task.measure),
        }
        return Evaluation(metrics, report)

    def _nothing(self, to: str, kept: Sequence[int]) -> JobError:
        return JobError(
            Reason.DATA_EMPTY,
            f"there is nothing to {to}: of {self.corpus.schema.records} records the task can learn from none of those "
            f"in the {len(kept)} blocks that are kept for that. Add records, or change data.blockSize or "
            "evaluation.split",
        )

    @torch.no_grad()
    def write(self, state: State, evaluation: Evaluation, folder: Path) -> Golden:
        del evaluation
        assert isinstance(state, FlatState)  # noqa: S101 - made by `start`
        network = starting.merged(copy.deepcopy(state.module).cpu()).eval()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values()):
            raise JobError(
                Reason.INTERNAL, "the parameters are not finite: lower optimizer.learningRate and start another run"
            )
        exporting.write(self.task, network, self.job, folder)
        if isinstance(self.task, Keeping):
            self.task.keep(network, (r for b in range(len(self.corpus.blocks)) for r in self.corpus.records(b)), folder)
        return self._golden(folder)

    def _golden(self, folder: Path) -> Golden:
        """Asked of the pipeline that is served, in this process."""
        from mms_workloads.serve import pipelines, precision  # noqa: PLC0415 - their libraries are of no use before

        served = pipelines.open(folder, anomalies="Off")  # the data has a few that are far from the others
        count = max(precision.questions_needed(folder, served.pipeline), self.task.compared)
        if self.job.data.encryption or self.job.privacy:
            # What the data's images are like is of its records, too.
            schema = replace(self.corpus.schema, images=None) if self.job.privacy else self.corpus.schema
            given: Iterable[Mapping[str, Any]] = public.records(self.kind, schema, count)
        else:
            given = choosing.dealt(self.held_out or self.trained_on, self.corpus.records, count)
        records = choosing.fitting(given, self._asked_bytes, count, GOLDEN_BYTES)
        questions = exporting.usual(served, self.task.questions(records), folder)
        cases, compared = (
            [pipelines.golden_case(served, question) for question in questions[:some]]
            for some in (GOLDEN_RECORDS, self.task.compared)
        )
        more = [] if compared else [golden_tensors.tensors(question) for question in questions[GOLDEN_RECORDS:]]
        return Golden(cases=cases, comparisons=compared, questions=more, absoluteTolerance=exporting.TOLERANCE)

    def _asked_bytes(self, record: Mapping[str, Any]) -> int:
        """Of what a client sends of it."""
        values: list[NDArray[Any]] = [one for asked in self.task.questions([record]) for one in asked.values()]
        return sum(sum(map(len, one.flat)) if one.dtype.kind == "O" else one.nbytes for one in values)

    def _drawn(self, slices: Sequence[Slice]) -> tuple[Batch, torch.Generator]:
        """The samples of the slices, in the orders of their data epochs; and what is random of them: it depends on the
        slices alone.
        """
        parts, seed = [], 0
        for s in slices:
            batch = self._ordered.get((s.block, s.data_epoch), self._order)
            if batch:
                seed = seed or dealing.combined(self.job.optimizer.seed, s.data_epoch, s.block, s.start)
                parts.append({name: tensor[s.start : s.stop] for name, tensor in batch.items()})
        return joined(parts), torch.Generator().manual_seed(seed)

    def ready(self, block: int, data_epoch: int) -> None:
        self._ordered.get((block, data_epoch), self._order)

    def _order(self, key: tuple[int, int]) -> Batch:
        """The block as rounds take it, from its beginning to its end."""
        block, data_epoch = key
        batch = self._transformed(block, data_epoch)
        if not _length(batch):
            return {}
        if self.job.data.sharding != "Random":
            return batch
        order = dealing.order(self.job.optimizer.seed, data_epoch, block, _length(batch))
        return {name: tensor[order] for name, tensor in batch.items()}

    def _transformed(self, block: int, data_epoch: int) -> Batch:
        """The block under its transform. All of it at once: a sample is the same however rounds cut the block."""
        name = chosen_transform(self.transforms, block, data_epoch)
        batch = self.prepared(block)
        if MIXUP in self.transforms:
            # As a mixed block has it: blocks of several transforms become one batch.
            batch = {**batch, "other": batch["label"], "part": torch.ones(_length(batch))}
        if name == IDENTITY or not _length(batch):
            return batch
        generator = torch.Generator().manual_seed(dealing.combined(self.job.optimizer.seed, data_epoch, block, 1))
        return self.task.augment(batch, name, generator)

    def evaluated(self, chosen: Sequence[int], used: list[int], sizes: list[int]) -> Iterator[Batch]:
        """Batches of all blocks, or of some that are spread over them where they have more than EVALUATION_SAMPLES; the
        blocks' numbers and samples are added to the lists.
        """
        for block in choosing.spread(chosen):
            if sum(sizes) >= EVALUATION_SAMPLES:
                return
            batch = self.prepared(block)
            used.append(block)
            sizes.append(_length(batch))
            for start in range(0, _length(batch), EVALUATION_BATCH):
                yield {name: tensor[start : start + EVALUATION_BATCH] for name, tensor in batch.items()}

    def prepared(self, block: int) -> Batch:
        return self._held.get(block, self._prepare)

    def _prepare(self, block: int) -> Batch:
        records = self.corpus.records(block)
        made = self.task.prepare(records)
        if (missing := len(records) - _length(made)) and records:
            logger().warning("records left out", block=block, records=missing, why="the network cannot learn from them")
        return made


ROWS = 2  # dimensions of tokens, tags and sound; boxes have one more
FILLED_WITH = {"tags": -100, "objects": -1}  # cross_entropy's ignore_index; no object
TOLD = frozenset({"label", "tags", "boxes", "objects", "letters"})  # of a record, by the network
FEW = 16  # records that may be the same by chance


def training_mode(network: nn.Module) -> None:
    """Batch normalisation keeps the statistics that it came with: ranks would each have others."""
    network.train()
    for module in network.modules():
        if isinstance(module, BATCH_NORMS):
            module.eval()


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all. Rows that are shorter than others are filled up."""
    if len(batches) == 1:
        return batches[0]
    found = {}
    for name in batches[0] if batches else ():
        tensors = [batch[name] for batch in batches]
        if tensors[0].dim() >= ROWS:
            tensors = _filled_up(tensors, FILLED_WITH.get(name, 0))
        found[name] = torch.cat(tensors)
    return found


def _filled_up(tensors: Sequence[Tensor], fill: int) -> list[Tensor]:
    longest = max(tensor.shape[1] for tensor in tensors)
    inner = (0, 0) * (tensors[0].dim() - ROWS)
    return [
        tensor
        if tensor.shape[1] == longest
        else functional.pad(tensor, (*inner, 0, longest - tensor.shape[1]), value=fill)
        for tensor in tensors
    ]


def _length(batch: Batch) -> int:
    return int(next(iter(batch.values())).shape[0]) if batch else 0
