"""Which cluster to use, and the same few verbs for each kind.

1. KUBECONFIG is set: the user's own cluster, of which we touch only what is ours; images go to REGISTRY.
2. Docker runs, and kind or k3d is on PATH: a cluster called mms.
3. Linux, root and Go: Kubernetes is built from its Go modules and runs on this machine.

The third is tested end to end. The command lines for kind, k3d and a registry are tested against stand-ins only.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mms_cluster import down as taking_down
from mms_cluster import gobuild, images, images_engine, oci, paths, runtime, settings
from mms_cluster import status as reading
from mms_cluster import up as bringing_up
from mms_cluster.errors import ClusterError
from mms_cluster.images_plan import ImageRef
from mms_cluster.report import Reporter
from mms_cluster.settings import Layout, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mms_cluster.faults import Fault

NAME = "mms"


class Provider(Protocol):
    """A cluster. `borrowed` ones are the user's: they are neither brought up nor taken down.

    `images` are those that were loaded, under the names by which pods find them.
    """

    description: str
    borrowed: bool
    kubeconfig: Path
    images: Mapping[str, ImageRef]

    def up(self) -> None: ...

    def down(self) -> None: ...

    def status(self) -> bool:
        """Print what runs; whether that is all."""

    def tools(self) -> Path:
        """A folder with kubectl and helm."""

    def load(self, images: Mapping[str, ImageRef]) -> None:
        """Bring images to where the cluster's nodes find them."""


@dataclass(frozen=True)
class Seen:
    """What `decide` has to go by. `kubeconfig` is the user's: our own cluster's does not count as one."""

    kubeconfig: str = ""
    registered: str = ""
    docker: bool = False
    kind: bool = False
    k3d: bool = False
    linux: bool = True
    root: bool = True
    go: bool = True


@dataclass(frozen=True)
class Choice:
    """`provider` is kubeconfig, kind, k3d or own; or "", and `problem` says what would help."""

    provider: str
    problem: str = ""


def decide(seen: Seen) -> Choice:
    """Pure. A cluster that we brought up before is kept, whatever has been installed since."""
    if seen.kubeconfig:
        return Choice("kubeconfig")
    if seen.registered:
        return Choice(seen.registered)
    if seen.docker and seen.kind:
        return Choice("kind")
    if seen.docker and seen.k3d:
        return Choice("k3d")
    lacking = [
        text
        for text, there in (("Linux", seen.linux), ("root", seen.root), ("Go 1.25 or later on PATH", seen.go))
        if not there
    ]
    if not lacking:
        return Choice("own")
    return Choice("", (
        f"There is no cluster to use. Set KUBECONFIG to one; or start Docker and put kind on PATH; or give what a "
        f"cluster of our own takes and is not here: {', '.join(lacking)}."
    ))  # fmt: skip


def choose(report: Reporter | None = None) -> Provider:
    """The cluster for this machine and environment; starts nothing. Raises ClusterError when there is none."""
    report = report or Reporter()
    layout = Layout(paths.state_folder())
    choice = decide(look(layout))
    if choice.provider == "kubeconfig":
        return Borrowed(os.environ["KUBECONFIG"], layout, report)
    if choice.provider in COMMANDS:
        return Docker(choice.provider, layout, report)
    if choice.provider == "own":
        return Own(layout, report)
    raise ClusterError(choice.problem)


def look(layout: Layout) -> Seen:
    named = os.environ.get("KUBECONFIG", "")
    kind, k3d = (shutil.which(tool) is not None for tool in ("kind", "k3d"))
    registered = "own" if layout.settings.exists() else ""
    mark = layout.state / "provider"
    if not registered and mark.exists():
        registered = mark.read_text().strip()
    return Seen(
        kubeconfig="" if named == str(layout.kubeconfig) else named,
        registered=registered,
        docker=(kind or k3d) and images_engine.docker_runs(),
        kind=kind,
        k3d=k3d,
        linux=platform.system() == "Linux",
        root=os.geteuid() == 0,
        go=gobuild.find_go() is not None,
    )


class Own:
    """Kubernetes from its Go modules, on this machine."""

    borrowed = False

    def __init__(self, layout: Layout, report: Reporter, wanted: Settings | None = None) -> None:
        self.description = f"Kubernetes {gobuild.version(gobuild.KUBE)}, built and run on this machine"
        self.images: Mapping[str, ImageRef] = {}
        self.kubeconfig = layout.kubeconfig
        self._layout, self._report, self.wanted = layout, report, wanted

    def want(self, **changes: int) -> None:
        """What the next `up` is to change of the settings that there are."""
        self.wanted = replace(settings.load(self._layout) or Settings(), **changes)

    def up(self) -> None:
        bringing_up.up(self._layout, self.wanted, self._report)

    def inject(self, fault: Fault, node: str) -> None:
        """Raises ClusterError when there is no such node, or none that can fail so."""
        fault(self._layout, node, self._report)

    def down(self) -> None:
        taking_down.down(self._layout, self._report)

    def status(self) -> bool:
        lines, good = reading.status(self._layout)
        print("\n".join(lines))
        return good

    def tools(self) -> Path:
        return bringing_up.tools(self._layout, self._report)

    def load(self, images: Mapping[str, ImageRef]) -> None:
        if settings.load(self._layout) is None:
            raise ClusterError("There is no cluster to load images into: run `python -m mms_cluster up` first.")
        with paths.locked(self._layout.lock, self._report):
            for archive in dict.fromkeys(image.archive for image in images.values()):
                for node in settings.nodes(self._layout):
                    runtime.load(node, archive, self._report)
        self.images = {**self.images, **images}


