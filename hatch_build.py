"""Compiles the native libraries into the package, for wheels and editable installs.

The compiler is Zig's clang from PyPI (`ziglang`), which brings its own C library headers and linker: no compiler of the
system is needed, and the result runs with any glibc from 2.28 on, whatever this machine has. The same sources give the
same bytes. What was built is kept in the cache folder under a digest of all that went into it.

MMS_NATIVE_MACHINE=aarch64 (or x86_64) builds for another machine than this one.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

GLIBC = (2, 28)
MACHINES = ("x86_64", "aarch64")
# The sources in each folder of workloads/native become one library of the package.
LIBRARIES = {
    "transport": "workloads/mms_workloads/transport/libmms_transport.so",
    "embedding": "workloads/mms_workloads/embedding/libmms_embedding.so",
    "text": "workloads/mms_workloads/data/libmms_text.so",
}
# No C++ run-time library: the C library is all that it needs.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fPIC",
    "-shared",
    "-nostdlib++",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fvisibility=hidden",
    "-fno-sanitize=undefined",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-s",
    "-Wl,--build-id=none",
]


class NativeBuild(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        """Only Linux has what the libraries stand on. Elsewhere the operator's and client's parts can be installed."""
        if sys.platform != "linux":
            return
        machine = os.environ.get("MMS_NATIVE_MACHINE") or platform.machine()
        for name, target in LIBRARIES.items():
            place(build(Path(self.root), name, machine), Path(self.root) / target)
            build_data["artifacts"].append(f"/{target}")
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-manylinux_{}_{}_{}".format(*GLIBC, machine)


def build(root: Path, name: str, machine: str) -> Path:
    """The compiled library in the cache. Raises RuntimeError with the compiler's words."""
    if machine not in MACHINES:
        raise RuntimeError(f"the native libraries are for {' and '.join(MACHINES)}, not for {machine}")
    folder = root / "workloads" / "native" / name
    both = (folder, folder.parent / "common")
    sources = sorted(path for place in both for path in place.iterdir() if path.suffix in {".cc", ".h", ".inc"})
    target = "{}-linux-gnu.{}.{}".format(machine, *GLIBC)
    compiler = version("ziglang")
    total = hashlib.sha256("\0".join([compiler, target, *FLAGS]).encode())
    for source in sources:
        content = source.read_bytes()
        total.update(f"{source.name}\0{len(content)}\0".encode() + content)
    library = cache() / "native" / f"{name}-{total.hexdigest()[:16]}" / f"{name}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    units = [source.name for source in sources if source.suffix == ".cc"]
    with tempfile.TemporaryDirectory(dir=library.parent) as partial:
        output = Path(partial) / library.name
        command = [sys.executable, "-m", "ziglang", "c++", "-target", target, *FLAGS, *units, "-lm", "-o", str(output)]
        zig = str(cache() / "zig")
        environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{folder} could not be compiled:\n{done.stderr}")
        output.rename(library)
    return library


def place(library: Path, target: Path) -> None:
    """Puts it there in one step, and only when it differs: a process may have the file that is there mapped."""
    if target.exists() and target.read_bytes() == library.read_bytes():
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(library, partial)
    partial.rename(target)


def cache() -> Path:
    """~/.cache/mms, or a temporary folder where that cannot be written."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mms"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError:
        home = Path(tempfile.gettempdir()) / f"mms-{os.getuid()}"
        home.mkdir(exist_ok=True)
    return home
