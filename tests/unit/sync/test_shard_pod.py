"""The process of a parameter shard: its part of the checkpoint that a run is suspended with."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mms_workloads.contract import JobFile, ParameterServer, Reason
from mms_workloads.pod import Pod
from mms_workloads.store import JobError
from mms_workloads.sync import again, shard_pod, wire
from mms_workloads.sync.control import Announcement, file
from mms_workloads.sync.layout import Layout, Table
from mms_workloads.sync.leases import Progress
from mms_workloads.sync.shard_pod import ShardPod
from mms_workloads.train import checkpoint
from mms_workloads.train.pulse import Pulse
from mms_workloads.transport.channel import Fence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECONDS = 30.0  # that nothing takes unless it hangs
STEP = 3


class Store:
    """Writes as the test says, in the order of the calls; what no answer is left for succeeds at once."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.answers: list[Callable[[], Any]] = []
        self.open = 0
        self.at_once = 0  # the most parts that were written at the same time

    def write_part(self, target: Any, *_: object) -> dict[str, Any]:
        self.folders.append(target.uri.rpartition("/")[2])
        self.open += 1
        self.at_once = max(self.at_once, self.open)
        try:
            if self.answers:
                self.answers.pop(0)()
        finally:
            self.open -= 1
        return {}


def away() -> None:
    raise JobError(Reason.STORAGE_UNREACHABLE, "the store is away", retryable=True)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(checkpoint, "write_part", store.write_part)
    monkeypatch.setattr(again, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(shard_pod, "LOOK_SECONDS", 0.01)
    return store


@dataclass
class Rested:
    """A shard that holds step 3, as its master has it begin one epoch after another."""

    pod: ShardPod
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        shard = self.pod.server.shard
        shard.prepare(Layout((Table("dense", 4),), 1), 0)
        shard.room("state", "dense", 0, 4)["parameters"].copy_(torch.ones(4, 1))
        shard.filled("state", "dense", 0, 4)
        shard.begin_epoch(Fence("u", 1, 1, 0), [(0, 0)], step=STEP, progress=Progress([1]))

    def begin(self, epoch: int, *, final: bool = False) -> None:
        """An epoch with a checkpoint. Its lineage says which one it is."""
        said = Announcement(epoch, (0,), ("",), urgent=False, shards=("127.0.0.1:1",))
        with self.pod.control.changing() as box:
            box.announcement = said
        self.pod.server.end_epoch("the next one begins")
        self.pod.epoch = epoch
        begin = {
            "epoch": epoch, "lineage": f"of{epoch}", "save": True, "final": final,
            "waits": final or self.pod.leaving_after is not None, "members": [[0, 0]],
            "state": "keep", "replica": None, "shards": 1, "step": STEP, "settle": False,
            "progress": Progress([1]).document(), "fills": False,
        }  # fmt: skip
        self.pod._begin(said, begin)

    def written(self) -> list[tuple[str, bool]]:
        """Parts that the master was told of, when nothing more is being written."""
        assert self.pod.writing is not None
        self.pod.writing.join(SECONDS)
        assert not self.pod.writing.is_alive(), "it hangs"
        return [(f["folder"].rpartition("-")[2], f["final"]) for kind, f in self.told if kind == wire.CHECKPOINTED]


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rested]:
    job = JobFile.model_validate(
        {
            "job": {"namespace": "n", "name": "words", "uid": "u", "run": 1},
            "task": {"wordEmbedding": {"subwords": {}}},
            "data": {"store": {"uri": "file:///x"}},
            "syncMode": "ParameterServer",
            "parameterServer": {},
            "workers": 1,
            "storage": {"uri": f"file://{tmp_path}"},
            "masterHost": "m",
        }
    )
    pod = Pod("shard", 0, 0, 1, "127.0.0.1", job, "", tmp_path, tmp_path, tmp_path / "log", 0, 0)
    one = Rested(ShardPod(pod, Pulse(), plain=True))
    monkeypatch.setattr(one.pod.control, "send", lambda kind, **fields: one.told.append((kind, fields)))
    yield one
    with one.pod.control.changing() as box:
        box.stopping = True
    one.pod.server.close()


def test_the_last_part_is_written_after_the_one_that_is_under_way(shard: Rested, store: Store) -> None:
    go_on = threading.Event()
    store.answers.append(lambda: go_on.wait(SECONDS))
    shard.begin(1)
    shard.begin(2, final=True)
    go_on.set()
    assert shard.written() == [("of1", False), ("of2", True)]
    assert store.at_once == 1


def test_the_last_part_is_tried_until_the_store_takes_it(shard: Rested, store: Store) -> None:
    store.answers += [away, away]
    shard.begin(1, final=True)
    assert shard.written() == [("of1", True)]
    assert [kind for kind, _ in shard.told] == [wire.FAILED, wire.FAILED, wire.CHECKPOINTED]


