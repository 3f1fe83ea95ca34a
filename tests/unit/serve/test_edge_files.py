"""What nginx is given: which keys are taken, and that none of them is written."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

import pytest

from mms_workloads.serve import edge_files
from mms_workloads.serve.edge_files import Inputs

if TYPE_CHECKING:
    from pathlib import Path

KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        (KEY.encode(), True),
        (f"{KEY}\n".encode(), True),
        (f"{KEY}\r\n".encode(), True),
        (KEY[1:].encode(), False),
        (f"{KEY[:8]} {KEY[8:]}".encode(), False),
        (f"{KEY}\n\nmore".encode(), False),
        (f"{KEY}é".encode(), False),
        (b"", False),
    ],
    ids=["16", "line end", "CRLF", "15", "space", "two lines", "not ASCII", "empty"],
)
def test_a_key(value: bytes, taken: bool) -> None:
    found = edge_files.clients({"alice": value})
    assert found.by_key == ({KEY: "alice"} if taken else {})
    assert [problem.startswith("alice: ") for problem in found.problems] == ([] if taken else [True])
    assert KEY not in str(found.problems)


def test_one_key_of_two_clients() -> None:
    found = edge_files.clients({"bob": KEY.encode(), "alice": KEY.encode()})
    assert found.by_key == {KEY: "alice"}
    assert found.problems == ("bob: it has the same key as alice",)


def test_what_is_written(tmp_path: Path) -> None:
    inputs = Inputs(b"events {}", {"tls.crt": b"c", "tls.key": b"k"}, {"alice": KEY.encode()})
    assert edge_files.lay(inputs, tmp_path, "salt") == ()
    files = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    assert set(files) == {"nginx.conf", "tls/tls.crt", "tls/tls.key", "clients.conf", "keys.js"}
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}
    digest = hmac.new(b"salt", KEY.encode(), hashlib.sha256).hexdigest()
    assert files["clients.conf"].read_text() == f'{digest} "alice";\n'
    assert all(KEY not in path.read_text() for path in files.values())


def test_without_keys_and_certificate(tmp_path: Path) -> None:
    edge_files.lay(Inputs(b"events {}", None, None), tmp_path, "salt")
    assert [path.name for path in tmp_path.iterdir()] == ["nginx.conf"]


def test_what_was_written_together_is_read_together(tmp_path: Path) -> None:
    """The kubelet writes into a folder and then changes the link `..data` to it."""
    for turn in ("one", "two"):
        (tmp_path / turn / "tls").mkdir(parents=True)
        (tmp_path / turn / "nginx.conf").write_text(turn)
        (tmp_path / turn / "tls" / "tls.crt").write_text(turn)
    (tmp_path / "..data").symlink_to("two")
    (tmp_path / "nginx.conf").symlink_to("..data/nginx.conf")
    found = edge_files.read(tmp_path, tmp_path / "none")
    assert found == Inputs(b"two", {"tls.crt": b"two"}, None)
    with pytest.raises(OSError, match=r"nginx\.conf"):
        edge_files.read(tmp_path / "none", tmp_path)
