"""What a worker keeps of a data set."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads.data.corpus import Cache

if TYPE_CHECKING:
    from pathlib import Path


def test_a_block_that_two_threads_want_is_encoded_once(tmp_path: Path) -> None:
    cache, encoded, begun, go = Cache(tmp_path), list[int](), threading.Event(), threading.Event()

    def encode(block: int) -> np.ndarray:
        begun.set()
        assert go.wait(10)
        encoded.append(block)
        return np.arange(1000)

    got: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: got.append(cache.get(7, encode))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    go.set()
    for thread in threads:
        thread.join()
    assert encoded == [7]
    assert [one.tolist() for one in got] == [list(range(1000))] * 2
    assert cache.get(7, encode).tolist() == list(range(1000)), "and kept"
    assert encoded == [7]
