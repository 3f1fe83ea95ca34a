"""`mms embed`: its settings, and what it says while it works."""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.markup import escape
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from mms_operator.api.training_task import SOFTMAX_WORDS, WordEmbedding
from mms_operator.plan import tasks
from mms_workloads import store as stores
from mms_workloads.contract import Store
from mms_workloads.embedding import files, local
from mms_workloads.serve import vectors_file

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from mms_workloads.embedding.local import Progress, Result

SCRATCH = "the scratch volume"  # as messages have it
PRECISION = 1e-6  # of a fraction that is written as decimals


class SettingsError(ValueError):
    """An option that is out of its bounds; the message has the remedy."""


@dataclass(frozen=True)
class How:
    epochs: int
    learning_rate: float | None  # None: as the model has it
    seed: int
    threads: int | None  # None: one for each processor
    text: bool = False  # vectors.txt, too


def decimals(value: float) -> str:
    """As the API has fractions: without an exponent, and exact."""
    return format(Decimal(repr(value)), "f").removesuffix(".0")


def part(name: str, fields: dict[str, Any], *, asked: bool) -> dict[str, Any] | None:
    """Of the task, which there is where it was asked for. fields: None is absent. Raises SettingsError."""
    given = {field: value for field, value in fields.items() if value is not None}
    if given and not asked:
        raise SettingsError(f"{name}.{next(iter(given))} is of --{name} only: add --{name}, or leave it out")
    return given if asked else None


def run(corpus: str, given: dict[str, Any], how: How, output: Path, console: Console) -> Result:
    """given: the fields of task.wordEmbedding as the API has them. Raises SettingsError, store.JobError, OSError."""
    try:
        task = WordEmbedding.model_validate(given)
    except ValidationError as error:
        raise SettingsError("\n".join(_said(one) for one in error.errors())) from error
    if how.learning_rate is not None and not math.isfinite(how.learning_rate):
        raise SettingsError(f"--learning-rate: input should be a finite number, not {how.learning_rate}")
    if task.negatives is not None and task.objective != "NegativeSampling":
        raise SettingsError("negatives is of objective NegativeSampling only: leave one of them out")
    if task.subwords and task.subwords.minLength > task.subwords.maxLength:
        raise SettingsError("subwords.minLength must not be above maxLength: change one of them")
    if task.objective == "Softmax" and (task.subwords or task.maxVocabulary > SOFTMAX_WORDS):
        raise SettingsError(
            f"objective Softmax compares each pair with all words: set maxVocabulary to {SOFTMAX_WORDS} or less, and "
            "leave subwords out"
        )
    usual = tasks.usual_embedding(task).learning_rate
    settings = local.Settings(
        data=Store(uri=corpus if "://" in corpus else f"file://{Path(corpus).absolute()}"),
        task=tasks.word_embedding(task),
        epochs=how.epochs,
        learning_rate=how.learning_rate or usual,
        seed=how.seed,
        threads=how.threads or len(os.sched_getaffinity(0)),
        text=how.text,
    )
    with tempfile.TemporaryDirectory(prefix="mms-embed-") as scratch, _Bar(console) as bar:
        try:
            return local.embed(settings, output, Path(scratch), bar.tell)
        except stores.JobError as error:
            if SCRATCH not in error.message:
                raise
            # Workers have a volume for it, whose remedy is another one.
            remedy = f"here it is {tempfile.gettempdir()}: set TMPDIR to a folder with more room"
            raise stores.JobError(error.reason, f"{error.message}; {remedy}", retryable=error.retryable) from error


def export(artifact: str, target: Path) -> int:
    """artifact: a folder or a URI. Returns the number of words.

    Raises SettingsError, vectors_file.ArtifactError, store.JobError, OSError.
    """
    write = {".bin": files.word2vec_binary, ".txt": files.word2vec_text}.get(target.suffix)
    if write is None:
        raise SettingsError(f"{target}: the name must end with .bin or .txt, which says the format")
    store = Store(uri=artifact if "://" in artifact else f"file://{Path(artifact).absolute()}")
    with tempfile.TemporaryDirectory(prefix="mms-export-") as scratch:
        folder = Path(scratch)
        for name in (files.WEIGHTS, files.VOCABULARY):
            stores.download(stores.child(store, name), folder / name)
        words = [word.decode() for word in vectors_file.read_vocabulary(folder / files.VOCABULARY)]
        vectors = vectors_file.map_tensor(folder / files.WEIGHTS, "vectors")
        if len(words) != len(vectors):
            raise vectors_file.ArtifactError(f"{artifact}: {len(words)} words and {len(vectors)} vectors")
        write(target, words, vectors)
    return len(words)


def summary(result: Result, output: Path) -> str:
    rate = result.trained / max(PRECISION, result.seconds["training"]) / 1e6
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in result.metrics.items())
    return (
        f"{len(result.words):,} words of {result.vectors.shape[1]} dimensions in {sum(result.seconds.values()):.1f} s "
        f"({rate:.2f} million words/s while training): {metrics}\n"
        f"{escape(str(output))}: {', '.join(sorted(result.written))}"
    )


def _said(error: Any) -> str:
    field, message = ".".join(map(str, error["loc"])), error["msg"]
    return f"{field}: {message[:1].lower()}{message[1:]}, not {error['input']!r}"


class _Bar(Bars):
    """A bar for each phase; that of the training has words per second and the loss."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[said]}"),
            console=console,
        )
        self._phase, self._began = "", 0.0

    def tell(self, now: Progress) -> None:
        if self._phase != now.phase:
            self._finish()
            self._phase, self._began = now.phase, time.perf_counter()
            self.add_task(now.phase, total=1.0, said="")
        said = ""
        if now.words:
            rate = now.words / max(PRECISION, time.perf_counter() - self._began)
            loss = "" if now.loss is None else f", loss {now.loss:.3f}"
            said = f"{rate / 1e6:.2f} million words/s{loss}"
        self.update(self.task_ids[-1], completed=now.done, said=said)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        super().__exit__(kind, error, trace)

    def _finish(self) -> None:
        if self.task_ids:
            self.update(self.task_ids[-1], completed=1.0)
