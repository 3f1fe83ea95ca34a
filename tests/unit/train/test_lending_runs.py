"""Workers that get blocks from each other instead of the store, as real processes."""

from __future__ import annotations

import functools
import http.server
import threading
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
    assert second.storeBytes >= len(runs.text())
    assert third.storeBytes == second.storeBytes
    assert third.peerBytes > 0
