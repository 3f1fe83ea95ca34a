"""What nobody but the pod itself may do: reach its other ports, and have Triton load, unload, trace or share memory."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from mms_operator.cli.forward import port_forward
from mms_workloads.contract import AGENT_PORT, TRITON_GRPC_PORT, TRITON_HTTP_PORT, TRITON_METRICS_PORT
from mms_workloads.serve import query
from tests.e2e.clients import pod
from tests.e2e.conftest import namespace
from tests.e2e.test_rollout import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.kube import Kube

pytestmark = pytest.mark.e2e

OTHER_PORT = 9999
LISTEN = f"""
import socket
with socket.create_server(("", {OTHER_PORT})) as door:
    print("listening", flush=True)
    while True:
        door.accept()[0].close()
"""
CONNECT = """
import json, socket, sys
found = {}
for port in map(int, sys.argv[2:]):
    try:
        socket.create_connection((sys.argv[1], port), timeout=3).close()
        found[port] = "connected"
    except TimeoutError:
        found[port] = "no answer"
    except OSError as error:
        found[port] = error.strerror
print(json.dumps(found))
"""
CLIENTS = (TRITON_HTTP_PORT, TRITON_GRPC_PORT, TRITON_METRICS_PORT, AGENT_PORT)
CONTROL = (
    "v2/repository/index",
    "v2/repository/models/neighbours/load",
    "v2/repository/models/neighbours/unload",
    "v2/systemsharedmemory/region/any/register",
    "v2/trace/setting",
    "v2/logging",
)
CALLS: dict[str, Callable[[Any], object]] = {
    "index": lambda client: client.get_model_repository_index(),
    "load": lambda client: client.load_model("neighbours"),
    "unload": lambda client: client.unload_model("neighbours"),
    "shared memory": lambda client: client.register_system_shared_memory("any", "/any", 16),
    "trace": lambda client: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
    "logging": lambda client: client.update_log_settings({"log_verbose_level": 1}),
}


def test_the_pod_is_its_own(kube: Kube, artifacts: list[dict[str, str]]) -> None:
    serve(kube, artifacts[0])
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    (served,) = kube.list("pods", "mms.dev/service=words")
    ports = (*CLIENTS, OTHER_PORT)
    with listening(kube, served["metadata"]["name"]), stranger(served) as ask:
        found = ask(served["status"]["podIP"], *ports)
        inside = kube.run("exec", served["metadata"]["name"], "-c", "agent", "--", "python", "-c", CONNECT,
                          "127.0.0.1", str(OTHER_PORT))  # fmt: skip
    assert json.loads(inside) == {str(OTHER_PORT): "connected"}, "there is somebody to be reached"
    assert found == {str(port): "connected" for port in CLIENTS} | {str(OTHER_PORT): "no answer"}

    with port_forward(kube.namespace, "svc/words", TRITON_HTTP_PORT) as address:
        for path in CONTROL:
            asked = urllib.request.Request(f"http://{address}/{path}", b"{}", method="POST")
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(asked, timeout=10)
            assert refused.value.code == 403, path
    with port_forward(kube.namespace, "svc/words", TRITON_GRPC_PORT) as address:
        with triton.InferenceServerClient(address) as client:
            for name, call in CALLS.items():
                with pytest.raises(InferenceServerException, match="restricted") as told:
                    call(client)
                assert "key" not in str(told.value).lower().replace("mms-control-key", ""), name
        assert query.neighbours(address, ["congress"], 3)[0].words


@contextmanager
def listening(kube: Kube, name: str) -> Iterator[None]:
    """A program of the pod that waits at a port which is nobody's."""
    with kube.start("exec", name, "-c", "agent", "--", "python", "-c", LISTEN) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield
        process.kill()


@contextmanager
def stranger(served: dict[str, Any]) -> Iterator[Callable[..., dict[str, str]]]:
    """A pod of another namespace, and what it meets at an address' ports."""
    made = pod("nobody", 0, served["spec"]["containers"][0]["image"])
    (container,) = made["spec"]["containers"]
    container["command"] = ["python", "-c", "import time; time.sleep(3600)"]
    del made["spec"]["volumes"], container["volumeMounts"]
    name = made["metadata"]["name"]
    with namespace("strangers") as other:
        other.apply(made)
        other.wait("pod", name, lambda found: found["status"]["phase"] == "Running", 60, "running")

        def ask(address: str, *ports: int) -> dict[str, str]:
            answer = other.run("exec", name, "--", "python", "-c", CONNECT, address, *map(str, ports))
            found: dict[str, str] = json.loads(answer)
            return found

        yield ask
        other.delete("pod", name, "--grace-period=0", "--force")
