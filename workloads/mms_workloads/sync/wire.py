"""The messages on a worker's control connection: a WebSocket whose binary frames hold a JSON header and raw bytes.

A frame is 4 bytes of header length (big endian), the header {"kind": ..., fields}, then the bytes, if any. Ordering is
the connection's: what a worker reports about a round arrives before what it says later.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

_LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 1 << 30  # a vocabulary of some ten million words fits

# From a worker.
HELLO = "hello"
HEARTBEAT = "heartbeat"
COUNTED = "counted"  # a counting task's words, as bytes
READY = "ready"  # for the epoch: {epoch, step, lineage, progress}, and dead: [[block, why], ...]
LEASE = "lease"  # asks for a block
KEY = "key"  # asks for the key of an encrypted block, for the evaluation
PROGRESS = "progress"  # rounds were committed: {epoch, rounds}
BROKEN = (
    "broken"  # a collective of the epoch failed: {epoch, why}, and ranks that were not reached: {unreached, shards}
)
FILLED = "filled"  # a shard has all the rows that it begins the epoch with
STARTED = "started"  # a shard serves in the epoch
CHECKPOINTED = "checkpointed"  # a part is durable: {folder, step, part, parts, files, final}
CHECKPOINT_INVALID = "checkpoint_invalid"
EXPORTED = "exported"
FAILED = "failed"
ANOMALY = "anomaly"  # the guard of a worker has found something: {anomaly, rank, block, action}
STOPPING = "stopping"  # the pod was told to end, and gives what it holds to others or to the store before it leaves
# From the master.
WELCOME = "welcome"
REFUSED = "refused"
COUNT = "count"  # a counting task
SEND_PLAN = "send_plan"
EPOCH = "epoch"  # a membership epoch to join: now (urgent) or at the next round boundary
BEGIN = "begin"  # all members are ready: whose state counts
GO = "go"  # all shards have theirs: none needs the rows of the epoch before any more
LEASED = "leased"
KEYS = "keys"  # of encrypted blocks: {keys, refused}; LEASED and COUNT carry keys, too
SUSPEND = "suspend"
CHECKPOINT = "checkpoint"
EVICT = "evict"  # the process is to end, so that its pod is replaced; a shard's when its rows are safe
BYE = "bye"  # the run's outcome
# Both ways.
LEAVE = "leave"  # the pod goes; from the master: it may, since others hold what counts
PLAN = "plan"


@dataclass(frozen=True, slots=True)
class Message:
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    data: bytes = b""


def pack(message: Message) -> bytes:
    header = json.dumps({"kind": message.kind, **message.fields}, separators=(",", ":")).encode()
    return _LENGTH.pack(len(header)) + header + message.data


def unpack(frame: bytes) -> Message:
    """Raises ValueError when the frame is none of ours."""
    if len(frame) < _LENGTH.size:
        raise ValueError("a frame without a header")
    (length,) = _LENGTH.unpack_from(frame)
    fields = json.loads(frame[_LENGTH.size : _LENGTH.size + length])
    if not isinstance(fields, dict) or "kind" not in fields:
        raise ValueError("a frame whose header is no message")
    return Message(fields.pop("kind"), fields, frame[_LENGTH.size + length :])
