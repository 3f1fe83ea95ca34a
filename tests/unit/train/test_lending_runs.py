"""Workers that get blocks from each other instead of the store, as real processes."""

from __future__ import annotations

import functools
import gzip
import http.server
import threading
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.unit.train import runs
from tests.unit.train.quick import QuickRun

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server of <tmp_path>/web."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "web").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()
        thread.join()


def test_after_the_first_data_epoch_the_store_is_not_read(tmp_path: Path, server: str) -> None:
    (tmp_path / "web" / "a.txt").write_text(runs.text())
    training = runs.job(
        tmp_path,
        workers=2,
        task={"languageModel": {"dimensions": 16, "layers": 2, "heads": 2, "contextLength": 16}},
        optimizer={"name": "AdamW", "learningRate": 0.01, "globalBatchSize": 64, "epochs": 3},
        data={"store": {"uri": f"{server}/a.txt"}, "blockBytes": runs.BLOCK_BYTES},
    )
    with QuickRun(tmp_path / "run", training) as run:
        run.start()
        second = run.until(lambda report: report.percent > 55, runs.SECONDS).data
        third = run.until(lambda report: report.percent > 90, runs.SECONDS).data
        outcome = run.outcome(runs.SECONDS)
    assert (outcome.result, outcome.reason) == ("Complete", "TrainingComplete"), outcome
    assert second
    assert third
    size = len(runs.text())
    assert 0.8 * size < second.storeBytes < 1.2 * size, "each block once, but for what is held out"
    assert third.storeBytes - second.storeBytes < 0.02 * size, "a few lines' ends"
    assert third.peerBytes > 0


TASK = {"languageModel": {"dimensions": 16, "layers": 2, "heads": 2, "contextLength": 16}}


def test_a_worker_keeps_no_more_than_the_job_says(tmp_path: Path, server: str) -> None:
    """Of what it reads as it is, and of what it decompresses."""
    for name in "abcd":
        (tmp_path / "web" / f"{name}.txt").write_text(runs.text(500))
        (tmp_path / "web" / f"{name}.txt.gz").write_bytes(gzip.compress(runs.text(500).encode()))
    size = len(runs.text(500))
    kept = {}
    for times in (2, 100):
        training = runs.job(
            tmp_path,
            task=TASK,
            optimizer={"name": "AdamW", "learningRate": 0.01, "globalBatchSize": 64, "epochs": 1},
            data={"store": {"uri": f"{server}/*"}, "blockBytes": runs.BLOCK_BYTES, "cacheBytes": times * size},
        )
        folder = tmp_path / f"run-{times}"
        with QuickRun(folder, training) as run:
            assert run.start().outcome(runs.SECONDS).result == "Complete"
        scratch = folder / "worker-0" / "scratch-0"
        found = [path for part in ("pages", "spool") for path in (scratch / part).iterdir()]
        kept[times] = sum(path.stat().st_size for path in found)
    assert size <= kept[2] <= 2 * size
    assert 8 * size <= kept[100] < 8.4 * size, "and a few bytes of what lies beside blocks"


def test_metrics_have_the_bytes_of_the_status(tmp_path: Path, server: str) -> None:
    (tmp_path / "web" / "a.txt").write_text(runs.text())
    training = runs.job(
        tmp_path,
        workers=2,
        task=TASK,
        optimizer={"name": "AdamW", "learningRate": 0.01, "globalBatchSize": 64, "epochs": 100},
        data={"store": {"uri": f"{server}/a.txt"}, "blockBytes": runs.BLOCK_BYTES},
    )
    with QuickRun(tmp_path / "run", training) as run:
        before = run.start().until(lambda report: report.data and report.data.peerBytes, runs.SECONDS).data
        with urllib.request.urlopen(f"http://127.0.0.1:{run.health_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        after = run.status()
    assert before
    assert after
    assert after.data
    for place, name in (("store", "storeBytes"), ("peers", "peerBytes"), ("volume", "volumeBytes")):
        (line,) = [one for one in lines if one.startswith("mms_training_data_read_bytes") and f'"{place}"' in one]
        assert getattr(before, name) <= int(line.rpartition(" ")[2]) <= getattr(after.data, name)
