"""When shards that the spec wants no more may go: once the parameters are split over the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api.names import Role

if TYPE_CHECKING:
    from mms_operator.plan.training.look import Look


def released(look: Look) -> bool:
    """Whether the master has taken up the number of shards that is wanted now, and has just these in its layout.

    What it reported before it was told of the number does not count. Neither does a number that may be the wanted one
    because a wanted shard is missing: all of them have to run and to be heard of.
    """
    report, confirmed, wanted = look.report, look.observed.confirmed, look.job.shards
    if report is None or confirmed is None or confirmed.shards != wanted or report.shardsReady != wanted:
        return False
    running = {pod.rank for pod in look.pods if pod.role == Role.SHARD and pod.runs and pod.live}
    gone = {one.rank for one in report.gone if one.role == "shard"}
    return set(range(wanted)) <= running - gone
