"""The worker's parts on their own: what arrives, leases, exchanges, the corpus, the supervisor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.unit.test_contract import JOB_FILE
from tests.unit.train import quick

from mms_workloads.contract import DataFile, JobFile, Outcome, Reason, Store, WordEmbedding
from mms_workloads.data import vocabulary
from mms_workloads.data.blocks import Segment
from mms_workloads.embedding import skipgram
from mms_workloads.embedding.skipgram import BlockStats
from mms_workloads.pod import Pod
from mms_workloads.store import JobError
from mms_workloads.sync import plan as plans
from mms_workloads.sync import wire
from mms_workloads.sync.leases import Lease
from mms_workloads.sync.wire import Message
from mms_workloads.train import checkpoint, corpus, cpu, groups, supervisor, worker
from mms_workloads.train.checkpoints import Checkpointer
from mms_workloads.train.communicator import Contribution, Ring
from mms_workloads.train.control import Control, Superseded, file
from mms_workloads.train.groups import PeerLost
from mms_workloads.train.loop import take_lease
from mms_workloads.train.state import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mms_workloads.train.control import Inbox

EPOCH = {"epoch": 2, "members": [[1, 0, "10.0.0.1"], [0, 3, "10.0.0.0"]], "urgent": False}
LEASED = Message(wire.LEASED, {"epoch": 1, "data_epoch": 4, "block": 7})
BYE = Message(wire.BYE, {"outcome": {"result": "Complete", "reason": "TrainingComplete"}})


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    job = JobFile.model_validate({**JOB_FILE, "storage": {"uri": f"file://{tmp_path}/run"}})
    return Pod("worker", 1, 0, 1, "127.0.0.1", job, "sha256:0", tmp_path, tmp_path, tmp_path / "log", 0, 0)


class Deaf(Control):
    """A control connection whose master is this test: `answers` arrive as soon as anything is sent."""

    def __init__(self, pod: Pod, *answers: Message) -> None:
        super().__init__(pod, lambda: (0, None), plain=True)
        self.answers, self.sent = answers, list[Message]()

    def wait(self, ready: Callable[[Inbox], Any], timeout: float | None = None) -> Any:
        value = super().wait(ready, timeout or 5)
        assert value, "it would wait for ever"
        return value

    def send(self, kind: str, data: bytes = b"", **fields: Any) -> None:
        self.sent.append(Message(kind, fields, data))
        for answer in self.answers:
            with self.changing() as box:
                file(box, answer)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([LEASED], Lease(4, 7)),
        ([Message(wire.LEASED, {"epoch": 1, "block": None})], None),
        ([Message(wire.EPOCH, EPOCH)], None),
        ([LEASED, Message(wire.EPOCH, EPOCH)], Lease(4, 7)),
    ],
    ids=["a block", "none now", "the next epoch was announced", "both"],
)
def test_take_lease(pod: Pod, answers: list[Message], expected: Lease | None) -> None:
    assert take_lease(Deaf(pod, *answers), 1) == expected


@pytest.mark.parametrize(
    "answer",
    [Message(wire.EPOCH, {**EPOCH, "urgent": True}), BYE, Message(wire.REFUSED, {"message": "stale"})],
    ids=["a member was lost", "the run ended", "refused"],
)
def test_no_lease_any_more(pod: Pod, answer: Message) -> None:
    with pytest.raises(Superseded):
        take_lease(Deaf(pod, LEASED, answer), 1)


def test_a_lease_of_the_round_before_is_not_taken_again(pod: Pod) -> None:
    control = Deaf(pod, Message(wire.LEASED, {"epoch": 1, "block": None}))
    file(control.inbox, LEASED)
    assert take_lease(control, 1) is None


def test_what_arrives_is_filed(pod: Pod) -> None:
    control = Deaf(pod)
    box = control.inbox
    for message in (
        Message(wire.PLAN, {}, b"plan"),
        Message(wire.COUNT, {"task": 1}),
        Message(wire.SUSPEND),
        Message(wire.CHECKPOINT),
        Message(wire.BEGIN, {"epoch": 1}),
        Message(wire.KV_VALUE, {"epoch": 1, "key": "k"}, b"v"),
    ):
        file(box, message)
    assert (box.plan, box.tasks[0].fields, box.suspend, box.checkpoint) == (b"plan", {"task": 1}, True, True)
    assert (box.begin, box.values) == ({"epoch": 1}, {(1, "k"): b"v"})
    file(box, Message(wire.EPOCH, EPOCH))
    assert (box.begin, box.values) == (None, {})
    assert box.announcement is not None
    assert (box.announcement.ranks, box.announcement.addresses) == ((1, 0), ("10.0.0.1", "10.0.0.0"))
    assert [control.newer(1), control.newer(2), control.urgent(1)] == [True, False, False]
    file(box, Message(wire.WELCOME, {"incarnation": 1}))  # of a new master: what the old one asked for is void
    assert (len(box.tasks), box.suspend, box.checkpoint, box.plan) == (0, False, False, b"plan")
    file(box, BYE)
    assert box.bye is not None
    assert control.urgent(1)


def test_a_master_that_was_replaced_is_left(pod: Pod) -> None:
    control = Deaf(pod)
    assert control._take(Message(wire.WELCOME, {"incarnation": 2}))
    assert not control._take(Message(wire.WELCOME, {"incarnation": 1}))
    assert control._take(Message(wire.WELCOME, {"incarnation": 2}))


def test_sending_after_the_conversation_is_no_failure(pod: Pod) -> None:
    control = Control(pod, lambda: (0, None), plain=True)
    control.send(wire.HEARTBEAT)
    control._loop = asyncio.new_event_loop()
    control._loop.close()
    control.send(wire.HEARTBEAT)


# Exchanges


class Table:
    """Groups of threads of this process: each collective meets at a barrier."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=10)
        self.slots: list[torch.Tensor] = [torch.empty(0)] * size
        self.groups = [Seat(self, position) for position in range(size)]

    def meet(self, position: int, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.slots[position] = tensor.clone()
        self.barrier.wait()
        all_of_them = list(self.slots)
        self.barrier.wait()
        return all_of_them


class Seat(groups.Group):
    def __init__(self, table: Table, position: int) -> None:
        super().__init__(None, position, len(table.slots), set())
        self.table = table
        self.broadcasts_left = 1000

    def all_reduce(self, tensor: torch.Tensor) -> None:
        assert tensor.numel()
        tensor.copy_(torch.stack(self.table.meet(self.position, tensor)).sum(0))

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        return self.table.meet(self.position, tensor)

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        self.broadcasts_left -= 1
        if self.broadcasts_left < 0:
            raise PeerLost("gone")
        tensor.copy_(self.table.meet(self.position, tensor)[source])


def at_once(*work: Callable[[], object]) -> list[object]:
    results: list[object] = [None] * len(work)

    def run(index: int) -> None:
        try:
            results[index] = work[index]()
        except Exception as error:  # noqa: BLE001 - the result of the thread
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def states(count: int) -> list[State]:
    made = [State.start(skipgram.initial_parameters(10, 4, 1), 5) for _ in range(count)]
    for state in made:
        state.agreed(0, "l", [0] * 5)
    return made


def test_an_exchange_makes_all_ranks_equal() -> None:
    table, ranks = Table(3), states(3)
    for rank, state in enumerate(ranks):
        state.working.vectors[rank] += 1.0 + rank  # a row each
        state.touches.vectors[rank] = 1
        state.working.contexts[9] += 1.0  # and one together, rarely touched: the changes add up
        state.touches.contexts[9] = 1
    leases = [Lease(0, 0), None, Lease(0, 3)]
    before = states(1)[0].base
    found = at_once(
        *(
            lambda g=g, s=s, lease=lease: Ring(g).exchange(s, Contribution(lease, BlockStats(7, 2.0, 0.5)), 1e-6)  # type: ignore[misc]
            for g, s, lease in zip(table.groups, ranks, leases, strict=True)
        )
    )
    assert found[0] == found[1] == found[2] == [Contribution(lease, BlockStats(7, 2.0, 0.5)) for lease in leases]
    for state in ranks:
        assert torch.equal(state.base.vectors, ranks[0].base.vectors)
        assert torch.equal(state.working.contexts, ranks[0].base.contexts)
        assert (state.step, state.applied) == (1, [1, 0, 0, 1, 0])
    torch.testing.assert_close(
        ranks[0].base.vectors[:3] - before.vectors[:3], torch.tensor([[1.0], [2], [3]]).expand(3, 4)
    )
    torch.testing.assert_close(ranks[0].base.contexts[9] - before.contexts[9], torch.full((4,), 3.0))


def test_a_round_without_blocks() -> None:
    """Such as the last one of an epoch whose successor was announced."""
    table, ranks = Table(2), states(2)
    nothing = Contribution(None, BlockStats(0, 0.0, 0.0))
    at_once(*(lambda g=g, s=s: Ring(g).exchange(s, nothing, 0.1) for g, s in zip(table.groups, ranks, strict=True)))  # type: ignore[misc]
    assert [state.step for state in ranks] == [1, 1]
    assert torch.equal(ranks[0].base.vectors, states(1)[0].base.vectors)


def test_share() -> None:
    table, (first, second) = Table(2), states(2)
    second.base.vectors.add_(1)
    second.base.contexts.add_(2)
    first.touches.vectors.add_(3)
    at_once(lambda: Ring(table.groups[0]).share(first, 1), lambda: Ring(table.groups[1]).share(second, 1))
    for state in (first, second):
        assert torch.equal(state.base.vectors, second.base.vectors)
        assert torch.equal(state.working.contexts, second.base.contexts)
        assert float(state.touches.vectors.sum()) == 0


def test_a_share_that_is_cut_short_leaves_the_base_alone() -> None:
    """Else its holder would report the old step with parameters that are half of another one."""
    table, (first, second) = Table(2), states(2)
    second.base.vectors.add_(1)
    before = first.base.clone()
    for group in table.groups:
        group.broadcasts_left = 1
    results = at_once(lambda: Ring(table.groups[0]).share(first, 1), lambda: Ring(table.groups[1]).share(second, 1))
    assert all(isinstance(result, PeerLost) for result in results)
    assert torch.equal(first.base.vectors, before.vectors)


def made_worker(pod: Pod) -> worker.Worker:
    made = worker.Worker(pod, WordEmbedding(dimensions=4, minCount=1), plain=True)
    words = vocabulary.cut({"a": 3, "b": 2}, made.task)
    made.control.inbox.plan = plans.pack(plans.Plan((), 4, words))
    made._prepare()
    return made


def begin(**changes: Any) -> dict[str, Any]:
    return {"source": 0, "step": 0, "equal": True, "checkpoint": None, "applied": [0], "lineage": "x", **changes}


def test_what_was_not_agreed_on_is_not_held(pod: Pod) -> None:
    """A first state whose group broke before it was shared must not count as anybody's."""
    made = made_worker(pod)
    table = Table(1)
    made.group = table.groups[0]
    table.groups[0].broadcasts_left = 0
    with pytest.raises(PeerLost):
        made._agree(Ring(made.group), begin(step=9, equal=False))
    assert made.state is not None
    assert made._holds() == (0, None)
    table.groups[0].broadcasts_left = 2
    made._agree(Ring(made.group), begin(step=9, equal=False, applied=[4]))
    assert made._holds() == (0, 9)
    assert (made.state is not None, made._held() is made.state) == (True, True)


def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_worker(pod)
    made.group = Table(1).groups[0]
    reference = {"uri": "file:///c", "step": 3, "digest": "sha256:0", "time": "t"}
    for reason, expected in ((Reason.CREDENTIALS_INVALID, JobError), (Reason.ARTIFACT_CORRUPT, Superseded)):

        def fail(*_: object, reason: Reason = reason) -> None:
            raise JobError(reason, "no")

        monkeypatch.setattr(checkpoint, "load", fail)
        with pytest.raises(expected):
            made._agree(Ring(made.group), begin(step=3, checkpoint=reference))


def test_another_plan_voids_what_was_learnt(pod: Pod) -> None:
    made = made_worker(pod)
    made.group = Table(1).groups[0]
    made._agree(Ring(made.group), begin(step=9))
    made._prepare()
    assert made._holds() == (0, 9)
    assert made.plan is not None
    made.control.inbox.plan = plans.pack(plans.Plan((), 8, made.plan.vocabulary))
    made._prepare()
    assert made._holds() == (0, None)


def test_checkpoints_are_written_one_at_a_time(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    writing, go = threading.Event(), threading.Event()

    def save(*_: object) -> None:
        writing.set()
        go.wait(10)
        raise JobError(Reason.STORAGE_DENIED, "full")

    monkeypatch.setattr(checkpoint, "save", save)
    control, state = Deaf(pod), states(1)[0]
    saver = Checkpointer(pod.job, control, pod.scratch)
    saver.save_if_asked(state)
    assert not writing.is_set()
    file(control.inbox, Message(wire.CHECKPOINT))
    saver.save_if_asked(state)
    assert writing.wait(10)
    file(control.inbox, Message(wire.CHECKPOINT))
    saver.save_if_asked(state)
    assert control.inbox.checkpoint  # still to be done
    go.set()
    assert saver._thread is not None
    saver._thread.join()
    (failed,) = control.sent
    assert (failed.kind, failed.fields["reason"], failed.fields["retryable"]) == (wire.FAILED, "StorageDenied", True)
    with pytest.raises(JobError, match="full"):
        saver.save_last(state)


# Sockets


def test_socket_addresses() -> None:
    four = b"\x02\x00\x73\x3c\x7f\x00\x00\x01" + bytes(8)
    six = b"\x0a\x00\x73\x3d" + bytes(4) + socket.inet_pton(socket.AF_INET6, "fd00::1") + bytes(4)
    anywhere = b"\x02\x00\x73\x3e\x00\x00\x00\x00" + bytes(8)
    found = groups.socket_addresses(b"\x01\x01" + four + b"\x07" * 3 + six + anywhere)
    assert found == {("127.0.0.1", 29500), ("fd00::1", 29501)}


def test_connections_are_shut_and_listeners_stay() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as other:
        address = listener.getsockname()
        with (
            socket.create_connection(address) as one,
            listener.accept()[0],
            socket.create_connection(other.getsockname()) as kept,
            other.accept()[0] as peer,
        ):
            assert groups.shut_down_sockets({address}) == 2
            one.settimeout(10)
            assert one.recv(1) == b""
            kept.sendall(b"x")
            assert peer.recv(1) == b"x"
            with socket.create_connection(address), listener.accept()[0]:
                pass


# The corpus


def test_corpus(tmp_path: Path) -> None:
    content = "a b c a\n\nb a zz\n"
    (tmp_path / "a.txt").write_text(content)
    store, task, uri = (
        Store(uri=f"file://{tmp_path}"),
        WordEmbedding(minCount=1, maxVocabulary=3),
        f"file://{tmp_path}/a.txt",
    )
    counts, sizes = corpus.count(store, {0: uri}, [Segment(0, 0, len(content))], task, tmp_path)
    assert (dict(counts), sizes) == ({"a": 3, "b": 2, "c": 1, "zz": 1}, {})
    words = vocabulary.cut(counts, task)
    plan = plans.Plan((DataFile(uri=uri, size=len(content)),), 8, words)
    text = corpus.Corpus(store, plan, task, tmp_path / "cache")
    assert [text.tokens(b).tolist() for b in range(2)] == [[0, 1, 2, 0, -1], [1, 0, -1]]
    (tmp_path / "a.txt").unlink()
    again = corpus.Corpus(store, plan, task, tmp_path / "cache")
    assert again.tokens(1).tolist() == [1, 0, -1]


def test_tidy(tmp_path: Path) -> None:
    for name in ("checkpoint-x", "artifact-y", "spool", "blocks-1"):
        (tmp_path / "s" / name / "file").mkdir(parents=True)
    worker.tidy(tmp_path / "s")
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"spool", "blocks-1"}


# The container's limits, and the supervisor


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000", 1), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("x", 1), (None, 1)],
    ids=["no limit", "four", "two and a half", "half", "nonsense", "no file"],
)
def test_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    if content is not None:
        (tmp_path / "cpu.max").write_text(content)
    assert cpu.limit(tmp_path) == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert cpu.limit(tmp_path) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [("low 0\noom 3\noom_kill 2\n", 2), ("low 0\n", 0), ("oom_kill x", 0), (None, 0)],
    ids=["killed", "no line", "nonsense", "no file"],
)
def test_memory_kills(tmp_path: Path, content: str | None, expected: int) -> None:
    if content is not None:
        (tmp_path / "memory.events").write_text(content)
    assert cpu.memory_kills(tmp_path) == expected


