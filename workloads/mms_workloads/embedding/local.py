"""Word vectors on this machine, in this process: the same reading, kernels and files as a worker's, no cluster."""

from __future__ import annotations

import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads import memory
from mms_workloads import store as stores
from mms_workloads.contract import DataFile, Reason
from mms_workloads.data import blocks, corpus, vocabulary
from mms_workloads.data.corpus import Corpus
from mms_workloads.data.reader import Reader
from mms_workloads.embedding import evaluation, files, report, training
from mms_workloads.embedding.distribution import distribution
from mms_workloads.embedding.parameters import initial_parameters, need
from mms_workloads.store import JobError
from mms_workloads.sync.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import Store, WordEmbedding
    from mms_workloads.data.blocks import Block, Segment
    from mms_workloads.data.vocabulary import Vocabulary
    from mms_workloads.embedding.distribution import Distribution
    from mms_workloads.embedding.parameters import Parameters

BLOCK_BYTES = 4 << 20
EVALUATED_TOKENS = 200_000
BINARY_PART = 0.05  # of the time of both files
LEAST_RATE = 1e-4  # part of the learning rate, as word2vec


@dataclass(frozen=True, slots=True)
class Settings:
    data: Store
    task: WordEmbedding
    epochs: int
    learning_rate: float
    seed: int
    threads: int
    text: bool = False  # write vectors.txt, too


@dataclass(frozen=True, slots=True)
class Progress:
    phase: str  # counting, encoding, training, writing
    done: float  # part of the phase, 0 to 1
    words: int = 0  # trained on, over all epochs
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    words: tuple[str, ...]
    vectors: NDArray[np.float32]  # [V, d]
    metrics: dict[str, float]
    trained: int  # words, over all epochs
    seconds: dict[str, float]  # of each phase
    written: tuple[str, ...]  # names of files


