"""How the changes that ranks made from common parameters become one change. Pure."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the loss along one pair's gradient, sigma(1 - sigma)|v|^2: a quarter where |v| = 1 and nothing is learnt yet, and
# much less for pairs that training has told apart.
LEAST_CURVATURE, MOST_CURVATURE = 0.005, 0.25


def curvature(ranks: Tensor) -> Tensor:
    """What is taken for it where so many ranks have changed a row.

    Taken too high, ranks with long rounds learn too little. Taken too low, the sum overshoots. This is little more than
    the least with which it goes less than twice the way, and so does not diverge, even where the loss is as curved as
    it gets.
    """
    return (MOST_CURVATURE / 2 * (1 - 2 / ranks)).clamp(min=LEAST_CURVATURE)


def merge_scale(touches: Tensor, ranks: Tensor, rate: float, *, stale: bool = False) -> Tensor:
    """The factor on the sum of the ranks' changes of each row: from 1 (a sum) for rare rows to 1/ranks (a mean).

    touches: gradients that all ranks added to the row [n]; ranks: how many of them touched it [n]; rate: learning rate.
    stale: they came one after the other, each from parameters without those before it, where what overshoots swings on.

    Gradient steps close a row's gap to where its data pulls it: k steps close 1 - exp(-x) of it, x = k * rate *
    curvature. One process doing the work of n ranks would close 1 - exp(-n x). The sum of n changes closes n times
    1 - exp(-x): the factor is the quotient. For rare rows (x small) it is 1, and averaging would learn n times slower;
    for frequent rows (x large) it is 1/n, and summing would overshoot and diverge.
    """
    n = ranks.clamp(min=1.0).double()
    x = (touches.double() / n * rate * (MOST_CURVATURE if stale else curvature(n))).clamp(min=1e-9)
    return (torch.expm1(-n * x) / (n * torch.expm1(-x))).float()
