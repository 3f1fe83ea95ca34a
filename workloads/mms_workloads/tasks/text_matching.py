"""textMatching: whether two texts mean the same, or how much; and which of many texts is nearest to another.

What the labels of the pairs are decides what is learnt:

    none, or all 1       matches: each first text is to be nearest to its own second one among those of the batch
                         (in-batch negatives; Henderson et al., 2017)
    two, one of them 1   whether they match: cross-entropy of a logistic function of the cosine
    numbers              a score: squared error of a linear function of the cosine, which goes from the least label to
                         the greatest
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional

from mms_workloads import tensors
from mms_workloads.contract import Match, Pipeline, Reason
from mms_workloads.store import JobError
from mms_workloads.tasks import labels, sentences, texts
from mms_workloads.tasks.texts import TextTask
from mms_workloads.train import device

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mms_workloads.contract import ModelTask, TextMatching
    from mms_workloads.data.schema import Schema
    from mms_workloads.tasks.starting import Start
    from mms_workloads.tasks.task import Batch
    from mms_workloads.tasks.texts import Words

SHARPNESS = 20.0  # of cosines among a batch, as sentence-transformers has it
MATCHING = ("1", "true", "yes", "match")
TWO = 2
OTHER = "other_"  # before the names of the second text's tensors
OTHER_TEXT = "other_text"
BATCH = 64  # texts that are encoded at a time for the search
VECTORS, TEXTS = "search.safetensors", "search.json"


@dataclass(frozen=True, slots=True)
class Goal:
    """What the labels are: see above. classes: of Whether, what does not match first."""

    kind: Literal["Matches", "Whether", "Score"]
    classes: tuple[str, ...] = ()
    least: float = 0.0
    most: float = 1.0

    @property
    def calibrated(self) -> tuple[float, float] | None:
        return {"Matches": None, "Whether": (sentences.NEAR, sentences.FAR), "Score": (1.0, 0.0)}[self.kind]


def goal(schema: Schema) -> Goal:
    """Raises JobError."""
    classes = sorted(schema.classes)
    match = [name for name in classes if name.lower() in MATCHING]
    if schema.label == "none" or (len(classes) == 1 and match):
        return Goal("Matches")
    if len(classes) == TWO and len(match) == 1:
        return Goal("Whether", (*(name for name in classes if name not in match), *match))
    if schema.scores and schema.scores[0] < schema.scores[1]:
        return Goal("Score", (), *schema.scores)
    said = ", ".join(classes[:5]) or f"of kind {schema.label}"
    raise JobError(
        Reason.DATA_INVALID,
        "task textMatching learns from pairs with no label (they match), with 1 or 0, true or false, yes or no, or "
        f"with numbers, and these have {said}: set data.fields.label",
    )


@dataclass(slots=True)
class TextMatcher(TextTask):
    spec: TextMatching
    goal: Goal
    start: Start
    words: Words
    kind: ModelTask = "textMatching"
    metric: str = field(init=False)
    compared: int = field(init=False)

    def __post_init__(self) -> None:
        self.metric = {"Matches": "recallAt1", "Whether": "accuracy", "Score": "spearman"}[self.goal.kind]
        self.compared = 100 if self.goal.kind == "Whether" else 0

    def build(self, seed: int) -> nn.Module:
        return sentences.build(self.kind, self.spec, self.words, self.start, seed=seed, calibrated=self.goal.calibrated)

    def prepare(self, records: Sequence[Mapping[str, Any]]) -> Batch:
        """label: int64 [n] of Whether, float32 [n], 0 to 1, of Score. Of Matches there is none, and other_text, int64
        [n], has a number for each different second text.
        """
        length = self.spec.maxLength
        batch: Batch = {}
        for place, of in enumerate(("", OTHER)):
            tokens, mask, _ = self.words.numbers([str(record["input"][place]) for record in records], length)
            batch |= {f"{of}tokens": tokens, f"{of}mask": mask}
        if self.goal.kind == "Whether":
            batch["label"] = labels.numbers(records, self.goal.classes)
        elif self.goal.kind == "Score":
            given = torch.tensor([float(record["label"]) for record in records], dtype=torch.float32)
            batch["label"] = (given - self.goal.least) / (self.goal.most - self.goal.least)
        else:
            batch[OTHER_TEXT] = torch.tensor([_numbered(str(record["input"][1])) for record in records]).long()
        return batch

    def augment(self, batch: Batch, transform: str, generator: torch.Generator) -> Batch:
        found = dict(batch)
        for of in ("", OTHER):
            one = {name: batch[f"{of}{name}"] for name in ("tokens", "mask")}
            found |= {f"{of}{name}": tensor for name, tensor in super().augment(one, transform, generator).items()}
        return found

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        del generator
        first, second, calibration = self._both(network, batch)
        if self.goal.kind == "Matches":
            own = torch.arange(len(first), device=first.device)
            with torch.autocast(first.device.type, enabled=False):  # what tells texts apart is in the last digits
                near = SHARPNESS * first @ second.T
            which = batch[OTHER_TEXT].to(first.device)
            same = (which[:, None] == which[None, :]) & (own[:, None] != own[None, :])
            near = near.masked_fill(same, float("-inf"))  # a text that occurs twice is no other
            return functional.cross_entropy(near, own, reduction="sum")
        said = calibration[:, 0] * (first * second).sum(dim=1) + calibration[:, 1]
        wanted = device.moved(batch["label"], said.device).float()
        if self.goal.kind == "Whether":
            return functional.binary_cross_entropy_with_logits(said, wanted, reduction="sum")
        return functional.mse_loss(said, wanted, reduction="sum")

    def measure(self, network: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """accuracy, macroF1: of held-out pairs, match or not. spearman: correlation of the ranks of score and label.
        recallAt1: the part of first texts that are nearest to their own second one, among the different ones of all
        held-out pairs; of one that is as near to n of them, a part of 1 / n.
        """
        if self.goal.kind == "Whether":
            return labels.accuracy(batches, lambda batch: (self._said(network, batch) > 0).long(), TWO)
        if self.goal.kind == "Score":
            pairs = [(self._said(network, batch).cpu(), batch["label"]) for batch in batches]
            scores, wanted = (torch.cat(part).double().numpy() for part in zip(*pairs, strict=True))
            return {self.metric: spearman(scores, wanted)}
        found = [(*self._both(network, batch)[:2], batch[OTHER_TEXT]) for batch in batches]
        first, second, said = (torch.cat(part) for part in zip(*found, strict=True))
        places: dict[int, int] = {}  # of each different text, where it is first
        for place, text in enumerate(said.tolist()):
            places.setdefault(text, place)
        number = {text: row for row, text in enumerate(places)}
        different = second[list(places.values())]
        owners = torch.tensor([number[text] for text in said.tolist()], device=first.device)
        right = 0.0
        for start in range(0, len(first), BATCH):
            near = first[start : start + BATCH] @ different.T
            own = near.gather(1, owners[start : start + BATCH, None])
            nearest = (near <= own).all(dim=1)
            right += float((nearest / (near == own).sum(dim=1)).sum())
        return {self.metric: right / len(first)}

    def exported(self, network: nn.Module) -> tuple[nn.Module, Batch, Mapping[str, Sequence[str]]]:
        return texts.exported(network, self.spec)

    def outputs(self) -> Sequence[str]:
        return ["sentence", "calibration"]

    def pipeline(self, folder: Path) -> Pipeline:
        scores: dict[str, Literal["Cosine", "Probability", "Number"]]
        scores = {"Matches": "Cosine", "Whether": "Probability", "Score": "Number"}
        match = Match(score=scores[self.goal.kind], least=self.goal.least, most=self.goal.most)
        if self.spec.search:
            match = match.model_copy(update={"vectors": VECTORS, "texts": TEXTS})
        given = texts.text_input(self.spec, self.words, folder)
        return Pipeline(task=self.kind, labels=list(self.goal.classes), text=given, match=match)

    def keep(self, network: nn.Module, records: Iterable[Mapping[str, Any]], folder: Path) -> None:
        """Writes the texts that are searched: the first different ones of the data set, `search` of them at most."""
        if not self.spec.search:
            return
        found: dict[str, None] = {}
        for record in records:
            found |= dict.fromkeys(str(text) for text in record["input"])
            if len(found) >= self.spec.search:
                break
        chosen = list(found)[: self.spec.search]
        parts = []
        for start in range(0, len(chosen), BATCH):
            tokens, mask, _ = self.words.numbers(chosen[start : start + BATCH], self.spec.maxLength)
            parts.append(network(tokens=tokens, mask=mask)[0].numpy())
        tensors.write(folder / VECTORS, {"vectors": np.ascontiguousarray(np.concatenate(parts), np.float32)})
        (folder / TEXTS).write_text(json.dumps(chosen, ensure_ascii=False), encoding="utf-8")

    def questions(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, NDArray[np.generic]]]:
        """TEXT, OTHER [1, 1]."""
        return [
            {
                name: np.array([[str(text).encode()]], dtype=np.object_)
                for name, text in zip(("TEXT", "OTHER"), record["input"], strict=True)
            }
            for record in records
        ]

    def _both(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of the first and the second texts float32 [n, d], calibration [n, 2]."""
        (first, calibration), (second, _) = (
            network(tokens=tokens, mask=mask)
            for tokens, mask in (texts.moved(batch, network), texts.moved(batch, network, OTHER))
        )
        return first.float(), second.float(), calibration.float()

    def _said(self, network: nn.Module, batch: Batch) -> Tensor:
        first, second, calibration = self._both(network, batch)
        return calibration[:, 0] * (first * second).sum(dim=1) + calibration[:, 1]


def _numbered(text: str) -> int:
    """Of the text alone, the same in each process: 63 bits of its digest."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Correlation of ranks, those of equal values their mean; 0 where all of one side are equal."""
    ranks = []
    for values in (a, b):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        ranks.append((ends - (counts - 1) / 2)[place])
    one, other = (rank - rank.mean() for rank in ranks)
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / scale if scale else 0.0
