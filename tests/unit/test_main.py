"""The operator's settings, and what its process says when they are wrong."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from mms_cluster.ports import free_ports
from mms_operator import main, rbac
from mms_operator.engine import health, lease
from mms_operator.engine.resources import WATCHED
from mms_operator.plan.types import DefaultStore, Images, PodPolicy, Settings
from tests.trivial import PLANNERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUIRED = {"MMS_WORKER_IMAGE": "worker:1", "MMS_SERVER_IMAGE": "server:1"}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(main.os.environ):
        if name.startswith("MMS_"):
            monkeypatch.delenv(name)
    root = logging.getLogger()
    level, handlers = root.level, root.handlers
    yield
    structlog.reset_defaults()
    root.handlers = handlers
    root.setLevel(level)


def environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in {**REQUIRED, **variables}.items():
        monkeypatch.setenv(name, value)


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    environment(monkeypatch, **variables)
    return main.Environment().settings()


def test_the_least_that_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(main, "SERVICE_ACCOUNT_NAMESPACE", tmp_path / "none")
    assert settings(monkeypatch) == Settings(Images("worker:1", "server:1"))
    found = main.Environment()
    assert (found.namespaces, found.health_port, found.log_level) == ((), 8081, "INFO")
    assert found.lease_name == "mms-operator"
    environment(monkeypatch, MMS_LEASE_NAME="b-operator")
    assert main.Environment().lease_name == main.Scope().lease_name == "b-operator"


def test_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("id\n")
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("secret\n")
    found = settings(
        monkeypatch,
        MMS_IMAGE_PULL_POLICY="Always",
        MMS_IMAGE_PULL_SECRETS="one, two,",
        MMS_LEASE_NAMESPACE="here",
        MMS_CLUSTER_DOMAIN="example.org",
        MMS_STORE_URI="s3://mms/",
        MMS_STORE_ENDPOINT="http://store:8333",
        MMS_STORE_REGION="eu",
        MMS_STORE_CREDENTIALS_DIR=str(tmp_path),
        MMS_POLICY='{"allowHostPath": true, "serviceAccounts": ["a"], "volumeKinds": ["emptyDir"]}',
    )
    assert found == Settings(
        images=Images("worker:1", "server:1", "Always", ("one", "two")),
        default_store=DefaultStore("s3://mms", "http://store:8333", "eu", "id", "secret"),
        policy=PodPolicy(allow_host_path=True, service_accounts=("a",), volume_kinds=("emptyDir",)),
        operator_namespace="here",
        cluster_domain="example.org",
    )


def test_a_store_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(monkeypatch, MMS_STORE_URI="file:///x").default_store == DefaultStore(
        "file:///x", None, None, "", ""
    )


@pytest.mark.parametrize(("text", "names"), [("", ()), ("a", ("a",)), (" a , b,", ("a", "b"))])
def test_names_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, text: str, names: tuple[str, ...]) -> None:
    environment(monkeypatch, MMS_NAMESPACES=text)
    assert main.Environment().namespaces == names


@pytest.mark.parametrize("set_", [True, False], ids=["set", "the pod's own"])
def test_the_leases_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, set_: bool) -> None:
    file = tmp_path / "namespace"
    file.write_text("pods-own\n")
    monkeypatch.setattr(main, "SERVICE_ACCOUNT_NAMESPACE", file)
    found = settings(monkeypatch, **({"MMS_LEASE_NAMESPACE": "set"} if set_ else {}))
    assert found.operator_namespace == ("set" if set_ else "pods-own")


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        pytest.param({"MMS_WORKER_IMAGE": ""}, "MMS_WORKER_IMAGE", id="missing"),
        pytest.param({"MMS_HEALTH_PORT": "99999"}, "MMS_HEALTH_PORT", id="out of range"),
        pytest.param({"MMS_LOG_LEVEL": "LOUD"}, "MMS_LOG_LEVEL", id="no such level"),
        pytest.param({"MMS_IMAGE_PULL_POLICY": "always"}, "MMS_IMAGE_PULL_POLICY", id="no such policy"),
        pytest.param({"MMS_POLICY": '{"allowAll": true}'}, "MMS_POLICY", id="unknown field"),
        pytest.param({"MMS_POLICY": '{"allowHostPath": "perhaps"}'}, "MMS_POLICY", id="wrong type"),
        pytest.param({"MMS_POLICY": "{no json"}, "policy", id="no JSON"),
    ],
)
def test_bad_settings_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str], named: str
) -> None:
    environment(monkeypatch, **variables)
    assert main.main() == main.EXIT_CONFIGURATION
    (line,) = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert line["event"] == "bad setting"
    assert line.get("variable", named) == named
    assert named in json.dumps(line)


@pytest.mark.parametrize("trouble", ["no credentials", "no kubeconfig", "port taken"])
async def test_what_keeps_it_from_starting_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trouble: str
) -> None:
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": {"server": "https://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    (port,) = free_ports(1)
    variables = {"MMS_HEALTH_PORT": str(port)}
    if trouble == "no credentials":
        variables |= {"MMS_STORE_URI": "s3://x", "MMS_STORE_CREDENTIALS_DIR": str(tmp_path / "none")}
    environment(
        monkeypatch, KUBECONFIG=str(tmp_path / "none" if trouble == "no kubeconfig" else kubeconfig), **variables
    )
    taken = await health.serve(health.Health(main.Metrics()), port) if trouble == "port taken" else None
    said: list[Any] = []
    monkeypatch.setattr(main.log, "error", lambda event, **more: said.append((event, more)), raising=False)
    try:
        assert await main.run(main.Environment(), PLANNERS) == main.EXIT_CONFIGURATION
    finally:
        if taken:
            await taken.cleanup()
    ((event, more),) = said
    assert event == "cannot start"
    assert more["error"]


@pytest.mark.parametrize("error", [lease.LeaseLostError("taken"), ValueError("a fault of ours")])
async def test_whatever_ends_the_renewals_ends_the_process(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A leader that no longer renews, and goes on, would be one of two."""
    statuses: list[int] = []
    monkeypatch.setattr(main.os, "_exit", statuses.append)

    class Lease:
        async def hold(self) -> None:
            raise error

    await main._hold(Lease())  # type: ignore[arg-type]
    assert statuses == [main.EXIT_LEASE_LOST]


def test_all_that_is_watched_may_be_read() -> None:
    allowed = {
        (group, resource, verb)
        for rule in rbac.RULES
        for group in rule.groups
        for resource in rule.resources
        for verb in rule.verbs
    }
    for resource in WATCHED:
        assert {(resource.group, resource.plural, verb) for verb in ("get", "list", "watch")} <= allowed


def test_the_activator_lists_and_watches_and_no_more() -> None:
    assert {verb for rule in rbac.ACTIVATOR for verb in rule.verbs} == {"list", "watch"}


def test_no_right_is_given_without_need() -> None:
    rules = rbac.rules()
    verbs = {verb for rule in rules for verb in rule["verbs"]}
    names = {name for rule in rules for key in ("apiGroups", "resources") for name in rule[key]}
    assert "*" not in verbs | names
    assert not verbs & {"deletecollection", "escalate", "bind", "impersonate"}
    assert all("delete" not in rule["verbs"] for rule in rules if "secrets" in rule["resources"])
    assert all(rule.why for rule in rbac.RULES)
