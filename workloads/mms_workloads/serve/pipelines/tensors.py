"""What a served model takes and gives, and the requests that it cannot answer. numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

Datatype = Literal["BYTES", "FP32", "INT64", "INT32"]
_TYPES: dict[Datatype, Any] = {"BYTES": np.object_, "FP32": np.float32, "INT64": np.int64, "INT32": np.int32}


class RequestError(ValueError):
    """A request that cannot be answered; the message names the input and the remedy."""


class FailedError(RuntimeError):
    """A request at which the model failed in a way that nobody foresaw; the message is for its client."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A tensor of the served model. shape: without the rows, -1: any."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class Prepared:
    """A request as the network takes it: feeds by name, [n, ...] each. about: what the answer needs of the request."""

    feeds: Mapping[str, NDArray[Any]]
    about: Any = None
    odd: Mapping[int, str] = field(default_factory=dict)  # rows that are no valid input, and why
    longest: int = 0  # to which feeds were filled up for the network

    @property
    def rows(self) -> int:
        return len(next(iter(self.feeds.values())))


class Steps(Protocol):
    """What a task does before and after its network. Pure: the network is run between the two."""

    @property
    def model(self) -> str:
        """As Triton calls it."""

    @property
    def inputs(self) -> tuple[Signature, ...]: ...

    @property
    def outputs(self) -> tuple[Signature, ...]: ...

    @property
    def feeds(self) -> tuple[str, ...]:
        """Of the network, in its order."""

    @property
    def results(self) -> tuple[str, ...]: ...

    @property
    def padded(self) -> Mapping[str, int]:
        """Feeds whose second axis may be filled up, and with what."""

    @property
    def rows(self) -> int:
        """In one execution, at most."""

    def prepare(self, inputs: Arrays) -> Prepared:
        """Raises RequestError."""

    def finish(self, results: Arrays, asked: Prepared) -> dict[str, NDArray[Any]]:
        """The answer; results: those of the request's rows."""


def checked(inputs: Arrays, signatures: tuple[Signature, ...]) -> dict[str, NDArray[Any]]:
    """The inputs with their types. Raises RequestError: one is unknown, missing, or of another shape or type."""
    known = {one.name: one for one in signatures}
    if strange := sorted(set(inputs) - known.keys()):
        raise RequestError(f"{strange[0]}: no input of this model: there are {', '.join(known)}")
    found: dict[str, NDArray[Any]] = {}
    rows: int | None = None
    for name, signature in known.items():
        if name not in inputs:
            if not signature.optional:
                raise RequestError(f"{name}: it is missing, and the model needs it")
            continue
        given = np.asarray(inputs[name])
        wanted = signature.shape
        fits = given.ndim == len(wanted) + 1 and all(
            want in (-1, have) for want, have in zip(wanted, given.shape[1:], strict=True)
        )
        if not fits or not len(given):
            sides = ", ".join("any" if side < 0 else str(side) for side in wanted)
            raise RequestError(f"{name}: its shape is {list(given.shape)}: it must be [rows, {sides}]")
        if rows is not None and len(given) != rows:
            raise RequestError(f"{name}: it has {len(given)} rows, and another input has {rows}")
        rows = len(given)
        if (given.dtype.kind in "OSU") != (signature.datatype == "BYTES"):
            raise RequestError(f"{name}: its values are {given.dtype}: they must be {signature.datatype}")
        found[name] = given.astype(_TYPES[signature.datatype], copy=False)
    return found


def one_of(inputs: Arrays, names: tuple[str, ...]) -> str:
    """The one that is given. Raises RequestError for none, or two."""
    given = [name for name in names if name in inputs]
    if len(given) != 1:
        raise RequestError(f"give exactly one of {' and '.join(names)}: " + (" and ".join(given) or "none") + " given")
    return given[0]


def texts(values: NDArray[Any], name: str) -> list[str]:
    """Strings [n, 1]. Raises RequestError for bytes that are not UTF-8."""
    found = []
    for row, value in enumerate(values[:, 0]):
        try:
            found.append(value if isinstance(value, str) else bytes(value).decode())
        except (UnicodeDecodeError, TypeError) as error:
            raise RequestError(f"{name}[{row}]: it is not UTF-8: encode text as UTF-8") from error
    return found


def files(values: NDArray[Any], name: str) -> Iterator[tuple[int, bytes]]:
    """The bytes of files [n, 1], each with its row. Raises RequestError."""
    for row, value in enumerate(values[:, 0]):
        if not isinstance(value, bytes | bytearray | np.bytes_):
            raise RequestError(f"{name}[{row}]: a {type(value).__name__}: send the bytes of a file")
        yield row, bytes(value)


def strings(values: list[list[str]]) -> NDArray[np.object_]:
    """[n, k] of UTF-8; what is missing in a shorter row is empty."""
    width = max((len(row) for row in values), default=0)
    found = np.full((len(values), width), b"", np.object_)
    for row, items in enumerate(values):
        for place, item in enumerate(items):
            found[row, place] = item.encode()
    return found


def not_finite(values: NDArray[np.floating[Any]]) -> dict[int, str]:
    """Rows with a NaN or an infinity."""
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    return {int(row): "it has values that are not finite: NaN or infinity" for row in np.flatnonzero(bad)}


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), np.float32)
