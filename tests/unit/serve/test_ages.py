"""The age of what answers: its distribution over time, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mms_workloads.serve.ages import Ages


def test_a_sawtooth() -> None:
    """Each second parameters that are 0.1 s old by then: the age is uniform from 0.1 to 1.1 s."""
    ages = Ages()
    for second in range(100):
        ages.switched(second + 0.1, second)
    assert ages.age(99.6) == pytest.approx(0.6)
    seen = ages.distribution(100.1)
    assert (seen.p50, seen.p99, seen.longest) == pytest.approx((0.6, 1.09, 1.1), abs=0.02)


def test_what_is_known_to_be_current_is_not_old() -> None:
    ages = Ages()
    ages.switched(0, 0)
    ages.switched(10, 10)  # asked again: nothing was trained since
    assert ages.age(10.5) == 0.5
    assert ages.distribution(10.5).longest == 10, "nobody knew before"


def test_only_the_last_minute_counts() -> None:
    ages = Ages()
    ages.switched(0, -1000)
    for second in range(1, 200):
        ages.switched(second, second)
    assert ages.distribution(200).longest == pytest.approx(1)


def test_nobody_gives_any() -> None:
    ages = Ages()
    ages.switched(0, -2)
    seen = ages.distribution(30)
    moments = np.arange(0, 30, 0.01) + 2
    assert (seen.p50, seen.longest) == pytest.approx((np.median(moments), 32), abs=0.01)
    assert Ages().age(5) == 0
