"""Carries a plan out: status, certificates, waves, prune, deletions, finalizer, annotations, scale, events, in turn.

What is there already as wanted is not written again: each object carries the hash of what was applied. An object that
is not in the cache is created and nothing else, so that nobody's object of the same name is overwritten unseen.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from pydantic_core import from_json, to_json

from mms_operator.api import names
from mms_operator.engine import certificates, events
from mms_operator.engine.cache import controller
from mms_operator.engine.kubeapi import ApiError
from mms_operator.engine.problems import Problem, ReconcileError, with_problem
from mms_operator.engine.resources import BY_KIND, POD, Key
from mms_operator.plan.types import PRUNED_KINDS, Event, Plan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from mms_operator.engine.cache import Cache, Entry
    from mms_operator.engine.kubeapi import KubeApi
    from mms_operator.engine.metrics import Metrics
    from mms_operator.engine.resources import Resource
    from mms_operator.plan.types import Annotation, Deletion, Object

PARALLEL_WRITES = 16
NOT_FOUND, CONFLICT = 404, 409

log = structlog.get_logger()


@dataclass
class Applier:
    """`wake` makes due the keys that a write is news to; `instance` names this replica in events."""

    api: KubeApi
    cache: Cache
    metrics: Metrics
    wake: Callable[[Key], None]
    instance: str = "mms-operator"
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL_WRITES))
    _problems: dict[Key, Problem] = field(default_factory=dict)
    _settled: dict[Key, tuple[str, str]] = field(default_factory=dict)

    async def apply(self, cr: Object, plan: Plan) -> bool:
        """Whether anything was written. Raises ReconcileError with all that failed, once it is in the status."""
        key = Key(cr["kind"], cr["metadata"]["namespace"], cr["metadata"]["name"])
        known = self._problems.get(key)
        written, cr = await self._status(key, cr, plan.status, known)
        problems: list[Problem] = []
        made = await self._certificates(plan, problems)
        for objects in (made, *plan.waves):
            if not problems:
                written |= await self._together((self._object(cr, obj) for obj in objects), problems)
        gone = self._superfluous(key, cr, plan) if not problems else ()
        written |= await self._together(
            (self._delete(*args, key=key) for args in (*gone, *map(_arguments, plan.deletions))), problems
        )
        written |= await self._finalizer(key, cr, plan.finalizer, problems)
        if not problems:
            written |= await self._together((self._annotate(one) for one in plan.annotations), problems)
        if not problems:
            written |= await self._scale(key, cr, plan.scale, problems)
        if known and not problems:
            del self._problems[key]
            rewritten, cr = await self._status(key, cr, plan.status, None)
            written |= rewritten
        for event in plan.events:
            await self.event(cr, event)  # whatever failed since: the transition is in the status, and comes but once
        if problems:
            error = ReconcileError(tuple(problems))
            await self.report(cr, error.problem, plan.status)
            raise error
        return written

    async def report(self, cr: Object, problem: Problem, status: Object | None = None) -> None:
        """Says once that something fails: in the conditions (where a status is given) and as an event."""
        key = Key(cr["kind"], cr["metadata"]["namespace"], cr["metadata"]["name"])
        before = self._problems.get(key)
        if before != problem and status is not None:
            await self._status(key, cr, status, problem)
        self._problems[key] = problem
        if before is None or before.reason != problem.reason:
            await self.event(cr, Event("Warning", problem.reason, problem.message))

    def forget(self, key: Key) -> None:
        """The custom resource is gone."""
        self._problems.pop(key, None)
        self._settled.pop(key, None)

    async def event(self, cr: Object, event: Event) -> None:
        """A lost event is counted and logged; nothing depends on it."""
        metadata = cr["metadata"]
        try:
            body = events.manifest(cr, event, datetime.now(UTC), self.instance)
            await self.api.create(BY_KIND["Event"], metadata["namespace"], body)
        except (ApiError, OSError) as error:
            self.metrics.errors.labels("event").inc()
            log.warning("event not written", key=f"{metadata['namespace']}/{metadata['name']}", error=str(error))

    async def _status(self, key: Key, cr: Object, wanted: Object, problem: Problem | None) -> tuple[bool, Object]:
        """Writes .status if it differs. Gives whether it did, and the custom resource as it is then."""
        present = cr.get("status") or {}
        if problem:
            wanted = with_problem(wanted, present, problem, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        desired = to_json(wanted, exclude_none=True)
        wanted = from_json(desired)
        if _same(wanted, present) or self._settled.get(key) == (_digest(wanted), _digest(present)):
            self.metrics.skipped.labels(key.kind).inc()
            return False, cr
        written = await self.api.write_status(BY_KIND[key.kind], cr, wanted)
        # The watch's event will be no news any more, and what follows this object must hear of it.
        self._wake(self.cache.put(key.kind, written) - {key})
        stored = written.get("status") or {}
        if not _same(wanted, stored):
            # The CRD's defaults or pruning changed it. What came of this status is remembered, or it would be written
            # for ever.
            self._settled[key] = (_digest(wanted), _digest(stored))
            log.warning("status is stored differently", key=str(key), wanted=wanted, stored=stored)
        return True, written

    async def _finalizer(self, key: Key, cr: Object, wanted: bool | None, problems: list[Problem]) -> bool:
        """Sets or removes ours, and no other. Whether it did."""
        present = cr["metadata"].get("finalizers") or []
        if wanted is None or wanted == (names.FINALIZER in present):
            return False
        finalizers = [one for one in present if one != names.FINALIZER] + ([names.FINALIZER] if wanted else [])
        try:
            written = await self.api.set_finalizers(BY_KIND[key.kind], cr, finalizers)
        except ApiError as error:
            # A newer one comes by the watch, and is looked at again; one that is gone needs none.
            if error.status not in (CONFLICT, NOT_FOUND):
                problems.append(Problem("FinalizerNotWritten", f"the finalizer was refused: {error.message}"))
            return False
        self._wake(self.cache.put(key.kind, written) - {key})
        return True

    async def _scale(self, key: Key, cr: Object, wanted: int | None, problems: list[Problem]) -> bool:
        """Sets spec.replicas. Whether it did."""
        if wanted is None:
            return False
        metadata, resource = cr["metadata"], BY_KIND[key.kind]
        try:
            await self.api.scale(resource, cr, wanted)
            # The next plan must see it, or it would scale once more.
            written = await self.api.get(resource, metadata["namespace"], metadata["name"])
        except ApiError as error:
            if error.status not in (CONFLICT, NOT_FOUND):
                problems.append(Problem("ScaleRefused", f"spec.replicas could not be set: {error.message}"))
            return False
        self._wake(self.cache.put(key.kind, written))
        return True

    def _wake(self, concerned: Iterable[Key]) -> None:
        for key in concerned:
            self.wake(key)

    async def _certificates(self, plan: Plan, problems: list[Problem]) -> tuple[Object, ...]:
        """The Secrets, with keys made in a thread."""
        if plan.certificates is None:
            return ()
        try:
            return await asyncio.to_thread(certificates.secrets, plan.certificates, datetime.now(UTC))
        except ValueError as error:
            problems.append(Problem("CertificatesFailed", f"the job's certificates could not be made: {error}"))
            return ()

    async def _together(self, works: Iterable[Awaitable[bool]], problems: list[Problem]) -> bool:
        """Runs side by side. Whether any wrote; what failed is added to `problems`."""
        results = await asyncio.gather(*works, return_exceptions=True)
        for result in results:
            if isinstance(result, ReconcileError):
                problems.append(result.problem)
            elif isinstance(result, BaseException):
                raise result
        return any(result is True for result in results)

    async def _object(self, cr: Object, planned: Object) -> bool:
        """Makes one object be as planned. Whether it was written."""
        obj = owned(cr, planned)
        resource = BY_KIND[obj["kind"]]
        entry = self.cache.entry(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])
        if entry and entry.owner_uid != cr["metadata"]["uid"]:
            entry = await self._verify(cr, resource, obj)
        if entry and (resource == POD or (entry.hash == hash_of(obj) and self.cache.is_as_planned(entry, obj))):
            self.metrics.skipped.labels(resource.kind).inc()
            return False
        async with self._slots:
            try:
                await self._write(resource, obj, entry.uid if entry else None)
            except ApiError as error:
                if error.namespace_ends:
                    return False
                if error.status not in (CONFLICT, NOT_FOUND):
                    raise ReconcileError((_problem(resource, obj, error),)) from error
            else:
                return True
            # It is there already although the cache has none, or it went although the cache has one.
            entry = await self._verify(cr, resource, obj)
            if resource == POD and entry:
                return False
            try:
                await self._write(resource, obj, entry.uid if entry else None)
            except ApiError as again:
                if again.namespace_ends:
                    return False
                raise ReconcileError((_problem(resource, obj, again),)) from again
            return True

    async def _write(self, resource: Resource, obj: Object, uid: str | None) -> None:
        if resource == POD:
            answer = await self.api.create(resource, obj["metadata"]["namespace"], obj)
        else:
            answer = await self.api.apply(resource, obj, uid)
        self.cache.put(resource.kind, answer, applied=True)

    async def _verify(self, cr: Object, resource: Resource, obj: Object) -> Entry | None:
        """Looks at what really has the name. None if nothing has. Raises ReconcileError if it is not ours."""
        metadata, began = obj["metadata"], self.cache.deletions
        try:
            live = await self.api.get(
                resource, metadata["namespace"], metadata["name"], metadata=resource.metadata_only
            )
        except ApiError as error:
            if error.status == NOT_FOUND:
                key = Key(cr["kind"], cr["metadata"]["namespace"], cr["metadata"]["name"])
                self._wake(self.cache.remove(resource.kind, metadata["namespace"], metadata["name"]) - {key})
                return None
            raise ReconcileError((_problem(resource, obj, error),)) from error
        owner = controller(live["metadata"])
        if owner is None or owner["uid"] != cr["metadata"]["uid"]:
            raise ReconcileError((_foreign(cr, resource, metadata["name"], owner),))
        self.cache.put(resource.kind, live, began=began)
        return self.cache.entry(resource.kind, metadata["namespace"], metadata["name"])

    def _superfluous(self, key: Key, cr: Object, plan: Plan) -> Iterable[tuple[Resource, str, str, str, int | None]]:
        """What is there of the owner, and in no wave."""
        if not plan.prune:
            return ()
        planned = {(obj["kind"], obj["metadata"]["name"]) for wave in plan.waves for obj in wave}
        return [
            (BY_KIND[entry.kind], entry.namespace, entry.name, entry.uid, None)
            for entry in self.cache.children(key)
            if entry.kind in PRUNED_KINDS
            and entry.owner_uid == cr["metadata"]["uid"]
            and not entry.deleting
            and (entry.kind, entry.name) not in planned | plan.kept
        ]

    async def _annotate(self, wanted: Annotation) -> bool:
        async with self._slots:
            try:
                answer = await self.api.annotate(POD, wanted.namespace, wanted.name, wanted.uid, wanted.values)
            except ApiError as error:
                if error.status in (NOT_FOUND, CONFLICT):  # it has gone: the watch tells
                    return False
                raise ReconcileError((_problem(POD, {"metadata": {"name": wanted.name}}, error),)) from error
        self._wake(self.cache.put(POD.kind, answer))
        return True

    async def _delete(
        self, resource: Resource, namespace: str, name: str, uid: str, grace: int | None, *, key: Key
    ) -> bool:
        """Whether that changed anything. What waits for the object to go hears of it: the watch has no news then."""
        async with self._slots:
            try:
                answer = await self.api.delete(resource, namespace, name, uid, grace)
            except ApiError as error:
                if error.status not in (NOT_FOUND, CONFLICT):
                    problem = Problem(
                        "DeleteFailed", f"{resource.kind} {name} could not be deleted: {error.message} ({error.reason})"
                    )
                    raise ReconcileError((problem,)) from error
                concerned = self.cache.remove(resource.kind, namespace, name, uid)
                self._wake(concerned - {key})
                return bool(concerned)
        if "deletionTimestamp" in answer.get("metadata", {}):
            concerned = self.cache.put(resource.kind, answer)
        else:
            concerned = self.cache.remove(resource.kind, namespace, name, uid)
        self._wake(concerned - {key})
        return True


def owned(cr: Object, planned: Object) -> Object:
    """The object as it is written: with its namespace, its owner and the hash of all that."""
    metadata = cr["metadata"]
    reference = {
        "apiVersion": cr["apiVersion"],
        "kind": cr["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    own = {"namespace": metadata["namespace"], **planned["metadata"], "ownerReferences": [reference]}
    digest = _digest({**planned, "metadata": own})
    own["annotations"] = {**(planned["metadata"].get("annotations") or {}), names.ANNOTATION_HASH: digest}
    return {**planned, "metadata": own}


def hash_of(obj: Object) -> str:
    value: str = obj["metadata"]["annotations"][names.ANNOTATION_HASH]
    return value


def _arguments(deletion: Deletion) -> tuple[Resource, str, str, str, int | None]:
    return BY_KIND[deletion.kind], deletion.namespace, deletion.name, deletion.uid, deletion.grace_seconds


def _foreign(cr: Object, resource: Resource, name: str, owner: Object | None) -> Problem:
    """An object of the wanted name that is not ours: somebody's, or of the one that had our name before."""
    if owner and (owner["kind"], owner["name"]) == (cr["kind"], cr["metadata"]["name"]):
        return Problem(
            "WaitingForDeletion",
            f"{resource.kind} {name} is of the deleted {cr['kind']} of the same name: it is waited for until the "
            "cluster has collected it",
        )
    whose = f"{owner['kind']} {owner['name']} ({owner['uid']})" if owner else "nobody that it names"
    return Problem(
        "NameTaken",
        f"{resource.kind} {name} belongs to {whose} and is left as it is: delete or rename it, or give this "
        f"{cr['kind']} another name",
    )


def _problem(resource: Resource, obj: Object, error: ApiError) -> Problem:
    return Problem(
        "ApplyFailed",
        f"the API server refused {resource.kind} {obj['metadata']['name']}: {error.message} ({error.reason})",
    )


def _same(one: Object, other: Object) -> bool:
    return _canonical(one) == _canonical(other)


def _canonical(value: object) -> object:
    """Without nulls and empty collections: the API server may leave them out or fill them in."""
    if isinstance(value, dict):
        items = {key: _canonical(inner) for key, inner in value.items()}
        return {key: inner for key, inner in items.items() if inner is not None and inner not in ({}, [])}
    if isinstance(value, list | tuple):
        return [_canonical(inner) for inner in value]
    return value


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
