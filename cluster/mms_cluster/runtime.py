"""Images in a node's containerd, in the namespace that Kubernetes uses."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from mms_cluster import oci
from mms_cluster.errors import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

    from mms_cluster.report import Reporter
    from mms_cluster.settings import Node


def load(node: Node, archive: Path, report: Reporter) -> None:
    """Import the images of `archive`, unless the very same are there."""
    wanted, socket = oci.read(archive), node.socket
    if state := unready(socket):
        raise ClusterError(f"{node.name} takes no images ({state}): run `python -m mms_cluster up`.")
    present = digests(socket)
    names = ", ".join(image.name for image in wanted)
    if all(_config(socket, present.get(image.name, "")) == image.config for image in wanted):
        report.line(f"{names} is there ({node.name})")
        return
    with report.step(f"loading {names} ({node.name})"):
        _ctr(socket, "images", "import", str(archive))
    absent = [image.name for image in wanted if image.name not in digests(socket)]
    if absent:
        raise ClusterError(f"{archive} was imported, yet {', '.join(absent)} is not there: save the archive again.")


def digests(socket: Path) -> dict[str, str]:
    """Image name -> digest of its manifest."""
    rows = (line.split() for line in _ctr(socket, "images", "list").splitlines()[1:])
    return {row[0]: row[2] for row in rows if len(row) > 2}


def unready(socket: Path) -> str:
    """What containerd says against being ready; "" when it is."""
    if not socket.exists():
        return f"{socket} is not there"
    try:
        plugins = _ctr(socket, "plugins", "list")
    except (ClusterError, subprocess.TimeoutExpired) as error:
        return str(error)
    cri = [line.split() for line in plugins.splitlines() if line.split()[1:2] == ["cri"]]
    bad = [row for row in cri if row[-1] != "ok"]
    return f"its CRI plugin is not ok: {bad}" if bad or not cri else ""


def _config(socket: Path, digest: str) -> str:
    """The digest of the configuration that the manifest `digest` names, "" when that is not known."""
    if not digest:
        return ""
    try:
        manifest = json.loads(_ctr(socket, "content", "get", digest))
    except (ClusterError, ValueError):
        return ""
    return str(manifest.get("config", {}).get("digest", ""))


def _ctr(socket: Path, *arguments: str) -> str:
    command = ["ctr", "--address", str(socket), "--namespace", "k8s.io", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if result.returncode != 0:
        raise ClusterError(f"`{' '.join(command)}` failed: {result.stderr.strip()}")
    return result.stdout
