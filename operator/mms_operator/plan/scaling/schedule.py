"""Times at which there are to be more replicas. Pure."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mms_operator.api.autoscaling import Schedule

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def problem(schedules: Iterable[Schedule]) -> str | None:
    """The first time zone that nobody knows, in words."""
    for number, one in enumerate(schedules):
        try:
            ZoneInfo(one.timeZone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            return (
                f"spec.autoscaling.schedules[{number}].timeZone: {one.timeZone} is no zone of the IANA database: write "
                "one such as Europe/Berlin, or UTC"
            )
    return None


def replicas(schedules: Iterable[Schedule], now: datetime) -> int:
    """How many there are to be at least, by those that count now; 0 where none does."""
    return max((one.replicas for one in schedules if _counts(one, now)), default=0)


def _counts(one: Schedule, now: datetime) -> bool:
    local = now.astimezone(ZoneInfo(one.timeZone))
    start, end = time.fromisoformat(one.start), time.fromisoformat(one.end)
    overnight = end <= start
    clock = local.time()
    if start <= clock and (overnight or clock < end):
        began = local
    elif overnight and clock < end:
        began = local - timedelta(days=1)
    else:
        return False
    return not one.days or DAYS[began.weekday()] in one.days
