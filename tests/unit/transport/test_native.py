"""The native library: how it is built, and what happens where it is not."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hatch_build
from mms_workloads.transport import native

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "workloads" / "native"
NO_PLACE = "/nowhere/libmms_transport.so"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, with a cache that holds the compiler's own files only."""
    cache = tmp_path / "cache"
    cache.mkdir()
    compiler = hatch_build.cache() / "zig"
    compiler.mkdir(exist_ok=True)
    (cache / "zig").symlink_to(compiler)
    monkeypatch.setattr(hatch_build, "cache", lambda: cache)
    shutil.copytree(SOURCES, tmp_path / "tree" / "workloads" / "native")
    return tmp_path / "tree"


@pytest.mark.parametrize("machine", hatch_build.MACHINES)
@pytest.mark.parametrize("name", hatch_build.LIBRARIES)
def test_library(tree: Path, name: str, machine: str) -> None:
    """For both machines, from glibc 2.28 on, without a C++ library, and the same bytes wherever it is built."""
    content = hatch_build.build(tree, name, machine).read_bytes()
    assert content[:4] == b"\x7fELF"
    assert int.from_bytes(content[18:20], "little") == {"x86_64": 62, "aarch64": 183}[machine]
    needed = {tuple(map(int, version)) for version in re.findall(rb"GLIBC_(\d+)\.(\d+)", content)}
    assert needed
    assert max(needed) <= hatch_build.GLIBC
    assert b"libstdc++" not in content
    assert b"libc++" not in content
    assert str(tree).encode() not in content
    if machine == platform.machine():
        built = (ROOT / hatch_build.LIBRARIES[name]).read_bytes()
        assert content == built, "scripts/setup has not been run since the sources changed"


def test_build_is_done_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = platform.machine()
    first = hatch_build.build(tree, "transport", machine)
    runs: list[Any] = []
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: runs.append(args) or real(*args, **kwargs))
    assert hatch_build.build(tree, "transport", machine) == first
    assert not runs
    source = tree / "workloads" / "native" / "transport" / "error.cc"
    source.write_text(source.read_text().replace("return 1;", "return 2;"))
    changed = hatch_build.build(tree, "transport", machine)
    assert len(runs) == 1
    assert changed != first
    with pytest.raises(ImportError, match="has version 2 of the interface, and 1 is needed"):
        native.load(changed)


def test_source_that_does_not_compile(tree: Path) -> None:
    (tree / "workloads" / "native" / "transport" / "error.cc").write_text("int f() { return g(); }")
    with pytest.raises(RuntimeError, match="undeclared identifier 'g'"):
        hatch_build.build(tree, "transport", platform.machine())
    assert not list((hatch_build.cache() / "native").rglob("*.so"))


def test_machine_without_a_library(tree: Path) -> None:
    with pytest.raises(RuntimeError, match="not for riscv64"):
        hatch_build.build(tree, "transport", "riscv64")


def test_a_library_in_use_is_replaced_whole(tmp_path: Path) -> None:
    old, same, new = tmp_path / "old", tmp_path / "same", tmp_path / "new"
    for file, content in ((old, b"1"), (same, b"1"), (new, b"2")):
        file.write_bytes(content)
    with old.open("rb") as mapped:
        number = old.stat().st_ino
        hatch_build.place(same, old)
        assert old.stat().st_ino == number
        hatch_build.place(new, old)
        assert mapped.read() == b"1"
    assert old.read_bytes() == b"2"
    assert sorted(tmp_path.iterdir()) == [new, old, same]


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), (b"no library", "file too short|invalid ELF"), ("libc", "mms_abi_version")],
    ids=["missing", "no library", "another library"],
)
def test_library_that_does_not_load(tmp_path: Path, content: bytes | str | None, says: str) -> None:
    file = tmp_path / "libmms_transport.so"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        file = Path("libm.so.6")
    with pytest.raises(ImportError, match=f"(?s)({says}).*run scripts/setup"):
        native.load(file)


def test_import_without_the_library() -> None:
    """The transport says what to do; the contract and the operator need none of it."""
    code = f"""
import pathlib, sys
import mms_workloads.contract
import mms_operator.engine.certificates
assert not any(name.startswith("mms_workloads.transport") for name in sys.modules)
pathlib.Path.with_name = lambda self, name: pathlib.Path({NO_PLACE!r})
import mms_workloads.transport
"""
    path = f"{ROOT}/operator:{ROOT}/workloads"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"ImportError: the native transport cannot be loaded: {NO_PLACE}" in done.stderr
    assert "run scripts/setup" in done.stderr
