"""From a key to a state that is as its custom resource says: gather what is observed, plan, apply."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from mms_operator.api import names
from mms_operator.engine.certificates import secret_names
from mms_operator.engine.kubeapi import ApiError
from mms_operator.engine.problems import MESSAGE_LIMIT, Problem, ReconcileError
from mms_operator.engine.resources import BY_KIND, SECRET, Key
from mms_operator.plan.training import roles
from mms_operator.plan.training.pretrained import reference
from mms_operator.plan.types import ObservedService, ObservedTraining, Plan, ReferencedSecret, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mms_operator.engine.activators import Activators
    from mms_operator.engine.agents import Agents
    from mms_operator.engine.apply import Applier
    from mms_operator.engine.cache import Cache
    from mms_operator.engine.kubeapi import KubeApi
    from mms_operator.engine.metrics import Metrics
    from mms_operator.engine.polls import Polls
    from mms_operator.engine.queue import WorkQueue
    from mms_operator.plan.scaling.memory import ScalingMemory
    from mms_operator.plan.types import Object

SECRET_SECONDS = 10.0  # how long the names of a Secret's keys are believed
SETTLE_SECONDS = 0.5  # after a write, look again at what came of it
NOT_FOUND, CONFLICT = 404, 409

log = structlog.get_logger()


@dataclass(frozen=True)
class Planner:
    """The decisions about one kind. `references` names the Secrets that a spec refers to."""

    plan: Callable[[Object, Any, Settings, datetime], Plan]
    references: Callable[[Object], frozenset[str]]


@dataclass
class Reconciler:
    api: KubeApi
    cache: Cache
    queue: WorkQueue[Key]
    applier: Applier
    polls: Polls
    agents: Agents
    activators: Activators
    planners: Mapping[str, Planner]
    settings: Settings
    metrics: Metrics
    _scaling: dict[Key, ScalingMemory] = field(default_factory=dict)
    _secrets: dict[tuple[str, str], tuple[float, frozenset[str] | None]] = field(default_factory=dict)

    async def work(self, key: Key) -> None:
        """Reconciles a key; whatever fails is logged, counted, shown on the object and tried again. Raises nothing."""
        began = time.monotonic()
        try:
            result = await self._reconcile(key)
            self.queue.forget(key)
        except Exception as error:  # noqa: BLE001 - one object's trouble must not end the others' work
            result = "error"
            await self._failed(key, error)
        self.metrics.reconciles.labels(key.kind, result).inc()
        self.metrics.duration.labels(key.kind).observe(time.monotonic() - began)

    async def _reconcile(self, key: Key) -> str:
        cr = self.cache.get(key)
        if cr is None or _goes(cr["metadata"]):
            self.polls.drop(key)
            self.agents.drop(key)
            self.activators.drop(key)
            self._scaling.pop(key, None)
            self.metrics.observe_service(key, None)
            self.applier.forget(key)
            return "gone"
        planner = self.planners[key.kind]
        observed = await self._gather(key, cr, planner)
        plan = planner.plan(cr, observed, self.settings, datetime.now(UTC))
        self._remember(key, cr, plan)
        try:
            written = await self.applier.apply(cr, plan)
        except ApiError as error:
            return await self._overtaken(key, error)
        self.polls.follow(key, cr, plan)
        self.agents.follow(key, plan)
        if plan.requeue_after is not None:
            self.queue.add_after(key, plan.requeue_after)
        if written:
            self.queue.add_after(key, SETTLE_SECONDS)
        return "applied" if written else "unchanged"

    def _remember(self, key: Key, cr: Object, plan: Plan) -> None:
        """Whatever becomes of the plan: requests that it has counted are counted."""
        if plan.scaling is None:
            self._scaling.pop(key, None)
        else:
            self._scaling[key] = plan.scaling
        if key.kind == names.SERVICE:
            self.activators.follow(key, cr)
            self.metrics.observe_service(key, plan.status.get("autoscaling"))

    async def _overtaken(self, key: Key, error: ApiError) -> str:
        """The status could not be written. A newer or a deleted custom resource is no failure: look at it again."""
        if error.status == NOT_FOUND:
            self._wake(self.cache.remove(*key))
            return "gone"
        if error.status != CONFLICT:
            raise ReconcileError((Problem("StatusNotWritten", f"the status was refused: {error.message}"),)) from error
        try:
            self._wake(self.cache.put(key.kind, await self.api.get(BY_KIND[key.kind], key.namespace, key.name)))
        except ApiError as gone:
            if gone.status != NOT_FOUND:
                raise
            self._wake(self.cache.remove(*key))
        self.queue.add(key)
        return "overtaken"

    def _wake(self, concerned: Iterable[Key]) -> None:
        for key in concerned:
            self.queue.add(key)

    async def _gather(self, key: Key, cr: Object, planner: Planner) -> ObservedTraining | ObservedService:
        secrets = {name: await self._secret(key.namespace, name) for name in sorted(planner.references(cr))}
        if key.kind == names.SERVICE:
            return self._gather_service(key, cr, secrets)
        uid, start = cr["metadata"]["uid"], reference(cr)
        children = [entry for entry in self.cache.children(key) if entry.owner_uid == uid]
        return ObservedTraining(
            pods=tuple(entry.object() for entry in children if entry.kind == "Pod"),
            # A training that began when nobody could follow one has none for those who do: it goes on without.
            certificates_expire=self._certificates_expire(
                key, uid, [one for one in roles(cr) if one != names.Role.READER]
            ),
            secrets=secrets,
            report=self.polls.report(key, cr),
            confirmed=self.polls.confirmed(key, cr),
            master_error=self.polls.error(key, cr),
            master_silence=self.polls.silence(key, cr),
            pretrained=self.cache.get(Key(names.TRAINING, key.namespace, start)) if start else None,
            storage_owner=self.cache.storage_owner(key),
            served=self.cache.artifacts(key.namespace),
        )

    def _gather_service(self, key: Key, cr: Object, secrets: dict[str, ReferencedSecret]) -> ObservedService:
        children = self.cache.children(key)
        own = (entry for entry in children if entry.kind == "Deployment" and entry.owner_uid == cr["metadata"]["uid"])
        name = (cr["spec"].get("model", {}).get("trainingRef") or {}).get("name")
        return ObservedService(
            training=self.cache.get(Key(names.TRAINING, key.namespace, name)) if name else None,
            deployments=tuple(entry.object() for entry in own if not entry.deleting),
            pods=tuple(entry.object() for entry in children if entry.kind == "Pod"),
            secrets=secrets,
            agents=self.agents.reports(key),
            interval=self.agents.interval(key),
            scaling=self._scaling.get(key),
            activator=self.activators.held(key, cr),
        )

    def _certificates_expire(self, key: Key, uid: str, roles: Iterable[str]) -> datetime | None:
        """The first expiry among the Secrets of the job's certificates; None when one is missing or does not say."""
        times = []
        for name in secret_names(key.name, tuple(roles)):
            entry = self.cache.entry(SECRET.kind, key.namespace, name)
            ends = _moment(entry.expires) if entry is not None and entry.owner_uid == uid else None
            if ends is None:
                return None
            times.append(ends)
        return min(times)

    async def _secret(self, namespace: str, name: str) -> ReferencedSecret:
        """The names of a Secret's keys, from the API server; its values are dropped here."""
        now = time.monotonic()
        seen, keys = self._secrets.get((namespace, name), (-SECRET_SECONDS, None))
        if now - seen >= SECRET_SECONDS:
            try:
                keys = frozenset((await self.api.get(SECRET, namespace, name)).get("data") or {})
            except ApiError as error:
                if error.status != NOT_FOUND:
                    raise
                keys = None
            if len(self._secrets) > 1000:  # noqa: PLR2004 - a bound, not a policy
                self._secrets = {place: said for place, said in self._secrets.items() if now - said[0] < SECRET_SECONDS}
            self._secrets[namespace, name] = (now, keys)
        return ReferencedSecret(name, keys)

    async def _failed(self, key: Key, error: Exception) -> None:
        delay = self.queue.retry(key)
        kind = error.problem.reason if isinstance(error, ReconcileError) else type(error).__name__
        self.metrics.errors.labels(kind).inc()
        expected = isinstance(error, ReconcileError | ApiError | OSError)
        log.error("reconcile failed", key=str(key), reason=kind, error=str(error), retry=delay, exc_info=not expected)
        cr = self.cache.get(key)
        if cr is None or isinstance(error, OSError):
            return
        status = None  # what failed while a plan was applied is in it already
        if isinstance(error, ReconcileError):
            problem = error.problem
        else:
            problem, status = Problem("ReconcileFailed", str(error)[:MESSAGE_LIMIT]), cr.get("status") or {}
        try:
            await self.applier.report(cr, problem, status)
        except (ApiError, OSError) as unsaid:
            log.warning("failure not shown", key=str(key), error=str(unsaid))


def _goes(metadata: Object) -> bool:
    """Whether it is being deleted, and not held by us."""
    return "deletionTimestamp" in metadata and names.FINALIZER not in (metadata.get("finalizers") or ())


def _moment(said: str | None) -> datetime | None:
    """None where an annotation that anybody may have edited says none, or not of which zone."""
    try:
        found = datetime.fromisoformat(said or "")
    except ValueError:
        return None
    return found if found.tzinfo else None