def embed(settings: Settings, output: Path, scratch: Path, tell: Callable[[Progress], None]) -> Result:
    """Writes the artifact's files, vectors.bin and report.html into `output`, a folder. Raises JobError, OSError."""
    _probe(output)
    memory.give_back()
    clock = _Clock(tell)
    clock.enter("counting")
    plan = _plan(settings, scratch, tell)
    clock.enter("encoding")
    data = Corpus(settings.data, plan, settings.task, scratch / "blocks")
    _encode(data, settings.threads, tell)
    clock.enter("training")
    trained, losses, parameters, words = _train(settings, plan.vocabulary, data, tell)
    clock.enter("writing")
    files.check(parameters)
    vectors = files.words_of(parameters, words)
    sample = data.tokens(len(data.blocks) // 2)[:EVALUATED_TOKENS]
    metrics = evaluation.measured(
        vectors,
        plan.vocabulary.words,
        [sample],
        words,
        settings.task.window,
        seed=settings.seed,
        held_out=False,
    )
    page = report.page(plan.vocabulary, vectors, metrics, losses, settings.task)
    written = [files.TASK, files.WEIGHTS, files.REPORT, files.BINARY, files.VOCABULARY]
    again = all((output / name).exists() for name in written)  # an earlier run's folder: its other files are ours, too
    output.mkdir(parents=True, exist_ok=True)
    files.write(output, parameters, vectors, plan.vocabulary, settings.task)
    # Of both files text takes nearly all the time.
    binary = BINARY_PART if settings.text else 1.0
    files.word2vec_binary(
        output / files.BINARY, plan.vocabulary.words, vectors, lambda done: tell(Progress("writing", done * binary))
    )
    if settings.text:
        files.word2vec_text(
            output / files.TEXT,
            plan.vocabulary.words,
            vectors,
            lambda done: tell(Progress("writing", binary + done * (1 - binary))),
        )
        written.append(files.TEXT)
    elif again:
        (output / files.TEXT).unlink(missing_ok=True)  # it has other vectors
    (output / files.REPORT).write_text(page, encoding="utf-8")
    clock.enter("")
    return Result(plan.vocabulary.words, vectors, metrics, trained, clock.seconds, tuple(written))


def _probe(output: Path) -> None:
    """Raises OSError for a folder in which nothing can be written: before the work, and without making it."""
    there = output.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file: name a folder for the results")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        message = f"{output}: nothing can be written there ({error}): name another folder for the results"
        raise OSError(message) from error


def _plan(settings: Settings, scratch: Path, tell: Callable[[Progress], None]) -> Plan:
    found = stores.glob(settings.data)
    tasks = blocks.counting_tasks([f.uri for f in found], [f.size for f in found])
    segments = [segment for task in tasks for segment in task]
    if not segments:
        raise JobError(Reason.DATA_EMPTY, f"{settings.data.uri}: all files are empty: check them, or name others")
    reader = _Told(settings.data, [file.uri for file in found], scratch, tell)
    counts, sizes = corpus.count(reader, segments, settings.task, threads=settings.threads, folder=scratch)
    sizes = {i: f.size for i, f in enumerate(found)} | sizes
    plan_files = tuple(DataFile(uri=f.uri, size=sizes[i], etag=f.etag) for i, f in enumerate(found))
    return Plan(plan_files, BLOCK_BYTES, vocabulary.cut(counts, settings.task))


def _encode(data: Corpus, threads: int, tell: Callable[[Progress], None]) -> None:
    """Fills the cache of encoded blocks."""
    count = len(data.blocks)
    with ThreadPoolExecutor(threads) as pool:
        for done, _ in enumerate(pool.map(lambda block: len(data.tokens(block)), range(count)), 1):
            tell(Progress("encoding", done / count))


def _train(
    settings: Settings, words: Vocabulary, data: Corpus, tell: Callable[[Progress], None]
) -> tuple[int, list[tuple[int, float]], Parameters, Distribution]:
    """Words trained on, the loss after so many of them, the parameters, and what words are made of. Raises JobError."""
    task = settings.task
    buckets = task.subwords.buckets if task.subwords else 0
    need(len(words), task.dimensions, buckets)
    known = distribution(np.array(words.counts, np.int64), task, words.words)
    parameters = initial_parameters(len(words), task.dimensions, settings.seed, buckets)
    total = max(1, settings.epochs * sum(words.counts))
    trained, pairs, losses = 0, 0.0, list[tuple[int, float]]()
    for epoch in range(settings.epochs):
        for block in range(len(data.blocks)):
            tokens = data.tokens(block)
            ahead = trained + int((tokens >= 0).sum())
            rates = (_rate(settings, trained / total), _rate(settings, ahead / total))
            seed = (settings.seed * 1_000_003 + epoch) * 1_000_003 + block
            stats = training.train_block(
                parameters, tokens, known, task, rates=rates, seed=seed, threads=settings.threads
            )
            trained, pairs = ahead, pairs + stats.pairs
            if stats.loss is not None:
                losses.append((trained, stats.loss))
            tell(Progress("training", min(1.0, trained / total), trained, stats.loss))
        if not pairs:
            raise training.without_pairs()
    return trained, losses, parameters, known


def _rate(settings: Settings, done: float) -> float:
    return settings.learning_rate * max(LEAST_RATE, 1 - done)


class _Told(Reader):
    """Tells how much was counted, of threads that read pieces."""

    def __init__(self, store: Store, uris: Sequence[str], scratch: Path, tell: Callable[[Progress], None]) -> None:
        super().__init__(store, uris, scratch)
        self._tell, self._all, self._read, self._telling = tell, 0, 0, threading.Lock()

    def pieces(self, block: Block, piece_bytes: int) -> list[Segment]:
        found = super().pieces(block, piece_bytes)
        self._all = sum((piece.end or 0) - piece.start for piece in found)
        return found

    def text(self, segment: Segment) -> bytes:
        data = super().text(segment)
        with self._telling:
            self._tell(Progress("counting", self._read / max(1, self._all)))  # of the pieces before: they are counted
            self._read += (segment.end or 0) - segment.start
        return data


class _Clock:
    """Seconds of each phase, which it tells when it begins."""

    def __init__(self, tell: Callable[[Progress], None]) -> None:
        self._tell, self._phase, self._began = tell, "", time.perf_counter()
        self.seconds: dict[str, float] = {}

    def enter(self, phase: str) -> None:
        """Phase "": none."""
        memory.trim()
        now = time.perf_counter()
        if self._phase:
            self.seconds[self._phase] = now - self._began
        self._phase, self._began = phase, now
        if phase:
            self._tell(Progress(phase, 0.0))
