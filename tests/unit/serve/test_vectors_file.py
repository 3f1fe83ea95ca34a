"""What models map."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mms_workloads.serve import vectors_file
from mms_workloads.serve.vectors_file import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.mark.parametrize(
    "matrix",
    [
        pytest.param(np.arange(12, dtype=np.float32).reshape(3, 4), id="rows"),
        pytest.param(np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)), id="columns"),
        pytest.param(np.arange(8, dtype=np.int64).reshape(4, 2), id="numbers"),
    ],
)
def test_a_matrix_is_what_numpy_has_written(tmp_path: Path, matrix: NDArray[Any]) -> None:
    np.save(tmp_path / "a.npy", matrix)
    found = vectors_file.mapped(tmp_path / "a.npy")
    assert (found.dtype, found.flags.f_contiguous) == (matrix.dtype, matrix.flags.f_contiguous)
    np.testing.assert_array_equal(found, matrix)
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\x05\x00hello", b"PK" * 100])
def test_what_is_no_matrix(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.npy is no matrix"):
        vectors_file.mapped(tmp_path / "a.npy")


def test_loading_parses_no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which fails now and then where Triton's Python is older than 3.11.5."""
    save_file({"vectors": np.eye(3, dtype=np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "vocabulary.txt").write_text("a\t3\nb\t2\nc\t1\n")
    vectors_file.prepare(tmp_path)
    monkeypatch.setattr(ast, "parse", None)
    for unit in (False, True):
        held = vectors_file.load(tmp_path, unit=unit)
        assert held.words.rows([b"b", b"nope"]).tolist() == [1, -1]
        np.testing.assert_array_equal(held.rows, np.eye(3))
