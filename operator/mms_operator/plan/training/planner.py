"""What to do about a training now.

Read it as a checklist: read the spec, begin the run that it asks for, leave ended runs alone, refuse what cannot be
carried out, take up how the attempt ended, suspend or resume, keep each place filled, say how it stands.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_operator.api import names
from mms_operator.api.names import Condition as Kind
from mms_operator.api.names import Phase, Reason, Role
from mms_operator.api.training import Attempt, Incarnation, TrainingSpec, TrainingStatus
from mms_operator.plan import pods as reading
from mms_operator.plan.conditions import find, rfc3339
from mms_operator.plan.training import accept, objects, outcome, slots
from mms_operator.plan.training import status as statuses
from mms_operator.plan.training.job import Job
from mms_operator.plan.training.status import State
from mms_operator.plan.types import Certificates, Deletion, Event, MasterCall, Plan
from mms_workloads.contract import Activity, Desired

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from mms_operator.plan.pods import Seen
    from mms_operator.plan.stores import SecretProblem
    from mms_operator.plan.training.slots import Assignment
    from mms_operator.plan.types import Object, ObservedTraining, Settings
    from mms_workloads import contract
    from mms_workloads.contract import Outcome

CERTIFICATE_DAYS = 365
RENEW_SECONDS = 60 * 86_400.0  # at the start of an attempt: certificates that end sooner are made anew
SUSPEND_SECONDS = 300.0  # for the last checkpoint; then what is durable already has to do
STRAGGLER_SECONDS = 15.0  # after the end of a run its pods end by themselves within this, or are deleted
SECRET_SECONDS = 10.0  # between two looks for a Secret that is not there
_BUSY = frozenset({Activity.COUNTING, Activity.TRAINING, Activity.EXPORTING})


def references(cr: Object) -> frozenset[str]:
    """The Secrets that the spec names."""
    spec = cr.get("spec") or {}
    found = ((spec.get(part) or {}).get("secretRef") or {} for part in ("data", "storage"))
    return frozenset(reference["name"] for reference in found if reference.get("name"))


def plan(cr: Object, observed: ObservedTraining, settings: Settings, now: datetime) -> Plan:
    """Pure: the same arguments give the same plan, and a plan that was carried out plans nothing more."""
    previous = cr.get("status") or {}
    try:
        spec = TrainingSpec.model_validate(cr["spec"])
    except ValidationError as error:
        return _unreadable(cr, previous, error, now)
    status = _begin_run(TrainingStatus.model_validate(previous), spec)
    job = Job(cr, spec, settings, status.run or 1, status.attempt or 1)
    look = _Look(job, status, previous, observed, now)
    if look.phase in (Phase.COMPLETE, Phase.FAILED):
        return _rest(look)
    return _conclude(look) or _time_out(look) or _hold_or_resume(look) or _start_over(look) or _carry_on(look)


def _conclude(look: _Look) -> Plan | None:
    """What follows when somebody says how the attempt ended."""
    ended = outcome.of(look.report, look.pods)
    match ended.result if ended else None:
        case "Complete" if ended and ended.artifact is not None:
            return _complete(look, ended)
        case "Failed" if ended:
            return _fail(look, ended.reason, outcome.explain(ended, look.job.locations))
        case "Suspended":
            suspend = look.job.spec.runPolicy.suspend
            return _suspended(look, ended) if suspend else _next_attempt(look, Reason.RESUMED)
    return None


def _time_out(look: _Look) -> Plan | None:
    left = _deadline(look)
    if left is None or left > 0:
        return None
    limit = look.job.spec.runPolicy.activeDeadlineSeconds
    said = f"the attempt took longer than spec.runPolicy.activeDeadlineSeconds ({limit} s) allows"
    return _fail(look, Reason.DEADLINE_EXCEEDED, said)


def _hold_or_resume(look: _Look) -> Plan | None:
    if look.job.spec.runPolicy.suspend:
        return _suspend(look)
    if look.phase is Phase.SUSPENDED and look.status.attempts:
        return _next_attempt(look, Reason.RESUMED)
    return None


def _start_over(look: _Look) -> Plan | None:
    """Pods whose certificates are lost can be joined by no other."""
    if look.observed.certificates_expire is None and any(pod.live for pod in look.pods):
        return _next_attempt(look, Reason.CERTIFICATES_LOST)
    return None


@dataclass(frozen=True)
class _Look:
    """All that the decisions look at. `status` is what the plan starts from; `pods` are of its run and attempt."""

    job: Job
    status: TrainingStatus
    previous: Object
    observed: ObservedTraining
    now: datetime
    others: tuple[Seen, ...] = field(init=False)  # pods of other runs and attempts
    pods: tuple[Seen, ...] = field(init=False)

    def __post_init__(self) -> None:
        seen = [reading.seen(pod, _container(pod)) for pod in self.observed.pods]
        mine = [pod for pod in seen if (pod.run, pod.attempt) == (self.job.run, self.job.attempt)]
        object.__setattr__(self, "pods", tuple(mine))
        object.__setattr__(self, "others", tuple(pod for pod in seen if pod not in mine))

    @property
    def phase(self) -> Phase:
        return Phase(self.status.phase or Phase.PENDING)

    @property
    def report(self) -> contract.StatusReport | None:
        """The master's last answer, if it is of the run and attempt that the plan is about."""
        report = self.observed.report
        return report if report and (report.run, report.attempt) == (self.job.run, self.job.attempt) else None

    @property
    def numbers(self) -> dict[str, int]:
        return {one.pod: one.number for one in self.status.incarnations}


