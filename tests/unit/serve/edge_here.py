"""An edge as a process of this machine, with a real nginx: before a Triton, or before what stands in for one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mms_cluster.ports import free_ports
from mms_operator.api.traffic import Traffic
from mms_operator.plan.service.edge_config import Ports, nginx_conf
from mms_workloads.serve import edge
from tests.unit import nginx
from tests.unit.serve.serving_pod import wait

if TYPE_CHECKING:
    from collections.abc import Mapping


class EdgeHere:
    """Written into `root` as the kubelet mounts it. `spec` is spec.traffic."""

    def __init__(self, root: Path, triton: tuple[int, int], spec: dict[str, Any]) -> None:
        self.root = root
        self.http, self.grpc, self.port = free_ports(3)
        self.mounted, self.keys, self.run = (root / name for name in ("mounted", "keys", "run"))
        for folder in (self.mounted, self.run):
            folder.mkdir(parents=True)
        text = nginx_conf(Traffic.model_validate(spec), Ports(self.http, self.grpc, *triton))
        (self.mounted / "nginx.conf").write_text(text)
        self.process: subprocess.Popen[bytes] | None = None

    def mount_tls(self, files: Mapping[str, bytes]) -> None:
        self._mount(self.mounted / "tls", files)

    def mount_keys(self, **files: str) -> None:
        self._mount(self.keys, {name: value.encode() for name, value in files.items()})

    def start(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(edge.__file__).parents[2]),
            "MMS_NGINX": str(nginx.program()),
            "MMS_EDGE_DIR": str(self.mounted),
            "MMS_EDGE_KEYS_DIR": str(self.keys),
            "MMS_EDGE_RUN_DIR": str(self.run),
            "MMS_EDGE_PORT": str(self.port),
            "MMS_TERMINATION_LOG": str(self.root / "termination"),
        }
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mms_workloads.serve.edge"], env=environment, stdout=log, stderr=log
            )

    def begin(self) -> None:
        """Starts it and waits until it serves."""
        self.start()
        wait(lambda: self.get("/healthz") == "" and all(map(listens, (self.http, self.grpc))), 20)

    def get(self, path: str) -> str | None:
        """What the supervisor answers; None where it does not."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
                return str(response.read().decode())
        except (urllib.error.URLError, OSError):
            return None

    def metric(self, name: str) -> float:
        lines = (self.get("/metrics") or "").splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)

    @property
    def log(self) -> str:
        return (self.root / "log").read_text()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(40)

    def kill(self) -> None:
        """At once, whoever is connected: nginx by its own signal, and the supervisor with it."""
        if self.process is None or self.process.poll() is not None:
            return
        if (self.run / "nginx.pid").exists():
            os.kill(int((self.run / "nginx.pid").read_text()), signal.SIGTERM)
        else:
            self.process.kill()
        self.process.wait(20)

    @staticmethod
    def _mount(folder: Path, files: Mapping[str, bytes]) -> None:
        """As the kubelet does it: all of it is replaced at once."""
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir()
        for name, content in files.items():
            (part / name).write_bytes(content)
        before = folder.with_name(f"{folder.name}.before")
        if folder.exists():
            folder.rename(before)
        part.rename(folder)
        if before.exists():
            for file in before.iterdir():
                file.unlink()
            before.rmdir()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
