"""Plans as the decisions give them: a state as a status, places as pods, what else belongs to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api.names import Condition as Kind
from mms_operator.api.names import Phase, Reason
from mms_operator.plan.conditions import find
from mms_operator.plan.training import objects, slots
from mms_operator.plan.training import status as statuses
from mms_operator.plan.training.elastic import Strength
from mms_operator.plan.training.job import roles
from mms_operator.plan.types import Certificates, Deletion, Event, MasterCall, Plan
from mms_workloads.contract import Desired

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mms_operator.api.training_status import TrainingStatus
    from mms_operator.plan.pods import Seen
    from mms_operator.plan.training.job import Job
    from mms_operator.plan.training.look import Look
    from mms_operator.plan.training.slots import Assignment, Slot
    from mms_operator.plan.training.status import State
    from mms_operator.plan.types import Object

CERTIFICATE_DAYS = 365
HELD = (Phase.RUNNING, Phase.RESTARTING, Phase.SUSPENDING)  # pods may hold what no checkpoint has yet
_ON_THE_WAY = (Reason.WAITING_FOR_PODS, Reason.STARTING)
# At the start of an attempt certificates that end sooner are made anew. While it lasts they stay as they are: so long
# an attempt can take at least.
RENEW_SECONDS = 300 * 86_400.0


def draft(
    look: Look,
    status: TrainingStatus,
    state: State,
    *,
    waves: tuple[tuple[Object, ...], ...] = (),
    certificates: Certificates | None = None,
    deletions: tuple[Deletion, ...] = (),
    events: tuple[Event, ...] = (),
    master: MasterCall | None = None,
    requeue: float | None = None,
    prune: bool = True,
) -> Plan:
    """Whatever is decided, the status keeps which places have had a process by now."""
    generation = look.job.cr["metadata"]["generation"]
    incarnations = slots.seen(status.incarnations, (*look.pods, *look.others))
    status = status.model_copy(update={"incarnations": incarnations})
    return Plan(
        status=statuses.render(status, state, look.previous, generation, look.now),
        waves=waves,
        certificates=certificates,
        deletions=deletions,
        events=(*events, *events_of(look.previous, state)),
        master=master,
        requeue_after=requeue,
        prune=prune,
        finalizer=state.phase in HELD and look.job.custom is None,
    )


def events_of(previous: Object, state: State) -> tuple[Event, ...]:
    """One when the phase or its reason has changed, or what is missing. A replaced pod has an event of its own."""
    known = find(previous.get("conditions") or [], Kind.READY)
    same = known and known["reason"] == state.reason and previous.get("phase") == state.phase
    lacked = find(previous.get("conditions") or [], Kind.DEGRADED) or {}
    if state.degraded and lacked.get("reason") != state.degraded.reason:
        return (Event("Warning", state.degraded.reason, state.degraded.message),)
    if same or state.reason in (Reason.REPLACING_POD, Reason.WORLD_RESTARTS):
        return ()
    bad = (
        state.phase is Phase.FAILED or state.refusal is not None or state.reason == Reason.MASTER_UNREACHABLE
    )  # fmt: skip
    waits = state.phase in (Phase.PENDING, Phase.RESTARTING) and state.reason not in _ON_THE_WAY
    return (Event("Warning" if bad or waits else "Normal", str(state.reason), state.message),)


def waves(look: Look, assignment: Assignment) -> tuple[tuple[Object, ...], ...]:
    """What pods refer to, then the pods that are to be made. Those that are there are never edited."""
    job = look.job
    first = [
        objects.config_map(job, look.observed.served),
        objects.master_service(job, assignment.master.incarnation),
        objects.network_policy(job),
    ]
    if secret := objects.store_secret(job):
        first.append(secret)
    made = tuple(
        objects.pod(job, slot.role, slot.rank, slot.incarnation, _left(look.pods, slot))
        for slot in assignment.slots
        if slot.pod is None
    )
    return (tuple(first), made)


def _left(pods: Iterable[Seen], slot: Slot) -> set[str]:
    """Nodes where a pod of the same place has not ended yet: that may be because the node is lost."""
    return {pod.node for pod in pods if (pod.role, pod.rank) == (slot.role, slot.rank) and not pod.ended and pod.node}


def certificates(look: Look) -> Certificates | None:
    """Made when there are none, and anew where they end soon and no pod uses them."""
    expire = look.observed.certificates_expire
    fresh = expire is not None and (expire - look.now).total_seconds() > RENEW_SECONDS
    if fresh or (expire is not None and any(pod.live for pod in look.pods)):
        return None
    job = look.job
    return Certificates(job.cr, objects.labels(job, "training"), (job.master_host,), CERTIFICATE_DAYS, roles(job.cr))


def master_call(job: Job, assignment: Assignment, *, suspend: bool) -> MasterCall | None:
    pod = assignment.master.pod
    if pod is None or not pod.runs or not pod.ip:
        return None
    desired = Desired(
        suspend=suspend,
        workers=Strength.of(job, assignment).target,
        minWorkers=job.spec.workers.minReplicas,
        shards=job.shards,
    )
    return MasterCall(pod.ip, job.master_host, desired)


def delete(pods: Iterable[Seen]) -> tuple[Deletion, ...]:
    return tuple(Deletion("v1", "Pod", pod.namespace, pod.name, pod.uid) for pod in pods if not pod.leaving)
