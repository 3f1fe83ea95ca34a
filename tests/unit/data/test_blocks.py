"""Cutting a data set: every byte in exactly one block, whatever the sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_workloads.data import blocks
from mms_workloads.data.blocks import COUNTING_BYTES, Segment

SIZES = st.lists(st.integers(0, 60), max_size=12)


@given(SIZES, st.integers(1, 40))
def test_every_byte_is_in_one_block(sizes: list[int], block_bytes: int) -> None:
    found = blocks.cut(sizes, block_bytes)
    line = [(s.file, byte) for block in found for s in block for byte in range(s.start, s.end or 0)]
    assert line == [(file, byte) for file, size in enumerate(sizes) for byte in range(size)]
    lengths = [sum((s.end or 0) - s.start for s in block) for block in found]
    assert all(length == block_bytes for length in lengths[:-1])
    assert all(0 < length <= block_bytes for length in lengths[-1:])


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([0, 0], []),
        ([10], [(Segment(0, 0, 10),)]),
        ([11], [(Segment(0, 0, 10),), (Segment(0, 10, 11),)]),
        ([4, 0, 5, 3], [(Segment(0, 0, 4), Segment(2, 0, 5), Segment(3, 0, 1)), (Segment(3, 1, 3),)]),
    ],
    ids=["no file", "empty files", "one block", "a byte more", "small files"],
)
def test_cut(sizes: list[int], expected: list[blocks.Block]) -> None:
    assert blocks.cut(sizes, 10) == expected


def test_counting_tasks() -> None:
    """A compressed file is read from its start to its end, by one worker; its stored size says nothing."""
    uris = ["a.txt", "b.gz", "c.txt", "d.XZ", "e.bz2"]
    tasks = blocks.counting_tasks(uris, [COUNTING_BYTES + 5, 7, 3, 9, 1])
    assert tasks[:3] == [(Segment(1, 0, None),), (Segment(3, 0, None),), (Segment(4, 0, None),)]
    assert tasks[3:] == [
        (Segment(0, 0, COUNTING_BYTES),),
        (Segment(0, COUNTING_BYTES, COUNTING_BYTES + 5), Segment(2, 0, 3)),
    ]


@given(st.integers(0, 2000), st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9]))
def test_held_out_blocks_are_few_and_never_trained_on(count: int, part: float) -> None:
    trained, kept = blocks.split(count, part)
    assert sorted(kept + trained) == list(range(count))
    assert bool(kept) == (count >= blocks.HOLD_OUT_FROM and part > 0)
    assert len(kept) <= max(1, count * max(part, 0.5 if part > 0.5 else 0) + 1)
    assert count == 0 or trained
