"""What a benchmark must know of the machine it shares: how much other processes computed meanwhile.

A round is quiet when they used less than QUIET_CORES. A benchmark goes on until it has as many quiet rounds as it
wants, or has made MOST_ROUNDS times as many; its figures are those of the quiet rounds, unless they are too few.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed

QUIET_CORES = 0.1
MOST_ROUNDS = 4
FEWEST = 5  # quiet rounds of which a figure is final
REST_SECONDS = 0.5

_TICKS = os.sysconf("SC_CLK_TCK")


class Others:
    """Over all ranks of the process group, which are on one machine; without a group, of this process."""

    def __init__(self) -> None:
        self._began = self._now()

    def cores(self) -> float:
        """That processes other than the ranks used since this was made, on average; the same number on all ranks."""
        seconds, busy, own = (after - before for after, before in zip(self._now(), self._began, strict=True))
        if not distributed.is_initialized():
            return max(0.0, (busy - own) / seconds)
        owns = torch.tensor(own, dtype=torch.float64)
        distributed.all_reduce(owns)
        cores = torch.tensor((busy - float(owns)) / seconds)
        distributed.broadcast(cores, 0)
        return max(0.0, float(cores))

    def _now(self) -> tuple[float, float, float]:
        """Seconds: by the clock, of all processors' work and of what a hypervisor withheld, of this process's work."""
        user, nice, system, _, _, _, _, withheld = (int(x) for x in Path("/proc/stat").read_text().split()[1:9])
        return time.perf_counter(), (user + nice + system + withheld) / _TICKS, time.process_time()


def at_rest() -> float:
    """Cores that others use while the ranks do nothing. For a benchmark that makes the kernel or a server work, too."""
    if distributed.is_initialized():
        distributed.barrier()
    others = Others()
    time.sleep(REST_SECONDS)
    return others.cores()


def quiet(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rounds that count: the quiet ones, or the quietest if they are too few. Of each, `others` is its cores."""
    kept = [one for one in rounds if one["others"] <= QUIET_CORES]
    return kept if len(kept) >= FEWEST else sorted(rounds, key=lambda one: one["others"])[:FEWEST]


def enough(rounds: list[dict[str, Any]], wanted: int) -> bool:
    return len(rounds) >= MOST_ROUNDS * wanted or sum(one["others"] <= QUIET_CORES for one in rounds) >= wanted


def words(rounds: list[dict[str, Any]]) -> str:
    """How far the figures of `quiet` can be trusted."""
    kept = quiet(rounds)
    worst = max(one["others"] for one in kept)
    text = f"{len(kept)} of {len(rounds)} rounds; other processes used {worst:.2f} cores at most in them"
    return text if worst <= QUIET_CORES else f"PRELIMINARY, the machine was busy: {text}"
