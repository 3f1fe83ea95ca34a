"""The operator in a thread, and the API server's namespace that it works in as a user sees it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from mms_operator import main, rbac
from mms_operator.api import names
from mms_operator.engine import health, kubeapi
from mms_operator.engine.metrics import Metrics
from mms_operator.engine.resources import BY_KIND, WATCHED
from mms_operator.plan.types import Images, Settings
from tests.trivial import PLANNERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mms_cluster.apionly import ApiOnly
    from mms_operator.engine.kubeapi import Call
    from mms_operator.engine.reconcile import Planner

Object = dict[str, Any]
ROOT = Path(__file__).parents[2]
SECONDS = 30.0
QUIET = 0.4  # without work for so long, nothing is on its way from the API server
SOON = 5.0  # the operator's second looks at what it wrote, and its tries after failures, come sooner
LEFT_SECONDS = 2.0  # tasks of kopf that have not ended by then never do
WRITES = {"create", "update", "patch", "delete"}
MERGE = "application/merge-patch+json"


def until(true: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """What `true` gives once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.03)
    return found


@dataclass
class Cluster:
    """One namespace of the API server, as a user sees it."""

    server: ApiOnly
    namespace: str

    def path(self, kind: str, name: str = "", subresource: str = "") -> str:
        return BY_KIND[kind].path(self.namespace, name or None, subresource or None)

    def get(self, kind: str, name: str) -> Object | None:
        return self.server.api.get(self.path(kind, name))

    def there(self, kind: str, name: str, but: str = "") -> Object:
        """The object, once it is there; `but` is the uid of one that does not count."""

        def found() -> Object | None:
            obj = self.get(kind, name)
            return obj if obj and obj["metadata"]["uid"] != but else None

        obj: Object = until(found, f"{kind} {name}")
        return obj

    def status(self, kind: str, name: str) -> Object:
        """Empty where there is none."""
        status: Object = (self.get(kind, name) or {}).get("status") or {}
        return status

    def items(self, kind: str) -> list[Object]:
        found = self.server.api.get(self.path(kind))
        assert found
        items: list[Object] = found["items"]
        return items

    def create(self, obj: Object) -> Object:
        return self._ok("POST", self.path(obj["kind"]), obj)

    def patch(self, kind: str, name: str, change: Object, subresource: str = "") -> Object:
        return self._ok("PATCH", self.path(kind, name, subresource), change, MERGE)

    def delete(self, kind: str, name: str) -> None:
        self._ok("DELETE", self.path(kind, name))

    def train(self, name: str = "words", **metadata: Any) -> Object:
        return self.create(
            {
                "apiVersion": names.API_VERSION,
                "kind": names.TRAINING,
                "metadata": {"name": name, **metadata},
                "spec": {"task": {"wordEmbedding": {}}, "data": {"uri": "s3://corpora/text/*.txt"}},
            }
        )

    def serve(self, name: str, training: str) -> Object:
        return self.create(
            {
                "apiVersion": names.API_VERSION,
                "kind": names.SERVICE,
                "metadata": {"name": name},
                "spec": {"model": {"trainingRef": {"name": training}}},
            }
        )

    def conditions(self, name: str = "words", kind: str = names.TRAINING) -> dict[str, str]:
        """Reasons by type."""
        return {each["type"]: each["reason"] for each in self.status(kind, name).get("conditions") or ()}

    def event_reasons(self, name: str = "words") -> list[str]:
        return [event["reason"] for event in self.items("Event") if event["regarding"]["name"] == name]

    def holder(self) -> str | None:
        lease = self.get("Lease", names.LEASE_NAME)
        return lease["spec"].get("holderIdentity") if lease else None

    def _ok(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Object:
        status, answer = self.server.api.request(method, path, body, kind)
        assert status in (200, 201, 202), answer
        found: Object = json.loads(answer)
        return found


@dataclass
class Replica:
    """An operator in a thread. `calls` are all that it made; they are within the rules, or the test fails."""

    cluster: Cluster
    namespaces: tuple[str, ...]
    planners: Mapping[str, Planner] = field(default_factory=lambda: PLANNERS)
    url: str = ""  # of the API server, if another way leads to it
    calls: list[tuple[Call, int]] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.health = health.Health(self.metrics)
        self._loop = asyncio.new_event_loop()
        self._work: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="operator")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert not beyond_the_rules([call for call, _ in self.calls])

    def stop(self) -> None:
        if self._work:
            with contextlib.suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._work.cancel)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "the operator does not stop"

    def leads(self) -> Self:
        """Waits until it leads, and all its watches are there."""
        until(lambda: self.health.synced, "leadership")
        wanted = {(resource.group, resource.plural) for resource in WATCHED}
        until(lambda: wanted <= self.watching(), "the watches")
        return self

    def watching(self) -> set[tuple[str, str]]:
        return {
            (call.group, call.resource) for call, status in list(self.calls) if (call.verb, status) == ("watch", 200)
        }

    def writes(self) -> int:
        return sum(call.verb in WRITES and call.resource != "leases" for call, _ in list(self.calls))

    def settled(self) -> int:
        """Waits until there has been nothing to do for a while; gives the number of writes then."""
        since = time.monotonic()
        deadline = since + SECONDS
        while time.monotonic() - since < QUIET:
            assert time.monotonic() < deadline, "it works on and on"
            time.sleep(0.02)
            if self._busy():
                since = time.monotonic()
        return self.writes()

    def _busy(self) -> bool:
        queue = self.health.queue
        assert queue
        soon = any(due < time.monotonic() + SOON for due in list(queue._due.values()))
        return bool(soon or queue.depth or queue._running)

    def observe(self, call: Call, status: int) -> None:
        self.calls.append((call, status))

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def _run(self) -> None:
        """As `main.run_and_exit`: when the operator has ended, the process goes, whatever kopf has left behind."""
        asyncio.set_event_loop(self._loop)
        with contextlib.suppress(asyncio.CancelledError, SystemExit):
            self._loop.run_until_complete(self._operate())
        if left := asyncio.all_tasks(self._loop):
            for task in left:
                task.cancel()
            # kopf, when it is stopped, cancels all tasks of the loop: this one too.
            with contextlib.suppress(asyncio.CancelledError, SystemExit):
                self._loop.run_until_complete(asyncio.wait(left, timeout=LEFT_SECONDS))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _operate(self) -> None:
        configuration = await kubeapi.load_configuration()
        configuration.host = self.url or configuration.host
        replica = self

        class Recorded(main.Operator):
            def observe(self, call: Call, status: int) -> None:
                super().observe(call, status)
                replica.observe(call, status)

        operator = Recorded(
            settings=Settings(Images("worker:1", "server:1"), operator_namespace=self.cluster.namespace),
            namespaces=self.namespaces,
            configuration=configuration,
            metrics=self.metrics,
            health=self.health,
            planners=self.planners,
            started=lambda: None,
        )
        self._work = asyncio.ensure_future(operator.run())
        await self._work


def beyond_the_rules(calls: list[Call]) -> set[Call]:
    allowed = {
        (group, resource, verb)
        for rule in rbac.rules()
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    return {call for call in calls if (call.group, call.resource, call.verb) not in allowed}


def install(server: ApiOnly) -> None:
    for file in sorted((ROOT / "crds").glob("*.yaml")):
        crd = yaml.safe_load(file.read_text(encoding="utf-8"))
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
        assert server.api.apply(path, crd) == ""
    for kind in (names.TRAINING, names.SERVICE):
        until(lambda kind=kind: server.api.get(BY_KIND[kind].path()), f"{kind} is served")
