"""The changes of a round, and what is made of them: by all instruction sets against numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mms_workloads.embedding import native
from mms_workloads.embedding.parameters import buffer, matrix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

KERNELS = ["scalar", "neon", "avx2", "avx512"]
ROWS = np.array([0, 3, 4, 9])


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.kernels()
    try:
        native.choose(request.param)
    except ValueError as lacking:
        pytest.skip(str(lacking))
    yield request.param
    native.choose(before)


def pair(columns: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(columns)
    base, working = matrix(10, columns), matrix(10, columns)
    base[:] = rng.standard_normal(base.shape, np.float32)
    working[:] = rng.standard_normal(working.shape, np.float32)
    return base, working


@pytest.mark.parametrize("columns", [1, 3, 16, 31, 100])
def test_changes(kernels: str, columns: int) -> None:
    base, working = pair(columns)
    out = buffer(len(ROWS) * columns).reshape(len(ROWS), columns)
    squares = native.changes(base, working, ROWS, out)
    expected = working[ROWS] - base[ROWS]
    np.testing.assert_array_equal(out, expected)
    assert squares == pytest.approx(float((expected.astype(np.float64) ** 2).sum()), rel=1e-5)


@pytest.mark.parametrize("columns", [1, 3, 16, 31, 100])
def test_what_is_settled_has_the_same_bits_everywhere(kernels: str, columns: int) -> None:
    """Ranks on different processors compare checksums."""
    base, working = pair(columns)
    rng = np.random.default_rng(1)
    change, scale = rng.standard_normal((len(ROWS), columns), np.float32), rng.random(len(ROWS), np.float32)
    agreed, copy = base.copy(), working.copy()
    agreed[ROWS] += scale[:, None] * change
    copy[ROWS] = agreed[ROWS]
    native.settle(base, working, ROWS, change, scale)
    np.testing.assert_array_equal(base, agreed)
    np.testing.assert_array_equal(working, copy)
    padded = np.lib.stride_tricks.as_strided(base, (10, base.strides[0] // 4))
    assert not padded[:, columns:].any(), "what fills a row stays zero"


def test_rows_that_are_not_on_cache_lines_are_refused() -> None:
    base, _ = pair(3)
    with pytest.raises(ValueError, match="not on cache lines"):
        native.settle(base, base.copy(), ROWS, np.zeros((4, 3), np.float32), np.zeros(4, np.float32))
