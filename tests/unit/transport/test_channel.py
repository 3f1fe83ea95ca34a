"""Messages and bytes over one connection, and how its operations end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mms_workloads.transport import channel as public
from mms_workloads.transport import stream
from mms_workloads.transport.channel import (
    Abort,
    Channel,
    Fence,
    Listener,
    PeerLost,
    Refused,
    Security,
    Spec,
    connect,
)
from tests.unit.transport.peers import FENCE, GREETING, HOST, SECONDS, Beside, pair

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int8, torch.bool]
LARGE = 24 << 20  # bytes: more than the sockets hold


def test_public_names() -> None:
    assert all(hasattr(public, name) for name in public.__all__)
    assert {"Abort", "Channel", "Fence", "Greeting", "Listener", "PeerLost", "Refused", "Security", "connect"} <= set(
        public.__all__
    )


def test_message_with_tensors(security: Security) -> None:
    tensors = [torch.arange(24).reshape(2, 3, 4).to(dtype) for dtype in DTYPES]
    tensors += [torch.tensor(3.5), torch.empty(0, 7), torch.ones(1, 1, dtype=torch.float16)]
    with pair(security) as (near, far):
        near.send_message({"kind": "push", "words": "größer", "nested": [1, {"a": None}]}, *tensors)
        header, received = far.receive_message()
        far.send_message({})
        assert near.receive_message() == ({}, [])
    assert header == {"kind": "push", "words": "größer", "nested": [1, {"a": None}]}
    assert [(t.dtype, t.shape) for t in received] == [(t.dtype, t.shape) for t in tensors]
    assert all(torch.equal(one, other) for one, other in zip(received, tensors, strict=True))


def test_peer_is_who_connected(security: Security) -> None:
    with pair(security) as (near, far):
        assert far.peer == GREETING
        assert near.peer is None


def test_receive_into_tensors_that_are_there(security: Security) -> None:
    table = torch.zeros(10, 4)
    asked: list[object] = []

    def buffers(header: dict[str, int], specs: list[Spec]) -> list[torch.Tensor]:
        asked.extend((header, specs))
        return [table[header["from"] : header["from"] + 3]]

    rows = torch.randn(3, 4)
    with pair(security) as (near, far):
        near.send_message({"from": 5}, rows)
        _, received = far.receive_message(buffers)
    assert asked == [{"from": 5}, [Spec(torch.float32, (3, 4))]]
    assert received[0].data_ptr() == table[5].data_ptr()
    assert torch.equal(table[5:8], rows)
    assert table[:5].abs().sum() == table[8:].abs().sum() == 0


def test_buffers_of_another_size_are_an_error(security: Security) -> None:
    with pair(security) as (near, far):
        near.send_message({}, torch.zeros(4))
        with pytest.raises(ValueError, match="buffers of"):
            far.receive_message(lambda _header, _specs: [torch.zeros(5)])


def test_bytes_of_all_kinds_and_many_parts(security: Security) -> None:
    parts = [os.urandom(size) for size in [0, 1, 5, 40_000, 7, 0, 3, *range(90)]]
    with pair(security) as (near, far):
        sent = Beside(lambda: near.send(*parts, bytearray(b"abc"), memoryview(b"defg"), torch.tensor([7, 8])))
        received = [bytearray(len(part)) for part in parts]
        rest, pair_of_numbers = bytearray(7), torch.zeros(2, dtype=torch.int64)
        far.receive_into(*received)
        far.receive_into(rest, pair_of_numbers)
        sent.result()
    assert [bytes(part) for part in received] == parts
    assert bytes(rest) == b"abcdefg"
    assert pair_of_numbers.tolist() == [7, 8]


@given(st.data())
def test_parts_arrive_however_they_are_cut(data: st.DataObject) -> None:
    sizes = st.lists(st.integers(0, 100_000), min_size=1, max_size=40)
    sent = [os.urandom(size) for size in data.draw(sizes)]
    total = sum(map(len, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=40)))
    received = [bytearray(b - a) for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
    with pair(Security.plain()) as (near, far):
        sending = Beside(lambda: near.send(*sent))
        half = len(received) // 2
        far.receive_into(*received[:half])
        far.receive_into(*received[half:])
        sending.result()
    assert b"".join(received) == b"".join(sent)


@pytest.mark.parametrize("rekey_bytes", [stream.REKEY_BYTES, 1 << 20], ids=["one key", "many keys"])
def test_large_transfers_arrive_whole(security: Security, rekey_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "REKEY_BYTES", rekey_bytes)
    there, back = torch.randint(256, (2, LARGE + 12_345), dtype=torch.uint8)
    with pair(security) as (near, far):

        def answer() -> torch.Tensor:
            _, (received,) = far.receive_message()
            far.send_message({}, back)
            return received

        answering = Beside(answer)
        near.send_message({}, there)
        _, (received,) = near.receive_message()
        assert torch.equal(answering.result(), there)
        assert torch.equal(received, back)


def test_both_directions_at_once(security: Security) -> None:
    """A thread of each side sends while another receives, and nobody waits for the other's end."""
    data = torch.randint(256, (2, LARGE), dtype=torch.uint8)
    with pair(security) as (near, far):
        received = [torch.empty(LARGE, dtype=torch.uint8) for _ in range(2)]
        work = [
            Beside(lambda: near.send(data[0])),
            Beside(lambda: far.send(data[1])),
            Beside(lambda: near.receive_into(received[1])),
            Beside(lambda: far.receive_into(received[0])),
        ]
        for one in work:
            one.result()
    assert all(torch.equal(received[side], data[side]) for side in range(2))


