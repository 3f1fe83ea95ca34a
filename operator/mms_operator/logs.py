"""One JSON object a line on stderr: our own words and, in the same form, those of kopf and the libraries."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger


def configure(level: str) -> None:
    """`level` is a name of the logging module's, such as INFO."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, _object_key, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # kopf and asyncio speak of every event of every object otherwise.
    for noisy, least in (("kopf", logging.INFO), ("kopf.objects", logging.WARNING), ("asyncio", logging.INFO)):
        logging.getLogger(noisy).setLevel(max(least, logging.getLevelName(level)))


def _object_key(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Takes the object from the attribute that kopf has it in."""
    record = event.get("_record")
    reference = getattr(record, "k8s_ref", None)
    if reference:
        event["key"] = f"{reference.get('kind')}/{reference.get('namespace')}/{reference.get('name')}"
    return event
