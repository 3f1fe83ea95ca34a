"""Whether the canary fails more often than the stable version, by more than a margin. Pure.

Failures of a block are two binomials. Against the claim that the canary's rate is at least the stable version's plus
the margin bettors bet on pairs of rates that are closer together, against the claim that it is at most so much they bet
on pairs that are further apart. A request multiplies a capital by q / r if it fails and by (1 - q) / (1 - r) if not: q
is the rate that is bet on, r that of the pair in the claim which is nearest to the bettor's in Kullback and Leibler's
divergence, weighted by the requests of both sides. This is fair for each pair in the claim (Turner and Gruenwald, 2023,
and Turner, Ly and Gruenwald, 2024: e-variables for two streams of counts). So the rate that both have in common need
not be known, and may change from block to block. Assumed is that within a block a version's requests fail
independently, with one rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from mms_operator.plan.analysis.bets import evidence, evidence_late, geometric, grown, grown_late, parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_operator.plan.analysis.types import Side, Spec

# What is bet on, with parts of the capital that fall with the rate that both have in common: few services fail often.
SMALLEST = 0.1  # of the margin: a rate that needn't be told from zero
GOOD_RATES, GOOD_LARGEST = 6, 0.3
BAD_RATES, BAD_LARGEST = 4, 0.15
EXCESSES, EXCESS_LARGEST = 5, 0.85  # above the claim's largest rate, as a part of what is left to 1
LATE = 2.0  # of those who bet against a canary half enters the game with the first block
STEPS, PRECISION = 100, 1e-15


class Counts(NamedTuple):
    """Requests and those of them that failed."""

    canary: int = 0
    canary_failed: int = 0
    stable: int = 0
    stable_failed: int = 0


NOTHING = Counts()


class Bettor(NamedTuple):
    part: float  # of the capital, at the beginning
    canary: float  # the rates that it bets on
    stable: float


class Stakes(NamedTuple):
    """Logarithms of what a request multiplies a bettor's capital by."""

    canary_failed: float
    canary_succeeded: float
    stable_failed: float
    stable_succeeded: float


@dataclass(frozen=True, slots=True)
class Errors:
    """What is carried on. good, bad: logarithms of the capitals of those who bet on a good canary, and on a bad one.

    pending: of clients' requests, pending_own: of the agents' own. They are not alike, and no block has both.
    """

    margin: float
    blocks: int = 0
    pending: Counts = NOTHING
    pending_own: Counts = NOTHING
    counted: Counts = NOTHING
    good: tuple[float, ...] = ()
    bad: tuple[float, ...] = ()


def fold(spec: Spec, errors: Errors, canary: Side, stable: Side, *, own: bool = False) -> Errors:
    """With an interval's requests. Without any on one side there is nothing to compare: it is left out."""
    if not (canary.requests and stable.requests):
        return errors
    before = errors.pending_own if own else errors.pending
    block = _sum(before, Counts(canary.requests, canary.failed, stable.requests, stable.failed))
    if min(block.canary, block.stable) < spec.block_requests:
        return _pending(errors, block, own=own)
    blocks = errors.blocks + 1
    return replace(
        _pending(errors, NOTHING, own=own),
        blocks=blocks,
        counted=_sum(errors.counted, block),
        good=grown(errors.good, good_gains(spec, errors.margin, block)),
        bad=grown_late(errors.bad, bad_gains(spec, errors.margin, block), blocks),
    )


def _pending(errors: Errors, block: Counts, *, own: bool) -> Errors:
    return replace(errors, pending_own=block) if own else replace(errors, pending=block)


def held(errors: Errors) -> float:
    """Logarithm of the evidence that the failure rate is above the stable version's by less than the margin."""
    return evidence([bettor.part for bettor in good_bettors(errors.margin)], errors.good)


def broken(errors: Errors) -> float:
    """Logarithm of the evidence that it is above it by more than the margin."""
    return evidence_late([bettor.part for bettor in bad_bettors(errors.margin)], errors.bad, errors.blocks)


def good_gains(spec: Spec, margin: float, block: Counts) -> list[float]:
    return _gains(spec, good_bettors(margin), margin, block, spec.alpha_promote)


