"""The cache of built programs."""

from __future__ import annotations

import io
import subprocess
from typing import TYPE_CHECKING

import pytest

from mms_cluster import gobuild
from mms_cluster.errors import ClusterError
from mms_cluster.gobuild import Program
from mms_cluster.report import Reporter

if TYPE_CHECKING:
    from pathlib import Path

HELLO = Program(name="hello", title="hello")
MAIN = 'package main\n\nfunc main() { println("hello") }\n'


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small module and an empty cache of ours; the compiler's own cache stays where it is."""
    go = gobuild.find_go()
    assert go
    compiled = subprocess.run([go, "env", "GOCACHE"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv("GOCACHE", compiled)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gobuild, "MODULES", tmp_path)
    folder = tmp_path / "hello"
    folder.mkdir()
    (folder / "go.mod").write_text("module hello\n\ngo 1.25\n")
    (folder / "main.go").write_text(MAIN)
    return folder


def build() -> Path:
    return gobuild.build(HELLO, Reporter(io.StringIO()))


def test_built_once_until_the_sources_change(module: Path) -> None:
    first = build()
    assert build() == first
    (module / "main.go").write_text(MAIN.replace("hello", "bye"))
    assert build() != first
    assert first.exists()


def test_what_a_killed_build_left_is_no_result(module: Path) -> None:
    first = build()
    partial = first.parent.with_name(first.parent.name + ".partial")
    first.parent.rename(partial)
    assert build() == first
    assert not partial.exists()


def test_a_failed_build_says_why_and_leaves_nothing(module: Path) -> None:
    (module / "main.go").write_text("package main\n\nfunc main() { nothing() }\n")
    with pytest.raises(ClusterError, match=r"(?s)Building hello failed.*undefined: nothing"):
        build()
    assert not list(module.parent.glob("cache/mms/go/hello-*"))


def test_no_go(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gobuild, "find_go", lambda: None)
    with pytest.raises(ClusterError, match=r"no go on PATH: install Go 1\.25 or later"):
        build()


def test_old_go(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = module.parent / "go"
    old.write_text("#!/bin/sh\necho go1.19.8\n")
    old.chmod(0o755)
    monkeypatch.setattr(gobuild, "find_go", lambda: str(old))
    with pytest.raises(ClusterError, match=r"go1\.19\.8.* needs Go 1\.25 or later"):
        build()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        pytest.param("go1.26.8", (1, 26), id="release"),
        pytest.param("go1.27rc1", (1, 27), id="candidate"),
        pytest.param("devel +abc", (0, 0), id="development"),
    ],
)
def test_go_version(text: str, version: tuple[int, int]) -> None:
    assert gobuild.parse_go_version(text) == version


PROGRAMS = [gobuild.KUBE, gobuild.HELM, gobuild.DNS, gobuild.METRICS, gobuild.GATEWAY]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_version_is_read_of_go_mod(program: Program) -> None:
    assert gobuild.version(program).count(".") == 2


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(({"main.go": b"b"}, "go1", HELLO), id="source"),
        pytest.param(({"main.go": b"a"}, "go2", HELLO), id="compiler"),
        pytest.param(({"main.go": b"a"}, "go1", Program(name="hello", title="hello", tags="x")), id="flags"),
        pytest.param(({"main.go": b"a", "go.sum": b""}, "go1", HELLO), id="file"),
    ],
)
def test_cache_key_changes_with(other: tuple[dict[str, bytes], str, Program]) -> None:
    assert gobuild.cache_key(*other) != gobuild.cache_key({"main.go": b"a"}, "go1", HELLO)
