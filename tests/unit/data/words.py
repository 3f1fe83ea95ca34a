"""Counts of words that a test gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mms_workloads.contract import WordEmbedding
from mms_workloads.data.counts import Counts
from mms_workloads.data.text import Words

if TYPE_CHECKING:
    from collections.abc import Mapping


def words_of(found: Mapping[str, int]) -> Words:
    words = Words()
    words.add(list(found), np.array(list(found.values()), np.int64))
    return words


def counts_of(found: Mapping[str, int]) -> Counts:
    counts = Counts()
    counts.add(words_of(found), WordEmbedding())
    return counts
