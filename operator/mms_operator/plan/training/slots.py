"""Which pods there should be: one for each role and rank, under the number of its newest incarnation.

A pod's name is never used twice. The status remembers the numbers, and is written before the pods are made: so a pod
that the status names and that is not there has been lost, or was never made, and in both cases the next number is safe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api.names import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mms_operator.plan.pods import Ended, Seen


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

    @property
    def counts(self) -> bool:
        """Whether it is the program's failure: what was deleted, preempted or drained from outside is not."""
        return self.ended is not None and not self.ended.disrupted

    def why(self) -> str:
        if self.ended is None:
            return "is gone"
        return f"ended ({self.ended.reason}: {self.ended.message})"


@dataclass(frozen=True)
class Assignment:
    slots: tuple[Slot, ...]
    losses: tuple[Loss, ...]

    @property
    def numbers(self) -> dict[str, int]:
        return {key(slot.role, slot.rank): slot.incarnation for slot in self.slots}

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


def start(workers: int, numbers: Mapping[str, int]) -> Assignment:
    """The next incarnation of every place: at the start of an attempt."""
    slots = tuple(Slot(role, rank, numbers.get(key(role, rank), 0) + 1, None) for role, rank in places(workers))
    return Assignment(slots, ())


def keep(workers: int, numbers: Mapping[str, int], pods: Sequence[Seen]) -> Assignment:
    """Each place with its pod; a place whose pod is lost with the next incarnation.

    `pods` are those of the current run and attempt. A worker that has ended well has heard how the run ends: its place
    stays as it is.
    """
    by_place = {(pod.role, pod.rank, pod.incarnation): pod for pod in pods}
    slots: list[Slot] = []
    losses: list[Loss] = []
    for role, rank in places(workers):
        number = numbers.get(key(role, rank), 0)
        pod = by_place.get((role, rank, number))
        if number == 0:
            slots.append(Slot(role, rank, 1, None))
        elif pod is None or pod.leaving or (pod.ended and not pod.ended.good):
            losses.append(Loss(role, rank, pod.ended if pod else None))
            slots.append(Slot(role, rank, number + 1, None))
        else:
            slots.append(Slot(role, rank, number, pod))
    return Assignment(tuple(slots), tuple(losses))


def superfluous(pods: Iterable[Seen], assignment: Assignment) -> list[Seen]:
    """Pods that still run although their place has another incarnation, or is no more. Ended ones keep their logs."""
    current = {(slot.role, slot.rank, slot.incarnation) for slot in assignment.slots}
    return [pod for pod in pods if pod.live and (pod.role, pod.rank, pod.incarnation) not in current]
