"""Structured logs of all pods: one JSON object a line on stdout, with what is bound (job, rank, epoch)."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure() -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=False,
    )


def logger(**bound: Any) -> Any:
    return structlog.get_logger(**bound)
