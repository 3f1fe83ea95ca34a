"""Runs of a small corpus as real processes on loopback."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from mms_workloads.contract import ArtifactManifest, Data, EvaluationSpec, Golden, JobFile, Optimizer, Store
from mms_workloads.data import blocks
from mms_workloads.sync.leases import Leases, Slice
from tests.unit.train.quick import QuickRun

if TYPE_CHECKING:
    import torch

    from mms_workloads.contract import Outcome, StatusReport
    from mms_workloads.train.local import LocalRun

TOPICS, WORDS_OF_TOPIC = 8, 12
BLOCK_BYTES = 8 << 10
SECONDS = 90.0  # a run that takes longer hangs: they take a few seconds each, on busy processors some more


@functools.cache
def rounds(epochs: int) -> int:
    """That one worker makes: they go on from one data epoch to the next, unless that begins with a block of theirs."""
    data = Data(store=Store(uri="file:///x"))
    leases = Leases.start(data, Optimizer().seed, epochs, blocks.split(BLOCKS, EvaluationSpec().split)[0], BLOCKS)
    made = 0
    while not leases.done():
        taken = [lease for _ in range(BLOCKS_OF_A_ROUND) if (lease := leases.take(0, members=1))]
        leases.commit(Slice(lease.data_epoch, lease.block, 0, 1, 1) for lease in taken)
        made += 1
    return made


def text(sentences: int = 3000) -> str:
    """Sentences of words of one topic each, so that there is something to learn."""
    rng = random.Random(0)
    lines = []
    for _ in range(sentences):
        topic = rng.randrange(TOPICS)
        lines.append(" ".join(f"topic{topic}word{rng.randrange(WORDS_OF_TOPIC)}" for _ in range(8)))
    return "\n".join(lines)


BLOCKS = -(-len(text()) // BLOCK_BYTES)
BLOCKS_OF_A_ROUND = 4  # one worker's: so that a data epoch has eight rounds or more


def job(folder: Path, *, workers: int = 1, uid: str = "u", **changes: Any) -> JobFile:
    """Of the corpus in <folder>/corpus, which is made unless it is there."""
    corpus = folder / "corpus"
    if not corpus.exists():
        corpus.mkdir(parents=True)
        (corpus / "a.txt").write_text(text())
    optimizer = {"epochs": 3, "learningRate": 0.05, **changes.pop("optimizer", {})}
    fields = {
        "job": {"namespace": "default", "name": "words", "uid": uid, "run": 1},
        "task": {"wordEmbedding": {"dimensions": 16, "minCount": 1, "subsample": 0}},
        "data": {"store": {"uri": f"file://{corpus}/*"}, "blockBytes": BLOCK_BYTES},
        "optimizer": optimizer,
        "workers": workers,
        "storage": {"uri": f"file://{folder}/storage"},
        "masterHost": "127.0.0.1",
        **changes,
    }
    return JobFile.model_validate(fields)


def run_to_the_end(folder: Path, training: JobFile) -> Outcome:
    with QuickRun(folder / "run", training) as run:
        return run.start().outcome(SECONDS)


def until_step(run: LocalRun, step: int) -> StatusReport:
    return run.until(lambda report: report.step >= step, SECONDS)


def told_to_stop(run: LocalRun, folder: Path) -> int:
    """All processes at once; the step of the one checkpoint that they leave in the job's storage."""
    for process in run.processes.values():
        process.send_signal(signal.SIGTERM)
    for process in run.processes.values():
        assert process.wait(SECONDS) == 128 + signal.SIGTERM
    (manifest,) = (folder / "storage" / "checkpoints").glob("*/manifest.json")
    return int(json.loads(manifest.read_text())["step"])


def kinds(report: StatusReport) -> list[str]:
    return [incident.kind for incident in report.incidents]


def child(pid: int) -> int:
    """The worker that a supervisor has forked; 0 between two."""
    return int((Path(f"/proc/{pid}/task/{pid}/children").read_text().split() or ["0"])[0])


def artifact(folder: Path, outcome: Outcome) -> tuple[ArtifactManifest, torch.Tensor]:
    """The artifact that an outcome names, checked to the last byte."""
    assert (outcome.result, outcome.reason) == ("Complete", "TrainingComplete"), outcome
    assert outcome.artifact is not None
    place = folder / "storage" / "artifact"
    assert outcome.artifact.uri == f"file://{place}"
    data = (place / "manifest.json").read_bytes()
    assert outcome.artifact.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    manifest = ArtifactManifest.model_validate_json(data)
    for name, entry in manifest.files.items():
        content = (place / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry.sha256, entry.size)
    vectors = load_file(place / "model.safetensors")["vectors"]
    words = [line.split("\t")[0] for line in (place / "vocabulary.txt").read_text().splitlines()]
    assert len(words) == vectors.shape[0] == TOPICS * WORDS_OF_TOPIC
    cases = Golden.model_validate_json((place / "golden.json").read_bytes()).cases
    for case in cases:
        if case.model == "vectors" and "WORDS" in case.inputs:
            assert vectors[words.index(str(case.inputs["WORDS"][0]))].tolist() == case.outputs["VECTORS"]
    assert json.loads((place / "evaluation.json").read_text())["metrics"] == outcome.artifact.metrics
    return manifest, vectors
