"""`mms ask`: values as people type them, to any model; the models themselves stand in as a function."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mms_operator.cli import app
from mms_workloads.serve import query

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INPUTS = {
    "TEXT": ("BYTES", [-1, 1]), "TEXTS": ("BYTES", [-1, 2]), "K": ("INT32", [-1, 1]), "PIXELS": ("FP32", [-1, -1, -1]),
}  # fmt: skip


class There:
    """A service with one model, which answers what it was asked as ASKED, a vector and a file."""

    def __init__(self, name: str = "classify") -> None:
        self.name, self.asked = name, dict[str, np.ndarray]()

    def ready(self, model: str) -> bool:
        return model == self.name

    def inputs(self, model: str) -> dict[str, Any]:
        assert model == self.name
        return INPUTS

    def ask(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert model == self.name
        self.asked = inputs
        return {
            "LABELS": np.array([["süß".encode(), b"sour"]], np.object_),
            "VECTORS": np.arange(100, dtype=np.float32)[None],
            "IMAGE": np.array([[b"\x89PNG"]], np.object_),
        }


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> There:
    made = There()

    @contextmanager
    def client(*_: Any, **__: Any) -> Iterator[There]:
        yield made

    monkeypatch.setattr(query, "client", client)
    return made


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["ask", "words", *arguments, "--url", "host:8001"])


def test_values_become_tensors(there: There, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xff\0")
    np.save(tmp_path / "pixels.npy", np.ones((2, 3)))
    found = run("TEXT=a=b", 'TEXTS=["one", "two"]', "K=3", "PIXELS=[[1, 2], [3, 4.5]]")
    assert found.exit_code == 0, found.output
    assert there.asked["TEXT"].tolist() == [[b"a=b"]]
    assert there.asked["TEXTS"].tolist() == [[b"one", b"two"]]
    assert (there.asked["K"].tolist(), there.asked["K"].dtype) == ([[3]], np.int32)
    assert there.asked["PIXELS"].tolist() == [[[1, 2], [3, 4.5]]]
    assert run(f"TEXT=@{tmp_path / 'text'}", f"PIXELS=@{tmp_path / 'pixels.npy'}").exit_code == 0
    assert there.asked["TEXT"].tolist() == [[b"\xff\0"]]
    assert (there.asked["PIXELS"].shape, there.asked["PIXELS"].dtype) == ((1, 2, 3), np.float32)


def test_answers_are_for_people_programs_and_files(there: There, tmp_path: Path) -> None:
    del there
    picture, vector = tmp_path / "a.png", tmp_path / "a.npy"
    found = run("TEXT=x", "--save", f"IMAGE={picture}", "--save", f"VECTORS={vector}")
    assert found.output.splitlines() == [
        "LABELS  süß  sour", "VECTORS  [ 0.  1.  2. ... 97. 98. 99.]  [100]", "IMAGE  (4 bytes)",
    ]  # fmt: skip
    assert picture.read_bytes() == b"\x89PNG"
    assert np.load(vector).tolist() == list(range(100))
    told = json.loads(run("TEXT=x", "--json").output)
    assert told["model"] == "classify"
    assert told["outputs"]["LABELS"] == ["süß", "sour"]
    assert told["outputs"]["IMAGE"] == ["iVBORw=="[:6] + "=="]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param(np.array([b"a", b"b"], np.object_), ("a  b", ["a", "b"]), id="texts"),
        pytest.param(np.array([1.5], np.float32), ("[1.5]", [1.5]), id="a number"),
        pytest.param(np.zeros((0, 4), np.float32), ("[]", []), id="none"),
        pytest.param(np.zeros((2, 1), np.int64), ("[[0]  [0]]", [[0], [0]]), id="two"),
        pytest.param(np.zeros((1, 0), np.object_), ("", []), id="no text"),
    ],
)
def test_answers_of_a_model_without_rows(
    there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: np.ndarray, said: tuple[str, list[Any]]
) -> None:
    """As of a Triton repository that is served as it is."""
    monkeypatch.setattr(there, "ask", lambda *_: {"OUT": values})
    found = run("TEXT=x", "--save", f"OUT={tmp_path / 'out'}")
    assert found.exit_code == 0, found.output
    assert found.output.rstrip() == f"OUT  {said[0]}".rstrip()
    assert (tmp_path / "out").exists()
    assert json.loads(run("TEXT=x", "--json").output)["outputs"]["OUT"] == said[1]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "model classify takes TEXT (BYTES [1]), TEXTS (BYTES [2]), K (INT32 [1]), PIXELS (FP32 [-1, -1])"),
        (("TEXT",), "TEXT: give NAME=VALUE"),
        (("LABEL=x",), "LABEL: no input of model classify: it has TEXT (BYTES [1])"),
        (("K=three",), "K: three: give INT32 as JSON, such as 3 or [1, 2]"),
        (("PIXELS=[[1], [2, 3]]",), "PIXELS: [[1], [2, 3]]: "),
        (('K="3"',), 'K: "3": its rows must be of numbers'),
        (("TEXTS=one",), "TEXTS: one: give several texts as a JSON list"),
        (("TEXT=@nowhere",), "TEXT: [Errno 2]"),
        (("K=@nowhere",), "K: [Errno 2]"),
        (("TEXT=x", "--save", "PICTURE=a.png"), "PICTURE: no output of the model: it has LABELS, VECTORS, IMAGE"),
        (("TEXT=x", "--save", "IMAGE=/no/such/folder/a.png"), "/no/such/folder/a.png: [Errno 2]"),
    ],
)
def test_what_cannot_be_asked_is_said(there: There, arguments: tuple[str, ...], why: str) -> None:
    del there
    found = run(*arguments)
    assert found.exit_code == 1
    assert why in found.stderr


def test_a_service_of_many_models_or_none(there: There) -> None:
    there.name = "vectors"
    assert "name the model" in run("WORDS=x").stderr
    assert run("TEXT=x", "--model", "vectors").exit_code == 0
    there.name = "shout"
    assert "no model is ready by a name that is known" in run("TEXT=x").stderr