def _container(pod: Object) -> str:
    """The pod's own container is called like its role."""
    labels = pod["metadata"].get("labels") or {}
    found: str = labels.get(names.LABEL_ROLE, "")
    return found


# ---- runs and attempts


def _begin_run(status: TrainingStatus, spec: TrainingSpec) -> TrainingStatus:
    """A raised run begins with nothing of the one before but its numbers of incarnations, and the artifact it made."""
    if status.run == spec.runPolicy.run:
        return status
    return TrainingStatus(
        run=spec.runPolicy.run, attempt=1, incarnations=status.incarnations, artifact=status.artifact
    )  # fmt: skip


def _next_attempt(look: _Look, why: Reason) -> Plan:
    """All pods anew, from the last checkpoint: after a suspension, and where certificates were lost."""
    number = look.job.attempt + 1
    status = look.status.model_copy(
        update={
            "attempt": number,
            "attempts": _ended_attempt(look.status.attempts, why, look.now),
            "phase": str(Phase.PENDING),
            "workers": None,
        }
    )
    job = replace(look.job, attempt=number)
    following = _Look(job, status, look.previous, look.observed, look.now)
    event = Event("Normal", why, f"attempt {number} of run {job.run} begins")
    return _carry_on(following, events=(event,))


def _ended_attempt(attempts: Sequence[Attempt], reason: str, now: datetime) -> list[Attempt]:
    *before, last = attempts or [Attempt(number=1, startTime=rfc3339(now))]
    if last.endTime is None:
        last = last.model_copy(update={"reason": str(reason), "endTime": rfc3339(now)})
    return [*before, last][-statuses.KEPT_ATTEMPTS :]


def _begun_attempt(status: TrainingStatus, number: int, now: datetime) -> list[Attempt]:
    if any(attempt.number == number for attempt in status.attempts):
        return list(status.attempts)
    return [*status.attempts, Attempt(number=number, startTime=rfc3339(now))][-statuses.KEPT_ATTEMPTS :]


def _deadline(look: _Look) -> float | None:
    """Seconds that are left of the attempt that runs; None without a limit, or while none runs."""
    limit = look.job.spec.runPolicy.activeDeadlineSeconds
    running = next((one for one in look.status.attempts if one.number == look.job.attempt and not one.endTime), None)
    if limit is None or running is None:
        return None
    return limit - _seconds_since(running.startTime, look.now)


