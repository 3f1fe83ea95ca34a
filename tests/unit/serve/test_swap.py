"""A swap that is cancelled when it serves already: it is there, and says so."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mms_workloads.contract import ArtifactPin, Golden, ServeFile, Store
from mms_workloads.serve import swap as module
from mms_workloads.serve.generations import Generation, Generations

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_what_serves_is_told_though_it_is_cancelled_while_it_tidies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    put_back: list[Any] = []
    one, other = (Generation(digest=name, version=1, folder=str(tmp_path / name)) for name in ("a", "b"))
    artifact = SimpleNamespace(golden=Golden(cases=[]))

    def tidy(*_: object) -> None:
        begun.set()
        assert may_end.wait(10)

    async def nothing(*_: object, **__: object) -> None:
        return

    async def back(*of: object) -> None:
        put_back.append(of)

    monkeypatch.setattr(module.generations, "read", lambda _: Generations(serving="a", held=[one, other]))
    monkeypatch.setattr(module, "read_artifact", lambda *_: artifact)
    monkeypatch.setattr(module, "_stand", nothing)
    monkeypatch.setattr(module, "_reported", nothing)
    monkeypatch.setattr(module, "_put_back", back)
    monkeypatch.setattr(module, "_tidy", tidy)
    layout: Any = SimpleNamespace(generations=tmp_path / "generations.json", artifact=lambda name: tmp_path / name)
    triton: Any = SimpleNamespace(verify=nothing)
    pin = ArtifactPin(uri="file:///x", digest="b")
    serve = ServeFile(namespace="d", name="words", artifact=pin, storage=Store(uri="file:///x"))
    swapping = asyncio.create_task(module.swap(serve, layout, triton, {}, lambda _: None))
    await asyncio.to_thread(begun.wait, 10)
    swapping.cancel()
    await asyncio.sleep(0)
    may_end.set()
    assert await swapping is artifact
    assert put_back == []
