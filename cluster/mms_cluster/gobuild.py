"""Builds programs from the Go modules in `cluster/go`, once for each state of their sources.

A build is kept in the cache under the hash of go.mod, go.sum, main.go and the compiler's version. It is written under
another name and renamed when complete, so that a build that was killed leaves nothing that looks finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mms_cluster.errors import ClusterError
from mms_cluster.paths import cache_folder, locked, require_space

if TYPE_CHECKING:
    from mms_cluster.report import Reporter

MODULES = Path(__file__).resolve().parent.parent / "go"
OLDEST_GO = (1, 25)
FIRST_BUILD_GIB = 10


@dataclass(frozen=True)
class Program:
    """A program and how it is built. `ldflags` may name {version}, {major} and {minor} of `requirement`."""

    name: str
    title: str
    requirement: str = ""
    package: str = "."
    ldflags: str = ""
    tags: str = ""
    takes: str = "seconds"
    beside: str = field(default="", repr=False)  # the name of the program in whose module it is; else it has its own

    @property
    def folder(self) -> Path:
        return MODULES / (self.beside or self.name)


KUBE = Program(
    name="kube",
    title="Kubernetes",
    requirement="k8s.io/kubernetes",
    ldflags=" ".join(
        f"-X k8s.io/component-base/version.git{field}={value}"
        for field, value in {"Version": "v{version}", "Major": "{major}", "Minor": "{minor}"}.items()
    ),
    tags="providerless",
    takes="about 5 minutes on 2 cores",
)
HELM = Program(
    name="helm",
    title="Helm",
    requirement="helm.sh/helm/v3",
    package="helm.sh/helm/v3/cmd/helm",
    ldflags="-X helm.sh/helm/v3/internal/version.version=v{version}",
    takes="about a minute and a half",
)
DNS = Program(name="dns", title="CoreDNS", requirement="github.com/coredns/coredns", takes="about a minute")
METRICS = Program(
    name="metrics",
    title="metrics-server",
    requirement="sigs.k8s.io/metrics-server",
    package="sigs.k8s.io/metrics-server/cmd/metrics-server",
    takes="a minute or two",
)
GATEWAY = Program(
    name="gateway",
    title="Envoy Gateway",
    requirement="github.com/envoyproxy/gateway",
    package="github.com/envoyproxy/gateway/cmd/envoy-gateway",
    takes="some minutes",
)
KEDA = Program(
    name="keda",
    title="KEDA",
    requirement="github.com/kedacore/keda/v2",
    package="github.com/kedacore/keda/v2/cmd/operator",
    takes="some minutes",
)
KEDA_ADAPTER = Program(
    name="keda-adapter",
    title="KEDA's metrics server",
    requirement=KEDA.requirement,
    package="github.com/kedacore/keda/v2/cmd/adapter",
    takes="a minute",
    beside=KEDA.name,
)
PAUSE = Program(name="pause", title="the pause program")
PROBE = Program(name="probe", title="the tests' probe")


def version(program: Program) -> str:
    """The version of what `program` is built from, such as 1.35.4: as go.mod requires it."""
    if not program.requirement:
        return ""
    text = (program.folder / "go.mod").read_text()
    found = re.search(rf"^\s*(?:require\s+)?{re.escape(program.requirement)} v(\S+)", text, re.MULTILINE)
    if not found:
        raise ClusterError(
            f"cluster/go/{program.folder.name}/go.mod does not require {program.requirement}: restore the file."
        )
    return found[1]


def parse_go_version(text: str) -> tuple[int, int]:
    """(1, 26) of "go1.26.8"; (0, 0) of what is no release."""
    found = re.match(r"go(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def cache_key(sources: dict[str, bytes], go_version: str, program: Program) -> str:
    """Changes with everything that changes the program: its sources, the compiler, the flags."""
    digest = hashlib.sha256(repr((go_version, program)).encode())
    for name, content in sorted(sources.items()):
        digest.update(f"\n{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def build(program: Program, report: Reporter) -> Path:
    """The path of `program`, built if this machine has not built it before."""
    folder = program.folder
    go, go_version = _compiler()
    sources = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in {".go", ".mod", ".sum"}}
    cache = cache_folder() / "go"
    target = cache / f"{program.name}-{cache_key(sources, go_version, program)}" / program.name
    if target.exists():
        return target
    with locked(cache / f"{program.name}.lock", report):
        if target.exists():
            return target
        for stale in cache.glob(f"{program.name}-*.partial"):
            shutil.rmtree(stale)
        require_space(cache, FIRST_BUILD_GIB if program is KUBE else 4, f"Building {program.title}")
        with report.step(f"building {program.title} {version(program)} ({program.takes}, once)"):
            _compile(go, folder, program, target)
    return target


def module(program: Program) -> Path:
    """The folder with the files of the module that `program` is built from, its charts among them."""
    go, _ = _compiler()
    result = subprocess.run(
        [go, "mod", "download", "-json", program.requirement],
        cwd=program.folder, env={**os.environ, "GOWORK": "off"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode != 0:
        raise ClusterError(
            f"{program.requirement} cannot be downloaded: {result.stdout.strip()} {result.stderr.strip()}"
        )
    return Path(json.loads(result.stdout)["Dir"])


def _compile(go: str, folder: Path, program: Program, target: Path) -> None:
    partial = target.parent.with_name(target.parent.name + ".partial")
    partial.mkdir(parents=True)
    number = version(program)
    major, minor = [*number.split("."), "", ""][:2]
    ldflags = f"-s -w {program.ldflags.format(version=number, major=major, minor=minor)}".strip()
    tags = ["-tags", program.tags] if program.tags else []
    command = [go, "build", "-trimpath", "-mod=readonly", "-buildvcs=false", *tags, "-ldflags", ldflags]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    result = subprocess.run(
        [*command, "-o", str(partial / program.name), program.package],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode != 0:
        shutil.rmtree(partial)
        raise ClusterError(
            f"Building {program.title} failed. If the messages name a download, check that GOPROXY "
            f"(go env GOPROXY) can be reached; then run the command again. The end of the compiler's output:\n"
            + "\n".join(result.stderr.strip().splitlines()[-15:])
        )
    partial.rename(target.parent)


def find_go() -> str | None:
    """The Go compiler, on PATH or where its own installer puts it."""
    return shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")


def _compiler() -> tuple[str, str]:
    go = find_go()
    wanted = ".".join(map(str, OLDEST_GO))
    if go is None:
        raise ClusterError(f"Kubernetes is built here from its Go modules, and there is no go on PATH: install Go {wanted} or later.")  # fmt: skip  # noqa: E501
    found = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout.strip()
    if parse_go_version(found) < OLDEST_GO:
        raise ClusterError(f"{go} is {found}, and Kubernetes needs Go {wanted} or later: install a newer Go.")
    return go, found
