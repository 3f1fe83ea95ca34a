"""Files of tensors: the library of the format is the reference, both ways."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mms_workloads import tensors

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MANY = {
    "large": np.arange(700_000, dtype=np.float32).reshape(7, 100_000),
    "of Fortran's order": np.asfortranarray(np.arange(600_000, dtype=np.float32).reshape(200_000, 3)),
    "every second": np.arange(20, dtype=np.float32).reshape(10, 2)[::2],
    "empty": np.zeros((0, 5), np.float32),
    "ä": np.float32([[np.nan, np.inf, -0.0]]),
    "number": np.array(3, np.float32),
}


def read(path: Path) -> dict[str, NDArray[np.float32]]:
    with path.open("rb") as file:
        return tensors.read(file, path.stat().st_size)


def same(found: dict[str, NDArray[np.float32]]) -> bool:
    return set(found) == set(MANY) and all(
        found[name].shape == one.shape and found[name].tobytes() == one.tobytes() for name, one in MANY.items()
    )


def test_written(tmp_path: Path) -> None:
    tensors.write(tmp_path / "file", MANY)
    assert same(load_file(tmp_path / "file"))
    assert same(read(tmp_path / "file"))


def test_read(tmp_path: Path) -> None:
    save_file({name: np.array(one, order="C") for name, one in MANY.items()}, tmp_path / "file", {"made": "by it"})
    assert same(read(tmp_path / "file"))


def test_pieces_are_of_the_tensors_own_memory() -> None:
    matrix = np.zeros((3000, 100), np.float32)
    _, *pieces = tensors.content({"a": matrix})
    assert [len(piece) for piece in pieces] == [1 << 20, matrix.nbytes - (1 << 20)]
    pieces[0][3] = 7
    assert matrix[0, 0] != 0


def file(header: Any, rest: int = 8) -> bytes:
    data = json.dumps(header).encode()
    return len(data).to_bytes(8, "little") + data + bytes(rest)


def entry(shape: Any = (2,), begin: Any = 0, end: Any = 8, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(b"", "bytes are missing", id="empty"),
        pytest.param(file({"a": entry()})[:20], "header is longer than the file", id="in-the-header"),
        pytest.param(file({"a": entry()}, 7), "lies outside the file", id="cut"),
        pytest.param(file({"a": entry()}, 9), "its tensors end at", id="more"),
        pytest.param(file({"a": entry([1], 4, 8)}), "does not follow", id="gap-before-all"),
        pytest.param(file({}, 3), "", id="nothing-but-bytes"),
        pytest.param((150_000_000).to_bytes(8, "little") + bytes(100), "header is longer", id="length"),
        pytest.param((60_000).to_bytes(8, "little") + b"[" * 60_000, "lists no tensors", id="deep"),
        pytest.param(b"\xff" * 64, "header is longer than the file", id="no-length"),
        pytest.param((8).to_bytes(8, "little") + b"\xff" * 8, "", id="no-text"),
        pytest.param(file([]), "lists no tensors", id="no-object"),
        pytest.param(file({"a": 1}), "lists no tensors", id="no-entry"),
        pytest.param(file({"a": {"dtype": "F32"}}), "lists no tensors", id="no-shape"),
        pytest.param(file({"a": entry(begin=-8, end=0)}), "has no shape and place", id="before"),
        pytest.param(file({"a": entry(shape=[2.0])}), "has no shape and place", id="no-number"),
        pytest.param(file({"a": entry(shape=[3])}), "of [3] has 8 bytes", id="shape"),
        pytest.param(file({"a": entry(dtype="F64")}), "is F64, not float32", id="dtype"),
        pytest.param(file({"a": entry(), "b": entry()}), "does not follow", id="twice"),
        pytest.param(file({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, 12), "does not follow", id="gap"),
    ],
)
def test_what_is_no_file_of_tensors(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=None) as raised:
        read(tmp_path / "file")
    assert told in str(raised.value)


def test_a_file_that_got_shorter(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(file({"a": entry()}, 5))
    with (tmp_path / "file").open("rb") as source, pytest.raises(ValueError, match="3 bytes are missing"):
        tensors.read(source, (tmp_path / "file").stat().st_size + 3)
