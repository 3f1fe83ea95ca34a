"""Gradients on the wire: what they lose, and that error feedback loses nothing in the long run."""

from __future__ import annotations

import pytest
import torch

from mms_workloads.sync import compression
from mms_workloads.sync.compression import BLOCK, decode, encode, mean_into, mismatch

WIRES = ["None", "BF16", "Int8"]
SIZES = [0, 1, 1023, 1024, 1025, 5000]
# The largest error of one element, as a part of the largest element of its block.
LOSS = {"None": 0.0, "BF16": 2**-8, "Int8": 0.5 / 127}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(compression, "PIECE", 2 * BLOCK)


def vector(size, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=rng) * torch.logspace(-3, 3, max(size, 1))[:size]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("size", SIZES)
def test_there_and_back(wire, size):
    exact = vector(size)
    encoded = encode(exact.clone(), wire)
    assert mismatch(encoded, size) is None
    back = decode(encoded)
    for start in range(0, size, BLOCK):
        block = slice(start, start + BLOCK)
        bound = LOSS[wire] * exact[block].abs().max() * 1.001
        assert (back[block] - exact[block]).abs().max() <= bound


@pytest.mark.parametrize("wire", ["BF16", "Int8"])
def test_error_feedback_loses_nothing(wire):
    exact, received, error = torch.zeros(3000), torch.zeros(3000), torch.zeros(3000)
    for seed in range(50):
        gradient = vector(3000, seed)
        exact += gradient
        kept = gradient.clone()
        received += decode(encode(gradient, wire, error))
        assert torch.equal(gradient, kept)
    torch.testing.assert_close(received + error, exact, rtol=1e-4, atol=1e-3)
    # Without it, small elements of a block are lost every time.
    small = torch.full((BLOCK,), 1e-4)
    small[0] = 1.0
    plain = sum(decode(encode(small.clone(), "Int8")) for _ in range(200))
    error = torch.zeros(BLOCK)
    fed = sum(decode(encode(small.clone(), "Int8", error)) for _ in range(200))
    assert not plain[1:].any()
    torch.testing.assert_close(fed[1:], 200 * small[1:], rtol=0.5, atol=0)


@pytest.mark.parametrize("wire", WIRES)
def test_a_mean_of_parts(wire):
    parts = [encode(vector(5000, seed), wire) for seed in range(3)]
    expected = sum(decode(part) for part in parts) / 7
    out = torch.empty(5000)
    mean_into(out, parts, 7)
    torch.testing.assert_close(out, expected)
    if wire == "None":
        mean_into(parts[0][0], parts, 7)
        assert torch.equal(parts[0][0], out)


def test_zeros_and_what_is_not_finite():
    assert torch.equal(decode(encode(torch.zeros(2000), "Int8")), torch.zeros(2000))
    for bad in (torch.nan, torch.inf):
        gradient = torch.ones(3000)
        gradient[5] = bad
        assert not torch.isfinite(decode(encode(gradient, "Int8"))).all()
        assert not torch.isfinite(decode(encode(gradient, "BF16"))).all()


def test_what_does_not_stand_for_a_gradient():
    assert "5 numbers" in (mismatch([torch.zeros(4)], 5) or "")
    assert mismatch([torch.zeros(5, dtype=torch.float64)], 5)
    assert mismatch([torch.zeros(5, dtype=torch.int8)], 5)
    assert mismatch([torch.zeros(5, dtype=torch.int8), torch.zeros(2)], 5)
    assert mismatch([], 5)
