"""What the activator knows from the API server's objects."""

from __future__ import annotations

from typing import Any

from mms_operator.activator.table import Table


def service(name: str, port: int | None, mode: str = "Objective", namespace: str = "a") -> dict[str, Any]:
    return {
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"autoscaling": {"mode": mode}},
        "status": {"autoscaling": {"activatorPort": port}},
    }


def part(name: str, of: str, *addresses: str, ready: bool | None = True, by: str = "k8s") -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "a",
            "name": name,
            "labels": {"kubernetes.io/service-name": of, "endpointslice.kubernetes.io/managed-by": by},
        },
        "endpoints": [{"addresses": [one], "conditions": {"ready": ready}} for one in addresses],
        "ports": [{"name": "http", "port": 8000}, {"name": "grpc", "port": 8001}, {"name": "metrics", "port": 8002}],
    }


def test_services_that_are_scaled_have_a_port() -> None:
    table = Table()
    for one in (service("x", 20_000), service("y", None), service("z", 20_002, mode="Off")):
        table.put_service(one)
    assert table.ports == {"a/x": 20_000}
    table.put_service(service("x", 20_000, mode="Off"))
    assert table.ports == {}


def test_pods_are_those_that_are_ready() -> None:
    table = Table()
    assert table.put_slice(part("x-1", "x", "10.0.0.1", "10.0.0.2")) == {"a/x"}
    table.put_slice(part("x-2", "x", "10.0.0.3", ready=None))  # unknown is ready, says the API
    table.put_slice(part("x-3", "x", "10.0.0.4", ready=False))
    table.put_slice(part("y-1", "y", "10.0.0.5"))
    assert table.backends("a/x", "grpc") == [("10.0.0.1", 8001), ("10.0.0.2", 8001), ("10.0.0.3", 8001)]
    assert table.remove_slice(part("x-1", "x")) == {"a/x"}
    assert table.remove_slice(part("x-1", "x")) == set()
    assert table.backends("a/x", "http") == [("10.0.0.3", 8000)]


def test_whom_to_ask_is_who_may_become_ready() -> None:
    table = Table()
    asked = part("x-1", "x", "10.0.0.1", "10.0.0.2", ready=False)
    asked["metadata"]["labels"] |= {"mms.dev/agent": "8081"}
    asked["endpoints"][1]["conditions"]["terminating"] = True
    table.put_slice(asked)
    table.put_slice(part("x-2", "x", "10.0.0.3", ready=False))  # more than its agent makes it ready
    assert table.agents("a/x") == [("10.0.0.1", 8081)]
    assert table.backends("a/x", "grpc", {"10.0.0.1", "10.0.0.2"}) == [("10.0.0.1", 8001)]
    assert table.backends("a/x", "grpc") == []
    assert table.agents("a/y") == []


def test_the_activators_themselves_are_no_pods() -> None:
    table = Table()
    table.put_slice(part("x-activator", "x", "10.0.0.9", by="activator.mms.dev"))
    assert table.backends("a/x", "http") == []


def test_what_a_list_does_not_have_is_gone_where_it_was_read() -> None:
    table = Table()
    table.put_service(service("x", 20_000))
    table.put_service(service("y", 20_002, namespace="b"))
    table.forget_services("a", set())
    assert table.ports == {"b/y": 20_002}
    table.forget_services("", set())
    assert table.ports == {}
