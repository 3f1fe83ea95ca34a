"""The pictures of a replay, in SVG. Colours are the page's. Pure."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from mms_operator.lab.compare import OURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mms_operator.lab.compare import Answer, Comparison
    from mms_operator.lab.simulate import Outcome
    from mms_operator.plan.scaling.types import Decision

    Place = tuple[float, float]

PANEL_WIDTH, PANEL_HEIGHT = 470, 300
TIMELINE_WIDTH, TIMELINE_HEIGHT = 960, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 20, 32
LETTER, LINE = 7, 13  # about a letter's width, and a line's height
LEAST_LATE = 1e-4  # the part of requests that the axis ends at: fewer are drawn there, too
LATE_TICKS = ((1.0, "100 %"), (0.1, "10 %"), (0.01, "1 %"), (0.001, "0.1 %"), (LEAST_LATE, "0"))
TICKS = 6  # of an axis, at most
POINTS = 480  # over time, at most: none for less than the objective, where single requests are seen


def tradeoff(answer: Answer, of: Comparison) -> str:
    """The part of requests that were late, on a logarithmic axis, against replica-hours."""
    static = {n: one for n, one in sorted(answer.static.items()) if n >= answer.cheapest - 1}
    shown = {**of.scaled, **{f"static {n}": one for n, one in static.items()}}
    widest = 1.06 * max([one.replica_hours for one in shown.values()] + [of.bound_hours, 1e-6])
    right, bottom = PANEL_WIDTH - RIGHT, PANEL_HEIGHT - BOTTOM

    def x(hours: float) -> float:
        return LEFT + hours / widest * (right - LEFT)

    def y(late: float) -> float:
        return TOP + math.log(max(late, LEAST_LATE)) / math.log(LEAST_LATE) * (bottom - TOP)

    places = {name: (x(one.replica_hours), y(1 - one.within)) for name, one in shown.items()}
    curve = [
        (x(one.replica_hours), y(1 - one.within))
        for _, one in sorted(answer.static.items())
        if one.replica_hours <= widest
    ]
    allowed, bound = y(1 - answer.question.within), x(of.bound_hours)
    title = f"cold start {of.cold_start:g} s"
    return _svg(
        PANEL_WIDTH,
        PANEL_HEIGHT,
        f"Late requests against replica-hours, {title}",
        [
            *(_level(y(late), label, right) for late, label in LATE_TICKS),
            *(_text(x(hours), bottom + 14, f"{hours:g}", "middle", "axis") for hours in _ticks(widest)),
            _text(right, PANEL_HEIGHT - 4, "replica-hours", "end", "axis"),
            _text(LEFT, TOP - 7, f"late requests, {title}"),
            _line(LEFT, allowed, right, allowed, "limit"),
            _line(bound, TOP, bound, bottom, "limit"),
            f'<polyline class="static" points="{_points(curve)}"/>',
            *_named(shown, places),
        ],
    )


def timeline(answer: Answer, of: Comparison) -> str:
    """Replicas that ours wants; arrivals as the replicas that are busy with them."""
    times = answer.question.times
    span = max(times[-1], 1e-9)
    seconds = max(span / POINTS, answer.question.capacity.objective_seconds)
    busy = [count / seconds / answer.question.capacity.rate for count in _histogram(times, seconds)]
    wanted = [(0.0, answer.cheapest), *_highest(of.scaled[OURS].decisions, seconds)]
    highest = 1.06 * max(*busy, *(replicas for _, replicas in wanted), 1.0)
    right, bottom = TIMELINE_WIDTH - RIGHT, TIMELINE_HEIGHT - BOTTOM

    def place(time: float, replicas: float) -> Place:
        return LEFT + min(time, span) / span * (right - LEFT), bottom - replicas / highest * (bottom - TOP)

    area = [place(0, 0), *(place((i + 0.5) * seconds, one) for i, one in enumerate(busy)), place(span, 0)]
    steps, before = list[tuple[float, float]](), wanted[0][1]
    for time, replicas in wanted:
        steps += [place(time, before), place(time, replicas)]
        before = replicas
    title = f"cold start {of.cold_start:g} s"
    return _svg(
        TIMELINE_WIDTH,
        TIMELINE_HEIGHT,
        f"Our replicas and arrivals over time, {title}",
        [
            *(_level(place(0, replicas)[1], f"{replicas:g}", right) for replicas in _ticks(highest)),
            *(_text(place(time, 0)[0], bottom + 14, f"{time:g}", "middle", "axis") for time in _ticks(span)),
            _text(right, TIMELINE_HEIGHT - 4, "seconds", "end", "axis"),
            _text(LEFT, TOP - 7, f"replicas, {title}"),
            f'<polygon points="{_points(area)}"/>',
            f'<polyline points="{_points([*steps, place(span, before)])}"/>',
        ],
    )


def _named(shown: dict[str, Outcome], places: dict[str, Place]) -> Iterator[str]:
    """Points with their names, one above the other where they would lie over each other."""
    taken: list[tuple[float, float, float]] = []  # left, right, line
    for name, (x, y) in places.items():
        width = LETTER * (len(name) + 1)
        before = x + width > PANEL_WIDTH - RIGHT
        left, line = (x - width if before else x), y + 4
        while any(left < b and a < left + width and abs(line - there) < LINE for a, b, there in taken):
            line -= LINE
        taken.append((left, left + width, line))
        one = shown[name]
        said = f"{name}: {1 - one.within:.3%} late in {one.replica_hours:.2f} replica-hours"
        kind = ' class="ours"' if name == OURS else ""
        yield (
            f"<g><title>{escape(said)}</title>"
            f'<circle{kind} cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
            f"{_text(x - 7 if before else x + 7, line, name, 'end' if before else 'start')}</g>"
        )


def _highest(decisions: Sequence[tuple[float, Decision]], seconds: float) -> Iterator[tuple[float, int]]:
    """Of the decisions within each so many seconds the highest and the last one."""
    at, many = -1, list[tuple[float, int]]()
    for time, decision in decisions:
        if int(time / seconds) != at:
            yield from _ends(many)
            at, many = int(time / seconds), []
        many.append((time, decision.replicas))
    yield from _ends(many)


def _ends(many: list[tuple[float, int]]) -> list[tuple[float, int]]:
    return sorted({max(many, key=lambda one: one[1]), many[-1]}) if many else []


def _histogram(times: Sequence[float], seconds: float) -> list[int]:
    counts = [0] * max(1, math.ceil(times[-1] / seconds))
    for time in times:
        counts[min(len(counts) - 1, int(time / seconds))] += 1
    return counts


def _ticks(end: float) -> list[float]:
    """Round numbers from 0 to `end`."""
    step = 10.0 ** math.floor(math.log10(end / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if end / (factor * step) <= TICKS)
    return [step * i for i in range(int(end / step) + 1)]


def _svg(width: int, height: int, label: str, drawn: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(drawn)}</svg>'


def _level(y: float, label: str, right: float) -> str:
    return _line(LEFT, y, right, y) + _text(LEFT - 6, y + 4, label, "end", "axis")


def _line(x: float, y: float, to_x: float, to_y: float, kind: str = "level") -> str:
    return f'<line class="{kind}" x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "name") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _points(places: Iterable[Place]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
