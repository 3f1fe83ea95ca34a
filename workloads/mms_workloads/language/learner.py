"""languageModel: a sample is a window of text; the loss is the cross-entropy of each byte given those before it."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from mms_workloads import golden_tensors, tensors
from mms_workloads.contract import (
    LEAST_QUESTIONS,
    NETWORK,
    PIPELINE,
    Golden,
    JobFile,
    LanguageModel,
    Pipeline,
    Reason,
    TextInput,
)
from mms_workloads.data import blocks
from mms_workloads.data.corpus import ByteCorpus, monotonous
from mms_workloads.language import transformer
from mms_workloads.language.transformer import SYMBOLS, Transformer
from mms_workloads.recent import Recent
from mms_workloads.store import JobError
from mms_workloads.sync.layout import Table
from mms_workloads.tasks import choosing, exporting, starting
from mms_workloads.train import dealing, device
from mms_workloads.train.communicator import NOTHING, Stats
from mms_workloads.train.flat import TABLE, FlatState
from mms_workloads.train.learner import Evaluation, Place, rate, share
from mms_workloads.train.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from mms_workloads.contract import ModelTask
    from mms_workloads.sync.leases import Slice
    from mms_workloads.sync.plan import Plan
    from mms_workloads.train.state import State

KIND: ModelTask = "languageModel"
EVALUATION_BYTES = 1 << 20  # of held-out text: the error of the mean is far below a hundredth of a bit by then
EVALUATION_BATCH = 16  # windows
GOLDEN_CASES = 4
ASKED_SYMBOLS = 8  # of what the exported network is compared on; every vocabulary has as many
METHOD = (
    "bitsPerByte: the mean of -log2 p(byte | the bytes before it in its window) over held-out text that no step saw; 8 "
    "for a model that knows nothing. lossPerByte: the same in nats. bitsPerCharacter: the same bits by the characters "
    "that the bytes are, in UTF-8; for plain English bitsPerByte."
)
CONTINUED, LEADING = 0b1000_0000, 0b1100_0000  # the first two bits of a byte that goes on with a character of UTF-8


@dataclass(frozen=True, slots=True)
class Told:
    """How much text is predicted."""

    bytes: int = 0
    characters: int = 0


ORDERS_BYTES = 16 << 20
HELD_BYTES = 64 << 20  # of symbols in memory; other blocks are read again when they are needed


def held(limit: int) -> Recent[Any, Tensor]:
    return Recent(limit, lambda symbols: symbols.nbytes)


@dataclass(slots=True)
class LanguageLearner:
    job: JobFile
    task: LanguageModel
    corpus: ByteCorpus
    trained_on: Sequence[int]
    held_out: Sequence[int]
    kind: str = KIND
    method: str = METHOD
    _held: Recent[int, Tensor] = field(default_factory=lambda: held(HELD_BYTES))
    _orders: Recent[tuple[int, int], Tensor] = field(default_factory=lambda: held(ORDERS_BYTES))  # and data epoch
    _precision: Precision = field(init=False)

    def __post_init__(self) -> None:
        self._precision = Precision(
            self.job.optimizer.precision, lambda network: network(device.moved(self._example(), device.chosen()))
        )

    @classmethod
    def of(cls, job: JobFile, task: LanguageModel, plan: Plan, cache: Path) -> LanguageLearner:
        corpus = ByteCorpus(job.data.store, plan, cache)
        trained_on, held_out = blocks.split(len(corpus.blocks), job.evaluation.split)
        return cls(job, task, corpus, trained_on, held_out)

    def start(self) -> FlatState:
        return FlatState(Transformer(self.task, self.job.optimizer.seed).to(device.chosen()), self.job.optimizer)

    def size(self, block: int) -> int:
        """Windows of contextLength bytes and the one after; a block that has none is one sample of nothing."""
        return max(1, _windows(self._symbols(block), self.task.contextLength))

    def dead(self, block: int) -> str | None:
        return monotonous(self.corpus.bytes(block), "bytes")

    def tables(self) -> Sequence[Table]:
        return [Table(TABLE, transformer.parameters(self.task))]

    def initial(self, table: str, start: int, stop: int) -> Mapping[str, Tensor]:
        return {slot: rows[start:stop] for slot, rows in self.start().tables()[table].items()}

    def rows(self, slices: Sequence[Slice]) -> Mapping[str, Tensor]:
        del slices
        return {}

    def ready(self, block: int, data_epoch: int) -> None:
        """It is, when its size is known."""

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

    def compute(self, state: State, slices: Sequence[Slice], place: Place) -> Stats:
        del place
        assert isinstance(state, FlatState)  # noqa: S101 - made by `start`
        windows = [self._samples(s) for s in slices]
        samples = torch.cat(windows) if windows else torch.empty(0, self.task.contextLength + 1, dtype=torch.int64)
        if not samples.numel():
            return NOTHING
        with self._precision.products(state.module):
            loss = cross_entropy(state.module, samples) / self.task.contextLength  # of each window the mean; their sum
        loss.backward()  # type: ignore[no-untyped-call]
        count = samples.shape[0]
        return Stats(count, float(count * self.task.contextLength), float(loss.detach()) / count)

    @torch.no_grad()
    def evaluate(self, state: State) -> Evaluation:
        assert isinstance(state, FlatState)  # noqa: S101 - made by `start`
        chosen = list(self.held_out or self.trained_on)
        total, told, used = 0.0, Told(), []
        for block in choosing.spread(chosen):
            if told.bytes >= EVALUATION_BYTES:
                break
            used.append(block)
            samples, own = self._told(block)
            told = Told(told.bytes + own.bytes, told.characters + own.characters)
            for batch in torch.split(samples, EVALUATION_BATCH):
                total += float(cross_entropy(state.module, batch.long()))
        if not told.bytes:
            raise JobError(
                Reason.DATA_EMPTY,
                f"there is nothing to evaluate: none of {len(chosen)} blocks is as long as a window of "
                f"{self.task.contextLength} and what follows it. Add text, raise data.blockSize, or lower "
                "task.languageModel.contextLength",
            )
        loss = total / told.bytes
        bits = total / told.characters if told.characters else math.log(SYMBOLS)
        metrics = {"bitsPerByte": loss / math.log(2), "lossPerByte": loss, "bitsPerCharacter": bits / math.log(2)}
        if not self.held_out:
            metrics = {f"training{name[:1].upper()}{name[1:]}": value for name, value in metrics.items()}
        report = {"bytes": told.bytes, "heldOutBlocks": sorted(used) if self.held_out else [], "method": self.method}
        return Evaluation(metrics, report)

    @torch.no_grad()
    def write(self, state: State, evaluation: Evaluation, folder: Path) -> Golden:
        del evaluation
        assert isinstance(state, FlatState)  # noqa: S101 - made by `start`
        network = starting.merged(copy.deepcopy(state.module).cpu()).eval()
        parameters = {name: tensor.detach() for name, tensor in network.state_dict().items()}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in parameters.values()):
            raise JobError(
                Reason.INTERNAL, "the parameters are not finite: lower optimizer.learningRate and start another run"
            )
        tensors.write(folder / "model.safetensors", {name: tensor.numpy() for name, tensor in parameters.items()})
        (folder / "model.json").write_text(self.task.model_dump_json(indent=1), encoding="utf-8")
        self._beside(network, folder)
        exporting.to_onnx(network, {"tokens": self._example()}, {"tokens": ("n", "L")}, ["logits"], folder / NETWORK)
        pipeline = Pipeline(task=KIND, text=TextInput(maxLength=self.task.contextLength))
        (folder / PIPELINE).write_text(pipeline.model_dump_json(indent=1, exclude_none=True), encoding="utf-8")
        return self._golden(folder)

    def _example(self) -> Tensor:
        """int64 [2, L]."""
        length = min(16, self.task.contextLength)
        return torch.arange(2 * length).view(2, length) % ASKED_SYMBOLS

    def _golden(self, folder: Path) -> Golden:
        """Texts with the bits per byte that the served model gives them, and how it goes on."""
        # A process that takes a dead one's place does without.
        from mms_workloads.data import public  # noqa: PLC0415
        from mms_workloads.serve import pipelines  # noqa: PLC0415

        served = pipelines.open(folder)
        texts = public.SENTENCES if self.job.data.encryption else self._asked()
        asked = [{"TEXT": np.array([[text.encode()]], dtype=np.object_)} for text in dict.fromkeys(texts)]
        cases = [pipelines.golden_case(served, one) for one in asked[:GOLDEN_CASES]]
        more = [golden_tensors.tensors(one) for one in asked[GOLDEN_CASES:LEAST_QUESTIONS]]
        return Golden(cases=cases, questions=more, absoluteTolerance=exporting.TOLERANCE)

    def _asked(self) -> list[str]:
        """LEAST_QUESTIONS pieces of the text that is evaluated, from as many blocks as can be, in turn."""
        chosen = choosing.spread(self.held_out or self.trained_on)[:LEAST_QUESTIONS]
        each, length = math.ceil(LEAST_QUESTIONS / len(chosen)), self.task.contextLength
        found = []
        for number, block in itertools.product(range(each), chosen):
            text = self.corpus.bytes(block)
            start = number * max(length, text.size // each)
            found.append(text[start : start + length].tobytes().decode(errors="ignore"))
        return [text for text in found if len(text.encode()) > 1]

    def _beside(self, network: torch.nn.Module, folder: Path) -> None:
        """Files that the network needs to be served or trained further."""

    def _symbols(self, block: int) -> Tensor:
        """[n]: whole numbers that the text is made of, of which windows are cut."""
        return self._held.get(block, self._read)

    def _read(self, block: int) -> Tensor:
        return torch.from_numpy(self.corpus.bytes(block))

    def _told(self, block: int) -> tuple[Tensor, Told]:
        """All windows of the block, and the text that is told in them."""
        samples = cut_windows(self._symbols(block), self.task.contextLength)
        told = samples[:, 1:]
        return samples, Told(told.numel(), int(((told & LEADING) != CONTINUED).sum()))

    def _samples(self, s: Slice) -> Tensor:
        """int64 [stop - start, contextLength + 1] of the block, in the order of the data epoch."""
        windows = cut_windows(self._symbols(s.block), self.task.contextLength)
        if self.job.data.sharding != "Random":
            return windows[s.start : s.stop].long()
        seed, count = self.job.optimizer.seed, windows.shape[0]
        order = self._orders.get((s.block, s.data_epoch), lambda _: dealing.order(seed, s.data_epoch, s.block, count))
        return windows[order[s.start : s.stop]].long()


def cross_entropy(module: torch.nn.Module, samples: Tensor) -> Tensor:
    """Summed over all symbols but the first of each sample. samples: int64 [B, L + 1], on the CPU."""
    samples = device.moved(samples, next(module.parameters()).device)
    logits = module(samples[:, :-1]).float()
    return functional.cross_entropy(logits.flatten(0, 1), samples[:, 1:].flatten(), reduction="sum")


def _windows(text: Tensor, length: int) -> int:
    return max(0, text.numel() - 1) // length


def cut_windows(text: Tensor, length: int) -> Tensor:
    """[windows, length + 1], a view: each window and the symbol after it. What is left is too short for one."""
    count = _windows(text, length)
    if not count:
        return torch.empty(0, length + 1, dtype=text.dtype)
    return text[: count * length + 1].unfold(0, length + 1, length)
