"""A worker's or shard's control connection, as the master holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_workloads.sync.wire import Message


@dataclass(slots=True)
class Link:
    rank: int
    incarnation: int
    send: Callable[[Message], None]
    close: Callable[[], None]
    plan: str | None = None  # the digest of the plan that it has
    counts: bool = False  # has a counting task
    role: str = "worker"
    pages: str = ""  # host:port where peers get what a worker has read of the data set; empty: nowhere
    parameters: str = ""  # host:port where serving pods get a worker's parameters; empty: nowhere
    bf16: bool = False  # its device has instructions for products in BF16
    stopping: bool = False  # its pod was told to end
    leaving: bool = False  # and that it may go, which it does as soon as it hears that
