"""What a swap that is cancelled, or fails, leaves."""

from __future__ import annotations

import asyncio
import errno
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads.contract import ArtifactPin, Golden, Reason, ServeFile, Store, live_digest
from mms_workloads.serve import child, generations
from mms_workloads.serve import swap as module
from mms_workloads.serve.control import TritonGoneError
from mms_workloads.serve.generations import Generation, Generations
from mms_workloads.serve.layout import Layout
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from pathlib import Path


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


async def test_a_triton_that_ends_while_models_take_an_artifact_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    answers = [True, False, True, False, False, False]  # it may miss a look

    async def ready() -> dict[str, bool]:
        return {"neighbours": answers.pop(0)}

    triton: Any = SimpleNamespace(ready=ready)
    following = Generation(digest="b", version=2, folder=str(tmp_path / "b"), triton=2)
    with pytest.raises(TritonGoneError, match="lost its models while artifact b"):
        await module._reported(Layout(models=tmp_path), following, triton, serving=False)
    assert answers == []


async def test_what_is_left_of_a_run_that_serves_stays_when_a_swap_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent reads it when it starts."""
    run = live_digest("uid-0123456789", 1)
    layout = Layout(models=tmp_path)
    first = layout.artifact(run)
    later = first.with_name(f"{first.name}-7")
    stale = layout.artifact("sha256:" + "f" * 64)
    for folder in (first, later, stale):
        folder.mkdir()
    held = Generation(digest=f"{run}:7:1000", version=1, folder=str(later))
    generations.write(layout.generations, Generations(serving=held.digest, held=[held]))

    async def fails(*_: object, **__: object) -> None:
        raise JobError(Reason.STORAGE_UNREACHABLE, "no", retryable=True)

    monkeypatch.setattr(module.child, "run", fails)
    pin = ArtifactPin(uri="file:///x", digest="sha256:" + "b" * 64)
    serve = ServeFile(namespace="d", name="words", artifact=pin, storage=Store(uri="file:///x"))
    triton: Any = None
    with pytest.raises(JobError):
        await module.swap(serve, layout, triton, {}, lambda _: None)
    assert (first.exists(), later.exists(), stale.exists()) == (True, True, False)


@pytest.mark.parametrize("where", ["folder", "process"])
async def test_a_process_that_cannot_begin_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC if where == "folder" else errno.EAGAIN, "no")

    if where == "folder":
        monkeypatch.setattr(child.tempfile, "TemporaryDirectory", full)
    else:
        monkeypatch.setattr(child.asyncio, "create_subprocess_exec", full)
    with pytest.raises(JobError, match="could not be run") as error:
        await child.run(Layout(models=tmp_path), {}, "some.module")
    assert (error.value.reason, error.value.retryable) == (Reason.INTERNAL, True)


async def test_a_triton_that_ends_while_it_loads_a_version_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is back when somebody looks."""
    following = Generation(digest="b", version=2, folder=str(tmp_path / "b"), triton=2)
    wanted = Generations(serving="b", held=[following])
    monkeypatch.setattr(module.versions, "there", lambda _: {1})
    monkeypatch.setattr(module.versions, "arrange", lambda *_: True)
    failure = JobError(Reason.MODEL_LOAD_FAILED, "UNAVAILABLE", retryable=True)

    async def load(*_: object) -> None:
        raise failure

    monkeypatch.setattr(module.versions, "load", load)
    triton: Any = None
    with pytest.raises(TritonGoneError):
        await module._stand(wanted, Layout(models=tmp_path), triton, {})
    failure = JobError(Reason.MODEL_LOAD_FAILED, "what the model says")
    with pytest.raises(JobError, match="what the model says"):
        await module._stand(wanted, Layout(models=tmp_path), triton, {})
