"""The master's part of the guard: it sees every round, and says what follows from an anomaly. Pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mms_workloads.sync import guard as rules
from mms_workloads.sync.guard import History, Verdict
from mms_workloads.sync.leases import Slice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mms_workloads.contract import Guard

SPIKE_ROUNDS = 3  # in a row: one hard batch is none, parameters that are wrecked stay so
SLOW = 2.5  # times the others' median
# Rounds in which it is slow until it counts as such. A long round counts for several: for one each two seconds that it
# takes, but for no more than MOST_WEIGHT, so that one or two of them are not enough.
SLOW_ROUNDS = 30
SECONDS_OF_ONE = 2.0
MOST_WEIGHT = 6.0
SLOW_SECONDS = 0.01  # per round at least: below, nobody waits for it
RATE_FACTOR = 0.5  # on the learning rate at a rollback
MAX_ROLLBACKS = 5
NAMED = 16  # slices in an incident: a rank's round is dealt from so many blocks at most
SAID_EVERY = 100  # rounds of the same anomaly of a rank between two incidents
# A spike that comes again where it was, as high, though the samples before it were left out and the rate was halved, is
# no harm that was done to the parameters: from there on the data is of another kind.
TRIED, NEAR_ROUNDS, AS_HIGH = 2, 6, 0.25


@dataclass(frozen=True, slots=True)
class Round:
    """A committed round: by member in the order of their places."""

    step: int
    ranks: tuple[int, ...]
    verdicts: tuple[Verdict, ...]
    seconds: tuple[float, ...]  # each one's computation
    samples: tuple[int, ...]
    slices: tuple[tuple[Slice, ...], ...]
    loss: float | None  # the mean over all terms; None without any


@dataclass(frozen=True, slots=True)
class Report:
    """An incident, no more."""

    kind: str
    rank: int | None
    action: str


@dataclass(frozen=True, slots=True)
class Evict:
    """The rank's pod is to be replaced."""

    kind: str
    rank: int
    action: str


@dataclass(frozen=True, slots=True)
class Rollback:
    """Back to the last checkpoint of a step below `before`.

    blocks are not trained on any more, samples not in this pass.
    """

    kind: str
    before: int
    rate_factor: float
    action: str
    blocks: frozenset[int] = frozenset()
    samples: tuple[Slice, ...] = ()


@dataclass(frozen=True, slots=True)
class Fail:
    """The run has failed for good."""

    action: str


Measure = Report | Evict | Rollback | Fail


@dataclass(slots=True)
class Spike:
    """step: of the round before it. times: that it was met."""

    step: int
    loss: float
    times: int = 0

    def same(self, step: int, loss: float) -> bool:
        return abs(step - self.step) <= NEAR_ROUNDS and math.isclose(loss, self.loss, rel_tol=AS_HIGH)


