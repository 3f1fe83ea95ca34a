"""Which pods there should be: one for each role and rank, under the number of its newest incarnation.

A number that was seen to run is never given to another process. The status remembers the numbers and is written before
pods are made. A pod that the status names and that is not there has been lost if it was seen to run; else it is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api.names import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mms_operator.plan.pods import Ended, Seen


@dataclass(frozen=True)
class Known:
    """What the status remembers of a place: the number of its newest incarnation, and whether that was seen to run."""

    number: int
    started: bool = False


@dataclass(frozen=True)
class Slot:
    """A role and rank with its newest incarnation, and the pod that has it, once it is there."""

    role: Role
    rank: int
    incarnation: int
    pod: Seen | None

    @property
    def runs(self) -> bool:
        return self.pod is not None and self.pod.runs and self.pod.live


@dataclass(frozen=True)
class Loss:
    """A pod that is replaced. `ended` says how it ended, where it said so."""

    role: Role
    rank: int
    ended: Ended | None
    outdated: bool = False  # it has not run, and the spec would make another now

    @property
    def counts(self) -> bool:
        """Whether it is the program's failure: what was deleted, preempted or drained from outside is not."""
        return self.ended is not None and not self.ended.disrupted

    def why(self) -> str:
        if self.outdated:
            return "waits with an outdated spec"
        if self.ended is None:
            return "is gone"
        return f"ended ({self.ended.reason}: {self.ended.message})"


@dataclass(frozen=True)
class Assignment:
    slots: tuple[Slot, ...]
    losses: tuple[Loss, ...]

    def number(self, role: Role, rank: int) -> int:
        return next(slot.incarnation for slot in self.slots if (slot.role, slot.rank) == (role, rank))

    @property
    def master(self) -> Slot:
        return self.slots[0]

    @property
    def workers(self) -> tuple[Slot, ...]:
        return self.slots[1:]


def key(role: str, rank: int) -> str:
    return f"{role}-{rank}"


def places(workers: int) -> list[tuple[Role, int]]:
    return [(Role.MASTER, 0), *((Role.WORKER, rank) for rank in range(workers))]


def start(workers: int, known: Mapping[str, Known]) -> Assignment:
    """The next incarnation of every place: at the start of an attempt."""
    slots = tuple(Slot(role, rank, _next(known.get(key(role, rank))), None) for role, rank in places(workers))
    return Assignment(slots, ())


def keep(workers: int, known: Mapping[str, Known], pods: Sequence[Seen], template: str) -> Assignment:
    """Each place with its pod; a place whose pod is lost with the next incarnation.

    `pods` are those of the current run and attempt; `template` is what a pod would be made from now. A worker that has
    ended well has heard how the run ends: its place stays as it is.
    """
    by_place = {(pod.role, pod.rank, pod.incarnation): pod for pod in pods}
    slots: list[Slot] = []
    losses: list[Loss] = []
    for role, rank in places(workers):
        place = known.get(key(role, rank), Known(1))
        pod = by_place.get((role, rank, place.number))
        loss = _loss(role, rank, place, pod, template)
        if loss is None:
            slots.append(Slot(role, rank, place.number, pod))
        else:
            losses.append(loss)
            slots.append(Slot(role, rank, place.number + 1, None))
    return Assignment(tuple(slots), tuple(losses))


def remember(known: Mapping[str, Known], assignment: Assignment, pods: Sequence[Seen]) -> dict[str, Known]:
    """What the status keeps of each place. A place that is no more moves on: its number was given away."""
    present = {(key(pod.role, pod.rank), pod.incarnation) for pod in pods}
    kept: dict[str, Known] = {}
    for place, before in known.items():
        used = before.started or (place, before.number) in present
        kept[place] = Known(before.number + 1) if used else before
    for slot in assignment.slots:
        place = key(slot.role, slot.rank)
        same = place in known and known[place].number == slot.incarnation
        ran = (slot.pod is not None and slot.pod.has_run) or (same and known[place].started)
        kept[place] = Known(slot.incarnation, ran)
    return kept


def _loss(role: Role, rank: int, place: Known, pod: Seen | None, template: str) -> Loss | None:
    if pod is None:
        return Loss(role, rank, None) if place.started else None
    if pod.leaving:
        return Loss(role, rank, pod.ended)
    if pod.ended:
        return None if pod.ended.good else Loss(role, rank, pod.ended)
    outdated = not pod.has_run and pod.template != template
    return Loss(role, rank, None, outdated=True) if outdated else None


def _next(place: Known | None) -> int:
    return place.number + 1 if place else 1


def superfluous(pods: Iterable[Seen], assignment: Assignment) -> list[Seen]:
    """Pods that still run although their place has another incarnation, or is no more. Ended ones keep their logs."""
    current = {(slot.role, slot.rank, slot.incarnation) for slot in assignment.slots}
    return [pod for pod in pods if pod.live and (pod.role, pod.rank, pod.incarnation) not in current]
