"""What scaling takes on two real traces: ours, KPA, HPA, KEDA and static fleets. `make bench-replay`.

The hour of a conversation service (Azure's public data set, 2023), and two hours of a stream of messages with bursts of
four times its mean (Twitter, by archive.org, 2021), from its beginning. Both are looked for in the folder MMS_TRACES.
Nothing is timed: the replay is exact, the same on any machine. The replica-hours of ours are compared with the cheapest
of the others that keep within the objective what is to be kept.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mms_operator.cli.replay import summary, table
from mms_operator.lab import trace
from mms_operator.lab.compare import OURS, Question, compare, rounded_down
from mms_operator.plan.scaling.types import Capacity

if TYPE_CHECKING:
    from mms_operator.lab.compare import Answer

TRACES = Path(os.environ.get("MMS_TRACES", "../shared/data"))
RESULTS = Path(os.environ.get("MMS_RESULTS", Path(__file__).parent / "results"))
CAPACITY = Capacity(service_seconds=0.5, objective_seconds=2.0)
COLD_STARTS = (5.0, 30.0, 60.0, 120.0)
WITHIN = 0.99
TWITTER_SECONDS = 7200.0


def azure() -> list[float]:
    return trace.read(TRACES / "AzureLLMInferenceTrace_conv.csv")


def twitter() -> list[float]:
    with tempfile.TemporaryDirectory() as made, tarfile.open(TRACES / "twitter_workload.tbz2") as archive:
        archive.extract("workload.txt", made, filter="data")
        return trace.read(Path(made) / "workload.txt", seconds=TWITTER_SECONDS)


def lines(name: str, answer: Answer) -> list[str]:
    """The RESULT lines: above 1x ours is cheaper. Where ours misses the objective there is nothing to compare."""
    said = []
    for one in answer.comparisons:
        ours, (peer, theirs) = one.scaled[OURS], answer.best_peer(one)
        ratio = f"{theirs.replica_seconds / ours.replica_seconds:.2f}x"
        if ours.within < WITHIN:
            ratio = f"ours misses {WITHIN:.0%}"
        said.append(
            f"RESULT replay-{name}-{one.cold_start:g}s {ours.replica_hours:.2f} replica-hours vs {peer} "
            f"{theirs.replica_hours:.2f}: {ratio}; within {CAPACITY.objective_seconds:g} s ours "
            f"{rounded_down(ours.within)}, theirs {rounded_down(theirs.within)}; bound {one.bound_hours:.2f}"
        )
    return said


def raw(answer: Answer) -> dict[str, object]:
    outcomes = {f"static {n}": {"any": one} for n, one in answer.static.items()}
    for one in answer.comparisons:
        for name, outcome in one.scaled.items():
            outcomes.setdefault(name, {})[f"{one.cold_start:g}"] = outcome
    return {
        "bound hours": {f"{one.cold_start:g}": one.bound_hours for one in answer.comparisons},
        "outcomes": {
            name: {
                start: {
                    "requests": one.requests,
                    "late": one.late,
                    "replica-hours": one.replica_hours,
                    "starts": one.starts,
                }
                for start, one in of_one.items()
            }
            for name, of_one in outcomes.items()
        },
    }


def say(name: str, what: str) -> None:
    print(f"{name}: {what}", file=sys.stderr, flush=True)


def main() -> int:
    console = Console(width=100)
    kept: dict[str, Any] = {}
    said: list[str] = []
    for name, read in (("azure", azure), ("twitter", twitter)):
        try:
            times = read()
        except (OSError, KeyError, trace.TraceError) as error:
            print(f"{name}: {error}; set MMS_TRACES to the folder that has the trace", file=sys.stderr)
            continue
        answer = compare(
            Question(times, CAPACITY, COLD_STARTS, WITHIN),
            functools.partial(say, name),
        )
        console.print(f"\n{name}: {summary(answer)}", highlight=False)
        console.print(table(answer))
        kept[name] = raw(answer)
        said += lines(name, answer)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "replay.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    print("\n".join(said))
    return 0 if said else 1


if __name__ == "__main__":
    sys.exit(main())
