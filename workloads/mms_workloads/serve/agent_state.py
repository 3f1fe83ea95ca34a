"""How far the agent of a pod is, and what it says of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_workloads.contract import Comparison, Measured, SwapReport

Phase = Literal["WaitingForTriton", "Loading", "Verifying", "Measuring", "Verified", "Failed", "Draining"]


@dataclass(frozen=True, slots=True)
class State:
    """How far the agent is."""

    phase: Phase = "WaitingForTriton"
    message: str = "Triton does not answer yet"
    golden_right: int = 0
    verified_at: str | None = None  # RFC 3339
    seconds_to_ready: float | None = None  # from the start of the agent to the first verification
    verifications: int = 0
    swaps: int = 0  # that succeeded
    swaps_failed: int = 0
    swap: SwapReport | None = None  # the last one
    comparison: Comparison | None = None
    measured: Measured | None = None


def readiness(state: State, models: Mapping[str, bool]) -> tuple[int, dict[str, Any]]:
    """The status and body of /readyz. `models`: which are ready in Triton now."""
    if state.phase != "Verified":
        return 503, {"ready": False, "reason": state.phase, "message": state.message}
    missing = sorted(model for model, ready in models.items() if not ready)
    if missing:
        return 503, {"ready": False, "reason": "ModelNotReady", "message": f"not ready in Triton: {', '.join(missing)}"}
    return 200, {"ready": True, "golden": state.golden_right, "verifiedAt": state.verified_at}


def metrics(state: State, cases: int) -> str:
    """The text of /metrics."""
    values: list[tuple[str, str, str, float]] = [
        ("mms_agent_ready", "gauge", "1 while the golden cases were right.", state.phase == "Verified"),
        ("mms_agent_golden_cases", "gauge", "Golden cases of the artifact.", cases),
        ("mms_agent_golden_right", "gauge", "Golden cases that were right when last asked.", state.golden_right),
        ("mms_agent_verifications_total", "counter", "Times that all golden cases were right.", state.verifications),
    ]
    values += [
        (
            "mms_agent_swaps_total",
            "counter",
            "Artifacts that took the place of another in the running pod.",
            state.swaps,
        ),
        ("mms_agent_swaps_failed_total", "counter", "Artifacts that could not.", state.swaps_failed),
    ]
    if state.swap is not None and state.swap.seconds is not None:
        seconds = state.swap.seconds
        values.append(("mms_agent_swap_seconds", "gauge", "That the last swap took, fetching included.", seconds))
    if state.seconds_to_ready is not None:
        values.append(("mms_agent_ready_seconds", "gauge", "From the agent's start to ready.", state.seconds_to_ready))
    return "".join(f"# HELP {n} {text}\n# TYPE {n} {kind}\n{n} {float(value):g}\n" for n, kind, text, value in values)
