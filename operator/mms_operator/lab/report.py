"""A page about a replay: who met the objective at what cost, our replicas over time, and why. Pure.

One file of HTML with pictures in SVG, without scripts, so that it can be opened from anywhere.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from mms_operator.lab import plots
from mms_operator.lab.compare import OURS, rounded_down, thinned
from mms_workloads import pages

if TYPE_CHECKING:
    from mms_operator.lab.compare import Answer
    from mms_operator.lab.simulate import Outcome

ROWS = 500  # of decisions, at most
TRADEOFF = (
    "Nearer to the corner below, on the left, is better. The broken line across is what is allowed; the one down, what "
    "no scaler that keeps to it can go below, even with the future known. The grey curve: static fleets."
)
OVER_TIME = "The line: those that ours wants. The area: arrivals, as the replicas that are busy with them."
STYLE = f"""{pages.STYLE}
.panels {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 1rem; }}
.scroll {{ max-height: 30rem; overflow: auto; }} .missed {{ color: light-dark(#b42318, #ff7b72); }}
.limit {{ stroke: var(--soft); stroke-dasharray: 4 3; }} polyline.static {{ stroke: var(--soft); stroke-width: 1; }}
polygon {{ fill: var(--line); }} circle {{ fill: var(--soft); }} circle.ours {{ fill: var(--accent); }}
"""


def page(answer: Answer, name: str) -> str:
    """name: of the trace. HTML."""
    question = answer.question
    panels = f'<div class="panels">{"".join(plots.tradeoff(answer, one) for one in answer.comparisons)}</div>'
    parts = [
        f"<h1>Replay of {escape(name)}</h1><p>{escape(_summary(answer))}</p>",
        f"<h2>Late requests against replica-hours</h2><p>{TRADEOFF}</p>" + panels,
        "<h2>Figures</h2>" + _figures(answer),
        f"<h2>Replicas over time</h2><p>{OVER_TIME}</p>"
        + "".join(plots.timeline(answer, one) for one in answer.comparisons),
        *(
            f"<h2>Our decisions, cold start {one.cold_start:g} s</h2>" + _decisions(one.scaled[OURS])
            for one in answer.comparisons
        ),
    ]
    body = "\n".join(f"<section>{part}</section>" for part in parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Replay of {escape(name)}, '
        f'{question.capacity.objective_seconds:g} s</title><meta name="viewport" content="width=device-width">'
        f"<style>{STYLE}</style></head>\n<body>{body}</body></html>\n"
    )


def _summary(answer: Answer) -> str:
    question, capacity = answer.question, answer.question.capacity
    at_once = "one request" if capacity.concurrency == 1 else f"{capacity.concurrency} requests"
    return (
        f"{len(question.times):,} requests in {question.times[-1] / 3600:.2f} hours. A replica serves {at_once} at a "
        f"time, each in {capacity.service_seconds:g} s; {100 * question.within:.6g} % are to have their answer within "
        f"{capacity.objective_seconds:g} s. All wait in one queue, first come, first served. All scalers begin with "
        f"{answer.cheapest} replicas that are ready: the smallest static fleet that meets the objective. Replicas cost "
        "from their start on, ready or not."
    )


def _figures(answer: Answer) -> str:
    rows = ""
    for one in answer.comparisons:
        for name, outcome in {**one.scaled, **answer.shown_static()}.items():
            missed = "" if outcome.within >= answer.question.within else " missed"
            rows += (
                f"<tr><td>{one.cold_start:g} s</td><td>{escape(name)}</td>"
                f'<td class="number{missed}">{rounded_down(outcome.within)}</td>'
                f'<td class="number">{outcome.replica_hours:.2f}</td><td class="number">{outcome.starts}</td>'
                f'<td class="number">{one.bound_hours:.2f}</td></tr>'
            )
    return (
        "<table><tr><th>cold start</th><th></th><th>within the objective</th><th>replica-hours</th><th>starts</th>"
        f"<th>at least</th></tr>{rows}</table>"
    )


def _decisions(ours: Outcome) -> str:
    shown = [ours.decisions[i] for i in thinned(len(ours.decisions), ROWS)]
    rows = "".join(
        f'<tr><td class="number">{at:.0f} s</td><td class="number">{decision.replicas}</td>'
        f"<td>{escape(decision.why)}</td></tr>"
        for at, decision in shown
    )
    some = f", of which {len(shown)} are shown" if len(shown) < len(ours.decisions) else ""
    return (
        f"<p>Changes: {len(ours.decisions)}{some}.</p>"
        f'<div class="scroll"><table><tr><th>at</th><th>replicas</th><th>why</th></tr>{rows}</table></div>'
    )
