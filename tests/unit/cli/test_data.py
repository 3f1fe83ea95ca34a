"""`mms data encrypt` and `mms data check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from mms_operator.cli import app

if TYPE_CHECKING:
    from pathlib import Path


def said(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), "no traceback"
    return result.exit_code, " ".join((result.stdout + result.stderr).split())


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"film {i},{'good' if i % 3 else 'bad'}\n" for i in range(60)) + "odd\n")
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("ab" * 32 + "\n")
    return path


def test_check_tells_the_schema_and_the_bad_records(table: Path) -> None:
    code, text = said("check", table)
    assert code == 0
    for part in ("format CSV", "records 60", "2 classes bad (20), good (40)", "bad records 1", "it has 1 cells"):
        assert part in text


def test_check_fails_beyond_the_budget(table: Path) -> None:
    code, text = said("check", table, "--max-bad-records", 0)
    assert code == 1
    assert "1 records are bad" in text


def test_what_was_encrypted_can_be_checked(table: Path, key: Path, tmp_path: Path) -> None:
    code, text = said("encrypt", table, tmp_path / "sealed", "--key-file", key, "--block-size", "1Ki")
    assert code == 0
    assert "blocks of CSV" in text
    assert said("check", tmp_path / "sealed", "--key-file", key) == (0, "1 blocks are intact")
    block = tmp_path / "sealed" / "blocks" / "00000000.mms"
    block.write_bytes(block.read_bytes()[:-1])
    code, text = said("check", tmp_path / "sealed", "--key-file", key)
    assert code == 1
    assert "1 of 1 blocks are damaged" in text
    (tmp_path / "other").write_text("cd" * 32)
    code, text = said("check", tmp_path / "sealed", "--key-file", tmp_path / "other")
    assert code == 1
    assert "another data key" in text


@pytest.mark.parametrize("size", ["0Ki", "1M", "x", "5"])
def test_a_block_size_that_is_none(table: Path, key: Path, tmp_path: Path, size: str) -> None:
    code, text = said("encrypt", table, tmp_path / "sealed", "--key-file", key, "--block-size", size)
    assert code == 1
    assert "Ki, Mi or Gi" in text


def test_a_file_that_holds_no_key(table: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    code, text = said("encrypt", table, tmp_path / "sealed", "--key-file", tmp_path / "key")
    assert code == 1
    assert "openssl rand -hex 32" in text


def test_what_the_data_says_is_no_markup(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "film,[bold]\nfilm,[/red]\n" * 3)
    code, text = said("check", tmp_path / "a.csv")
    assert code == 0
    assert "[/red] (3), [bold] (3)" in text