def _stop_and_wait(**_: object) -> int:
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(20)
    return 5


def _supervise(how: str, log: str) -> None:
    os.environ["MMS_TERMINATION_LOG"] = log
    if how == "killed":
        worker.run = lambda **_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, return-value]
    elif how == "out of memory":
        kills = iter(range(100))
        cpu.memory_kills = lambda *_: next(kills)  # type: ignore[assignment]
        worker.run = lambda **_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, return-value]
    elif how == "bug":
        worker.run = lambda **_: 1 // 0  # type: ignore[assignment]
    elif how == "told to stop":
        worker.run = _stop_and_wait
    else:
        worker.run = lambda **_: 3  # type: ignore[assignment]
    os._exit(supervisor.supervise(plain=True))


@pytest.mark.parametrize(
    ("how", "code", "reason"),
    [
        ("killed", 128 + 9, "WorkerCrashed"),
        ("out of memory", 128 + 9, "OutOfMemory"),
        ("bug", 70, "InternalError"),
        ("told to stop", 128 + 15, None),
        ("exit", 3, None),
    ],
)
def test_supervisor(tmp_path: Path, how: str, code: int, reason: str | None) -> None:
    log = tmp_path / "log"
    process = quick._context.Process(target=_supervise, args=(how, str(log)))
    process.start()
    process.join(60)
    assert process.exitcode == code
    if reason is None:
        assert not log.exists()
    else:
        outcome = Outcome.model_validate(json.loads(log.read_bytes()))
        assert (outcome.result, outcome.reason, outcome.retryable) == ("Failed", reason, True)
        assert outcome.message
