"""Point-to-point byte streams between the pods of one job, plain or mutual TLS, fenced: the public names."""

from __future__ import annotations

from mms_workloads.transport.errors import PeerLost, Refused
from mms_workloads.transport.frames import Channel, Fence, Greeting, Spec
from mms_workloads.transport.meeting import Listener, Pending, connect
from mms_workloads.transport.security import Security
from mms_workloads.transport.stream import Abort

__all__ = [
    "Abort",
    "Channel",
    "Fence",
    "Greeting",
    "Listener",
    "PeerLost",
    "Pending",
    "Refused",
    "Security",
    "Spec",
    "connect",
]
