"""languageModel from a causal network of Transformers: a sample is a window of the tokens of its own tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from mms_workloads.contract import TOKENIZER
from mms_workloads.language import tokens
from mms_workloads.language.learner import KIND, LanguageLearner, Told, cut_windows, held
from mms_workloads.sync.layout import Table
from mms_workloads.tasks import starting, transformers_library
from mms_workloads.train import device
from mms_workloads.train.flat import TABLE, FlatState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tokenizers import Tokenizer
    from torch import Tensor

    from mms_workloads.contract import JobFile, LanguageModel
    from mms_workloads.recent import Recent
    from mms_workloads.sync.leases import Slice
    from mms_workloads.sync.plan import Plan
    from mms_workloads.tasks.starting import Start
    from mms_workloads.train.communicator import Stats
    from mms_workloads.train.learner import Evaluation, Place
    from mms_workloads.train.state import State

HELD_BYTES = 256 << 20  # of tokens in memory; other blocks are cut again when they are needed
METHOD = (
    "bitsPerByte: the sum of -log2 p(token | the tokens before it in its window) over held-out text that no step saw, "
    "by the bytes of text that these tokens are; so models of other tokenizers, and of none, can be compared. "
    "bitsPerCharacter: the same by its characters. lossPerByte: bitsPerByte in nats."
)


@dataclass(slots=True)
class TokenLearner(LanguageLearner):
    start_from: Start = starting.NOTHING
    cut_by: Tokenizer | None = None
    _held: Recent[int, Tensor] = field(default_factory=lambda: held(HELD_BYTES))
    _trained: int | None = None

    @classmethod
    def begin(cls, job: JobFile, task: LanguageModel, plan: Plan, cache: Path) -> TokenLearner:
        """Raises JobError: what it starts from is not there, or no causal network of Transformers."""
        start = starting.fetch(job.pretrained, cache.parent)
        if not transformers_library.is_start(start, KIND):
            raise transformers_library.missing(start, KIND)
        made = cls.of(job, task, plan, cache)
        assert isinstance(made, TokenLearner)  # noqa: S101 - `of` makes what it is called on
        made.start_from, made.cut_by, made.method = start, tokens.tokenizer(start), METHOD
        return made

    def start(self) -> FlatState:
        network = tokens.build(self.task, self.start_from, self.job.optimizer.seed).to(device.chosen())
        return FlatState(network.train(), self.job.optimizer)

    def tables(self) -> Sequence[Table]:
        if self._trained is None:
            network = tokens.build(self.task, self.start_from, self.job.optimizer.seed)
            self._trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        return [Table(TABLE, self._trained)]

    def compute(self, state: State, slices: Sequence[Slice], place: Place) -> Stats:
        """What layers leave out at random depends on the slices alone, whoever computes them."""
        first = [(s.data_epoch * 1_000_003 + s.block) * 1_000_003 + s.start for s in slices[:1]]
        with device.seeded((self.job.optimizer.seed * 1_000_003 + sum(first)) % 2**62):
            return LanguageLearner.compute(self, state, slices, place)

    def evaluate(self, state: State) -> Evaluation:
        assert isinstance(state, FlatState)  # noqa: S101 - made by `start`
        state.module.eval()
        try:
            return LanguageLearner.evaluate(self, state)
        finally:
            state.module.train()

    def _read(self, block: int) -> Tensor:
        return torch.from_numpy(self._text(block).numbers).int()

    def _told(self, block: int) -> tuple[Tensor, Told]:
        text = self._text(block)
        samples = cut_windows(torch.from_numpy(text.numbers), self.task.contextLength)
        last = samples.shape[0] * self.task.contextLength
        if not last:
            return samples, Told()
        sizes = (int(ends[last] - ends[0]) for ends in (text.bytes, text.characters))
        return samples, Told(*sizes)

    def _text(self, block: int) -> tokens.Text:
        assert self.cut_by is not None  # noqa: S101 - set by `begin`
        return tokens.cut(self.corpus.bytes(block).tobytes(), self.cut_by)

    def _beside(self, network: torch.nn.Module, folder: Path) -> None:
        assert self.cut_by is not None  # noqa: S101 - set by `begin`
        transformers_library.write_config(network, folder)
        self.cut_by.save(str(folder / TOKENIZER))
