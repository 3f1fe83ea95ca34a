"""A real Triton on this machine, from the wheels that the server's image is made of."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import mms_workloads
from mms_cluster import images_wheels
from mms_cluster.paths import cache_folder, locked
from mms_cluster.report import Reporter


@dataclass(frozen=True)
class TritonHome:
    """`folder` has bin/tritonserver, backends/ and lib/; `python` has the packages of the server's image."""

    folder: Path
    python: Path


def triton_home() -> TritonHome:
    """Made in the cache the first time, whole or not at all. Takes half a minute then."""
    cache, report = cache_folder(), Reporter()
    (wheel,) = images_wheels.for_lock("triton", cache, report)
    packages = images_wheels.for_lock("server", cache, report)
    folder = cache / "tools" / f"{wheel.stem}-{packages[0].parent.name}"
    with locked(cache / "tools" / "triton.lock"):
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            _unpack(wheel, partial)
            _environment(partial / "venv", packages)
            partial.rename(folder)
    # The stub's Python is isolated and ignores PYTHONPATH.
    (site,) = (folder / "venv" / "lib").glob("python3.11/site-packages")
    (site / "project.pth").write_text(f"{Path(mms_workloads.__file__).parents[1]}\n")
    return TritonHome(folder, folder / "venv" / "bin" / "python")


def _unpack(wheel: Path, target: Path) -> None:
    """As the server's Containerfile does it: a wheel keeps no executable bits."""
    unpacked = target / "unpacked"
    with zipfile.ZipFile(wheel) as members:
        members.extractall(unpacked)
    server = unpacked / "pytriton" / "tritonserver"
    for name in ("bin", "backends", "caches"):
        shutil.move(server / name, target / name)
    stub = server / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    shutil.move(stub, target / "backends" / "python" / stub.name)
    shutil.move(unpacked / "nvidia_pytriton.libs", target / "lib")
    for library in (target / "lib").glob("libpython3-*"):
        library.unlink()
    for program in (target / "bin" / "tritonserver", target / "backends" / "python" / stub.name):
        program.chmod(0o755)
    shutil.rmtree(unpacked)


def _environment(target: Path, packages: list[Path]) -> None:
    """The stub embeds Python 3.11, so only that one's packages do."""
    subprocess.run(["python3.11", "-m", "venv", "--copies", str(target)], check=True, capture_output=True)
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", *map(str, packages)]
    subprocess.run([target / "bin" / "python", *install], check=True, capture_output=True)
