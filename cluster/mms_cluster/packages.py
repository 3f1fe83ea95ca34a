"""System programs: which are missing, which packages bring them, and installing these."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mms_cluster.errors import ClusterError
from mms_cluster.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CNI_FOLDERS = ("/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin")

# The program's package where it is not called like the program. `cni` stands for the standard network plugins.
APT = {
    "cni": "containernetworking-plugins", "ctr": "containerd", "ip": "iproute2", "nft": "nftables",
    "nsenter": "util-linux", "setpriv": "util-linux",
}  # fmt: skip
DNF = {**APT, "ip": "iproute"}


@dataclass(frozen=True)
class Plan:
    """What to do about missing programs: `commands` to run, or `problem` when nothing can be done."""

    missing: tuple[str, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    problem: str = ""


def decide(
    names: Mapping[str, str], present: Iterable[str], installers: Iterable[str], *, root: bool
) -> Plan:  # fmt: skip
    """`names`: program -> why it is needed; `installers`: the package managers on PATH. Pure."""
    missing = tuple(sorted(set(names) - set(present)))
    if not missing:
        return Plan()
    if "apt-get" in installers:
        manager, table = "apt-get", APT
    elif "dnf" in installers:
        manager, table = "dnf", DNF
    else:
        return Plan(
            missing, problem=f"Install {_list(missing, names)}; there is neither apt-get nor dnf to do it with."
        )
    wanted = tuple(sorted({table.get(name, name) for name in missing}))
    install = (manager, "install", "-y", *(("--no-install-recommends",) if manager == "apt-get" else ()), *wanted)
    if not root:
        return Plan(missing, problem=f"Missing: {_list(missing, names)}. As root, run: {' '.join(install)}")
    return Plan(missing, commands=((("apt-get", "update"), install) if manager == "apt-get" else (install,)))


def ensure(names: Mapping[str, str], report: Reporter | None = None) -> None:
    """Install what is missing of `names` (program -> why it is needed), after saying what and why.

    Raises ClusterError when that takes root, there is no known package manager, or it fails.
    """
    installers = [name for name in ("apt-get", "dnf") if find(name)]
    plan = decide(names, [name for name in names if find(name)], installers, root=os.geteuid() == 0)
    if plan.problem:
        raise ClusterError(plan.problem)
    if not plan.missing:
        return
    report = report or Reporter()
    with report.step(f"installing with {installers[0]}: {_list(plan.missing, names)}"):
        for command in plan.commands:
            _run(command)
    if absent := [name for name in plan.missing if not find(name)]:
        raise ClusterError(f"{' '.join(plan.commands[-1])} succeeded, yet there is no {', '.join(absent)}: install it.")


def find(name: str) -> str | None:
    """The program's path, on PATH or where system programs lie; the folder of the network plugins for "cni"."""
    if name == "cni":
        return next((folder for folder in CNI_FOLDERS if Path(folder, "host-local").exists()), None)
    return shutil.which(name) or shutil.which(name, path=SYSTEM_PATH)


def _list(missing: Iterable[str], names: Mapping[str, str]) -> str:
    return "; ".join(f"{name} ({names[name]})" for name in missing)


def _run(command: tuple[str, ...]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode != 0 and "update" not in command:
        end = "\n".join((result.stderr or result.stdout).strip().splitlines()[-10:])
        raise ClusterError(f"{' '.join(command)} failed: put it right by hand and run this again. It said:\n{end}")
