"""Which records of a data set are looked at where not all can be: they are spread over all of it, since its order may
be that of the labels, and are the same in each process.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    Record = Mapping[str, Any]

T = TypeVar("T")

RATIO = (math.sqrt(5) - 1) / 2  # the golden ratio: of its multiples the fractions leave no large gaps


def spread(items: Sequence[T]) -> list[T]:
    """All of them, in an order of which the first ones, however many, are spread evenly (the three-gap theorem)."""
    return [items[place] for place in sorted(range(len(items)), key=lambda place: place * RATIO % 1)]


def dealt(blocks: Sequence[int], records: Callable[[int], Sequence[Record]], wanted: int) -> Iterator[Record]:
    """All records, in such an order that the first `wanted` are of as many blocks as can be, in turn. records: of a
    block, which is read when the first of them is needed.
    """
    order, start = spread(blocks), 0
    each = math.ceil(wanted / max(1, len(order)))
    found = True
    while found:
        found = False
        for first in range(0, len(order), wanted):
            parts = [spread(records(block))[start : start + each] for block in order[first : first + wanted]]
            for one in itertools.chain.from_iterable(itertools.zip_longest(*parts)):
                if one is not None:
                    found = True
                    yield one
        start, each = start + each, 2 * each  # blocks are read again, and not often


def fitting(records: Iterable[Record], size: Callable[[Record], int], wanted: int, room: int) -> list[Record]:
    """The first `wanted` records less those that are too large for the room that the ones before them have left; where
    none of them has room, the smallest.
    """
    looked = list(itertools.islice(records, wanted))
    found: list[Record] = []
    for one in looked:
        if (taken := size(one)) <= room:
            found.append(one)
            room -= taken
    return found or sorted(looked, key=size)[:1]
