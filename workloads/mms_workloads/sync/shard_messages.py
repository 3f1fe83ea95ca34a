"""The messages between workers and shards, and among shards: a JSON header and tensors. Nothing else knows their form.

A request has "message": what is asked; an answer has "answer": ok, over (the epoch has ended) or refused, with "why".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mms_workloads.sync.leases import Slice
from mms_workloads.sync.push import Answer, Delta, Push
from mms_workloads.sync.shard_state import Rows, Update

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

PUSH = "push"
PULL = "pull"  # rows of a sparse table
GET = "get"  # a range of rows of a table
PUT = "put"  # the same into a shard that is being filled
CURSORS = "cursors"
STANDING = "standing"
FORWARD = "forward"  # an update, from a primary to its replica's holder

OK = "ok"
OVER = "over"
REFUSED = "refused"

Message = tuple[dict[str, Any], "list[Tensor]"]


class Malformed(Exception):  # noqa: N818 - a verdict, not an error
    """The message is none of these, or its tensors do not fit."""


def write_push(push: Push) -> Message:
    tensors = [tensor for parts in push.gradients.values() for tensor in parts]
    for delta in push.deltas.values():
        tensors += [delta.rows, delta.values, delta.touches]
    header = {
        "message": PUSH,
        "step": push.step,
        "rate": push.rate,
        "samples": push.samples,
        "slices": _slices(push.slices),
        "contribution": dict(push.contribution),
        "gradients": [[name, len(parts)] for name, parts in push.gradients.items()],
        "deltas": list(push.deltas),
    }
    return header, tensors


def read_push(header: Mapping[str, Any], tensors: Sequence[Tensor]) -> Push:
    """Raises Malformed."""
    try:
        rest = list(tensors)
        gradients = {str(name): [rest.pop(0) for _ in range(count)] for name, count in header["gradients"]}
        deltas = {str(name): Delta(rest.pop(0), rest.pop(0), rest.pop(0)) for name in header["deltas"]}
        push = Push(
            int(header["step"]),
            float(header["rate"]),
            float(header["samples"]),
            _read_slices(header["slices"]),
            dict(header["contribution"]),
            gradients,
            deltas,
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Malformed(f"a push that cannot be read: {error!r}") from error
    if rest:
        raise Malformed(f"a push with {len(rest)} tensors too many")
    return push


def write_update(update: Update) -> Message:
    tensors = list(update.gradients.values())
    for rows in update.deltas.values():
        tensors += [rows.rows, rows.values]
    header = {
        "message": FORWARD,
        "step": update.step,
        "rate": update.rate,
        "slices": _slices(update.slices),
        "gradients": list(update.gradients),
        "deltas": list(update.deltas),
    }
    return header, tensors


def read_update(header: Mapping[str, Any], tensors: Sequence[Tensor]) -> Update:
    """Raises Malformed."""
    try:
        rest = list(tensors)
        gradients = {str(name): rest.pop(0) for name in header["gradients"]}
        deltas = {str(name): Rows(rest.pop(0), rest.pop(0)) for name in header["deltas"]}
        slices = _read_slices(header["slices"])
        return Update(int(header["step"]), float(header["rate"]), slices, gradients, deltas)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Malformed(f"an update that cannot be read: {error!r}") from error


def write_answer(answer: Answer, tables: Iterable[str]) -> dict[str, Any]:
    """tables: the dense tables whose parameters follow."""
    return {
        "answer": OK,
        "step": answer.step,
        "contributions": [None if c is None else dict(c) for c in answer.contributions],
        "included": list(answer.included),
        "tables": list(tables),
    }


def read_answer(header: Mapping[str, Any]) -> Answer:
    """Raises KeyError, TypeError, ValueError."""
    return Answer(int(header["step"]), tuple(header["contributions"]), tuple(map(bool, header["included"])))


def _slices(slices: Iterable[Slice]) -> list[list[int]]:
    return [[s.data_epoch, s.block, s.start, s.stop, s.size] for s in slices]


def _read_slices(rows: Iterable[Iterable[int]]) -> tuple[Slice, ...]:
    return tuple(Slice(*(int(x) for x in row)) for row in rows)
