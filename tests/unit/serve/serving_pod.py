"""A serving pod: its containers are processes on this machine, with a real Triton."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mms_cluster.ports import free_ports
from mms_workloads.contract import MASTER_PORT, ArtifactPin, ServeFile, Store, live_digest
from mms_workloads.serve import query
from tests.unit.serve import artifacts

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_workloads.contract import InputOrders, LiveSource
    from tests.unit.serve.triton_home import TritonHome


class ServingPod:
    def __init__(
        self,
        root: Path,
        home: TritonHome,
        size: int = 2000,
        dimensions: int = 50,
        built: artifacts.Built | None = None,
    ) -> None:
        """Serves random vectors of that size, or what was built."""
        self.root, self.home = root, home
        root.mkdir(exist_ok=True)
        self.built = built or artifacts.build(root / "store", size=size, dimensions=dimensions)
        self.digest = self.built.digest
        self.ports = free_ports(4)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.more: dict[str, Any] = {}  # other fields of its file
        self.live, self.master_port = False, MASTER_PORT

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        if not self.live:
            serve = artifacts.serve_file(self.root / "serve.json", self.built.folder, self.digest)
            serve.write_text(json.dumps({**json.loads(serve.read_text()), **self.more}))
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(query.__file__).parents[2]),
            "LD_LIBRARY_PATH": f"{self.home.folder}/lib",
            "MMS_TRITONSERVER": f"{self.home.folder}/bin/tritonserver",
            "MMS_SERVE_FILE": str(self.root / "serve.json"),
            "MMS_ORDERS_FILE": str(self.root / "live"),
            "MMS_READER_TLS_DIR": "",
            "MMS_MASTER_PORT": str(self.master_port),
            "MMS_MODELS_DIR": str(self.root / "models"),
            "MMS_TERMINATION_LOG": str(self.root / f"{module}.termination"),
            "MMS_EXIT_TIMEOUT_SECONDS": "3",
            "MMS_SUMMARIES": "true",
            "MMS_WANTED_FILE": str(self.root / "wanted"),
            "MMS_INPUTS_FILE": str(self.root / "inputs"),
            "MMS_PROBE_FILE": str(self.root / "probe"),
        }
        names = ("TRITON_HTTP", "TRITON_GRPC", "TRITON_METRICS", "AGENT")
        environment |= {f"MMS_{name}_PORT": str(port) for name, port in zip(names, self.ports, strict=True)}
        with (self.root / f"{module}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(self.home.python), "-m", f"mms_workloads.serve.{module}", *arguments],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        self.processes[module] = process
        return process

    def start_all(self) -> None:
        assert self.start("fetch").wait(60) == 0
        self.start_triton()
        self.start("agent")

    def start_triton(self) -> None:
        self.start("triton", f"--backend-directory={self.home.folder}/backends")

    def follow(self, live: LiveSource, master_port: int) -> None:
        """It begins with the parameters of a running training."""
        pin = ArtifactPin(uri="file:///none", digest=live_digest(live.uid, live.run))
        storage = Store(uri=pin.uri)
        serve = ServeFile(namespace="default", name="words", artifact=pin, storage=storage, live=live)
        (self.root / "serve.json").write_text(serve.model_dump_json())
        self.live, self.master_port = True, master_port

    def want(self, built: artifacts.Built, reference: artifacts.Built | None = None) -> None:
        """As the kubelet does it: the file is replaced."""
        part = artifacts.serve_file(self.root / "wanted.part", built.folder, built.digest)
        if reference:
            pin = {"uri": reference.folder.as_uri(), "digest": reference.digest}
            storage = {"uri": reference.folder.as_uri()}
            part.write_text(
                json.dumps({**json.loads(part.read_text()), "reference": {"artifact": pin, "storage": storage}})
            )
        part.replace(self.root / "wanted")

    def order(self, orders: InputOrders | None) -> None:
        """As the kubelet does it: what the pod does with inputs of clients."""
        part = self.root / "inputs.part"
        part.write_text(orders.model_dump_json() if orders else "")
        part.replace(self.root / "inputs")

    def served(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[3]}/v1/served", timeout=5) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def readyz(self) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[3]}/readyz", timeout=5) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except OSError:
            return 0, {}

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            process.wait(40)


def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
