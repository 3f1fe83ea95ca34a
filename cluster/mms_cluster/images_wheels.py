"""Wheels for the images, downloaded once into the cache: what a lock names, PyTorch, and the project itself.

They are for CPython 3.11 on Debian 12 whatever Python runs here. Folders are made under another name and renamed, so
that one that exists is whole.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from mms_cluster.errors import ClusterError
from mms_cluster.images_plan import headers, in_site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mms_cluster.report import Reporter

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
SHARED_WHEELS = ROOT.parent / "shared" / "wheels"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 5.0
GLIBC_MINOR = 36  # of Debian 12
CUDA_PREFIXES = ("torch-", "triton-", "nvidia_", "cuda_")


def lock(name: str) -> bytes:
    return (REQUIREMENTS / f"{name}.lock").read_bytes()


def for_lock(name: str, cache: Path, report: Reporter) -> list[Path]:
    """The wheels of requirements/<name>.lock, checked against the lock's hashes."""

    def download(folder: Path) -> None:
        path = REQUIREMENTS / f"{name}.lock"
        with report.step(f"downloading the wheels of requirements/{name}.lock"):
            _pip_download(folder, "--no-deps", "--require-hashes", "-r", str(path))

    key = hashlib.sha256(lock(name)).hexdigest()[:12]
    return _once(cache / "wheels" / f"{name}-{platform.machine()}-{key}", download)


def for_torch(cache: Path, report: Reporter) -> list[Path]:
    """PyTorch's wheel and, where only PyPI's build can be had, the CUDA libraries without which that doesn't load."""
    requirement = (REQUIREMENTS / "torch.txt").read_text(encoding="utf-8").strip()
    version = requirement.partition("==")[2]
    beside = sorted(SHARED_WHEELS.glob(f"torch-{version}+cpu-cp311-cp311-*_{platform.machine()}.whl"))

    def download(folder: Path) -> None:
        if beside:
            shutil.copy(beside[0], folder)
        elif _reachable(f"{TORCH_CPU_INDEX}/torch/"):
            with report.step(f"downloading PyTorch {version} (CPU) from {TORCH_CPU_INDEX}"):
                _pip_download(folder, "--no-deps", "--index-url", TORCH_CPU_INDEX, requirement)
        else:
            report.line(
                f"{TORCH_CPU_INDEX} is out of reach: PyTorch's default build brings gigabytes of CUDA libraries"
            )
            with report.step(f"downloading PyTorch {version} with CUDA"):
                _pip_download(folder, requirement)
            for wheel in folder.glob("*.whl"):
                if not wheel.name.startswith(CUDA_PREFIXES):
                    wheel.unlink()  # in the lock, with a hash

    return _once(cache / "wheels" / f"torch-{platform.machine()}-{version}", download)


def project(folder: Path) -> Path:
    """Build the project's wheel into `folder`. The same sources give the same bytes."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(
            f"the project's wheel could not be built:\n{done.stderr}\n"
            "If hatchling is missing, run scripts/setup and use .venv/bin/python."
        )
    return next(folder.glob("*.whl"))


def site(wheel: Path, packages: Iterable[str]) -> dict[str, bytes]:
    """What of the project's wheel goes into an image's site-packages: path -> content."""
    kept = tuple(packages)
    with zipfile.ZipFile(wheel) as members:
        found = {name: members.read(name) for name in members.namelist() if in_site(name, kept)}
    return {name: headers(content) if name.endswith("/METADATA") else content for name, content in found.items()}


def platforms(machine: str) -> list[str]:
    """Tags of the wheels that Debian 12 can load. pip does not derive older ones from a newer one."""
    return [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC_MINOR, 4, -1)] + [
        f"manylinux2014_{machine}",
        f"linux_{machine}",
    ]


def _pip_download(folder: Path, *arguments: str) -> None:
    target = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", "3.11"]
    for tag in platforms(platform.machine()):
        target += ["--platform", tag]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--dest", str(folder)]
    done = subprocess.run([*command, *target, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(
            f"pip could not download {arguments[-1]}:\n{done.stdout}{done.stderr}\n"
            "If a hash or a version is missing there, scripts/lock makes the locks again."
        )


def _reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_SECONDS):
            return True
    except (urllib.error.URLError, TimeoutError, OSError):
        return False


def _once(folder: Path, make: Callable[[Path], None]) -> list[Path]:
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        partial.rename(folder)
    return sorted(folder.glob("*.whl"))
