"""Evidence as the capital of bettors (Shafer, 2021; Ramdas, Gruenwald, Vovk and Shafer, 2023). Pure.

A bettor begins with 1 and stakes it, block by block, against a claim, on terms that are fair if the claim is true. Then
the capital has a mean of 1 at most at any time one cares to look, and reaches 1 / alpha with probability alpha at most
(Ville, 1939). How far it is off decides which bettor grows fastest, and is not known: so the capital is divided among
several, and what counts is their sum. Capitals are kept as logarithms.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

DIGITS = 1e4  # of a capital's logarithm: kept rounded down, so that the status stays small and the claim protected


def grown(capitals: Sequence[float], gains: Sequence[float]) -> tuple[float, ...]:
    """After a block. capitals: none before the first one."""
    return tuple(_rounded(old + gain) for old, gain in zip(capitals or [0.0] * len(gains), gains, strict=True))


def grown_late(capitals: Sequence[float], gains: Sequence[float], block: int) -> tuple[float, ...]:
    """After that block, counted from 1, of bettors who don't stake all at the beginning.

    Of each one's capital 1 / (t (t + 1)) enters the game with block t: a half at once, and the sum of all is 1. So a
    version that is good at first and bad later isn't shielded by its past: those who come later haven't lost anything
    (a mixture over the times of change, as in Shin, Ramdas and Rinaldo, 2023).
    """
    entering = -math.log(block * (block + 1))
    old = [_log_sum(capital, entering) for capital in capitals] if capitals else [entering] * len(gains)
    return grown(old, gains)


def evidence(weights: Sequence[float], capitals: Sequence[float]) -> float:
    """Logarithm of all bettors' capital together. weights: their parts of what they began with, 1 in all."""
    if not capitals:
        return 0.0
    return _log_total([math.log(weight) + capital for weight, capital in zip(weights, capitals, strict=True)])


def evidence_late(weights: Sequence[float], capitals: Sequence[float], blocks: int) -> float:
    """The same after so many blocks of `grown_late`: with what is still to enter, 1 / (blocks + 1)."""
    return _log_sum(evidence(weights, capitals), -math.log(blocks + 1)) if capitals else 0.0


def confidence(log_evidence: float) -> float:
    """With which the claim is refuted: 1 less the evidence's inverse, which is a p-value valid at any time."""
    return -math.expm1(-max(0.0, log_evidence))


def geometric(first: float, last: float, number: int) -> list[float]:
    """So many numbers, each the same multiple of the one before."""
    return [first * (last / first) ** (i / (number - 1)) for i in range(number)]


def parts(shares: Sequence[float]) -> tuple[float, ...]:
    """The same shares of 1."""
    whole = math.fsum(shares)
    return tuple(share / whole for share in shares)


def _rounded(capital: float) -> float:
    return math.floor(capital * DIGITS) / DIGITS


def _log_sum(one: float, other: float) -> float:
    return _log_total([one, other])


def _log_total(logarithms: Sequence[float]) -> float:
    most = max(logarithms)
    return most + math.log(math.fsum(math.exp(one - most) for one in logarithms))
