"""Whether the canary answers otherwise than the stable version more often than is allowed. Pure.

Of inputs that are drawn from all those which clients might send, each once, the number that is answered differently is
binomial. Bettors bet on rates below the limit or above it; a capital is multiplied by the likelihood ratio of that rate
and the limit, which is fair for each rate on the other side of the limit (Wald, 1945). So the counts are all that must
be carried from interval to interval, in whatever portions they came.

Inputs that clients have sent may come in groups that are answered alike. With groups of `dependence` inputs at most the
capital's root of that degree is what one input of each would have brought at most, so that the bets stay fair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from mms_operator.plan.analysis.bets import evidence, geometric, parts

GOOD = (1 / 32, 1 / 8, 1 / 4, 1 / 2)  # of the limit: the rates that are bet on
GOOD_PARTS = parts((1, 1 / 2, 1 / 3, 1 / 4))  # most versions answer nearly all alike
EXCESSES, EXCESS_LARGEST = 5, 0.85  # above the limit, as a part of what is left to 1
BAD_PARTS = parts([1] * EXCESSES)


@dataclass(frozen=True, slots=True)
class Disagreement:
    limit: float
    compared: int = 0  # inputs
    differing: int = 0


def fold(disagreement: Disagreement, compared: int, differing: int) -> Disagreement:
    return replace(
        disagreement, compared=disagreement.compared + compared, differing=disagreement.differing + differing
    )


def held(disagreement: Disagreement, dependence: float = 1.0) -> float:
    """Logarithm of the evidence that the rate is below the limit. dependence: inputs that count for one."""
    rates = good_rates(disagreement.limit)
    return evidence(GOOD_PARTS, [_ratio(disagreement, rate) / dependence for rate in rates])


def broken(disagreement: Disagreement, dependence: float = 1.0) -> float:
    """Logarithm of the evidence that it is above it."""
    rates = bad_rates(disagreement.limit)
    return evidence(BAD_PARTS, [_ratio(disagreement, rate) / dependence for rate in rates])


def good_rates(limit: float) -> list[float]:
    return [part * limit for part in GOOD]


def bad_rates(limit: float) -> list[float]:
    return [limit + excess * (1 - limit) for excess in geometric(limit, EXCESS_LARGEST, EXCESSES)]


def _ratio(disagreement: Disagreement, rate: float) -> float:
    limit, differing = disagreement.limit, disagreement.differing
    alike = disagreement.compared - differing
    return differing * math.log(rate / limit) + alike * math.log((1 - rate) / (1 - limit))
