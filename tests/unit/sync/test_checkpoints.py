"""Checkpoints: a save cut short at any point, damage and age never cost more than the newest one."""

from __future__ import annotations

import errno
import json
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mms_workloads import store as stores
from mms_workloads.contract import CheckpointRef, JobFile, Reason, Store
from mms_workloads.embedding.parameters import Parameters
from mms_workloads.embedding.state import EmbeddingState
from mms_workloads.store import JobError
from mms_workloads.sync import checkpoints, startup
from mms_workloads.sync.claims import Claim
from mms_workloads.sync.leases import Progress
from mms_workloads.train import checkpoint
from mms_workloads.train.learner import Place
from mms_workloads.train.state import part, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


MASTER = "00000001-00000000-mine"


class Killed(BaseException):
    pass


@pytest.fixture
def storage(tmp_path: Path) -> Store:
    return Store(uri=f"file://{tmp_path}/run")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def save(storage: Store, scratch: Path, step: int, keep: int = 2, parts: int = 2) -> CheckpointRef:
    """As the ranks and the master do it together."""
    state = EmbeddingState.start(Parameters(np.full((3, 2), step, np.float32), np.full((3, 2), -step, np.float32)))
    progress = Progress([step, 0], {1: (1, 4)})
    name = checkpoints.folder(step, "lineage")
    target = stores.child(storage, f"checkpoints/{name}")
    entries = {}
    for index in range(parts):
        others = {"progress.json": checkpoint.progress_file(step, progress), "plan.bin": b"plan"} if index == 0 else {}
        tables = part(state.tables(), index, parts)
        entries |= checkpoint.write_part(target, tables, Place(index, parts), others, scratch)
    reference = checkpoints.commit(storage, name, entries, step, MASTER, quarantined={5, 2})
    checkpoints.prune(storage, keep, reference)
    return reference


def folder(reference: CheckpointRef) -> Path:
    from pathlib import Path

    return Path(reference.uri.removeprefix("file://"))


def found(storage: Store) -> startup.Checkpointed | None:
    return startup.last_checkpoint(Claim(storage, MASTER))


def test_round_trip(storage: Store, scratch: Path) -> None:
    assert found(storage) is None
    reference = save(storage, scratch, 7)
    latest = found(storage)
    assert latest == startup.Checkpointed(reference, b"plan", Progress([7, 0], {1: (1, 4)}), frozenset({2, 5}))
    loaded = checkpoint.load(storage, reference, scratch)
    assert torch.equal(loaded["vectors"]["parameters"], torch.full((3, 2), 7.0))
    assert torch.equal(loaded["contexts"]["parameters"], torch.full((3, 2), -7.0))
    assert not list(scratch.iterdir())


STORE_CALLS = 13  # of one save: four files written and read back, the manifest written and read back, and pruning


@pytest.mark.parametrize("point", range(STORE_CALLS))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_save_that_is_killed(
    storage: Store, scratch: Path, monkeypatch: pytest.MonkeyPatch, point: int, after: bool
) -> None:
    """Before or after any access to the store: the one before is found, or the one that was being saved, whole."""
    first = save(storage, scratch, 1)
    calls = 0

    @contextmanager
    def counted() -> Iterator[None]:
        nonlocal calls
        calls += 1
        mine = calls == point + 1
        if mine and not after:
            raise Killed
        yield
        if mine:
            raise Killed

    def calling(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            with counted():
                return original(*arguments, **options)

        return call

    @contextmanager
    def writing(*arguments: Any) -> Iterator[IO[bytes]]:
        """Killed before it is over: its content is there under another name."""
        place = original(*arguments)
        left.append(place)  # whose end would tidy up, which a kill does not
        yield place.__enter__()
        with counted():
            place.__exit__(None, None, None)

    original, left = stores.writing, list[object]()
    with monkeypatch.context() as patched:
        for name in ("open_read", "write_bytes", "read_bytes", "list_folder", "remove_folder"):
            patched.setattr(stores, name, calling(getattr(stores, name)))
        patched.setattr(stores, "writing", writing)
        try:
            save(storage, scratch, 2)
        except Killed:
            pass
        else:
            assert calls <= point
    latest = found(storage)
    assert latest is not None
    assert latest.ref.step in {1, 2}
    assert latest.progress.applied == [latest.ref.step, 0]
    assert float(checkpoint.load(storage, latest.ref, scratch)["vectors"]["parameters"][0, 0]) == latest.ref.step
    third = save(storage, scratch, 3)
    after_that = found(storage)
    assert after_that is not None
    assert after_that.ref == third
    save(storage, scratch, 4)
    assert [int(name.split("-")[1]) for name in kept(storage)] == [3, 4], "what was cut short is pruned with the rest"
    assert first.step == 1


@pytest.mark.parametrize("size", [0, 1, 5, 200, 100_000])
@pytest.mark.parametrize("name", ["manifest.json", "plan.bin", "progress.json"])
def test_damage_that_the_master_sees(storage: Store, scratch: Path, name: str, size: int) -> None:
    before = save(storage, scratch, 1)
    file = folder(save(storage, scratch, 2)) / name
    data = file.read_bytes()
    file.write_bytes(data[:size] if size < len(data) else data[:-1] + b"\x00")
    latest = found(storage)
    assert latest is not None
    assert latest.ref == before


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b"null",
        b'{"step": -1, "time": "t"}',
        b'{"step": 2}',
        b'{"step": 2, "time": "t"}',
        b'{"step": 2, "time": "t", "files": {}}',
    ],
)
def test_manifests_that_are_none(storage: Store, scratch: Path, content: bytes) -> None:
    before = save(storage, scratch, 1)
    (folder(save(storage, scratch, 2)) / "manifest.json").write_bytes(content)
    latest = found(storage)
    assert latest is not None
    assert latest.ref == before


