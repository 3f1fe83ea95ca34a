"""Faults that workers are given from outside of the product: by QuickRun, or as sitecustomize.py of a pod.

FAULTS is JSON: a list of {"kind", "rank": absent means all, "from", "to": steps, "once": by process, "file": absent or
one that has to be there}. Kinds:

- nan, scale ("by"): of the gradient
- poison ("block"): the gradient of samples of that block is not finite
- wreck: the learning rate of a step is a thousandfold
- flip: a bit of the parameters
- forget: the parameters are noise
- flip-shard: a bit of what shard "rank" holds, not of its replica
- slow ("seconds"): each round
- impatient: a store that is away is not waited for
- unguarded: the ring as it would be without a guard
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

VARIABLE = "FAULTS"


def install() -> None:
    faults = json.loads(os.environ.get(VARIABLE, "[]"))
    if not faults or os.environ.get("MMS_ROLE") == "master":
        return
    from mms_workloads.sync import again
    from mms_workloads.train import learner, worker

    made = learner.make

    def make(pod: Any, *rest: Any) -> Any:
        mine = [fault for fault in faults if fault.get("rank", pod.rank) == pod.rank]
        return _Faulty(made(pod, *rest), mine)

    learner.make = make
    if os.environ.get("MMS_ROLE") == "shard":
        _flip_shard([f for f in faults if f["kind"] == "flip-shard" and str(f["rank"]) == os.environ["MMS_RANK"]])
    if any(fault["kind"] == "impatient" for fault in faults):
        again.TRIES_SECONDS = 0.0
    if any(fault["kind"] == "unguarded" for fault in faults):
        _take_guard_off()
    assert worker.learner is learner


class _Faulty:
    def __init__(self, it: Any, faults: list[dict[str, Any]]) -> None:
        self._it, self._faults = it, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._it, name)

    def rate(self, state: Any, members: int) -> float:
        rate: float = self._it.rate(state, members)
        return rate * 1000 if self._due("wreck", state.agreement.step) else rate

    def compute(self, state: Any, slices: Any, place: Any) -> Any:
        step = state.agreement.step
        if self._due("flip", step):
            next(iter(state.tables().values()))["parameters"].view(-1).view(_int32())[3] ^= 1 << 22
        if self._due("forget", step):
            tables = state.tables()
            for table in tables.values():
                table["parameters"].normal_()
            state.adopt(tables)
        if fault := self._due("slow", step):
            time.sleep(fault["seconds"])
        factor = 1.0
        if self._due("nan", step):
            factor = math.nan
        if fault := self._due("scale", step):
            factor = fault["by"]
        for fault in self._faults:
            if fault["kind"] == "poison" and any(s.block == fault["block"] for s in slices):
                factor = math.nan
        return self._computed(state, slices, place, factor)

    def _computed(self, state: Any, slices: Any, place: Any, factor: float) -> Any:
        """Of a dense model the loss is multiplied, since buckets travel before `compute` has ended."""
        from mms_workloads.language import learner as language

        if factor == 1.0:
            return self._it.compute(state, slices, place)
        kept = language.cross_entropy
        language.cross_entropy = lambda *given: factor * kept(*given)
        try:
            return self._it.compute(state, slices, place)
        finally:
            language.cross_entropy = kept

    def _due(self, kind: str, step: int) -> dict[str, Any] | None:
        for fault in self._faults:
            due = fault["kind"] == kind and fault["from"] <= step < fault["to"] and not fault.get("done")
            if due and ("file" not in fault or Path(fault["file"]).exists()):
                fault["done"] = fault.get("once", False)
                return fault
        return None


def _flip_shard(faults: list[dict[str, Any]]) -> None:
    from mms_workloads.sync.shard_state import ShardState

    kept = ShardState.apply

    def apply(self: ShardState, update: Any) -> None:
        kept(self, update)
        for fault in faults:
            if self.step == fault["from"] and self.shard == fault["rank"] and not fault.get("done"):
                fault["done"] = True
                next(iter(self.dense.values())).current["parameters"].view(_int32())[3] ^= 1 << 22

    ShardState.apply = apply  # type: ignore[method-assign]


def _int32() -> Any:
    import torch

    return torch.int32


def _take_guard_off() -> None:
    from mms_workloads.train import ring

    def finish(self: Any, mine: Any, rate: float, _: Any) -> list[Any]:
        self._reduce()
        contributions = [ring.decode(row) for row in self._transport.all_gather(ring.encode(mine))]
        if samples := sum(c.stats.samples for c in contributions):
            self._state.update(samples, rate)
        self._state.commit(ring._slices(contributions))
        return contributions

    ring._DenseRound.finish = finish  # type: ignore[method-assign]
