"""What is said of a rollout on the command line: a kubectl of a few lines of shell stands in for the real one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from mms_operator.cli import app
from tests.unit.plan.serving_world import ServingWorld

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that writes what it is given into this file, and answers with the file `answer` beside it."""
    program = tmp_path / "kubectl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\ncat {tmp_path}/answer\n')
    program.chmod(0o755)
    (tmp_path / "answer").write_text("{}")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "said"


COMMANDS = {
    "pause": (["pause"], "pause"),
    "resume": (["resume"], "resume"),
    "promote": (["promote"], "promote"),
    "promote all": (["promote", "--all"], "promote all"),
    "abort": (["abort"], "abort"),
    "rollback": (["rollback"], "rollback"),
    "rollback to": (["rollback", "3"], "rollback 3"),
    "retry": (["retry"], "retry"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_becomes_the_annotation(said: Path, case: str) -> None:
    (verb, *arguments), wanted = COMMANDS[case]
    answer = CliRunner().invoke(app, ["rollout", verb, "words", *arguments, "-n", "ns"])
    assert answer.exit_code == 0, answer.output
    before, _, after = said.read_text().strip().partition(" @")
    assert before == f"--namespace ns annotate --overwrite modelservices words mms.dev/rollout={wanted}"
    assert after.startswith("20"), "a time, so that the same can be said twice"


def test_the_command_line_says_what_the_planner_reads(said: Path) -> None:
    w = ServingWorld({"replicas": 2})
    w.serve("a")
    w.settle()
    w.serve("b")
    w.settle()
    CliRunner().invoke(app, ["rollout", "rollback", "words"])
    w.say(said.read_text().strip().partition("mms.dev/rollout=")[2])
    w.settle()
    assert w.answering() == {"a": 2}


def test_status(said: Path, tmp_path: Path) -> None:
    w = ServingWorld({"replicas": 2, "rollout": {"strategy": "Canary"}})
    for letter in "ab":
        w.serve(letter)
        w.settle()
    (tmp_path / "answer").write_text(json.dumps(w.cr))
    answer = CliRunner().invoke(app, ["rollout", "status", "words"])
    assert answer.exit_code == 0, answer.output
    lines = [line.strip() for line in answer.output.splitlines()]
    assert any(line.startswith("stable") and "aaaaaaaaaaaa" in line for line in lines)
    assert any(line.startswith("next") and "bbbbbbbbbbbb" in line for line in lines)
    assert "Canary: Waiting, step 1 of 3, 50 % of the pods" in answer.output
    assert "Served" in answer.output
    assert "get modelservices words" in said.read_text()


def test_what_kubectl_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "kubectl"
    program.write_text('#!/bin/sh\necho "not found" >&2; exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    answer = CliRunner().invoke(app, ["rollout", "abort", "words"])
    assert (answer.exit_code, "not found" in answer.output) == (1, True)


def test_how_a_training_is_followed(said: Path) -> None:
    live = {"phase": "Following", "run": 2, "step": 811, "ageP50Milliseconds": 410, "ageP99Milliseconds": 690}
    (said.parent / "answer").write_text(json.dumps({"status": {"live": live}}))
    answer = CliRunner().invoke(app, ["rollout", "status", "words"])
    text = " ".join(answer.output.split())
    assert "LiveSync: Following, run 2, step 811, age p50 410 ms, p99 690 ms" in text


def test_a_status_of_a_later_version(said: Path) -> None:
    (said.parent / "answer").write_text(json.dumps({"status": {"rollout": {"strategy": "Later"}}}))
    answer = CliRunner().invoke(app, ["rollout", "status", "words"])
    assert (answer.exit_code, type(answer.exception)) == (1, SystemExit)
    assert "take the mms of the operator's version" in " ".join(answer.output.split())