# What each verb runs; {kubeconfig} and {archive} are filled in.
COMMANDS: dict[str, dict[str, list[str]]] = {
    "kind": {
        "list": ["kind", "get", "clusters"],
        "up": ["kind", "create", "cluster", "--name", NAME, "--kubeconfig", "{kubeconfig}", "--wait", "120s"],
        "kubeconfig": ["kind", "get", "kubeconfig", "--name", NAME],
        "down": ["kind", "delete", "cluster", "--name", NAME, "--kubeconfig", "{kubeconfig}"],
        "load": ["kind", "load", "image-archive", "{archive}", "--name", NAME],
    },
    "k3d": {
        "list": ["k3d", "cluster", "list", "--no-headers"],
        "up": ["k3d", "cluster", "create", NAME, "--wait", "--kubeconfig-update-default=false"],
        "kubeconfig": ["k3d", "kubeconfig", "get", NAME],
        "down": ["k3d", "cluster", "delete", NAME],
        "load": ["k3d", "image", "import", "{archive}", "--cluster", NAME],
    },
}


class Docker:
    """A cluster of kind or k3d, in Docker."""

    borrowed = False

    def __init__(self, tool: str, layout: Layout, report: Reporter) -> None:
        self.description = f"a cluster called {NAME} of {tool}, in Docker"
        self.images: Mapping[str, ImageRef] = {}
        self.kubeconfig = layout.kubeconfig
        self._tool, self._layout, self._report = tool, layout, report

    def up(self) -> None:
        self._layout.state.mkdir(parents=True, exist_ok=True)
        (self._layout.state / "provider").write_text(self._tool)
        if not self._exists():
            with self._report.step(f"creating a cluster by {self._tool}"):
                self._run("up")
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(self._run("kubeconfig"))

    def down(self) -> None:
        if self._exists():
            self._run("down")
        self.kubeconfig.unlink(missing_ok=True)
        (self._layout.state / "provider").unlink(missing_ok=True)

    def status(self) -> bool:
        if not self._exists():
            print(f"{self._tool} has no cluster called {NAME}")
            return False
        return _ready(self.tools(), self.kubeconfig)

    def tools(self) -> Path:
        return _tools(self._layout, self._report)

    def load(self, images: Mapping[str, ImageRef]) -> None:
        for image in images.values():
            with self._report.step(f"loading {image.reference}"):
                self._run("load", archive=str(image.archive))
        self.images = {**self.images, **images}

    def _exists(self) -> bool:
        return NAME in (line.split()[0] for line in self._run("list").splitlines() if line.strip())

    def _run(self, verb: str, archive: str = "") -> str:
        command = COMMANDS[self._tool][verb]
        return _run([part.format(kubeconfig=self.kubeconfig, archive=archive) for part in command])


class Borrowed:
    """The cluster that KUBECONFIG names."""

    borrowed = True

    def __init__(self, named: str, layout: Layout, report: Reporter) -> None:
        self.description = f"the one of KUBECONFIG={named}"
        self.images: Mapping[str, ImageRef] = {}
        self.kubeconfig = Path(named)
        self._layout, self._report = layout, report

    def up(self) -> None:
        command = [str(self.tools() / "kubectl"), f"--kubeconfig={self.kubeconfig}", "--request-timeout=20s"]
        hint = "KUBECONFIG's cluster must answer; unset KUBECONFIG to have one made here."
        _run([*command, "get", "--raw", "/readyz"], hint)

    def down(self) -> None:
        raise ClusterError(
            f"KUBECONFIG={self.kubeconfig} is a cluster that we did not make, and it is not ours to take down: "
            f"`helm uninstall` takes away what we installed; unset KUBECONFIG to take down a cluster of ours."
        )

    def status(self) -> bool:
        return _ready(self.tools(), self.kubeconfig)

    def tools(self) -> Path:
        return _tools(self._layout, self._report)

    def load(self, images_: Mapping[str, ImageRef]) -> None:
        registry = os.environ.get("REGISTRY")
        if not registry:
            raise ClusterError(
                "The nodes of KUBECONFIG's cluster get images from a registry: set REGISTRY to one that this machine "
                "can push to and they can pull from, such as REGISTRY=registry.example.com/team."
            )
        self.images = {**self.images, **images.push(images_, registry, self._report)}


def in_archives(archives: Sequence[Path]) -> dict[str, ImageRef]:
    """The images in archives, by the last part of their names without mms-."""
    found = {}
    for archive in archives:
        for image in oci.read(archive):
            name, _, tag = image.name.rpartition(":")
            found[name.rpartition("/")[2].removeprefix("mms-")] = ImageRef(name, tag, archive.absolute())
    return found


def _tools(layout: Layout, report: Reporter) -> Path:
    """The user's own kubectl and helm, else built ones."""
    layout.bin.mkdir(parents=True, exist_ok=True)
    for name, program in (("kubectl", gobuild.KUBE), ("helm", gobuild.HELM)):
        elsewhere = os.pathsep.join(p for p in os.environ.get("PATH", "").split(os.pathsep) if p != str(layout.bin))
        there = shutil.which(name, path=elsewhere)
        bringing_up.link(layout.bin / name, Path(there) if there else gobuild.build(program, report))
    return layout.bin


def _ready(tools: Path, kubeconfig: Path) -> bool:
    command = [str(tools / "kubectl"), f"--kubeconfig={kubeconfig}", "--request-timeout=20s", "get", "nodes"]
    return subprocess.run(command, check=False).returncode == 0


def _run(command: list[str], hint: str = "") -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"`{' '.join(command)}` failed: {result.stderr.strip()} {hint}".strip())
    return result.stdout
