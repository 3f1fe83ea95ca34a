"""The watches of metadata go on where they were, and start anew where that has been forgotten."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from mms_operator.engine import watch as module
from mms_operator.engine.cache import Cache
from mms_operator.engine.health import Health
from mms_operator.engine.intake import Intake
from mms_operator.engine.kubeapi import ApiError
from mms_operator.engine.metrics import Metrics
from mms_operator.engine.queue import WorkQueue
from mms_operator.engine.resources import SECRET, WATCHED, Key
from mms_operator.engine.sweep import Sweeper
from mms_operator.engine.watch import MetadataWatches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Object = dict[str, Any]


def secret(version: int) -> Object:
    labels = {"mms.dev/training": "words"}
    metadata = {"name": "s", "namespace": "ns", "uid": "u", "resourceVersion": str(version), "labels": labels}
    return {"metadata": metadata}


class Api:
    """`script` says what each watch of Secrets does: events, then perhaps an error. After the last it hangs."""

    def __init__(self, *script: list[Any]) -> None:
        self.script = list(script)
        self.versions: list[int] = []
        self.over = asyncio.Event()

    async def watch(self, resource: Any, _: Any, __: str, version: int, ___: int) -> AsyncIterator[tuple[str, Object]]:
        if resource == SECRET:
            self.versions.append(version)
            for step in self.script.pop(0) if self.script else ():
                if isinstance(step, Exception):
                    raise step
                yield step
            if self.script:
                return
            self.over.set()
        await asyncio.Event().wait()

    async def list(self, *_: Any, **__: Any) -> AsyncIterator[tuple[list[Object], int]]:
        yield [secret(40)], 50


async def watched(api: Api, metrics: Metrics, cache: Cache, queue: WorkQueue[Key]) -> None:
    """Until the script is over."""
    intake = Intake(cache, queue, Health(metrics))
    sweeper = Sweeper(api, cache, queue, metrics)  # type: ignore[arg-type]
    sweeper.filled = {(resource.kind, None): 10 for resource in WATCHED}
    running = asyncio.create_task(MetadataWatches(api, intake, sweeper, metrics).run())  # type: ignore[arg-type]
    try:
        await asyncio.wait_for(api.over.wait(), 5)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("script", "versions", "errors"),
    [
        pytest.param([[("ADDED", secret(11))], []], [10, 11], 0, id="the server ended it"),
        pytest.param([[("BOOKMARK", {"metadata": {"resourceVersion": "30"}})], []], [10, 30], 0, id="a bookmark"),
        pytest.param([[("ADDED", secret(11)), OSError("broken")], []], [10, 11], 1, id="it broke"),
        pytest.param([[ApiError(500, "InternalError", "no")], []], [10, 10], 1, id="it was refused"),
        pytest.param([[ApiError(410, "Expired", "too old")], []], [10, 50], 1, id="the version is forgotten"),
    ],
)
async def test_where_a_watch_goes_on(
    monkeypatch: pytest.MonkeyPatch, script: list[list[Any]], versions: list[int], errors: int
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.001)
    api, metrics, cache = Api(*script), Metrics(), Cache()
    queue: WorkQueue[Key] = WorkQueue()
    await watched(api, metrics, cache, queue)
    assert api.versions == versions
    assert (metrics.registry.get_sample_value("mms_errors_total", {"what": "watch"}) or 0) == errors
    seen = any(isinstance(step, tuple) and step[0] == "ADDED" for step in script[0]) or versions[1] == 50
    assert (cache.entry("Secret", "ns", "s") is not None) == seen
    assert (queue.depth == 1) == seen


@pytest.mark.parametrize(
    ("lasts", "expected"),
    [
        pytest.param(1.0, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 1.0], id="at once"),
        pytest.param(90.0, [1.0] * 8, id="after they were silent for long"),
    ],
)
async def test_watches_that_fail_again_and_again_wait_longer(
    monkeypatch: pytest.MonkeyPatch, lasts: float, expected: list[float]
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=itertools.count(step=lasts).__next__))

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    monkeypatch.setattr(module.random, "uniform", lambda _, most: most)
    failure, event = OSError("broken"), ("BOOKMARK", {"metadata": {"resourceVersion": "30"}})
    api = Api(*([failure] for _ in range(7)), [event, failure], [])
    await watched(api, Metrics(), Cache(), WorkQueue())
    assert pauses == expected


async def test_watches_that_end_at_once_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    await watched(Api([], [], []), Metrics(), Cache(), WorkQueue())
    assert len(pauses) == 2
    assert min(pauses) > module.PAUSE / 2
