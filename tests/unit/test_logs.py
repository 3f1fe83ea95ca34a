"""One JSON object a line, ours and the libraries'."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from mms_operator import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

Record = dict[str, Any]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Logging is the process's, and other tests go on with it."""
    noisy = [logging.getLogger(name) for name in ("", "kopf", "kopf.objects", "asyncio")]
    levels, handlers = [logger.level for logger in noisy], noisy[0].handlers
    yield
    structlog.reset_defaults()
    noisy[0].handlers = handlers
    for logger, level in zip(noisy, levels, strict=True):
        logger.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[Record]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_our_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO")
    structlog.get_logger().info("applied", key="ModelTraining/ns/words", count=3)
    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "applied", "level": "info", "key": "ModelTraining/ns/words", "count": 3}


def test_a_failure_is_one_line_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO")
    try:
        int("the fault")
    except ValueError:
        structlog.get_logger().exception("reconcile failed")
    (line,) = lines(capsys)
    assert "ValueError: invalid literal" in line["exception"]


def test_a_librarys_words_have_the_same_form_and_the_objects_key(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO")
    reference = {"kind": "ModelTraining", "namespace": "ns", "name": "words"}
    logging.getLogger("kopf.objects").warning("handler of %s", "words", extra={"k8s_ref": reference})
    logging.getLogger("aiohttp").error("trouble")
    first, second = lines(capsys)
    assert (first["event"], first["level"], first["logger"]) == ("handler of words", "warning", "kopf.objects")
    assert first["key"] == "ModelTraining/ns/words"
    assert second["event"] == "trouble"
    assert "key" not in second


@pytest.mark.parametrize(
    ("level", "logger", "least"),
    [
        ("INFO", "ours", logging.INFO),
        ("WARNING", "ours", logging.WARNING),
        ("DEBUG", "ours", logging.DEBUG),
        ("DEBUG", "kopf", logging.INFO),
        ("INFO", "kopf.objects", logging.WARNING),
        ("ERROR", "kopf.objects", logging.ERROR),
        ("DEBUG", "asyncio", logging.INFO),
    ],
)
def test_levels(capsys: pytest.CaptureFixture[str], level: str, logger: str, least: int) -> None:
    logs.configure(level)
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger(logger).log(number, "%s", logging.getLevelName(number))
    said = [line["event"] for line in lines(capsys)]
    assert said == [name for name in ("DEBUG", "INFO", "WARNING", "ERROR") if logging.getLevelName(name) >= least]
