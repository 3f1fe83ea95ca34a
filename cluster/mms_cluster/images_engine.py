"""The programs that build images: Docker where its daemon runs, else buildah, which needs no daemon and no registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mms_cluster import packages
from mms_cluster.errors import ClusterError
from mms_cluster.images_plan import DEBIAN_PACKAGES, DEBIAN_SUITE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mms_cluster.images_plan import ImageRef
    from mms_cluster.report import Reporter

DAEMON_SECONDS = 10.0
SAID_LINES = 40
LOCAL_REGISTRIES = ("localhost", "127.0.0.1", "[::1]")
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'  # we build from nothing that carries a signature
WHY = {
    "buildah": "it builds the images",
    "mmdebstrap": "it makes the images' Debian 12 root file system",
}


class Engine(Protocol):
    """Each method raises ClusterError with what the program said when it fails."""

    def exists(self, reference: str) -> bool: ...

    def build(self, reference: str, containerfile: Path, context: Path, arguments: Mapping[str, str]) -> None: ...

    def save(self, reference: str, archive: Path) -> None: ...

    def push(self, image: ImageRef, target: str) -> None: ...

    def forget(self, repository: str, keep: Iterable[str]) -> None:
        """Remove the repository's images but those with the references in `keep`."""


def docker_runs() -> bool:
    try:
        return _succeeds(["docker", "info"], timeout=DAEMON_SECONDS)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


def choose(cache: Path, report: Reporter, *, docker: bool) -> Engine:
    if docker:
        return Docker()
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise ClusterError("Building images takes a running Docker, or Linux and root: start Docker or become root.")
    packages.ensure(WHY, report)
    return Buildah.at(cache / "buildah")


@dataclass(frozen=True)
class Docker:
    def exists(self, reference: str) -> bool:
        return _succeeds(["docker", "image", "inspect", reference])

    def build(self, reference: str, containerfile: Path, context: Path, arguments: Mapping[str, str]) -> None:
        command = ["docker", "build", "--network", "none", "--tag", reference, "--file", str(containerfile)]
        _run([*command, *_build_arguments(arguments), str(context)], environment={"DOCKER_BUILDKIT": "1"})

    def save(self, reference: str, archive: Path) -> None:
        _run(["docker", "save", "--output", str(archive), reference])

    def push(self, image: ImageRef, target: str) -> None:
        if not self.exists(image.reference):
            _run(["docker", "load", "--quiet", "--input", str(image.archive)])
        _run(["docker", "tag", image.reference, target])
        _run(["docker", "push", "--quiet", target])

    def forget(self, repository: str, keep: Iterable[str]) -> None:
        present = _run(["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", repository]).split()
        for reference in sorted(set(present) - set(keep)):
            _run(["docker", "image", "rm", reference])


@dataclass(frozen=True)
class Buildah:
    """buildah with a storage of its own, apart from the machine's.

    Each command ends with us and has its own mount namespace: what it mounts is gone with it, however it ends.
    """

    prefix: tuple[str, ...]
    policy: Path

    @classmethod
    def at(cls, folder: Path) -> Buildah:
        """The storage in `folder`, by overlay mounts where the file system can carry them.

        The run root tells what is mounted, which a reboot forgets: it is named by the boot.
        """
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        run = folder / "run" / boot
        for old in (folder / "run").glob("*"):
            if old != run:
                shutil.rmtree(old, ignore_errors=True)
        run.mkdir(parents=True, exist_ok=True)
        policy = folder / "policy.json"
        policy.write_text(POLICY, encoding="ascii")
        for driver in ("overlay", "vfs"):
            storage = ("--root", str(folder / driver), "--runroot", str(run), "--storage-driver", driver)
            prefix = ("setpriv", "--pdeathsig", "KILL", "--", "unshare", "--mount", "buildah", *storage)
            if _succeeds([*prefix, "info"]):
                engine = cls(prefix, policy)
                engine.run("rm", "--all")  # containers of a killed build
                return engine
        said = subprocess.run([*prefix, "info"], capture_output=True, text=True, check=False).stderr
        raise ClusterError(f"buildah cannot keep images in {folder}: put that right or set XDG_CACHE_HOME. {said}")

    def run(self, *arguments: str) -> str:
        return _run([*self.prefix, *arguments])

    def exists(self, reference: str) -> bool:
        return _succeeds([*self.prefix, "inspect", "--type", "image", reference])

    def build(self, reference: str, containerfile: Path, context: Path, arguments: Mapping[str, str]) -> None:
        command = ["bud", "--isolation", "chroot", "--layers", "--pull-never", "--format", "docker"]
        command += ["--signature-policy", str(self.policy), "--tag", reference, "--file", str(containerfile)]
        self.run(*command, *_build_arguments(arguments), str(context))

    def save(self, reference: str, archive: Path) -> None:
        self._push(reference, f"docker-archive:{archive}:{reference}")

    def push(self, image: ImageRef, target: str) -> None:
        if not self.exists(image.reference):
            self.run("pull", "--quiet", "--signature-policy", str(self.policy), f"docker-archive:{image.archive}")
        plain = target.partition("/")[0].rpartition(":")[0] in LOCAL_REGISTRIES
        self._push(image.reference, f"docker://{target}", *(["--tls-verify=false"] if plain else []))

    def forget(self, repository: str, keep: Iterable[str]) -> None:
        present = self.run("images", "--noheading", "--format", "{{.Name}}:{{.Tag}}").split()
        stale = [name for name in present if name.rpartition(":")[0] == repository and name not in set(keep)]
        if stale:
            self.run("rmi", "--force", *stale)
        self.run("rmi", "--prune")

    def _push(self, reference: str, target: str, *options: str) -> None:
        self.run("push", "--quiet", "--signature-policy", str(self.policy), *options, reference, target)


def debian_rootfs(target: Path) -> None:
    """Debian's essential packages and ours as a tar file, without manuals and translations."""
    partial = target.with_name("rootfs.partial.tar")
    command = ["mmdebstrap", "--variant=essential", f"--include={','.join(DEBIAN_PACKAGES)}"]
    command += ["--aptopt=APT::Install-Recommends false", "--aptopt=Acquire::Languages none"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "info", "doc")]
    command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    _run([*command, DEBIAN_SUITE, str(partial)])
    partial.rename(target)


def _build_arguments(arguments: Mapping[str, str]) -> list[str]:
    return [part for name, value in sorted(arguments.items()) for part in ("--build-arg", f"{name}={value}")]


def _succeeds(command: Sequence[str], timeout: float | None = None) -> bool:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        timeout=timeout,
    )  # fmt: skip
    return done.returncode == 0


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """The program's standard output."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-SAID_LINES:])
        raise ClusterError(f"{' '.join(command)} failed with {done.returncode}; the end of what it said:\n{said}")
    return done.stdout
