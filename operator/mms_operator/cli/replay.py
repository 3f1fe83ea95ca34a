"""`mms replay`: its options, and what it says while it works."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from mms_operator.lab import report, trace
from mms_operator.lab.compare import Question, compare, rounded_down
from mms_operator.plan.scaling.types import Capacity

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from mms_operator.lab.compare import Answer
    from mms_operator.lab.simulate import Outcome


class OptionError(ValueError):
    """An option that is out of its bounds; the message has the remedy."""


@dataclass(frozen=True, slots=True)
class Options:
    """As they are given: milliseconds, seconds, and a list of cold starts in seconds."""

    objective_ms: float
    service_ms: float
    cold_start: str
    concurrency: int = 1
    begin: float = 0.0
    seconds: float | None = None
    within: float = 0.99
    least: int = 1


def run(path: Path, options: Options, output: Path, console: Console) -> Answer:
    """Writes the page. Raises OptionError, trace.TraceError, OSError."""
    capacity, cold_starts = _capacity(options), _cold_starts(options.cold_start)
    _check(options)
    if not output.absolute().parent.is_dir():
        raise OptionError(f"--output: there is no folder {output.parent}; make it, or name a file in another one")
    if output.is_dir():
        raise OptionError(f"--output: {output} is a folder; name a file in it")
    with _Doing(console) as doing:
        doing.tell("reading the trace")
        times = trace.read(path, begin=options.begin, seconds=options.seconds)
        question = Question(times, capacity, cold_starts, options.within, options.least)
        answer = compare(question, doing.tell)
    output.write_text(report.page(answer, path.name), encoding="utf-8")
    return answer


def table(answer: Answer) -> Table:
    """A block of rows for each cold start."""
    shown = Table("cold start", box=None, header_style="bold")
    for name in ("", "within objective", "replica-hours", "starts", "at least"):
        shown.add_column(name, justify="left" if not name else "right")
    for one in answer.comparisons:
        rows = list({**one.scaled, **answer.shown_static()}.items())
        for number, (name, outcome) in enumerate(rows):
            shown.add_row(
                f"{one.cold_start:g} s" if number == 0 else "",
                name,
                _met(outcome, answer.question.within),
                f"{outcome.replica_hours:.2f}",
                f"{outcome.starts}",
                f"{one.bound_hours:.2f}" if number == 0 else "",
                end_section=number == len(rows) - 1,
            )
    return shown


def summary(answer: Answer) -> str:
    question = answer.question
    hours = question.times[-1] / 3600
    return (
        f"{len(question.times):,} requests in {hours:.2f} h. All begin with {answer.cheapest} replicas, ready: the "
        f"cheapest static fleet with {100 * question.within:.6g} % of the answers within "
        f"{question.capacity.objective_seconds:g} s. Starting replicas cost. At least: what no scaler that meets the "
        "objective can go below."
    )


def _met(outcome: Outcome, within: float) -> str:
    shown = rounded_down(outcome.within)
    return shown if outcome.within >= within else f"[red]{shown}[/]"


def _capacity(options: Options) -> Capacity:
    for name, value in (("--service-ms", options.service_ms), ("--objective-ms", options.objective_ms)):
        if not (math.isfinite(value) and value > 0):
            raise OptionError(f"{name}: give milliseconds above 0, not {value:g}")
    if options.objective_ms < options.service_ms:
        raise OptionError(
            f"--objective-ms: {options.objective_ms:g} ms are less than a request takes, {options.service_ms:g} ms "
            "(--service-ms): no number of replicas meets it; give a longer one"
        )
    if options.concurrency < 1:
        raise OptionError(f"--concurrency: give 1 or more, not {options.concurrency}")
    return Capacity(options.service_ms / 1e3, options.objective_ms / 1e3, options.concurrency)


def _check(options: Options) -> None:
    if not 0 < options.within < 1:
        raise OptionError(f"--within: give a part above 0 and below 1, such as 0.99, not {options.within:g}")
    if options.least < 0:
        raise OptionError(f"--least: give 0 or more replicas, not {options.least}")
    if not (math.isfinite(options.begin) and options.begin >= 0):
        raise OptionError(f"--begin: give 0 or more seconds, not {options.begin:g}")
    if options.seconds is not None and not (math.isfinite(options.seconds) and options.seconds > 0):
        raise OptionError(f"--seconds: give seconds above 0, or leave it out, not {options.seconds:g}")


def _cold_starts(text: str) -> list[float]:
    try:
        found = [float(one) for one in text.split(",")]
    except ValueError as error:
        raise OptionError(f"--cold-start: give seconds with commas between them, as 5,30, not {text!r}") from error
    if not all(math.isfinite(one) and one >= 0 for one in found):
        raise OptionError(f"--cold-start: give 0 or more seconds each, not {text!r}")
    return sorted(set(found))


class _Doing(Progress):
    """One line: what is run now, and for how long all has taken."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
        )
        self._line = self.add_task("", total=None)

    def tell(self, what: str) -> None:
        self.update(self._line, description=what)
