"""tokenClassification: each word of a text has one of the tags, such as B-PER, I-PER and O (IOB2)."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from mms_workloads.contract import Reason
from mms_workloads.data.schema import class_of
from mms_workloads.serve.pipelines import tagging
from mms_workloads.store import JobError
from mms_workloads.tasks import labels, texts
from mms_workloads.tasks.texts import IGNORED, TextTask
from mms_workloads.train import device

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mms_workloads.contract import ModelTask, TokenClassification
    from mms_workloads.tasks.starting import Start
    from mms_workloads.tasks.task import Batch
    from mms_workloads.tasks.texts import Words

Span = tuple[int, int, str]  # its first word, the one after its last, what it is


@dataclass(slots=True)
class TokenTagger(TextTask):
    spec: TokenClassification
    classes: Sequence[str]
    start: Start
    words: Words
    kind: ModelTask = "tokenClassification"
    metric: str = "entityF1"
    compared: int = 100

    def build(self, seed: int) -> nn.Module:
        return texts.build(self.kind, self.spec, self.words, len(self.classes), self.start, seed=seed)

    def prepare(self, records: Sequence[Mapping[str, Any]]) -> Batch:
        """Tags int64 [n, L]: at the first token of each word its tag's number, else IGNORED.

        The words of a record become the text that a service is asked, and what is tagged there is tagged here: a word
        of the record may be several, of which those after the first go on with its entity.
        """
        given = [_words(record) for record in records]
        texts = [" ".join(words) for words in given]
        tokens, mask, encodings = self.words.numbers(texts, self.spec.maxLength)
        place = {label: number for number, label in enumerate(self.classes)}
        tags = torch.full(tokens.shape, IGNORED, dtype=torch.int64)
        for row, (record, words, text, encoding) in enumerate(zip(records, given, texts, encodings, strict=True)):
            ends = [*itertools.accumulate(len(word) + 1 for word in words)]  # of each, behind its space
            before = None
            for token, start, _ in tagging.words(text, encoding):
                word = bisect.bisect_right(ends, start)
                tag = class_of(record["label"][word])
                tags[row, token] = labels.number(place, _going_on(tag, place) if word == before else tag)
                before = word
        return {"tokens": tokens, "mask": mask, "tags": tags}

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Of each text the mean over its words; their sum."""
        del generator
        logits = self.logits(network, batch)
        tags = device.moved(batch["tags"][:, : logits.shape[1]], logits.device)
        each = functional.cross_entropy(logits.transpose(1, 2), tags, ignore_index=IGNORED, reduction="none")
        return (each.sum(dim=1) / (tags != IGNORED).sum(dim=1).clamp(min=1)).sum()

    def measure(self, network: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """entityF1: of the entities of held-out texts, each right when its words and its kind are (as CoNLL-2003).
        tokenAccuracy: the part of words whose tag is right. Words are those of the served model.
        """
        right = words = both = there = told = 0
        for batch in batches:
            found = self.logits(network, batch).argmax(dim=2).cpu()
            for row in range(len(found)):
                tags = batch["tags"][row, : found.shape[1]]
                seen = tags != IGNORED
                want = [self.classes[tag] for tag in tags[seen].tolist()]
                have = [self.classes[tag] for tag in found[row][seen].tolist()]
                right += sum(a == b for a, b in zip(want, have, strict=True))
                words += len(want)
                entities, guesses = spans(want), spans(have)
                both, there, told = both + len(entities & guesses), there + len(entities), told + len(guesses)
        return {self.metric: 2 * both / (there + told) if there + told else 0.0, "tokenAccuracy": right / max(1, words)}

    def questions(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, NDArray[np.generic]]]:
        """TEXT [1, 1]: the words with spaces between them."""
        return [{"TEXT": np.array([[" ".join(_words(record)).encode()]], dtype=np.object_)} for record in records]


def _going_on(tag: str, known: Container[str]) -> str:
    """The tag of what follows in the same entity; the same where none says that."""
    inside = f"I{tag[1:]}"
    return inside if tag.startswith("B-") and inside in known else tag


def _words(record: Mapping[str, Any]) -> list[str]:
    """Raises JobError."""
    words, tags = record["input"], record["label"]
    if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
        raise JobError(
            Reason.DATA_UNREADABLE,
            f"{record.get('source', 'a record')}: tokenClassification takes a list of words and a list of as many tags",
        )
    return [str(word) for word in words]


def spans(tags: Sequence[str]) -> set[Span]:
    """The entities that tags tell; an I- that follows no entity of its kind begins one, as CoNLL's script has it."""
    found: set[Span] = set()
    start, kind = 0, ""
    for place, tag in enumerate((*tags, "O")):
        prefix, _, name = tag.partition("-")
        goes_on = prefix == "I" and name == kind
        if kind and not goes_on:
            found.add((start, place, kind))
            kind = ""
        if prefix in {"B", "I"} and not goes_on:
            start, kind = place, name
    return found