def bad_gains(spec: Spec, margin: float, block: Counts) -> list[float]:
    return _gains(spec, bad_bettors(margin), margin, block, spec.alpha_bad / LATE)


def good_bettors(margin: float) -> tuple[Bettor, ...]:
    """They bet that both versions fail at the same rate."""
    rates = geometric(SMALLEST * margin, GOOD_LARGEST * (1 - margin), GOOD_RATES)
    shares = parts([1 / number for number in range(1, GOOD_RATES + 1)])
    return tuple(Bettor(share, rate, rate) for share, rate in zip(shares, rates, strict=True))


def bad_bettors(margin: float) -> tuple[Bettor, ...]:
    """They bet that the canary fails at a rate beyond the margin: by about as much again up to nearly always."""
    rates = geometric(SMALLEST * margin, BAD_LARGEST * (1 - margin), BAD_RATES)
    shares = parts([1 / number for number in range(1, BAD_RATES + 1)])
    return tuple(
        Bettor(share / EXCESSES, rate + margin + excess * (1 - rate - margin), rate)
        for share, rate in zip(shares, rates, strict=True)
        for excess in geometric(margin, EXCESS_LARGEST, EXCESSES)
    )


def needs(bettors: Sequence[Bettor], alpha: float) -> list[float]:
    """Logarithms of what each one's own capital must grow by, alone, to refute a claim."""
    return [-math.log(alpha * bettor.part) for bettor in bettors]


def stakes(bettor: Bettor, margin: float, requests: float, stable_requests: float) -> Stakes:
    """Fair if the canary's rate is the stable one's plus the margin, and whenever it is on the far side of that."""
    part = requests / (requests + stable_requests)
    nearest = _nearest(bettor, margin, part)
    return Stakes(
        math.log(bettor.canary / (nearest + margin)),
        math.log((1 - bettor.canary) / (1 - nearest - margin)),
        math.log(bettor.stable / nearest),
        math.log((1 - bettor.stable) / (1 - nearest)),
    )


def _gains(spec: Spec, bettors: Sequence[Bettor], margin: float, block: Counts, alpha: float) -> list[float]:
    """What a block does to their capitals' logarithms. Less than what is fair is allowed, and happens twice.

    Where requests fail in groups a group counts for one. And no block brings more than its part of what is needed, so
    that one burst of failures decides nothing.
    """
    found = []
    for bettor, need in zip(bettors, needs(bettors, alpha), strict=True):
        stake = stakes(bettor, margin, block.canary, block.stable)
        gain = (
            block.canary_failed * stake.canary_failed
            + (block.canary - block.canary_failed) * stake.canary_succeeded
            + block.stable_failed * stake.stable_failed
            + (block.stable - block.stable_failed) * stake.stable_succeeded
        )
        found.append(min(gain / spec.dependence, need / spec.least_blocks))
    return found


def _nearest(bettor: Bettor, margin: float, part: float) -> float:
    """The stable version's rate, the canary's being the margin above it, which is nearest to the bettor's rates.

    The zero of the derivative of part * KL(canary, rate + margin) + (1 - part) * KL(stable, rate), which increases: by
    Newton's method, within what is known to hold it.
    """
    canary, stable = bettor.canary, bettor.stable
    low, high = sorted((min(stable, 1 - margin), max(canary - margin, 0.0)))
    rate, last = (low + high) / 2, -1.0
    for _ in range(STEPS):
        if abs(rate - last) <= PRECISION * rate:
            break
        above = rate + margin
        slope = part * ((1 - canary) / (1 - above) - canary / above)
        slope += (1 - part) * ((1 - stable) / (1 - rate) - stable / rate)
        curve = part * ((1 - canary) / (1 - above) ** 2 + canary / above**2)
        curve += (1 - part) * ((1 - stable) / (1 - rate) ** 2 + stable / rate**2)
        low, high = (rate, high) if slope < 0 else (low, rate)
        last, rate = rate, rate - slope / curve
        if not low < rate < high:
            rate = (low + high) / 2
    return rate


def _sum(one: Counts, other: Counts) -> Counts:
    return Counts(*(a + b for a, b in zip(one, other, strict=True)))
