"""Float32 tensors in files of the safetensors format, as streams: there is memory for a model once.

The format: 8 bytes of header length, little-endian; a JSON header with each tensor's dtype, shape and place in the
bytes that follow (huggingface/safetensors, README). Its library copies all tensors to write them, and reads what it can
map; a file system over a network may then take the process with it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

HEADER_BYTES = 100_000_000  # at most: a damaged length takes no more memory
PIECE_BYTES = 1 << 20  # is written, read or digested while it is in the processor's cache
_ITEM_BYTES = 4
_LENGTH_BYTES = 8


class Source(Protocol):
    """Bytes in their order."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """How many bytes were read; 0 or None at the end."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in a file: its bytes are those of [begin, end), row after row."""

    name: str
    dtype: str  # as the format has it: "F32"
    shape: tuple[int, ...]
    begin: int
    end: int

    def check(self) -> None:
        """Raises ValueError where it is no float32 tensor."""
        if self.dtype != "F32":
            raise ValueError(f"tensor {self.name!r} is {self.dtype}, not float32")
        if self.end - self.begin != _ITEM_BYTES * math.prod(self.shape):
            raise ValueError(f"tensor {self.name!r} of {list(self.shape)} has {self.end - self.begin} bytes")


def content(tensors: Mapping[str, NDArray[np.float32]]) -> Iterator[memoryview]:
    """The bytes of the file, piece by piece: of tensors that are contiguous without a copy. Raises TypeError."""
    for name, one in tensors.items():
        if one.dtype != np.float32:
            raise TypeError(f"tensor {name!r} is {one.dtype}, not float32")
    yield memoryview(header({name: one.shape for name, one in tensors.items()}))
    for one in tensors.values():
        for part in [one] if one.flags.c_contiguous else _rows(one):
            data = np.ascontiguousarray(part, "<f4").reshape(-1).view(np.uint8).data
            for begin in range(0, len(data), PIECE_BYTES):
                yield data[begin : begin + PIECE_BYTES]


def header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """What stands before the tensors of these shapes, which follow in this order."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + _ITEM_BYTES * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _rows(matrix: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    count = max(1, PIECE_BYTES // max(1, matrix[:1].nbytes))
    return (matrix[begin : begin + count] for begin in range(0, len(matrix), count))


def write(path: Path, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Raises OSError."""
    with path.open("wb") as file:
        for piece in content(tensors):
            file.write(piece)


def places(source: Source, size: int) -> dict[str, Place]:
    """What a file of `size` bytes holds, in the order of its bytes; the source is then where the tensors begin.

    Raises ValueError where that is no header, or a tensor lies outside the file.
    """
    return _header(source, size)[1]


def _header(source: Source, size: int) -> tuple[int, dict[str, Place]]:
    """How long it is, with its length; and the places."""
    length = int.from_bytes(_read(source, _LENGTH_BYTES), "little")
    start = _LENGTH_BYTES + length
    if start > size:
        raise ValueError("the header is longer than the file")
    if length > HEADER_BYTES:
        raise ValueError(f"the header has {length} bytes, more than {HEADER_BYTES}")
    try:
        header = json.loads(_read(source, length))
        found = [_place(name, entry, start) for name, entry in header.items() if name != "__metadata__"]
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError) as error:
        raise ValueError(f"the header lists no tensors: {error!r}") from error
    for place in found:
        if not start <= place.begin <= place.end <= size:
            raise ValueError(f"tensor {place.name!r} lies outside the file")
    return start, {place.name: place for place in sorted(found, key=lambda place: (place.begin, place.end))}


def _place(name: str, entry: Any, start: int) -> Place:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"tensor {name!r} has no shape and place: {list(shape)}, {begin} to {end}")
    return Place(name, str(entry["dtype"]), shape, start + begin, start + end)


def _empty(place: Place) -> NDArray[np.float32]:
    return np.empty(place.shape, "<f4")


def read(
    source: Source, size: int, room: Callable[[Place], NDArray[np.float32]] = _empty
) -> dict[str, NDArray[np.float32]]:
    """All tensors of a file of `size` bytes, read to its end into contiguous arrays of their shapes that `room` gives.

    Raises ValueError where it is no such file, or not so long.
    """
    tensors = {}

    def rooms(place: Place) -> Iterator[memoryview]:
        tensors[place.name] = room(place)
        yield tensors[place.name].reshape(-1).view(np.uint8).data

    fill(source, size, rooms)
    return tensors


def fill(source: Source, size: int, rooms: Callable[[Place], Iterable[memoryview]]) -> None:
    """Reads a file of `size` bytes to its end; rooms: where the bytes of a tensor belong, piece by piece.

    Raises ValueError where it is no such file, or not so long.
    """
    at, found = _header(source, size)
    for name, place in found.items():
        place.check()
        if place.begin != at:
            raise ValueError(f"tensor {name!r} does not follow what is before it")
        for room in rooms(place):
            _fill(source, room)
        at = place.end
    if at != size:
        raise ValueError(f"{size} bytes, and its tensors end at {at}")


def nowhere(size: int) -> Iterator[memoryview]:
    """Room for so many bytes that nobody wants."""
    room = memoryview(bytearray(min(size, PIECE_BYTES)))
    for begin in range(0, size, PIECE_BYTES):
        yield room[: size - begin]


def _read(source: Source, count: int) -> bytes:
    data = bytearray(count)
    _fill(source, memoryview(data))
    return bytes(data)


def _fill(source: Source, buffer: memoryview) -> None:
    """Raises ValueError where the source ends before."""
    while len(buffer):
        count = source.readinto(buffer[:PIECE_BYTES])
        if not count:
            raise ValueError(f"{len(buffer)} bytes are missing at the end")
        buffer = buffer[count:]