def _seconds_since(time: str, now: datetime) -> float:
    return (now - now.fromisoformat(time)).total_seconds()


# ---- a run that goes on


def _carry_on(look: _Look, events: tuple[Event, ...] = ()) -> Plan:
    """Every place filled, as far as the budget allows."""
    job, observed = look.job, look.observed
    refusal = accept.refusal(job, observed)
    live = any(pod.live for pod in look.pods)
    if refusal and not live:
        state = State(Phase.PENDING, refusal.reason, refusal.message, refusal)
        return _plan(look, look.status, state, deletions=_delete(look.others), waves=())
    problem = accept.secret_problem(job, observed)
    if problem and not live:
        state = State(Phase.PENDING, problem.reason, problem.message)
        return _plan(look, look.status, state, deletions=_delete(look.others), waves=(), requeue=SECRET_SECONDS)

    workers = job.spec.workers.replicas
    begins = not any(attempt.number == job.attempt for attempt in look.status.attempts)
    assignment = slots.start(workers, look.numbers) if begins else slots.keep(workers, look.numbers, look.pods)
    if refusal or problem:
        return _hold(look, assignment, refusal, problem)
    counted = [loss for loss in assignment.losses if loss.counts]
    restarts, limit = look.status.restarts + len(counted), job.spec.runPolicy.backoffLimit
    if counted and restarts > limit:
        loss = counted[-1]
        return _fail(
            look,
            Reason.BACKOFF_LIMIT,
            f"{limit} pods were replaced, as spec.runPolicy.backoffLimit allows, and then {loss.role} {loss.rank} "
            f"{loss.why()}. Put that right, then raise spec.runPolicy.run to start another run",
        )
    return _plan(
        look,
        _status(look, assignment, restarts),
        _state(look, assignment),
        waves=_waves(job, assignment),
        certificates=_certificates(look),
        deletions=_delete([*look.others, *slots.superfluous(look.pods, assignment)]),
        events=(*events, *(_loss_event(job, loss, assignment) for loss in assignment.losses)),
        master=_master(job, assignment, suspend=False),
        requeue=_deadline(look),
    )


def _hold(look: _Look, assignment: Assignment, refusal: accept.Refusal | None, problem: SecretProblem | None) -> Plan:
    """What runs goes on, and nothing is made until what is wrong has been put right. A loss is counted then."""
    told = refusal or problem
    assert told is not None  # noqa: S101 - the caller has looked
    status = _status(look, assignment, look.status.restarts)
    status = status.model_copy(update={"incarnations": look.status.incarnations})
    state = replace(_state(look, assignment), reason=told.reason, message=told.message, refusal=refusal)
    (objects_of_pods, _) = _waves(look.job, assignment)
    return _plan(
        look,
        status,
        state,
        waves=(objects_of_pods,),
        deletions=_delete(look.others),
        master=_master(look.job, assignment, suspend=False),
        requeue=SECRET_SECONDS if problem else None,
    )


def _status(look: _Look, assignment: Assignment, restarts: int) -> TrainingStatus:
    job = look.job
    status = statuses.with_report(look.status, look.report, look.now) if look.report else look.status
    numbers = {**look.numbers, **assignment.numbers}
    return status.model_copy(
        update={
            "run": job.run,
            "attempt": job.attempt,
            "startTime": status.startTime or rfc3339(look.now),
            "restarts": restarts,
            "attempts": _begun_attempt(status, job.attempt, look.now),
            "replicas": len(assignment.workers),
            "selector": objects.selector(job.name, Role.WORKER),
            "incarnations": [Incarnation(pod=pod, number=number) for pod, number in sorted(numbers.items())],
        }
    )


