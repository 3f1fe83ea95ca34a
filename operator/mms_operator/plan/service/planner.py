"""What to do about a service now: choose the artifact, refuse what is not allowed, roll it out, say how it stands."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_operator.api.names import Condition as Kind
from mms_operator.api.names import Reason
from mms_operator.api.rollout import Strategy
from mms_operator.api.service import ServiceSpec
from mms_operator.api.service_status import Outcome, RolloutPhase, ServiceStatus, Versions
from mms_operator.plan import conditions, pod_template, pods, stores
from mms_operator.plan.conditions import rfc3339
from mms_operator.plan.scaling import schedule
from mms_operator.plan.service import (
    autoscaling,
    commands,
    edge,
    gateway,
    history,
    inputs,
    judging,
    live,
    objects,
    precision,
    pretrained,
    rolling,
    rollout,
    saying,
    swapping,
    target,
    telling,
    trouble,
    waking,
)
from mms_operator.plan.service.course import Course, Look
from mms_operator.plan.service.measures import Sight
from mms_operator.plan.service.objects import Serving
from mms_operator.plan.service.saying import State
from mms_operator.plan.service.seen import Seen
from mms_operator.plan.types import Plan
from mms_workloads import contract

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from mms_operator.api.service_status import PastVersion, ServedVersion
    from mms_operator.plan.conditions import Condition
    from mms_operator.plan.stores import SecretProblem
    from mms_operator.plan.types import Event, Held, Object, ObservedService, Settings

_LOOKED_AT = frozenset({Strategy.CANARY, Strategy.BLUE_GREEN})  # strategies whose next version has pods of its own
SECRET_SECONDS = 10.0  # between two looks for a Secret that is not there


def references(cr: Object) -> frozenset[str]:
    """The Secrets that the spec names, and those of the versions that are pinned."""
    spec, status = cr.get("spec") or {}, cr.get("status") or {}
    versions = status.get("versions") or {}
    model = spec.get("model") or {}
    pinned = [version or {} for version in versions.values()]
    places = [model.get("artifact") or {}, model.get("pretrained") or {}, *pinned]
    found = ((place.get("secretRef") or {}).get("name") for place in places)
    return frozenset(name for name in (*found, *edge.references(spec)) if name)


def plan(cr: Object, observed: ObservedService, settings: Settings, now: datetime) -> Plan:
    """Pure: the same arguments give the same plan, and a plan that was carried out plans nothing more."""
    status = ServiceStatus.model_validate(cr.get("status") or {})
    try:
        spec = ServiceSpec.model_validate(cr["spec"])
    except ValidationError as error:
        state = saying.refused(Reason.INVALID_SPEC, conditions.invalid_spec(error))
        return _left(cr, status, state, now, sum(pods.is_ready(pod) for pod in observed.pods))
    serving = Serving(cr, spec, settings)
    seen = Seen.of(serving, observed)
    found = pod_template.violations(
        "spec.server.podTemplate", spec.server.podTemplate, settings.policy, objects.CONTAINERS, objects.VOLUMES
    )
    if found:
        return _left(cr, status, saying.refused(Reason.POD_TEMPLATE_FORBIDDEN, "; ".join(found)), now, seen.ready)
    if spec.traffic.gateway is not None and not settings.gateway_api:
        return _left(cr, status, saying.refused(Reason.GATEWAY_API_MISSING, gateway.MISSING), now, seen.ready)
    if problem := _senseless(spec):
        return _left(cr, status, saying.refused(Reason.INVALID_SPEC, problem), now, seen.ready)
    source = live.chosen(serving, status.versions, observed.training) or target.choose(
        spec.model, status.versions, observed.training, settings.default_store
    )
    if not isinstance(source, target.Missing):
        source = pretrained.known(source, status.versions, seen)
        source = precision.known(source, spec.server, status.versions, seen)
    named = None if isinstance(source, target.Missing) else source
    status, told = commands.carry_out(cr, status, commands.Context(spec.rollout, spec.replicas, named, now))
    if named and status.versions.stable and history.given_up(status.history, named.digest):
        named = None  # no pod is made of it
    scaled = autoscaling.advance(Sight(serving, status, seen, observed, named, now))
    status = status.model_copy(update={"autoscaling": scaled.status})
    look = Look(serving, status, seen, now, observed.interval, scaled)
    return _plan(look, _course(look, source, observed), observed, told)


def _senseless(spec: ServiceSpec) -> str | None:
    """What cannot be done although the API server took it, and why."""
    found = schedule.problem(spec.autoscaling.schedules) or pretrained.problem(spec.model.pretrained)
    found = found or inputs.problem(spec)
    if found:
        return found
    try:
        if spec.rollout.analysis is not None:
            judging.spec_of(spec.rollout.analysis)
    except ValueError as error:
        return f"spec.rollout.analysis: {error}"
    return None


def _course(look: Look, source: ServedVersion | target.Missing, observed: ObservedService) -> Course:
    if isinstance(source, target.Missing):
        return _nothing_to_serve(look, source)
    stable, state = look.status.versions.stable, look.status.rollout
    withheld = history.given_up(look.status.history, source.digest)
    going_back = look.status.versions.next if state and state.rollback else None
    chosen = (going_back or stable or source) if withheld else source
    of_store = stores.secret_problem(look.serving.location(chosen), observed.secrets)
    if problem := of_store or edge.secret_problem(look.serving.spec.traffic, observed.secrets):
        return _wait_for_secret(look, chosen, problem)
    if stable is None:
        return _first(look, chosen)
    if stable.digest == chosen.digest:
        return _steady(look, chosen.model_copy(update={"base": stable.base}), withheld)
    chosen = chosen.model_copy(update={"base": None})
    if look.replicas == 0:
        return _at_zero(look, chosen, stable)
    if rolling.can_swap(look, chosen, stable):
        return rolling.swap(look, chosen.model_copy(update={"base": stable.lineage}), stable)
    if chosen.lineage == stable.lineage:
        return rolling.in_place(look, chosen, stable)
    return rolling.roll_out(look, chosen, stable)


def _first(look: Look, chosen: ServedVersion) -> Course:
    """Nothing answers yet that could be spared: all pods at once."""
    # Of pods that are to find out what they can do, or which files there are, one is enough.
    alone = bool(look.scaled.template) or pretrained.unknown(chosen)
    replicas = min(look.replicas, 1) if alone else look.replicas
    counted, fleets = look.counted(chosen), ((chosen, replicas),)
    if not look.replicas or replicas < look.replicas or not look.seen.fleet(chosen, replicas).complete:
        state = trouble.of(look.serving, chosen, look.seen) or saying.rolling(chosen, None, None)
        state = state if look.replicas else saying.served(chosen, 0)
        return Course(look.status_with(versions=Versions(next=counted)), state, fleets, chosen)
    past = history.record(look.status.history, chosen, Outcome.SERVED, look.now)
    status = look.status_with(versions=Versions(stable=counted), history=past)
    return Course(status, saying.served(chosen, look.replicas), fleets, chosen)


def _steady(look: Look, chosen: ServedVersion, withheld: PastVersion | None) -> Course:
    """What is wanted is what answers. The version before may be kept for a while."""
    counted, replicas = look.counted(chosen), look.replicas
    back = swapping.returning(swapping.running(look.seen, chosen.lineage), chosen.digest)
    if withheld:
        state = saying.given_up(withheld, chosen, [pod.name for pod in back])
    elif look.seen.fleet(chosen, replicas).complete and not back:
        state = saying.served(chosen, replicas)
    else:
        state = trouble.of(look.serving, chosen, look.seen) or saying.scaling(counted.replicas, replicas)
    ended = look.status.rollout
    if look.status.versions.next is not None and ended is not None:  # the spec went back to what answers
        ended = ended.model_copy(update={"phase": RolloutPhase.ABORTED, "percent": 0, "paused": False})
    previous, until = look.status.versions.previous, look.kept_until()
    left = (until - look.now).total_seconds()
    if previous is None or left <= 0 or previous.lineage == chosen.lineage:
        status = look.status_with(versions=Versions(stable=counted), rollout=ended, keptUntil=None)
        return Course(status, state, ((chosen, replicas),), chosen)
    versions = Versions(stable=counted, previous=look.counted(previous))
    status = look.status_with(versions=versions, rollout=ended, keptUntil=rfc3339(until))
    return Course(status, state, ((chosen, replicas), (previous, replicas)), chosen, min(left, rollout.DAY_SECONDS))


def _at_zero(look: Look, chosen: ServedVersion, stable: ServedVersion) -> Course:
    """Nothing is proved without pods: the rollout stays where it is until there are some."""
    under_way = rolling.under_way(look, chosen)
    begun = under_way or rollout.begin(look.serving.spec.rollout, 0, look.now)
    analysis = begun.analysis and begun.analysis.model_copy(update={"startTime": None})  # asleep it takes no time
    begun = begun.model_copy(update={"reachedTime": None, "percent": 0, "analysis": analysis})
    status = look.status_with(versions=Versions(stable=stable, next=chosen), rollout=begun, keptUntil=None)
    fleets = ((stable, 0), (chosen, 0)) if chosen.lineage != stable.lineage else ((stable, 0),)
    return Course(status, saying.served(stable, 0), fleets, stable)


def _nothing_to_serve(look: Look, missing: target.Missing) -> Course:
    """There is no artifact. What was served before, of another source, goes on until there is one."""
    state = State(ready=False, reason=missing.reason, message=missing.message)
    stable, ended = look.status.versions.stable, look.status.rollout
    if look.status.versions.next is not None and ended is not None:
        ended = ended.model_copy(update={"phase": RolloutPhase.ABORTED, "percent": 0, "paused": False})
    status = look.status_with(versions=Versions(stable=stable), rollout=ended, keptUntil=None)
    return Course(status, state, ((stable, look.replicas),) if stable else (), stable)


def _wait_for_secret(look: Look, chosen: ServedVersion, problem: SecretProblem) -> Course:
    """No pod can be made without it. What is there goes on; without a rollout, with whatever else the spec asks for."""
    state = State(ready=False, reason=problem.reason, message=problem.message)
    versions, stable = look.status.versions, look.status.versions.stable
    if stable is None or (versions.next is not None and _has_pods(look, versions.next, stable)):
        status = look.status_with(versions=versions.model_copy(update={"next": versions.next or chosen}))
        return Course(status, state, (), stable, SECRET_SECONDS, prune=False)
    if versions.next is not None:
        return Course(look.status, state, ((stable, look.replicas),), stable, SECRET_SECONDS, prune=False)
    waits = None if stable.digest == chosen.digest else chosen
    status = look.status_with(versions=Versions(stable=stable, next=waits), keptUntil=None)
    if waits is not None:
        status = status.model_copy(
            update={"rollout": rollout.begin(look.serving.spec.rollout, look.replicas, look.now)}
        )
    return Course(status, state, ((stable, look.replicas),), stable, SECRET_SECONDS, prune=False)


def _has_pods(look: Look, following: ServedVersion, stable: ServedVersion) -> bool:
    """Whether pods are, or are about to be, of the version that is rolled out."""
    if following.lineage != stable.lineage:
        return look.seen.fleet(following, 0).wanted > 0 or bool(look.seen.began_with(following.lineage))
    taking = swapping.running(look.seen, stable.lineage)
    return look.seen.is_for(following) or any(following.digest in {one.told, one.serves} for one in taking)


def _file(look: Look, course: Course, version: ServedVersion) -> Object:
    serving = look.serving
    name = objects.template(serving, version)
    measure = objects.measure(serving) if name == look.scaled.template else None
    batching = look.scaled.batching(name, objects.batching(serving))
    return objects.config_map(
        serving, version, telling.reference(course, version), measure=measure, batching=batching
    )  # fmt: skip


def _alone(look: Look, course: Course, version: ServedVersion, replicas: int) -> int:
    """Of a version whose first pod is to find something out there is no second one meanwhile."""
    stable = course.status.versions.stable
    if pretrained.unknown(version):
        return min(replicas, 1)
    following = stable is not None and version.lineage != stable.lineage
    return (
        min(replicas, 1) if following and objects.template(look.serving, version) == look.scaled.template else replicas
    )


def _waves(look: Look, course: Course, held: Held | None) -> tuple[tuple[Object, ...], ...]:
    """Each version has its file and its Deployment. Clients are sent elsewhere only after its pods are there."""
    serving = look.serving
    fleets = [(version, _alone(look, course, version, replicas)) for version, replicas in course.fleets]
    versions = [version for version, _ in fleets]
    first = [
        objects.network_policy(serving),
        objects.disruption_budget(serving),
        *(_file(look, course, version) for version in versions),
    ]
    if held and held.addresses and not waking.awake(look, course):
        first += [objects.activation(serving, held, *names) for names in objects.activated(serving).items()]
    if any(version.installationStore for version in versions) and (secret := objects.store_secret(serving)):
        first.append(secret)
    deployments = tuple(objects.deployment(serving, version, replicas) for version, replicas in fleets)
    services = [objects.service(serving, course.route)]
    following = course.status.versions.next
    own = following is not None and any(version.digest == following.digest for version in versions)
    looked_at = serving.spec.rollout.strategy in _LOOKED_AT or serving.spec.traffic.gateway is not None
    if following is not None and own and looked_at:
        services.append(objects.next_service(serving, following))
    ways = serving.spec.traffic.gateway
    stable = course.status.versions.stable
    if ways is None or stable is None:
        return ((*first, *services), deployments)
    services.append(gateway.stable_service(serving, stable))
    return ((*first, *services), deployments, tuple(gateway.routes(serving, ways, course, look.seen)))


def _plan(look: Look, course: Course, observed: ObservedService, told: Sequence[Event]) -> Plan:
    serving, seen, stable = look.serving, look.seen, course.status.versions.stable
    scaled = look.scaled
    followed = live.found(look, stable, observed.training)
    course = replace(course, status=course.status.model_copy(update={"live": followed.status}))
    if not course.swaps and stable is not None:  # whatever else happens, pods serve what is stable
        rollout, following = course.status.rollout, course.status.versions.next
        # Who is back already on the way to what is wanted stays so, though others need new pods for it.
        back = following.digest if following and rollout and rollout.rollback else None
        fleet = [one for one in swapping.running(seen, stable.lineage) if back is None or one.told != back]
        astray = swapping.astray(fleet, stable.digest)
        course = replace(course, tell=astray, take=stable, attempt=rfc3339(look.now))
    status = course.status.model_copy(
        update={
            "url": f"{'https' if serving.spec.traffic.tls else 'http'}://{serving.host}:{contract.TRITON_HTTP_PORT}",
            "grpcUrl": f"{serving.host}:{contract.TRITON_GRPC_PORT}",
            "replicas": seen.replicas,
            "readyReplicas": seen.ready,
            "selector": ",".join(f"{key}={value}" for key, value in sorted(serving.selector.items())),
        }
    )
    said = saying.said_of(course.state, seen.ready, look.replicas)
    if followed.condition is not None:
        said[Kind.LIVE] = followed.condition
    return Plan(
        status=_body(serving.cr, status, said, look.now),
        waves=_waves(look, course, observed.activator) if course.fleets else (),
        events=(
            *told,
            *saying.scaled(serving.spec, scaled),
            *saying.told(serving.cr, status, course.state),
            *live.told(serving.cr, followed.condition),
        ),
        requeue_after=waking.requeue(look, course.requeue),
        prune=course.prune,
        agents=telling.asked(look, course),
        annotations=telling.told(look, course),
        scale=scaled.replicas,
        scaling=scaled.memory,
        kept=waking.kept(look, course, observed.activator),
    )


def _left(cr: Object, status: ServiceStatus, state: State, now: datetime, available: int) -> Plan:
    """A spec that is refused: everything that is there stays as it is."""
    body = _body(cr, status, saying.said_of(state, available, replicas=0), now)
    return Plan(status=body, events=saying.told(cr, status, state), prune=False)


def _body(cr: Object, status: ServiceStatus, said: Mapping[Kind, Condition], now: datetime) -> Object:
    known = (cr.get("status") or {}).get("conditions") or []
    generation = cr["metadata"]["generation"]
    body = status.model_copy(update={"observedGeneration": generation}).model_dump(
        exclude_none=True, exclude={"conditions"}, mode="json"
    )
    return {**body, "conditions": conditions.render(said, known, generation, now)}
