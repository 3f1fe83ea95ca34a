"""What comes from a peer is damaged: it is refused or the peer is lost, and nothing else happens."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, get_args

import pytest
import torch
from structlog.testing import capture_logs

from mms_workloads.transport.channel import Abort, Channel, Listener, PeerLost, Refused, Security, connect
from mms_workloads.transport.ring import RingTransport, Wire
from mms_workloads.transport.stream import Stream
from tests.unit.transport.peers import FENCE, GREETING, HOST, SECONDS, Beside

if TYPE_CHECKING:
    from collections.abc import Iterator

COLLECTIVE = struct.Struct("<IIQQQ")  # collective.h: magic, kind and wire, fence, sequence, values
MAGIC, ALL_REDUCE = 0x31434D4D, 1


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """Bytes changed, taken out, put in; cut off, or all of it nonsense."""
    data = bytearray(whole)
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(data) + 1)
        data[at : at + chance.randrange(3)] = chance.choice([b"", b"\xff", b"\0\0", chance.randbytes(2)])
    return chance.choice([bytes(data), bytes(data[: chance.randrange(len(data) + 1)]), chance.randbytes(len(data))])


@contextmanager
def peer(said: bytes) -> Iterator[Stream]:
    """A stream to one that says this and no more, and hears all."""
    mine, theirs = socket.socketpair()
    mine.setblocking(False)
    stream = Stream(mine.detach(), None, Abort(), server=False)

    def talk() -> None:
        with contextlib.suppress(OSError):  # the other end does not listen to all of it
            theirs.sendall(said)
            theirs.shutdown(socket.SHUT_WR)
            while theirs.recv(1 << 16):
                pass

    with theirs:
        talking = Beside(talk)
        try:
            yield stream
        finally:
            stream.close()
            talking.result()


def test_messages() -> None:
    chance, tensors = random.Random(1), 0
    text = json.dumps([{"kind": "push"}, [["float32", [2, 3]], ["int8", [5]], ["bool", []]]]).encode()
    frame = b"MMSF" + len(text).to_bytes(4, "little") + FENCE.digest.to_bytes(8, "little") + text + bytes(24 + 5 + 1)
    for _ in range(500):
        at = chance.choice([0, 16])  # all of it, or what follows a head that is as it should be
        with (
            peer(frame[:at] + damaged(frame[at:], chance)) as stream,
            contextlib.suppress(PeerLost, Refused),
        ):
            tensors += len(Channel(stream, FENCE, None).receive_message()[1])
    assert tensors, "some come through"


@pytest.mark.parametrize(
    ("size", "values"), [(2, 1000), (3, 4000), (2, 20_000), (3, 20_000)], ids=["relay", "three", "exchange", "ring"]
)
@pytest.mark.parametrize("wire", get_args(Wire))
def test_collectives(size: int, values: int, wire: Wire) -> None:
    chance, done = random.Random(1), 0
    kind = ALL_REDUCE | get_args(Wire).index(wire) << 8
    head = COLLECTIVE.pack(MAGIC, kind, FENCE.digest, 0, values)
    for _ in range(40):
        said = head + chance.randbytes(4 * values * size)
        at = chance.choice([0, len(head), len(said)])
        with peer(b"") as following, peer(said[:at] + damaged(said[at:], chance)) as previous:
            transport = RingTransport(0, size, FENCE, (following, previous))
            with contextlib.suppress(PeerLost, Refused):
                transport.all_reduce(torch.ones(values), wire, torch.zeros(values))
                done += 1
            transport.close()
    assert done, "numbers may be any"


def test_greetings(security: Security) -> None:
    chance, sane = random.Random(1), replace(GREETING, purpose="sane")
    text = json.dumps(asdict(GREETING)).encode()
    whole = b"MMS1" + len(text).to_bytes(4, "little") + text
    listener = Listener(HOST, security)
    with ExitStack() as stack, capture_logs():
        stack.callback(listener.close)
        for _ in range(100):
            stranger = stack.enter_context(socket.create_connection((HOST, listener.port)))
            at = chance.choice([0, 8])
            stranger.sendall(whole[:at] + damaged(whole[at:], chance))
            stranger.shutdown(socket.SHUT_WR)
        dialled = Beside(lambda: connect(HOST, listener.port, security, sane, Abort(), SECONDS))
        while True:
            pending, told = listener.accept(Abort(), SECONDS)
            if told == sane:
                break
            pending.refuse("another one is waited for")
        pending.admit().close()
        dialled.result().close()