def _state(look: _Look, assignment: Assignment) -> State:
    """Pending until the master reports work; Restarting from the loss of a pod until all are whole again."""
    report, wanted = look.report, len(assignment.workers)
    whole = all(slot.runs for slot in assignment.slots)
    waits = _waits(assignment)
    if look.phase in (Phase.RUNNING, Phase.RESTARTING):
        back = whole and report is not None and report.workersReady >= wanted
        if assignment.losses or (look.phase is Phase.RESTARTING and not back):
            return State(Phase.RESTARTING, Reason.REPLACING_POD, _replacing(look, assignment, waits))
        return State(Phase.RUNNING, Reason.TRAINING, _working(report, wanted))
    if report and report.activity in _BUSY and report.workersReady:
        return State(Phase.RUNNING, Reason.TRAINING, _working(report, wanted))
    if waits:
        return State(Phase.PENDING, waits.reason, waits.message)
    if whole:
        return State(Phase.PENDING, Reason.STARTING, "the pods run; the workers connect to the master")
    return State(Phase.PENDING, Reason.WAITING_FOR_PODS, "the pods are starting")


def _waits(assignment: Assignment) -> reading.Trouble | None:
    """What keeps a pod from starting, the master's first."""
    return next((slot.pod.trouble for slot in assignment.slots if slot.pod and slot.pod.trouble), None)


def _replacing(look: _Look, assignment: Assignment, waits: reading.Trouble | None) -> str:
    if waits:
        return waits.message
    if assignment.losses:
        return "; ".join(f"{loss.role} {loss.rank} {loss.why()} and is being replaced" for loss in assignment.losses)
    absent = [f"{slot.role} {slot.rank}" for slot in assignment.slots if not slot.runs]
    if absent:
        return f"{', '.join(absent)} is being replaced"
    known = find(look.previous.get("conditions") or [], Kind.READY)
    same = known and known["reason"] == Reason.REPLACING_POD
    return known["message"] if known and same else "the replaced pods join the training"


def _working(report: contract.StatusReport | None, wanted: int) -> str:
    match report.activity if report else None:
        case Activity.COUNTING:
            return "the workers read the data set once: sizes and vocabulary"
        case Activity.EXPORTING:
            return "the parameters are complete: they are evaluated and written"
        case _:
            return f"{wanted} worker{'s' if wanted > 1 else ''} train"


def _loss_event(job: Job, loss: slots.Loss, assignment: Assignment) -> Event:
    number = assignment.numbers.get(slots.key(loss.role, loss.rank), 0)
    name = objects.pod_name(job, loss.role, loss.rank, number)
    return Event("Warning", Reason.REPLACING_POD, f"{loss.role} {loss.rank} {loss.why()}: {name} takes its place")


# ---- suspension


def _suspend(look: _Look) -> Plan:
    """A checkpoint first, then all pods are released. Where nothing runs there is nothing to save."""
    waited = statuses.seconds_since(look.previous, Kind.SUSPENDED, "Unknown", look.now)
    if look.phase is Phase.SUSPENDED or not any(pod.live and pod.runs for pod in look.pods):
        return _suspended(look, None)
    if waited > SUSPEND_SECONDS:
        said = f"the last checkpoint was not complete after {SUSPEND_SECONDS:.0f} s; the one before it counts"
        return _suspended(look, None, (Event("Warning", Reason.SUSPEND_TIMEOUT, said),))
    job = look.job
    assignment = slots.keep(job.spec.workers.replicas, look.numbers, look.pods)
    # A worker that is lost now is not replaced: the others write the checkpoint. A master is, for it alone hears that
    # the checkpoint is durable.
    kept = tuple(slot for slot in assignment.slots if slot.pod or slot.role is Role.MASTER)
    assignment = replace(assignment, slots=kept)
    status = _status(look, assignment, look.status.restarts)
    state = State(Phase.SUSPENDING, Reason.SUSPENDING, "the workers write a checkpoint; then all pods are released")
    return _plan(
        look,
        status,
        state,
        waves=_waves(job, assignment),
        deletions=_delete(look.others),
        master=_master(job, assignment, suspend=True),
        requeue=SUSPEND_SECONDS - waited + 1.0,
    )


