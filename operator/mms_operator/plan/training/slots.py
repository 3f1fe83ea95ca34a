"""Which pods there should be: one for each role and rank, under the number of its newest incarnation.

A number that was seen to run is never given to another process. The status remembers the numbers and is written before
pods are made. A pod that the status names and that is not there has been lost if it was seen to run; else it is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api.causes import RULES, Cause, Follows
from mms_operator.api.names import Role
from mms_operator.api.training_status import Incarnation
from mms_operator.plan.training import causes

Place = tuple[Role, int]  # with its rank

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mms_operator.plan.pods import Seen

    Incarnate = tuple[str, int, int]  # role, rank, incarnation


@dataclass(frozen=True)
class Known:
    """What the status remembers of a place: the number of its newest incarnation, and whether that was seen to run."""

    number: int
    started: bool = False


def places(workers: int, shards: int = 0) -> list[Place]:
    """The places of a training of ours: one master, workers, shards."""
    return [
        (Role.MASTER, 0),
        *((Role.WORKER, rank) for rank in range(workers)),
        *((Role.SHARD, rank) for rank in range(shards)),
    ]


@dataclass(frozen=True)
class Slot:
    """A role and rank with its newest incarnation, and the pod that has it, once it is there."""

    role: Role
    rank: int
    incarnation: int
    pod: Seen | None
    surplus: bool = False  # a shard that the spec wants no more, and that still holds parameters

    @property
    def runs(self) -> bool:
        return self.pod is not None and self.pod.runs and self.pod.live

    @property
    def stuck(self) -> bool:
        """Whether it waits for what time alone does not bring."""
        return self.pod is not None and not self.pod.runs and self.pod.trouble is not None


@dataclass(frozen=True)
class Loss:
    """A pod that is replaced."""

    role: Role
    rank: int
    cause: Cause
    said: str = ""  # what it said when it ended, or how it is known

    @property
    def counts(self) -> bool:
        return RULES[self.cause].counts

    def why(self) -> str:
        if self.cause is Cause.OUTDATED:
            return "waits with an outdated spec"
        if self.cause is Cause.DELETED:
            return "is gone"
        return self.said


@dataclass(frozen=True)
class Assignment:
    slots: tuple[Slot, ...]
    losses: tuple[Loss, ...]

    def number(self, role: Role, rank: int) -> int | None:
        """None where the place has no pod and gets none."""
        return next((slot.incarnation for slot in self.slots if (slot.role, slot.rank) == (role, rank)), None)

    @property
    def master(self) -> Slot:
        return self.slots[0]

    @property
    def workers(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot.role is Role.WORKER)

    @property
    def shards(self) -> tuple[Slot, ...]:
        """Those that the spec wants."""
        return tuple(slot for slot in self.slots if slot.role is Role.SHARD and not slot.surplus)


def key(role: str, rank: int) -> str:
    return f"{role}-{rank}"


def start(wanted: Sequence[Place], known: Mapping[str, Known]) -> Assignment:
    """The next incarnation of every place: at the start of an attempt."""
    slots = tuple(Slot(role, rank, _next(known.get(key(role, rank))), None) for role, rank in wanted)
    return Assignment(slots, ())


def keep(
    wanted: Sequence[Place],
    known: Mapping[str, Known],
    pods: Sequence[Seen],
    template: str,
    silent: Mapping[Incarnate, Loss],
    *,
    released: bool = False,
) -> Assignment:
    """Each place with its pod; a place whose pod is lost with the next incarnation.

    `pods` are those of the current run and attempt; `template` is what a pod would be made from now; `silent` are those
    of which the master no longer hears. A worker that has ended well has heard how the run ends: its place stays as it
    is. Shards that are wanted no more keep their places until they are `released`; one that is lost has no successor.
    """
    by_place = {(pod.role, pod.rank, pod.incarnation): pod for pod in pods}
    slots: list[Slot] = []
    losses: list[Loss] = []
    for role, rank in wanted:
        place = known.get(key(role, rank), Known(1))
        pod = by_place.get((role, rank, place.number))
        loss = _loss(role, rank, place, pod, template) or silent.get((role, rank, place.number))
        if loss is None:
            slots.append(Slot(role, rank, place.number, pod))
        else:
            losses.append(loss)
            slots.append(Slot(role, rank, place.number + 1, None))
    if not released:
        slots += _surplus(wanted, known, pods, silent)
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


def known(incarnations: Iterable[Incarnation]) -> dict[str, Known]:
    return {one.pod: Known(one.number, one.started) for one in incarnations}


def incarnations(known: Mapping[str, Known]) -> list[Incarnation]:
    return [Incarnation(pod=place, number=one.number, started=one.started) for place, one in sorted(known.items())]


def seen(incarnations: Iterable[Incarnation], pods: Iterable[Seen]) -> list[Incarnation]:
    """The same, with whether a process of each has existed by now."""
    ran = {(key(pod.role, pod.rank), pod.incarnation) for pod in pods if pod.has_run}
    return [one.model_copy(update={"started": one.started or (one.pod, one.number) in ran}) for one in incarnations]


def superfluous(pods: Iterable[Seen], assignment: Assignment) -> list[Seen]:
    """Pods that still run although their place has another incarnation, or is no more. Ended ones keep their logs."""
    current = {(slot.role, slot.rank, slot.incarnation) for slot in assignment.slots}
    return [pod for pod in pods if pod.live and (pod.role, pod.rank, pod.incarnation) not in current]


def _loss(role: Role, rank: int, place: Known, pod: Seen | None, template: str) -> Loss | None:
    if pod is None:
        return Loss(role, rank, Cause.DELETED) if place.started else None
    if pod.live and not pod.has_run and pod.template != template:
        return Loss(role, rank, Cause.OUTDATED)
    cause = causes.of(pod)
    if cause is None or RULES[cause].follows in (Follows.STAYS, Follows.WAITED):
        return None
    return Loss(role, rank, cause, causes.words(pod, cause))


def _surplus(
    wanted: Sequence[Place], known: Mapping[str, Known], pods: Sequence[Seen], silent: Mapping[Incarnate, Loss]
) -> list[Slot]:
    shards = sum(role is Role.SHARD for role, _ in wanted)
    return [
        Slot(Role.SHARD, pod.rank, pod.incarnation, pod, surplus=True)
        for pod in sorted(pods, key=lambda pod: pod.rank)
        if pod.role == Role.SHARD
        and pod.rank >= shards
        and pod.live
        and known.get(key(pod.role, pod.rank)) in (Known(pod.incarnation), Known(pod.incarnation, started=True))
        and (pod.role, pod.rank, pod.incarnation) not in silent
    ]


def _next(place: Known | None) -> int:
    return place.number + 1 if place else 1