@pytest.mark.parametrize(
    ("changed", "says"), [("uid", "uid"), ("run", "run 9"), ("attempt", "attempt 9"), ("epoch", "epoch 9")]
)
def test_message_of_another_epoch_is_refused(changed: str, says: str) -> None:
    values = {"uid": "uid", "run": 1, "attempt": 1, "epoch": 7} | {changed: "other" if changed == "uid" else 9}
    other = Fence(**values)  # type: ignore[arg-type]
    assert says in FENCE.difference(other)
    listener = Listener(HOST, Security.plain())
    accepted = Beside(lambda: Channel(listener.accept(Abort(), SECONDS)[0].stream(), other, None))
    near = connect(HOST, listener.port, Security.plain(), GREETING, Abort(), SECONDS)
    far = accepted.result()
    near.send_message({"step": 1}, torch.ones(3))
    with pytest.raises(Refused, match="another membership epoch"):
        far.receive_message()
    for one in (near, far, listener):
        one.close()


@pytest.mark.parametrize(
    "frame",
    [b"GET / HTTP/1.1\r\n\r\n", b"MMSF\xff\xff\xff\xff" + bytes(8)],
    ids=["another protocol", "a header of 4 GB"],
)
def test_no_message(frame: bytes) -> None:
    with pair(Security.plain()) as (near, far):
        near.send(frame)
        with pytest.raises(Refused, match="something else"):
            far.receive_message()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "[{}]", '[{}, [["float33", [1]]]]', '[{}, [["float32", [-1]]]]', '[{}, [["float32", [1e3, "x"]]]]',
     "[" * 9999, '[{}, [["float32", [1099511627776]]]]', "[[], []]", '[{}, [["float32", [1e999]]]]',
     '[{}, [["float32", [2.5]]]]', '[{}, [["float32", [0, 9223372036854775808]]]]',
     f'[{{}}, [["float32", {[1] * 65}]]]'],
)  # fmt: skip
def test_header_that_is_none(text: str) -> None:
    with pair(Security.plain()) as (near, far):
        near.send(b"MMSF" + len(text).to_bytes(4, "little") + FENCE.digest.to_bytes(8, "little") + text.encode())
        near.close()
        with pytest.raises(Refused):
            far.receive_message()


def test_tensors_for_which_there_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("you tried to allocate 24 bytes")

    with pair(Security.plain()) as (near, far):
        near.send_message({}, torch.zeros(2, 3))
        monkeypatch.setattr(torch, "empty", fail)
        with pytest.raises(Refused, match="allocate 24 bytes"):
            far.receive_message()


@pytest.mark.parametrize(
    "buffer", [torch.ones(4, 4).T, torch.ones(4, device="meta"), torch.ones(4, 4)[:, 1]], ids=["T", "meta", "column"]
)
def test_tensors_that_cannot_travel(buffer: torch.Tensor) -> None:
    with pair(Security.plain()) as (near, _), pytest.raises(ValueError, match="contiguous"):
        near.send(buffer)


def test_read_only_buffers_are_not_received_into() -> None:
    with pair(Security.plain()) as (near, _), pytest.raises(ValueError, match="writable"):
        near.receive_into(b"abc")


# ---- how operations end


def block_in(what: str, channel: Channel) -> Beside:
    """An operation that goes on until somebody ends it."""
    if what == "send":
        return Beside(lambda: channel.send(bytearray(LARGE)))
    return Beside(lambda: channel.receive_into(bytearray(LARGE)))


@pytest.mark.parametrize("what", ["send", "receive"])
def test_abort_wakes_what_blocks_and_fails_what_follows(security: Security, what: str) -> None:
    abort = Abort()
    with pair(security, abort) as (near, _):
        blocked = block_in(what, near)
        time.sleep(0.05)
        assert blocked.runs()
        abort.set()
        with pytest.raises(PeerLost, match="aborted"):
            blocked.result()
        with pytest.raises(PeerLost, match="aborted"):
            near.send(b"x")
        with pytest.raises(PeerLost, match="aborted"):
            near.receive_into(bytearray(1))


