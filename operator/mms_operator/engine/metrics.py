"""What the operator tells Prometheus. One registry a process, so that tests can have their own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_operator.engine.kubeapi import Call
    from mms_operator.engine.queue import WorkQueue
    from mms_operator.engine.resources import Key

_WRITES = frozenset({"create", "update", "patch", "delete"})


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.reconciles = Counter(
            "mms_reconciles", "Reconciliations that ended.", ("kind", "result"), registry=self.registry
        )
        self.duration = Histogram(
            "mms_reconcile_seconds",
            "Time of a reconciliation.",
            ("kind",),
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10),
            registry=self.registry,
        )
        self.calls = Counter(
            "mms_api_calls", "Calls of the API server.", ("verb", "resource", "status"), registry=self.registry
        )
        self.writes = Counter(
            "mms_api_writes", "Writes to the API server.", ("verb", "resource"), registry=self.registry
        )
        self.skipped = Counter(
            "mms_writes_skipped", "Objects and statuses that were as wanted already.", ("kind",), registry=self.registry
        )
        self.errors = Counter("mms_errors", "Failures, by what failed.", ("what",), registry=self.registry)
        self.polls = Counter("mms_polls", "Calls of trainings' masters.", ("result",), registry=self.registry)
        self.swept = Counter("mms_swept", "Objects that the sweeper found missed or gone.", registry=self.registry)
        self.leader = Gauge("mms_leader", "1 while this replica holds the Lease.", registry=self.registry)
        self.unreadable = Gauge(
            "mms_namespaces_unreadable", "Namespaces of the scope that may not be read.", registry=self.registry
        )
        self.cached = Gauge("mms_cached_objects", "Objects in the cache.", registry=self.registry)
        labels = ("namespace", "name")
        self._services = {
            field: Gauge(f"mms_service_{name}", text, labels, registry=self.registry)
            for field, name, text in (
                ("requestsPerSecond", "requests_per_second", "Requests that come to a service, over a minute."),
                ("latencyP99Milliseconds", "latency_p99_milliseconds", "Of a service, in Triton, over a minute."),
                ("replicas", "replicas_wanted", "Replicas that a service's objective takes."),
            )
        }
        self._depth = Gauge("mms_queue_depth", "Keys that are ready.", registry=self.registry)
        self._age = Gauge(
            "mms_queue_oldest_seconds", "How long the first ready key has waited.", registry=self.registry
        )

    def observe_queue(self, queue: WorkQueue[Key]) -> None:
        self._depth.set_function(lambda: queue.depth)
        self._age.set_function(lambda: queue.oldest)

    def observe_service(self, key: Key, scaling: Mapping[str, Any] | None) -> None:
        """What its status says; without one there is nothing to be told."""
        for field, gauge in self._services.items():
            value = (scaling or {}).get(field)
            if value is not None:
                gauge.labels(key.namespace, key.name).set(float(value))
            else:
                with contextlib.suppress(KeyError):
                    gauge.remove(key.namespace, key.name)

    def observe_call(self, call: Call, status: int) -> None:
        if call.verb in _WRITES:
            self.writes.labels(call.verb, call.resource).inc()
        self.calls.labels(call.verb, call.resource, str(status)).inc()