def _suspended(look: _Look, ended: Outcome | None, events: tuple[Event, ...] = ()) -> Plan:
    status = statuses.with_report(look.status, look.report, look.now) if look.report else look.status
    saved = (statuses.checkpoint(ended.checkpoint) if ended else None) or status.checkpoint
    status = status.model_copy(
        update={"checkpoint": saved, "replicas": 0, "workers": None, "selector": _selector(look)}
    )  # fmt: skip
    if status.attempts:
        status = status.model_copy(update={"attempts": _ended_attempt(status.attempts, Reason.SUSPENDED, look.now)})
    held = f"the checkpoint of step {saved.step} is durable" if saved else "there is no checkpoint yet"
    state = State(Phase.SUSPENDED, Reason.SUSPENDED, f"{held}; set spec.runPolicy.suspend to false to go on")
    return _plan(look, status, state, waves=(), deletions=_delete([*look.pods, *look.others]), events=events)


def _selector(look: _Look) -> str:
    return objects.selector(look.job.name, Role.WORKER)


# ---- the end


def _complete(look: _Look, ended: Outcome) -> Plan:
    assert ended.artifact is not None  # noqa: S101 - the caller has looked
    status = _finished(look, Reason.COMPLETE, ended)
    status = status.model_copy(update={"artifact": statuses.artifact(ended.artifact)})
    if status.progress:
        update = {"percent": 100, "activity": str(Activity.DONE), "etaSeconds": None, "samplesPerSecond": None}
        status = status.model_copy(update={"progress": status.progress.model_copy(update=update)})
    metrics = ", ".join(
        f"{name} {value}" for name, value in (status.artifact.metrics if status.artifact else {}).items()
    )
    said = f"artifact version {ended.artifact.version} is at {ended.artifact.uri}" + (
        f" ({metrics})" if metrics else ""
    )
    return _end(look, status, State(Phase.COMPLETE, Reason.COMPLETE, said))


def _fail(look: _Look, reason: str, message: str) -> Plan:
    return _end(look, _finished(look, reason, None), State(Phase.FAILED, reason, message))


def _finished(look: _Look, reason: str, ended: Outcome | None) -> TrainingStatus:
    status = statuses.with_report(look.status, look.report, look.now) if look.report else look.status
    saved = statuses.checkpoint(ended.checkpoint) if ended else None
    return status.model_copy(
        update={
            "run": look.job.run,
            "attempt": look.job.attempt,
            "completionTime": status.completionTime or rfc3339(look.now),
            "attempts": _ended_attempt(status.attempts, reason, look.now),
            "checkpoint": saved or status.checkpoint,
            "selector": _selector(look),
            "replicas": 0,
            "workers": None,
        }
    )


def _end(look: _Look, status: TrainingStatus, state: State) -> Plan:
    """Pods end by themselves: the master lingers until the workers have heard how the run ended."""
    return _plan(look, status, state, deletions=_delete(look.others), requeue=STRAGGLER_SECONDS + 1.0, prune=False)


def _rest(look: _Look) -> Plan:
    """A run that has ended does not begin again. Ended pods stay for their logs; what still runs is taken away."""
    known = find(look.previous.get("conditions") or [], Kind.READY) or {}
    state = State(look.phase, known.get("reason", ""), known.get("message", ""))
    passed = _seconds_since(look.status.completionTime or rfc3339(look.now), look.now)
    left = STRAGGLER_SECONDS - passed
    live = [pod for pod in look.pods if pod.live]
    if live and left > 0:
        return _plan(look, look.status, state, deletions=_delete(look.others), requeue=left + 1.0, prune=False)
    ttl = look.job.spec.runPolicy.ttlSecondsAfterFinished
    if ttl is not None and passed >= ttl:
        return _expire(look, state)
    return _plan(
        look,
        look.status,
        state,
        waves=(),
        deletions=_delete([*live, *look.others]),
        requeue=None if ttl is None else ttl - passed,
    )