def test_what_an_epoch_waits_for_ends_with_it(shard: Rested) -> None:
    shard.begin(1)
    shard.pod.severing.renew()
    assert not shard.pod.severing.abort.is_set()
    said = Announcement(2, (0,), ("",), urgent=True, shards=("127.0.0.1:1",))
    with shard.pod.control.changing() as box:
        box.announcement = said
    shard.pod.control.on_over()
    assert shard.pod.severing.abort.is_set()
    shard.pod.epoch = 2
    shard.pod.severing.renew()
    assert not shard.pod.severing.abort.is_set()
    shard.pod.leave()
    assert shard.pod.severing.abort.is_set()
    shard.written()


def test_who_alone_holds_its_rows_leaves_when_they_are_saved(
    shard: Rested, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the store is away for a moment: the master has no reason to ask once more."""
    monkeypatch.setattr(again, "FIRST_SECONDS", 0.01)
    shard.begin(1)
    shard.written()
    shard.pod.stop()
    assert shard.told[-1][0] == wire.STOPPING
    assert not shard.pod.control.inbox.stopping
    store.answers.append(away)
    shard.begin(2)
    shard.written()
    assert shard.pod.control.inbox.stopping


def test_who_leaves_does_not_take_an_older_part_for_its_last(shard: Rested, store: Store) -> None:
    go_on = threading.Event()
    store.answers.append(lambda: go_on.wait(SECONDS))
    shard.begin(1)
    older = shard.pod.writing
    shard.pod.stop()
    shard.begin(2)
    go_on.set()
    assert older
    older.join()
    shard.written()
    assert shard.pod.control.inbox.stopping
    assert [name for name, _ in shard.written()] == ["of1", "of2"]


def test_who_is_not_reached_by_others_leaves_when_its_rows_are_saved(shard: Rested, store: Store) -> None:
    shard.begin(1)
    shard.written()
    with shard.pod.control.changing() as box:
        file(box, wire.Message(wire.EVICT, {"why": "others do not reach it", "reason": "PeersUnreachable"}))
    for _ in range(2):
        shard.pod.control.on_over()
    assert [kind for kind, _ in shard.told].count(wire.STOPPING) == 1, "it is told once"
    assert not shard.pod.control.inbox.stopping
    shard.begin(2)
    shard.written()
    with pytest.raises(JobError, match="others do not reach it") as raised:
        shard.pod._until_told()
    assert (raised.value.reason, raised.value.retryable) == (Reason.PEERS_UNREACHABLE, True)
    assert shard.told[-1][0] == wire.LEAVE


def test_whose_rows_others_hold_leaves_when_the_master_says_so(shard: Rested, store: Store) -> None:
    shard.begin(1)
    shard.written()
    shard.pod.stop()
    assert not shard.pod.control.inbox.stopping
    assert shard.pod.control._take(wire.Message(wire.LEAVE))
    assert shard.pod.control.inbox.stopping


def test_who_is_not_reached_and_has_a_copy_leaves_at_once(shard: Rested, store: Store) -> None:
    shard.pod.spec = ParameterServer(replicas=2)
    shard.begin(1)
    shard.written()
    shard.pod.control._take(wire.Message(wire.EVICT, {"why": "others do not reach it", "reason": "PeersUnreachable"}))
    assert shard.pod.control.inbox.stopping


def test_who_holds_nothing_leaves_at_once(shard: Rested) -> None:
    shard.pod.stop()
    assert shard.pod.control.inbox.stopping


def test_another_part_is_left_out_where_the_store_does_not_take_it(shard: Rested, store: Store) -> None:
    store.answers.append(away)
    shard.begin(1)
    assert shard.written() == []
    go_on = threading.Event()
    store.answers.append(lambda: go_on.wait(SECONDS))
    shard.begin(2)
    shard.begin(3)
    go_on.set()
    assert shard.written() == [("of2", False)]


def test_a_last_part_is_given_up_with_its_epoch(shard: Rested, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "FIRST_SECONDS", SECONDS)
    tried = threading.Event()

    def fail() -> None:
        tried.set()
        away()

    store.answers.append(fail)
    shard.begin(1, final=True)
    assert tried.wait(SECONDS)
    shard.begin(2, final=True)
    assert shard.written() == [("of2", True)]


def test_a_pod_that_is_told_to_stop_tries_no_more(shard: Rested, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "FIRST_SECONDS", SECONDS)
    store.answers.append(away)
    shard.begin(1, final=True)
    shard.pod.stop()
    assert shard.written() == []


def test_rows_that_memory_does_not_hold_are_not_begun_with(shard: Rested, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = partial(Layout, (Table("vectors", 10, 100, sparse=True), Table("contexts", 10, 100, sparse=True)))
    monkeypatch.setattr(shard.pod, "_layout", layout)
    monkeypatch.setattr(shard_pod.memory, "available", lambda: 2 * 5 * 100 * 4 - 1)
    said = r"the state of one of 2 shards takes .*: raise sync\.parameterServer\.shards or .* \(.* lower dimensions"
    with pytest.raises(JobError, match=said) as raised:
        shard.pod._fill("state", "start", {"shards": 2}, Announcement(1, (), (), urgent=True))
    assert raised.value.reason == Reason.OUT_OF_MEMORY
