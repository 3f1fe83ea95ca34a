"""A real API server for tests: etcd and kube-apiserver on free ports of the loopback address, nothing else.

There are no controllers: nothing is garbage collected, a deleted namespace stays Terminating, pods are never started
and need no service account. Many can run side by side; each takes about 3 s to start and 350 MB.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mms_cluster import controlplane, gobuild, pki, process
from mms_cluster.controlplane import ControlPlane
from mms_cluster.errors import ClusterError
from mms_cluster.kubeapi import Api
from mms_cluster.ports import free_ports
from mms_cluster.report import Reporter

if TYPE_CHECKING:
    import subprocess

ATTEMPTS = 5
READY_SECONDS = 60
_PORT_TAKEN = "address already in use"


class ApiOnly:
    """`with ApiOnly() as api: ... api.kubeconfig`.

    Both processes are killed when the block ends, and by the kernel when the thread that entered it ends or is killed:
    enter it from a thread that lives as long as the API server is needed. A folder that was given is left behind with
    the logs; without one, everything is in a temporary folder that is deleted.
    """

    def __init__(self, folder: Path | None = None, report: Reporter | None = None) -> None:
        self._given = folder
        self._report = report or Reporter()
        self._children: list[subprocess.Popen[bytes]] = []
        self.folder = Path()
        self.api = Api(0, Path())

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig with all rights that needs no other file."""
        return self.folder / "kubeconfig"

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.api.port}"

    def __enter__(self) -> Self:
        kube = gobuild.build(gobuild.KUBE, self._report)
        self.folder = (self._given or Path(tempfile.mkdtemp(prefix="mms-api-"))).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start(kube)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self.folder if self._given is None else self.folder / "etcd", ignore_errors=True)

    def _start(self, kube: Path) -> None:
        """A port can be taken between choosing and using it; then all is tried again with others."""
        for attempt in range(1, ATTEMPTS + 1):
            secure, etcd, peer = free_ports(3)
            plane = ControlPlane(kube, self.folder, secure, etcd, peer)
            pki.ensure(plane.pki, controlplane.identities(plane))
            pki.write_kubeconfig(plane.pki, "admin", plane.url, self.kubeconfig)
            self.api = Api(plane.secure_port, plane.pki)
            try:
                self._run(plane)
            except ClusterError as error:
                self._stop()
                if attempt == ATTEMPTS or _PORT_TAKEN not in str(error):
                    raise
            else:
                return

    def _run(self, plane: ControlPlane) -> None:
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)
        logs = {name: self.folder / f"{name}.log" for name in ("etcd", "kube-apiserver")}
        for log in logs.values():
            log.write_bytes(b"")
        self._children = [
            process.child(controlplane.etcd(plane), logs["etcd"]),
            process.child(controlplane.apiserver(plane, nodes=False), logs["kube-apiserver"]),
        ]
        deadline = time.monotonic() + READY_SECONDS
        while state := self.api.unready():
            for (name, log), child in zip(logs.items(), self._children, strict=True):
                if child.poll() is not None:
                    raise ClusterError(
                        f"{name} ended with {child.returncode}. The end of its log:\n{process.tail(log)}"
                    )
            if time.monotonic() > deadline:
                log = logs["kube-apiserver"]
                raise ClusterError(f"no API server after {READY_SECONDS} s: {state}. The log:\n{process.tail(log)}")
            time.sleep(process.POLL_SECONDS)

    def _stop(self) -> None:
        for child in reversed(self._children):
            process.stop_child(child)
        self._children = []
