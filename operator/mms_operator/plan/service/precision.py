"""In which precision a version's network runs, as its first pod says. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api.service import Precision
from mms_operator.api.service_status import PrecisionStatus
from mms_workloads import contract

if TYPE_CHECKING:
    from mms_operator.api.service import Server
    from mms_operator.api.service_status import ServedVersion, Versions
    from mms_operator.plan.service.seen import Seen


def order(server: Server) -> contract.PrecisionOrder:
    return contract.PrecisionOrder(wanted=server.precision.value, maxLoss=float(server.maxAccuracyLoss))


def known(version: ServedVersion, server: Server, versions: Versions, seen: Seen) -> ServedVersion:
    """With what its pods have measured, the last one that says so; what is not asked for is not told."""
    if server.precision is Precision.FP32:
        return version
    reports = [report.precision for report in seen.agents.values() if report.digest == version.digest]
    said = [_status(one) for one in reports if one]
    pinned = (versions.stable, versions.next, versions.previous)
    before = [one.precision for one in pinned if one and one.digest == version.digest and one.precision]
    # What stands there stays: pods on other processors measure other figures.
    found = next(iter((*before, *said)), None)
    return version.model_copy(update={"precision": found})


def unknown(version: ServedVersion | None, server: Server) -> bool:
    """Whether a pod is to say it."""
    return version is not None and server.precision is not Precision.FP32 and version.precision is None


def _status(report: contract.PrecisionReport) -> PrecisionStatus:
    return PrecisionStatus(
        chosen=report.chosen,
        speedUp=f"{report.speedUp:.2f}",
        loss=f"{report.loss:.4f}",
        questions=report.questions,
        message=report.message[:512],
    )
