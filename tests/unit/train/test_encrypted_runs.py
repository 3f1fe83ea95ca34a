"""Runs of encrypted data as real processes: they learn the same, and what is told and kept."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import pytest

from mms_workloads.contract import Reason, Store
from mms_workloads.data import encrypting
from tests.unit.train import runs
from tests.unit.train.quick import QuickRun

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import JobFile

KEY = b"k" * 32
LANGUAGE = {
    "task": {"languageModel": {"dimensions": 16, "layers": 2, "heads": 2, "contextLength": 16}},
    "optimizer": {"name": "AdamW", "learningRate": 0.01, "globalBatchSize": 32, "epochs": 1},
}
EMBEDDING = {"optimizer": {"epochs": 1}}


def encrypted(folder: Path, key: bytes = KEY, **changes: object) -> JobFile:
    """The corpus of runs.job, encrypted, and a job that reads it."""
    plain = runs.job(folder, **changes)
    target = Store(uri=f"file://{folder}/sealed")
    encrypting.encrypt(Store(uri=f"file://{folder}/corpus"), target, KEY, block_bytes=runs.BLOCK_BYTES)
    (folder / "key").write_text(key.hex())
    data = plain.data.model_dump() | {"store": target, "encryption": {"keyFile": str(folder / "key")}}
    return plain.model_validate({**plain.model_dump(), "data": data})


@pytest.mark.parametrize("changes", [LANGUAGE, EMBEDDING], ids=["language", "embedding"])
def test_two_workers_train_on_encrypted_data(tmp_path: Path, changes: dict[str, object]) -> None:
    training = encrypted(tmp_path, workers=2, **changes)
    (tmp_path / "corpus" / "a.txt").unlink()
    with QuickRun(tmp_path / "run", training) as run:
        outcome = run.start().outcome(runs.SECONDS)
    assert (outcome.result, outcome.reason) == ("Complete", "TrainingComplete"), outcome
    told = [json.loads(line) for line in (tmp_path / "run" / "master" / "log").read_text().splitlines() if "{" in line]
    given = [line for line in told if line.get("event") == "block key given"]
    blocks = set(range(len(list((tmp_path / "sealed" / "blocks").iterdir()))))
    assert {line["block"] for line in given if line["why"] == "counting"} == blocks
    leased = [line["block"] for line in given if line["why"].startswith("lease")]
    held_out = {line["block"] for line in given if line["why"] == "evaluation"}
    assert set(leased) | held_out == blocks
    assert held_out
    assert not set(leased) & held_out
    assert {line["rank"] for line in given} == {0, 1}
    # Of a text no two words are on a disk; the words themselves are what word vectors are of.
    sentence = runs.text().splitlines()[0].split()
    pairs = [f"{a} {b}".encode() for a, b in itertools.pairwise(sentence)]
    kept = [path for folder in ("run", "storage", "sealed") for path in (tmp_path / folder).rglob("*")]
    read = {path: path.read_bytes() for path in kept if path.is_file()}
    assert len(read) > len(blocks)
    assert not [path for path, data in read.items() if any(pair in data for pair in pairs)]


def test_the_wrong_key_fails_the_run_and_says_so(tmp_path: Path) -> None:
    training = encrypted(tmp_path, b"o" * 32, **LANGUAGE)
    with QuickRun(tmp_path / "run", training) as run:
        run.start_master()
        outcome = run.outcome(runs.SECONDS)
    assert (outcome.result, outcome.reason) == ("Failed", Reason.CREDENTIALS_INVALID)
    assert "was made with another data key, or was altered" in outcome.message


def test_a_damaged_block_fails_the_run_and_says_which(tmp_path: Path) -> None:
    training = encrypted(tmp_path, **LANGUAGE)
    path = tmp_path / "sealed" / "blocks" / "00000002.mms"
    path.write_bytes(path.read_bytes()[:-9])
    with QuickRun(tmp_path / "run", training) as run:
        outcome = run.start().outcome(runs.SECONDS)
    assert (outcome.result, outcome.reason) == ("Failed", Reason.DATA_UNREADABLE)
    assert "00000002.mms cannot be decrypted" in outcome.message