@pytest.mark.parametrize("spoil", ["flip", "cut", "remove", "manifest"])
def test_damage_that_the_worker_sees(storage: Store, scratch: Path, spoil: str) -> None:
    reference = save(storage, scratch, 2)
    file = folder(reference) / "part-1-of-2.safetensors"
    data = bytearray(file.read_bytes())
    if spoil == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif spoil == "cut":
        file.write_bytes(data[:-4])
    elif spoil == "remove":
        file.unlink()
    else:  # one that lists the damaged file as it is
        file.write_bytes(data[:-4])
        manifest = folder(reference) / "manifest.json"
        document = json.loads(manifest.read_text())
        document["files"][file.name] = checkpoints.digest(bytes(data[:-4])).model_dump()
        manifest.write_text(json.dumps(document))
    with pytest.raises(JobError) as raised:
        checkpoint.load(storage, reference, scratch)
    assert checkpoints.damaged(raised.value)
    assert not raised.value.retryable
    latest = startup.last_checkpoint(Claim(storage, MASTER), frozenset({reference.uri}))
    assert latest is None


@pytest.mark.parametrize(
    ("reason", "retryable"),
    [(Reason.STORAGE_UNREACHABLE, True), (Reason.DATA_UNREADABLE, False), (Reason.CREDENTIALS_INVALID, False)],
)
def test_what_cannot_be_read_now_is_not_passed_over(
    storage: Store, scratch: Path, monkeypatch: pytest.MonkeyPatch, reason: Reason, retryable: bool
) -> None:
    """Going on from an older checkpoint, or from none, would throw work away."""
    save(storage, scratch, 1)

    def fail(place: Store, *_: object) -> bytes:
        if place.uri.endswith("plan.bin"):
            raise JobError(reason, "away", retryable=retryable)
        return original(place)

    original = stores.read_bytes
    monkeypatch.setattr(stores, "read_bytes", fail)
    with pytest.raises(JobError, match="away"):
        found(storage)


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (2, [4, 5]), (4, [2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_prune(storage: Store, scratch: Path, keep: int, left: list[int]) -> None:
    unfinished = stores.child(storage, "checkpoints/step-0000000000-dead")
    stores.write_bytes(stores.child(unfinished, "plan.bin"), b"x")
    for step in (1, 2, 3, 4, 5):
        save(storage, scratch, step, keep)
    assert [int(f.split("-")[1]) for f in kept(storage) if not f.endswith("dead")] == left


def kept(storage: Store) -> list[str]:
    return sorted({uri.split("/")[-2] for uri in stores.list_folder(stores.child(storage, "checkpoints"))})


def test_unfinished_saves_are_pruned(storage: Store, scratch: Path) -> None:
    for step in (1, 3):
        unfinished = stores.child(storage, f"checkpoints/step-{step:010d}-dead")
        stores.write_bytes(stores.child(unfinished, "plan.bin"), b"x")
        save(storage, scratch, step + 1, keep=1)
    assert [f.split("-")[1] for f in kept(storage)] == ["0000000004"]


def test_the_newest_stays_although_older_work_had_come_further(storage: Store, scratch: Path) -> None:
    """After a return to an earlier checkpoint, damaged ones with higher steps are still there."""
    for step in (50, 100, 110):
        save(storage, scratch, step, keep=3)
    written = save(storage, scratch, 60, keep=2)
    assert folder(written).exists()
    assert [int(f.split("-")[1]) for f in kept(storage)] == [50, 60, 100, 110]


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_parts_are_put_together(storage: Store, scratch: Path, parts: int) -> None:
    """Whatever their number, also when there are more parts than rows."""
    loaded = checkpoint.load(storage, save(storage, scratch, 1, parts=parts), scratch)
    assert {name: {slot: t.shape for slot, t in slots.items()} for name, slots in loaded.items()} == {
        "vectors": {"parameters": (3, 2)},
        "contexts": {"parameters": (3, 2)},
    }


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize(("start", "stop"), [(0, 7), (0, 2), (2, 5), (6, 7), (3, 3)])
def test_a_window_is_read_of_what_others_wrote(
    storage: Store, scratch: Path, parts: int, start: int, stop: int
) -> None:
    rows = np.arange(14, dtype=np.float32).reshape(7, 2)
    state = EmbeddingState.start(Parameters(rows, -rows))
    entries = {}
    for i in range(parts):
        target = stores.child(storage, "checkpoints/step-0000000001-x")
        entries |= checkpoint.write_part(target, part(state.tables(), i, parts), Place(i, parts), {}, scratch)
    reference = checkpoints.commit(storage, "step-0000000001-x", entries, 1)
    windows = {"vectors": (start, stop), "contexts": (0, 1)}
    found = checkpoint.load(storage, reference, scratch, windows.__getitem__)
    assert found["vectors"]["parameters"].tolist() == rows[start:stop].tolist()
    assert found["contexts"]["parameters"].tolist() == (-rows[:1]).tolist()
    with pytest.raises(JobError, match="7 rows of vectors/parameters, fewer than the model"):
        checkpoint.load(storage, reference, scratch, lambda _: (0, 8))


def test_it_is_read_into_memory_that_is_there(storage: Store, scratch: Path) -> None:
    """Where that is contiguous and of its shape."""
    reference = save(storage, scratch, 5)
    room, apart = torch.zeros(3, 2), torch.zeros(3, 4)[:, :2]
    into = {"vectors": {"parameters": room}, "contexts": {"parameters": apart}}
    found = checkpoint.load(storage, reference, scratch, into=into)
    assert found["vectors"]["parameters"].data_ptr() == room.data_ptr()
    assert room.tolist() == [[5, 5]] * 3
    assert found["contexts"]["parameters"].tolist() == [[-5, -5]] * 3
    assert not apart.any()
    take(into["vectors"] | into["contexts"], found["contexts"])
    assert apart.tolist() == [[-5, -5]] * 3
    other = checkpoint.load(storage, reference, scratch, into={"vectors": {"parameters": torch.zeros(4, 2)}})
    assert other["vectors"]["parameters"].tolist() == room.tolist()
    slots = {"parameters": torch.ones(1), "mean": torch.ones(1)}
    take(slots, {"parameters": torch.full((1,), 3.0)})
    assert slots == {"parameters": 3, "mean": 0}


def test_a_checkpoint_without_one_of_its_parts(storage: Store, scratch: Path) -> None:
    state = EmbeddingState.start(Parameters(np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)))
    target = stores.child(storage, "checkpoints/step-0000000001-x")
    entries = checkpoint.write_part(target, part(state.tables(), 1, 2), Place(1, 2), {}, scratch)
    reference = checkpoints.commit(storage, "step-0000000001-x", entries, 1)
    with pytest.raises(JobError, match="does not hold each part once"):
        checkpoint.load(storage, reference, scratch)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files take twenty bytes, as on a volume without room."""

    def content(*_: object) -> Iterator[bytes]:
        yield b"x" * 20
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.tensors, "content", content)


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize(
    ("uri", "reason", "told"),
    [
        pytest.param("", Reason.STORAGE_UNREACHABLE, "part-0-of-2.safetensors", id="storage"),
        pytest.param("s3://b/run", Reason.INTERNAL, "make it larger", id="scratch"),
    ],
)
def test_no_room(storage: Store, scratch: Path, uri: str, reason: Reason, told: str) -> None:
    with pytest.raises(JobError, match=told) as raised:
        save(storage.model_copy(update={"uri": uri or storage.uri}), scratch, 1)
    assert "No space left" in raised.value.message
    assert (raised.value.reason, raised.value.retryable) == (reason, True)
    assert not list(scratch.iterdir())
    assert not stores.list_folder(storage)


def test_a_copy_is_written_over_by_the_next() -> None:
    """Its memory is used again, where the part is of the same shape; what it holds is of this time."""
    state = EmbeddingState.start(Parameters(np.ones((5, 2), np.float32), np.ones((5, 2), np.float32)))
    first = part(state.tables(), 0, 2)
    state.base.vectors[0] = 7.0
    second = part(state.tables(), 0, 2, first)
    assert second["vectors"]["parameters"].data_ptr() == first["vectors"]["parameters"].data_ptr()
    assert second["vectors"]["parameters"][0].tolist() == [7.0, 7.0]
    third = part(state.tables(), 0, 3, second)
    assert third["vectors"]["parameters"].shape != second["vectors"]["parameters"].shape
    assert third["vectors"]["parameters"][0].tolist() == [7.0, 7.0]


def test_a_checkpoint_of_another_release_is_not_passed_over(storage: Store, scratch: Path) -> None:
    save(storage, scratch, 1)
    manifest = folder(save(storage, scratch, 2)) / "manifest.json"
    document = json.loads(manifest.read_text())
    files = {name: {"sha256": "0" * 64, "size": entry["size"]} for name, entry in document["files"].items()}
    manifest.write_text(json.dumps({**document, "contractVersion": 1, "files": files}))
    with pytest.raises(JobError, match="writes checkpoints of version 1, and this one reads version 2") as raised:
        found(storage)
    assert not checkpoints.damaged(raised.value)
    assert not raised.value.retryable


def test_what_was_in_memory_counts(storage: Store, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is changed on its way is found out, although the file is read back as it is."""

    @contextmanager
    def writing(*arguments: Any) -> Iterator[IO[bytes]]:
        with original(*arguments) as stream:
            yield stream
            stream.seek(-1, 2)
            stream.write(b"\xff")

    original = stores.writing
    monkeypatch.setattr(stores, "writing", writing)
    with pytest.raises(JobError, match="is not what was written") as raised:
        save(storage, scratch, 1)
    assert raised.value.reason is Reason.ARTIFACT_CORRUPT


# Whose folder it is


def job(storage: Store, uid: str = "mine") -> JobFile:
    return JobFile.model_validate(
        {
            "job": {"namespace": "n", "name": "words", "uid": uid, "run": 1},
            "task": {"wordEmbedding": {}},
            "data": {"store": {"uri": "file:///x"}},
            "workers": 1,
            "storage": storage,
            "masterHost": "m",
        }
    )


def test_the_folder_is_claimed_once(storage: Store) -> None:
    startup.own_storage(job(storage))
    startup.own_storage(job(storage))
    owner = json.loads(stores.read_bytes(stores.child(storage, "owner.json")))
    assert owner == {"uid": "mine", "namespace": "n", "name": "words", "run": 1}
    with pytest.raises(JobError, match=r"belongs to ModelTraining n/words .uid mine.*another storage URI") as raised:
        startup.own_storage(job(storage, "other"))
    assert (raised.value.reason, raised.value.retryable) == (Reason.STORAGE_IN_USE, False)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_an_owner_that_cannot_be_told_is_not_overwritten(storage: Store, content: bytes) -> None:
    file = stores.child(storage, "owner.json")
    stores.write_bytes(file, content)
    with pytest.raises(JobError, match=r"owner.json holds no JSON object.*Delete it or give another") as raised:
        startup.own_storage(job(storage))
    assert raised.value.reason == Reason.STORAGE_IN_USE
    assert stores.read_bytes(file) == content


def test_storage_that_may_not_be_read(storage: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise JobError(Reason.DATA_UNREADABLE, "may not be read")

    monkeypatch.setattr(stores, "read_bytes", fail)
    with pytest.raises(JobError) as raised:
        startup.own_storage(job(storage))
    assert raised.value.reason == Reason.STORAGE_DENIED


def test_of_two_claims_one_steps_back(storage: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    original = stores.write_bytes

    def race(place: Store, data: bytes) -> None:
        original(place, data)
        original(place, data.replace(b"mine", b"theirs"))

    monkeypatch.setattr(stores, "write_bytes", race)
    with pytest.raises(JobError) as raised:
        startup.own_storage(job(storage))
    assert raised.value.reason == Reason.STORAGE_IN_USE


# Older runs


def with_run(storage: Store, run: int, uid: str = "mine", **changes: object) -> JobFile:
    made = job(stores.child(storage, f"runs/{run}"), uid)
    return made.model_copy(update={"job": made.job.model_copy(update={"run": run}), **changes})


def test_older_runs_are_pruned(storage: Store) -> None:
    for run in (1, 2, 3, 4, 5, 6, 7):
        startup.own_storage(with_run(storage, run, uid="theirs" if run == 2 else "mine"))
    stores.write_bytes(stores.child(storage, "runs/3/owner.json"), b"not to be read")
    stores.write_bytes(stores.child(storage, "runs/notes/x"), b"a user's")
    assert startup.prune_runs(with_run(storage, 6, retainRuns=1, protectedRuns=[4])) == [1]
    left = {uri.split("/runs/")[1].split("/")[0] for uri in stores.list_folder(stores.child(storage, "runs"))}
    assert left == {"2", "3", "4", "5", "6", "7", "notes"}


def test_a_folder_that_is_no_run_has_no_siblings_to_prune(storage: Store) -> None:
    for run in (1, 2):
        startup.own_storage(with_run(storage, run))
    assert startup.prune_runs(job(storage).model_copy(update={"retainRuns": 0})) == []
