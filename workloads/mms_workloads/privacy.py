"""What a run of differential privacy has spent of its budget, by Opacus' accountant (Mironov, 2017).

A data epoch reads each record once: its clipped gradient is part of one round's sum, which carries noise. What other
rounds make public depends on the record only by what that sum has told. So of E data epochs a record is in E Gaussian
mechanisms, one after another, whatever the order in which blocks are dealt: Opacus' sample_rate is 1, and the steps are
data epochs. Nothing is claimed of amplification by sampling, which needs samples that are drawn independently (ADR 18).

Neighbours are data sets of which one has nothing in the place of a record of the other, so sensitivity is the clipping
norm; how many records there are is known.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING

from mms_workloads.contract import PrivacyReport, Reason
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mms_workloads.contract import Differential
    from mms_workloads.sync.leases import Progress, Slice

ACCOUNTANT = "rdp"


@functools.cache
def noise_multiplier(epsilon: float, delta: float, epochs: int) -> float:
    """The noise's standard deviation, over the clipping norm, with which that many data epochs spend epsilon."""
    from opacus.accountants.utils import get_noise_multiplier  # noqa: PLC0415 - loads PyTorch and more

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of orders at the edge, while it searches
        found = get_noise_multiplier(
            target_epsilon=epsilon, target_delta=delta, sample_rate=1.0, steps=epochs, accountant=ACCOUNTANT
        )
    return float(found)


@functools.cache
def spent(multiplier: float, delta: float, passes: int) -> float:
    """Epsilon after so many data epochs."""
    if not passes:
        return 0.0
    from opacus.accountants import RDPAccountant  # noqa: PLC0415 - as above

    accountant = RDPAccountant()
    accountant.history = [(multiplier, 1.0, passes)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta))


def passes(progress: Progress, blocks: Iterable[int], slices: Sequence[Slice] = ()) -> int:
    """Rounds that the most used record is in. slices: of the round that is being computed."""
    before = max((progress.applied[b] + (b in progress.partial) for b in blocks), default=0)
    return max(before, *(s.data_epoch + 1 for s in slices), 0)


def report(given: Differential, epochs: int, count: int) -> PrivacyReport:
    """count: of passes. Raises JobError: there were more than the noise is for."""
    if count > epochs:
        raise JobError(
            Reason.INTERNAL, f"a record would be in {count} data epochs, and the noise of spec.privacy is for {epochs}"
        )
    multiplier = noise_multiplier(given.epsilon, given.delta, epochs)
    said = spent(multiplier, given.delta, count)
    return PrivacyReport(epsilonSpent=said, delta=given.delta, noiseMultiplier=multiplier)
