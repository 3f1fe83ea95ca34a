"""The edge of serving pods: what is built for it, and what it needs."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from mms_operator.api.traffic import Traffic
from mms_operator.plan import pod_template, service
from mms_operator.plan.service import objects
from mms_operator.plan.service.edge import TRITON_LIVES
from mms_operator.plan.service.edge_config import nginx_conf
from mms_operator.plan.types import ObservedService, PodPolicy, ReferencedSecret
from tests.unit import nginx
from tests.unit.plan.test_service import condition, following, objects_of, plan_service, trained

if TYPE_CHECKING:
    from pathlib import Path

TLS = {"tls": {"secretRef": {"name": "cert"}}}
KEYS = {"apiKeys": {"secretRef": {"name": "keys"}}}
LIMITS = {"limits": {"requestsPerSecond": 10, "concurrentRequests": 4, "bodyBytes": 1000}}


def plan(traffic: dict[str, Any], **secrets: tuple[str, ...] | None) -> Any:
    seen = {
        name: ReferencedSecret(name, None if keys is None else frozenset(keys)) for name, keys in secrets.items()
    }  # fmt: skip
    return plan_service(following(traffic=traffic), ObservedService(training=trained(), secrets=seen))


def pod(planned: Any) -> Any:
    (deployment,) = (one for name, one in objects_of(planned).items() if name.startswith("Deployment/"))
    return deployment["spec"]["template"]


@pytest.mark.parametrize("traffic", [{}, {"edge": "None"}, None], ids=str)
def test_without_an_edge_pods_are_as_ever(traffic: Any) -> None:
    plain = pod(plan_service(following(), ObservedService(training=trained())))
    assert [one["name"] for one in plain["spec"]["containers"]] == ["triton"]
    if traffic is not None:
        assert pod(plan(traffic)) == plain


@pytest.mark.parametrize("traffic", [{"edge": "Sidecar"}, TLS, KEYS, LIMITS, {"maxConnectionAgeSeconds": 5}], ids=str)
def test_who_is_ended_after_whom(traffic: dict[str, Any]) -> None:
    """Main containers first, then the sidecars in the opposite of their order: the edge, Triton, the agent."""
    spec = pod(plan(traffic))["spec"]
    assert [one["name"] for one in spec["containers"]] == ["edge"]
    assert [(one["name"], one.get("restartPolicy")) for one in spec["initContainers"]] == [
        ("fetch", None), ("agent", "Always"), ("triton", "Always")
    ]  # fmt: skip
    triton = spec["initContainers"][2]
    assert {"--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=0.0.0.0"} <= {*triton["command"]}
    assert "lifecycle" not in triton
    assert triton["startupProbe"]["exec"]["command"] == list(TRITON_LIVES)
    assert all("httpGet" not in triton[probe] for probe in ("startupProbe", "livenessProbe"))
    behind = {"MMS_TRITON_HTTP_PORT": "18000", "MMS_TRITON_GRPC_PORT": "18001"}
    for one in spec["initContainers"][1:]:
        assert behind.items() <= {variable["name"]: variable["value"] for variable in one["env"]}.items()
    waits = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] >= waits + 30 + objects.EXIT_TIMEOUT_SECONDS + 10


def test_clients_come_to_the_edge() -> None:
    planned = plan({"edge": "Sidecar"})
    (edge,) = pod(planned)["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in edge["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002, "edge": 8081}
    assert edge["readinessProbe"]["httpGet"]["port"] == "http"
    assert edge["securityContext"]["readOnlyRootFilesystem"] is True
    allowed = objects_of(planned)["NetworkPolicy/words-serving"]["spec"]["ingress"][0]["ports"]
    assert [port["port"] for port in allowed] == [8000, 8001, 8002, 8080, 8081]
    assert planned.status["url"].startswith("http://")
    assert plan(TLS, cert=("tls.crt", "tls.key")).status["url"] == "https://words.d.svc.cluster.local:8000"


def test_the_configuration_is_part_of_the_template() -> None:
    one, other = (pod(plan({"maxConnectionAgeSeconds": age})) for age in (5, 6))
    assert one["metadata"]["annotations"]["mms.dev/edge"] == nginx_conf(Traffic(maxConnectionAgeSeconds=5))
    assert one != other
    assert one["spec"] == other["spec"]


def test_secrets_are_mounted_in_the_edge_alone() -> None:
    spec = pod(plan({**TLS, **KEYS}, cert=("tls.crt", "tls.key"), keys=("alice",)))["spec"]
    assert spec["containers"][0]["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    with_edge = {
        one["name"]
        for one in (*spec["initContainers"], *spec["containers"])
        if any(mount["name"].startswith("edge") for mount in one["volumeMounts"])
    }
    assert with_edge == {"edge"}
    volumes = {one["name"]: one for one in spec["volumes"]}
    assert volumes["edge-keys"]["secret"]["secretName"] == "keys"
    assert {"secret"} < {kind for source in volumes["edge"]["projected"]["sources"] for kind in source}
    assert "edge-keys" not in {one["name"] for one in pod(plan(TLS, cert=("tls.crt", "tls.key")))["spec"]["volumes"]}


PROBLEMS = {
    "no certificate": (TLS, {"cert": None}, "SecretNotFound", "spec.traffic.tls.secretRef names the Secret cert"),
    "no key of it": (TLS, {"cert": ("tls.crt",)}, "SecretKeyMissing", "lacks tls.key (it has tls.crt)"),
    "no keys": (KEYS, {"keys": None}, "SecretNotFound", "spec.traffic.apiKeys.secretRef names the Secret keys"),
    "no client": (KEYS, {"keys": ()}, "SecretKeyMissing", "lacks a key for each client (it has nothing)"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_secret_that_is_missing(case: str) -> None:
    traffic, secrets, reason, words = PROBLEMS[case]
    planned = plan(traffic, **secrets)
    assert condition(planned, "Ready")["reason"] == reason
    assert words in condition(planned, "Ready")["message"]
    assert planned.waves == ()
    assert planned.requeue_after


def test_the_secrets_are_looked_up() -> None:
    assert service.references(following(traffic={**TLS, **KEYS})) == {"cert", "keys"}
    assert service.references(following()) == frozenset()


def test_the_edge_is_ours() -> None:
    template = {"spec": {"containers": [{"name": "edge", "image": "other"}], "volumes": [{"name": "edge-run"}]}}
    found = pod_template.violations("t", template, PodPolicy(), objects.CONTAINERS, objects.VOLUMES)
    assert len(found) == 2


@pytest.mark.parametrize(
    "traffic",
    [
        {"edge": "Sidecar"},
        LIMITS,
        {**KEYS, **LIMITS},
        {"limits": {"requestsPerSecond": 10, "burst": 0}},
        {"limits": {"concurrentRequests": 1, "per": "Pod"}},
        {"maxConnectionAgeSeconds": 1},
    ],
    ids=str,
)
def test_nginx_takes_it(traffic: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "nginx.conf").write_text(nginx_conf(Traffic.model_validate(traffic)))
    (tmp_path / "clients.conf").touch()
    (tmp_path / "keys.js").write_text("export default {digest: () => ''};")
    command = [str(nginx.program()), "-t", "-p", f"{tmp_path}/", "-e", "stderr", "-c", str(tmp_path / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr


@pytest.mark.parametrize(("status", "alive"), [("200 OK", True), ("400 Bad Request", False), (None, False)])
async def test_the_probe_of_triton(status: str | None, alive: bool) -> None:
    assert shutil.which("bash")
    import asyncio

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readline()).startswith(b"GET /v2/health/live HTTP/1.")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if status is None:
        server.close()
        await server.wait_closed()
    *command, script = TRITON_LIVES
    asked = await asyncio.create_subprocess_exec(
        *command, script.replace("18000", str(port)), stderr=asyncio.subprocess.DEVNULL
    )
    assert (await asked.wait() == 0) is alive
    server.close()