@pytest.mark.parametrize("what", ["send", "receive"])
def test_close_from_another_thread(security: Security, what: str) -> None:
    with pair(security) as (near, far):
        blocked = block_in(what, near)
        time.sleep(0.05)
        assert blocked.runs()
        near.close()
        with pytest.raises(PeerLost):
            blocked.result()
        with pytest.raises(PeerLost, match="closed here"):
            near.send(b"x")
        with pytest.raises(PeerLost):
            far.receive_into(bytearray(LARGE))


@pytest.mark.parametrize("what", ["send", "receive"])
def test_idle_for_too_long(security: Security, what: str) -> None:
    with pair(security) as (near, _):
        near.timeout = 0.05
        with pytest.raises(PeerLost, match=r"nothing moved for 0\.1 s|nothing moved for 0\.0 s"):
            block_in(what, near).result()


def test_the_time_is_without_a_byte_moved(security: Security) -> None:
    """A slow peer is none that is lost: what comes within the time begins it anew."""
    with pair(security) as (near, far):
        far.timeout = 1.0
        receiving = Beside(lambda: far.receive_into(bytearray(4 << 20)))
        for _ in range(16):
            time.sleep(0.1)
            near.send(bytes(1 << 18))
        receiving.result()


@pytest.mark.parametrize("what", ["send", "receive"])
def test_peer_that_closes(security: Security, what: str) -> None:
    with pair(security) as (near, far):
        blocked = block_in(what, near)
        far.close()
        with pytest.raises(PeerLost, match="closed the connection"):
            blocked.result()


@pytest.mark.parametrize("what", ["send", "receive"])
def test_peer_that_is_killed(security: Security, job: dict[str, Path], what: str) -> None:
    """In the middle of a transfer that goes on without end."""
    listener = Listener(HOST, security)
    folder = job["worker"] if security.folder else ""
    command = [sys.executable, str(Path(__file__).with_name("victim.py")), str(listener.port), what, str(folder)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as victim:
        try:
            near = listener.accept(Abort(), SECONDS)[0].admit()
            turns = threading.Event()

            def transfer() -> None:
                buffer = bytearray(1 << 20)
                while True:
                    near.receive_into(buffer) if what == "send" else near.send(buffer)
                    turns.set()

            moving = Beside(transfer)
            assert turns.wait(SECONDS)
            victim.kill()
            with pytest.raises(PeerLost, match="closed the connection"):
                moving.result()
        finally:
            victim.kill()
    near.close()
    listener.close()


def test_signals_are_served_while_an_operation_blocks(security: Security) -> None:
    """Python's handlers run in the main thread, which may be the one that waits; the operation then goes on."""
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    data = os.urandom(LARGE)
    try:
        with pair(security) as (near, far):
            received = bytearray(LARGE)

            def slowly() -> None:
                for start in range(0, LARGE, 1 << 20):
                    near.send(data[start : start + (1 << 20)])
                    time.sleep(0.01)

            sending = Beside(slowly)
            far.receive_into(received)
            sending.result()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert bytes(received) == data
    assert heard


def test_a_handler_that_raises_ends_the_operation(security: Security) -> None:
    class Told(Exception):  # noqa: N818
        pass

    def tell(_number: int, _frame: object) -> None:
        raise Told

    before = signal.signal(signal.SIGALRM, tell)
    try:
        with pair(security) as (near, _):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Told):
                near.receive_into(bytearray(1))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_stream_that_cannot_be_made_leaves_nothing_open() -> None:
    abort = Abort()
    abort.close()
    mine, theirs = socket.socketpair()
    descriptor = mine.detach()
    with theirs:
        with pytest.raises(ValueError, match="closed"):
            stream.Stream(descriptor, None, abort, server=True)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_abort_is_safe_after_its_end() -> None:
    abort = Abort()
    abort.set()
    assert abort.is_set()
    abort.close()
    abort.close()
    abort.set()
    with pytest.raises(PeerLost, match="aborted"):
        connect(HOST, 1, Security.plain(), GREETING, abort, SECONDS)


def test_abort_lives_as_long_as_what_has_it(security: Security) -> None:
    """A stream keeps the descriptor that it polls, whatever becomes of the Abort."""
    abort = Abort()
    with pair(security, abort) as (near, far):
        abort.close()
        del abort
        receiving = Beside(lambda: near.receive_into(bytearray(1)))
        time.sleep(0.05)
        far.send(b"x")
        receiving.result()


def test_which_fence_is_older() -> None:
    fence = Fence("uid", 1, 2, 3)
    assert fence.older(Fence("uid", 1, 2, 4))
    assert fence.older(Fence("uid", 1, 3, 1))
    assert not fence.older(fence)
    assert not fence.older(Fence("uid", 1, 1, 9))
    assert not fence.older(Fence("uid", 2, 9, 9))
    assert not fence.older(Fence("other", 1, 9, 9))