def _expire(look: _Look, state: State) -> Plan:
    """The custom resource itself is deleted, and with it all it owns. The store keeps what it made."""
    job = look.job
    itself = Deletion(job.cr["apiVersion"], names.TRAINING, job.namespace, job.name, job.uid)
    said = "spec.runPolicy.ttlSecondsAfterFinished has passed: the training is deleted, its results stay in the store"
    return _plan(
        look, look.status, state, deletions=(itself,), events=(Event("Normal", Reason.EXPIRED, said),), prune=False
    )


# ---- plans


def _unreadable(cr: Object, previous: Object, error: ValidationError, now: datetime) -> Plan:
    """A spec that this release cannot read, such as one of a newer CRD. What runs is left as it is."""
    problems = "; ".join(
        f"spec.{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()
    )
    refusal = accept.Refusal(Reason.INVALID_SPEC, problems)
    state = State(Phase(previous.get("phase") or Phase.PENDING), refusal.reason, problems, refusal)
    status = TrainingStatus.model_validate(previous)
    return Plan(
        status=statuses.render(status, state, previous, cr["metadata"]["generation"], now),
        events=_events(previous, state),
        prune=False,
    )


def _plan(
    look: _Look,
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
    generation = look.job.cr["metadata"]["generation"]
    return Plan(
        status=statuses.render(status, state, look.previous, generation, look.now),
        waves=waves,
        certificates=certificates,
        deletions=deletions,
        events=(*events, *_events(look.previous, state)),
        master=master,
        requeue_after=requeue,
        prune=prune,
    )


def _events(previous: Object, state: State) -> tuple[Event, ...]:
    """One when the phase or its reason has changed. A replaced pod has an event of its own."""
    known = find(previous.get("conditions") or [], Kind.READY)
    same = known and known["reason"] == state.reason and previous.get("phase") == state.phase
    if same or state.phase is Phase.RESTARTING:
        return ()
    bad = state.phase is Phase.FAILED or state.refusal is not None
    waits = state.phase is Phase.PENDING and state.reason not in (Reason.WAITING_FOR_PODS, Reason.STARTING)
    return (Event("Warning" if bad or waits else "Normal", str(state.reason), state.message),)


def _waves(job: Job, assignment: Assignment) -> tuple[tuple[Object, ...], ...]:
    """What pods refer to, then the pods. A pod that is there is named so that its objects stay; it is never edited."""
    first = [
        objects.config_map(job),
        objects.master_service(job, assignment.master.incarnation),
        objects.network_policy(job),
    ]
    if secret := objects.store_secret(job):
        first.append(secret)
    made = tuple(
        objects.pod(job, slot.role, slot.rank, slot.incarnation) for slot in assignment.slots if slot.pod is None
    )
    return (tuple(first), made)


def _certificates(look: _Look) -> Certificates | None:
    """Made when there are none, and anew where they end soon and no pod uses them."""
    expire = look.observed.certificates_expire
    fresh = expire is not None and (expire - look.now).total_seconds() > RENEW_SECONDS
    if fresh or (expire is not None and any(pod.live for pod in look.pods)):
        return None
    job = look.job
    return Certificates(job.cr, objects.labels(job, "training"), (job.master_host,), CERTIFICATE_DAYS)


def _master(job: Job, assignment: Assignment, *, suspend: bool) -> MasterCall | None:
    pod = assignment.master.pod
    if pod is None or not pod.runs or not pod.ip:
        return None
    return MasterCall(pod.ip, job.master_host, Desired(suspend=suspend, workers=job.spec.workers.replicas))


def _delete(pods: Iterable[Seen]) -> tuple[Deletion, ...]:
    return tuple(Deletion("v1", "Pod", pod.namespace, pod.name, pod.uid) for pod in pods if not pod.leaving)