@dataclass(slots=True)
class Watch:
    guard: Guard
    losses: History = field(default_factory=History)
    recent: deque[Round] = field(default_factory=lambda: deque(maxlen=SPIKE_ROUNDS + 1))  # those with a loss
    step: int | None = None  # of the last round that was seen
    high: int = 0  # rounds in a row with a spiked loss
    # By whose rounds they are, all members' or one's: steps of those in a row with a gradient that is not finite.
    broken: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    spikes: list[Spike] = field(default_factory=list)  # in the order in which they were met first
    paces: dict[int, float] = field(default_factory=dict)  # by rank: seconds for a sample, in its last round
    streaks: Counter[int] = field(default_factory=Counter)  # by rank: rounds in a row with an outlier
    slow: dict[int, float] = field(default_factory=dict)  # by rank: weight of rounds behind, less that of others
    slow_said: set[int] = field(default_factory=set)
    members: dict[int, int] = field(default_factory=dict)  # by rank: as of the last epoch that it was in
    rollbacks: int = 0
    waiting: bool = False  # for the epoch that goes back: what is under way till then is of the same anomaly

    def observe(self, this: Round) -> list[Measure]:
        """What follows from a round: at most one of Rollback and Fail, as the last."""
        if self.waiting:
            return []
        self.step = this.step
        if this.loss is not None:  # without one nobody had samples, and nothing was updated
            self.recent.append(this)
        out: list[Measure] = [*self._gradients(this), *self._stragglers(this)]
        worst = self._not_finite(this) or self._loss(this)
        if isinstance(worst, Rollback):
            self.waiting, worst = True, self._rolled_back(worst)
        return [*out, worst] if worst else out

    def restarted(self, step: int, members: Mapping[int, int]) -> None:
        """Another membership epoch, from a step. members: by rank, another number for each process that has joined.

        Where that is the last one seen, what was going on goes on: shards begin an epoch with each checkpoint. Where it
        is an earlier one, what is usual was different then. Of a rank that is another process now, nothing is known.
        """
        self.waiting = False
        others = {rank for rank, joined in members.items() if self.members.get(rank, joined) != joined}
        self.members = {**self.members, **members}
        last = step if self.step is None else self.step
        if step < last:
            self.losses.values.clear()
        if step != last:
            self.recent.clear()
            self.step, self.high = step, 0
            self.broken.clear()
        for rank in others if step >= last else {*self.streaks, *self.slow, *others}:
            self.streaks.pop(rank, None)
            self.slow.pop(rank, None)
        self.slow_said -= others
        alike = (1, len(members))  # rounds of others than these members come no more
        self.broken = {by: at for by, at in self.broken.items() if members.keys() >= set(by) and len(by) in alike}
        self.paces = {rank: pace for rank, pace in self.paces.items() if rank in members and rank not in others}

    def _gradients(self, this: Round) -> list[Measure]:
        out: list[Measure] = []
        for i, (rank, verdict) in enumerate(zip(this.ranks, this.verdicts, strict=True)):
            if verdict is not Verdict.OUTLIER:
                self.streaks[rank] = 0
                continue
            self.streaks[rank] += 1
            streak = self.streaks[rank]
            left_out = self.guard.gradientOutlier == "Drop"
            done = f"was left out: {_samples(this, [i])}" if left_out else "went into the parameters"
            if streak == self.guard.patience and left_out and len(this.ranks) > 1:
                action = f"{streak} outliers in a row: the worker is replaced"
                out.append(Evict(Verdict.OUTLIER, rank, action))
            elif streak == 1 or streak % SAID_EVERY == 0:
                out.append(Report(Verdict.OUTLIER, rank, f"the gradient of rank {rank} is an outlier and {done}"))
        return out

    def _not_finite(self, this: Round) -> Measure | None:
        bad = [i for i, verdict in enumerate(this.verdicts) if verdict is Verdict.NOT_FINITE]
        if not bad:
            self.broken.pop(this.ranks, None)
            return None
        steps = self.broken.setdefault(this.ranks, [])
        steps.append(this.step)
        ranks = [this.ranks[i] for i in bad]
        what = f"the gradient of {_names(ranks)} is not finite"
        if self.guard.nonFinite == "Fail":
            return Fail(f"{what} at step {this.step}, and guard.nonFinite is Fail")
        if self.guard.nonFinite == "Rollback" or len(steps) >= self.guard.patience:
            # Where a rank's round is of several blocks, only one of them may have the samples that did it.
            known = [i for i in bad if len({s.block for s in this.slices[i]}) == 1]
            blocks = frozenset(s.block for i in known for s in this.slices[i])
            samples = tuple(sorted(s for i in bad if i not in known for s in this.slices[i]))
            return Rollback(Verdict.NOT_FINITE, steps[0], RATE_FACTOR, what, blocks=blocks, samples=samples)
        if len(steps) > 1 and len(steps) % SAID_EVERY:
            return None
        rank = ranks[0] if len(ranks) == 1 else None
        return Report(Verdict.NOT_FINITE, rank, f"{what}: {_samples(this, bad)} skipped")

    def _loss(self, this: Round) -> Measure | None:
        if self.guard.lossSpike == "Off" or this.loss is None:
            return None
        if not rules.spiked(self.losses, this.loss):
            self.high = 0
            self.losses.add(this.loss)
            return None
        self.high += 1
        if self.high != SPIKE_ROUNDS:
            return None
        usual = self.losses.median()
        what = f"the loss is {this.loss:.4g}, usual is {usual:.4g}"
        if self.guard.lossSpike == "Report":
            return Report("LossSpike", None, f"{what}; nothing is done")
        # The round before the first high loss made the update that did it, or the first one's own samples are bad.
        culprits = list(self.recent)[:2]
        spike = self._met(culprits[0].step, this.loss)
        if spike.times > TRIED:
            self.high = 0
            self.losses.values.clear()
            if spike.times > TRIED + 1:
                return None
            self.rollbacks -= TRIED
            action = f"{what}, and so it was each time from there on: the data is of another kind, and training goes on"
            return Report("LossSpike", None, action)
        skip = tuple(sorted(s for one in culprits for slices in one.slices for s in slices))
        return Rollback("LossSpike", culprits[0].step, RATE_FACTOR if self.rollbacks else 1.0, what, samples=skip)

    def _met(self, step: int, loss: float) -> Spike:
        spike = next((one for one in self.spikes if one.same(step, loss)), None)
        if spike is None:
            spike = Spike(step, loss)
            self.spikes.append(spike)
        spike.times += 1
        return spike

    def _rolled_back(self, one: Rollback) -> Measure:
        self.rollbacks += 1
        if self.rollbacks > MAX_ROLLBACKS:
            return Fail(
                f"{one.action}, after {MAX_ROLLBACKS} rollbacks: lower optimizer.learningRate, look at the data"
            )
        return one

    def _stragglers(self, this: Round) -> list[Measure]:
        if self.guard.straggler == "Off":
            return []
        out: list[Measure] = []
        paces = {r: t / n for r, t, n in zip(this.ranks, this.seconds, this.samples, strict=True) if n}
        self.paces |= paces
        for rank, seconds in zip(this.ranks, this.seconds, strict=True):
            others = [pace for other, pace in self.paces.items() if other != rank]
            if rank not in paces or not others:
                continue
            usual = statistics.median(others)
            behind = paces[rank] > SLOW * usual and seconds > SLOW_SECONDS
            weight = min(max(1.0, seconds / SECONDS_OF_ONE), MOST_WEIGHT)
            self.slow[rank] = max(0.0, self.slow.get(rank, 0.0) + (weight if behind else -2.0 * weight))
            if self.slow[rank] < SLOW_ROUNDS or rank in self.slow_said:
                continue
            self.slow_said.add(rank)
            action = f"rank {rank} takes {paces[rank] / max(usual, 1e-9):.1f} times as long for a sample as the others"
            if self.guard.straggler == "Replace":
                out.append(Evict("Straggler", rank, f"{action}: the worker is replaced"))
            else:
                out.append(Report("Straggler", rank, action))
        return out


def round_of(fields: Mapping[str, Any], ranks: Sequence[int]) -> Round:
    """fields: of a progress message."""
    return Round(
        fields["step"],
        tuple(ranks),
        tuple(Verdict(v) for v in fields["verdicts"]),
        tuple(fields["seconds"]),
        tuple(fields["of"]),
        tuple(tuple(Slice(*one) for one in each) for each in fields["slices"]),
        fields["loss"] / fields["weight"] if fields["weight"] else None,
    )


def _samples(this: Round, positions: Sequence[int]) -> str:
    """What is quarantined, so that it can be looked at."""
    slices = [s for i in positions for s in this.slices[i]]
    where = ", ".join(f"block {s.block} [{s.start}, {s.stop})" for s in slices[:NAMED])
    more = f" and {len(slices) - NAMED} more" if len(slices) > NAMED else ""
    return f"{where}{more}"


def _names(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
