"""What Triton's metrics say of its models: requests, those that wait, and how long they took.

nv_inference_pending_request_count and nv_inference_request_summary_us of triton-inference-server's metrics.md; the
summaries are over the last minute, and there only with --metrics-config summary_latencies=true.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from mms_workloads.contract import Load, ModelLoad
from mms_workloads.serve.asking import AnswerError, Http
from mms_workloads.serve.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

METRICS_SECONDS = 1.0
QUANTILES = ("0.5", "0.9", "0.95", "0.99", "0.999")
_PENDING = "nv_inference_pending_request_count"
_SUMMARY = "nv_inference_request_summary_us"
_DONE = ("nv_inference_request_success", "nv_inference_request_failure")
_LINE = re.compile(r"^(\w+)\{(.*)\} (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def summaries() -> list[str]:
    """The flags of tritonserver that make it count what is read here."""
    quantiles = ",".join(f"{quantile}:{(1 - float(quantile)) / 10:.4g}" for quantile in QUANTILES)
    return ["--metrics-config=summary_latencies=true", f"--metrics-config=summary_quantiles={quantiles}"]


def parse(text: str, totals: Totals | None = None) -> Load:
    """The text of /metrics. totals: what was counted before, also by versions of models that are no longer there."""
    pending, counts, quantiles = 0, dict[tuple[str, str, str], int](), dict[str, dict[str, float]]()
    for name, labels, value in _samples(text):
        model = labels.get("model")
        if model is None or not math.isfinite(value):  # a summary without requests is NaN
            continue
        if name == _PENDING:
            pending += int(value)
        elif name in _DONE:
            key = model, labels.get("version", ""), name
            counts[key] = counts.get(key, 0) + int(value)  # failures have reasons, each with a line
        elif name == _SUMMARY and labels.get("quantile") in QUANTILES:
            known = quantiles.setdefault(model, {})  # of two versions of a model the slower one counts
            known[labels["quantile"]] = max(value / 1e6, known.get(labels["quantile"], 0.0))
    there = {model for model, _, _ in counts}
    counted = (totals or Totals()).take(counts)
    requests = {model: sum(count for key, count in counted.items() if key[0] == model) for model in there}
    models = {model: ModelLoad(requests=count, quantiles=quantiles.get(model, {})) for model, count in requests.items()}
    return Load(pending=pending, models=models)


class Metrics:
    """Asks the pod's Triton for them."""

    def __init__(self, url: str) -> None:
        self._http = Http(url, {}, keep=True)
        self._totals = Totals()

    async def close(self) -> None:
        await self._http.close()

    async def load(self) -> Load | None:
        """None where Triton does not answer."""
        try:
            return parse((await self._http.get("/metrics", METRICS_SECONDS)).decode(), self._totals)
        except AnswerError:
            return None


def _samples(text: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    for line in text.splitlines():
        if found := _LINE.match(line):
            name, labels, value = found.groups()
            if name in {_PENDING, _SUMMARY, *_DONE}:
                yield name, dict(_LABEL.findall(labels)), float(value)
