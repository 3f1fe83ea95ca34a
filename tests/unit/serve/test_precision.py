"""Networks with fewer bits: what is measured, and when they are taken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mms_workloads.contract import Golden, PrecisionOrder
from mms_workloads.serve import golden, pipelines, precision
from mms_workloads.store import JobError
from tests.unit.serve import networks, pipeline_artifacts

if TYPE_CHECKING:
    from pathlib import Path


def artifact(folder: Path, questions: int = 30) -> Path:
    """Of which each question is there twice, as a golden case and as a comparison, and counts once."""
    networks.dense(folder)
    random = np.random.default_rng(1)
    asked = [{"PIXELS": random.random((1, 3, 16, 16), np.float32)} for _ in range(questions)]
    pipeline_artifacts.publish(folder, asked)
    return folder


def convolutional(folder: Path, questions: int) -> list[bytes]:
    """An artifact whose network has a convolution. Its questions, as they are asked."""
    networks.sharpened(folder)
    random = np.random.default_rng(1)
    asked = [{"PIXELS": random.random((1, 3, 16, 16), np.float32)} for _ in range(questions)]
    pipeline_artifacts.publish(folder, asked)
    return [one["PIXELS"].tobytes() for one in asked]


def order(wanted: str, loss: float = 0.2) -> PrecisionOrder:
    return PrecisionOrder.model_validate({"wanted": wanted, "maxLoss": loss})


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other network answers nonsense."""

    def quantise(source: Path, target: Path, feeds: object) -> None:
        networks.dense(target.parent, labels=3)
        source.rename(target)
        networks.dense(target.parent)

    monkeypatch.setattr(precision, "quantise", quantise)


def test_int8_is_measured_taken_and_proves_itself(tmp_path: Path) -> None:
    artifact(tmp_path)
    before = Golden.model_validate_json((tmp_path / "golden.json").read_bytes())
    found = precision.apply(tmp_path, order("INT8"), trusted=False)
    assert (found.chosen, found.questions) == ("INT8", 30)
    assert found.loss <= 0.2
    assert found.speedUp > 0
    small, large = (tmp_path / name for name in (precision.INT8, "model.onnx"))
    assert small.stat().st_size < 0.4 * large.stat().st_size
    after = Golden.model_validate_json((tmp_path / "golden.json").read_bytes())
    assert after.comparisons == before.comparisons
    served = pipelines.open(tmp_path)
    for case in after.cases:
        answer = served.answer(precision.inputs_of(case))
        said = {"datatype": "FP32", "shape": [1, 1], "data": answer["SCORES"].ravel().tolist()}
        only = case.model_copy(update={"outputs": {"SCORES": case.outputs["SCORES"]}})
        assert golden.difference(only, {"SCORES": said}, 1e-4) is None
    again = precision.apply(tmp_path, order("INT8"), trusted=False)
    assert again.chosen == "INT8"


def test_auto_takes_nothing_that_loses_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact(tmp_path)
    spoil(monkeypatch)
    found = precision.apply(tmp_path, order("Auto", 0.01), trusted=False)
    assert (found.chosen, found.message) == ("FP32", "INT8 loses more than is allowed")
    assert found.loss > 0.2
    assert not (tmp_path / "variant.json").exists()
    assert not (tmp_path / precision.INT8).exists()


def test_what_was_asked_for_and_loses_too_much_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact(tmp_path)
    spoil(monkeypatch)
    with pytest.raises(JobError, match=r"server.maxAccuracyLoss is 1.00%: allow more"):
        precision.apply(tmp_path, order("INT8", 0.01), trusted=False)


def test_auto_needs_questions(tmp_path: Path) -> None:
    artifact(tmp_path, 4)
    found = precision.apply(tmp_path, order("Auto"), trusted=False)
    assert found.chosen == "FP32"
    assert "has 4 questions, and 20 are needed" in found.message


@pytest.mark.parametrize(("wanted", "questions"), [("Auto", 40), ("INT8", 5), ("INT8", 1)])
def test_what_it_is_calibrated_on_does_not_judge_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, questions: int
) -> None:
    asked = convolutional(tmp_path, questions)
    fitted: list[bytes] = []
    judged: list[bytes] = []
    quantise, compare = precision.quantise, precision.compare

    def fit(source: Path, target: Path, feeds: list[dict[str, Any]]) -> None:
        fitted.extend(one["pixels"].tobytes() for one in feeds)
        quantise(source, target, feeds)

    def judge(plain: Any, variant: Any, given: list[dict[str, Any]]) -> Any:
        judged.extend(one["PIXELS"].tobytes() for one in given)
        return compare(plain, variant, given)

    monkeypatch.setattr(precision, "quantise", fit)
    monkeypatch.setattr(precision, "compare", judge)
    found = precision.apply(tmp_path, order(wanted, 0.9), trusted=False)
    assert found.questions == len(judged)
    assert judged == asked[::2]
    assert fitted == (asked[1::2] if questions > 1 else asked), "one has no other half"


def test_auto_needs_questions_for_both(tmp_path: Path) -> None:
    convolutional(tmp_path, 38)
    found = precision.apply(tmp_path, order("Auto"), trusted=False)
    assert found.chosen == "FP32"
    assert "has 38 questions, and 40 are needed" in found.message


def test_bf16_is_not_for_onnx(tmp_path: Path) -> None:
    artifact(tmp_path)
    with pytest.raises(JobError, match="BF16 is not for ONNX networks: set INT8 or Auto"):
        precision.apply(tmp_path, order("BF16"), trusted=False)


def test_what_is_hardly_faster_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact(tmp_path)
    monkeypatch.setattr(precision, "_seconds", lambda *_: 1.0)
    found = precision.apply(tmp_path, order("Auto"), trusted=False)
    assert (found.chosen, found.message) == ("FP32", "INT8 is hardly faster here")


@pytest.mark.parametrize("said", ["RuntimeError", "ValueError"])
def test_a_quantiser_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    artifact(tmp_path)

    def quantise(source: Path, target: Path, feeds: object) -> None:
        target.write_bytes(source.read_bytes()[:100])
        raise {"RuntimeError": RuntimeError, "ValueError": ValueError}[said]("no such operator")

    monkeypatch.setattr(precision, "quantise", quantise)
    found = precision.apply(tmp_path, order("Auto"), trusted=False)
    assert found.chosen == "FP32"
    assert found.message == f"INT8 cannot be made of this network ({said}: no such operator)"
    with pytest.raises(JobError, match=r"no such operator\): set server.precision to Auto or FP32"):
        precision.apply(tmp_path, order("INT8"), trusted=False)
    assert not (tmp_path / "variant.json").exists()
    assert not (tmp_path / precision.INT8).exists()
    pipelines.open(tmp_path)


def answering(answers: list[dict[str, Any]]) -> Any:
    """A model whose answer to the question n is that; [n, 1] each."""
    made = [{name: np.array([[value]], _type(value)) for name, value in answer.items()} for answer in answers]
    return SimpleNamespace(
        pipeline=SimpleNamespace(task="any"), steps=SimpleNamespace(outputs=()),
        answer=lambda asked: made[int(asked["N"][0, 0])],
    )  # fmt: skip


def _type(value: Any) -> Any:
    return {float: np.float32, int: np.int64, bytes: np.object_}[type(value)]


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        ({"SCORES": 0.5}, {"SCORES": 0.51}, True),
        ({"SCORES": 0.5}, {"SCORES": 0.502}, False),
        ({"SCORES": 0.001}, {"SCORES": 0.002}, False),  # beside others, which are larger
        ({"SCORES": 0.5}, {"SCORES": float("nan")}, True),
        ({"SCORES": 0.5, "LABELS": b"a"}, {"SCORES": 0.9, "LABELS": b"a"}, False),
        ({"SCORES": 0.5, "LABELS": b"a"}, {"SCORES": 0.5, "LABELS": b"b"}, True),
        ({"SCORES": 0.5, "COUNT": 0}, {"SCORES": 0.9, "COUNT": 0}, False),
        ({"BITS_PER_BYTE": 2.0, "COMPLETION": b""}, {"BITS_PER_BYTE": 2.5, "COMPLETION": b""}, True),
        ({"SCORES": 0.5, "TEXTS": b"asked"}, {"SCORES": 0.6, "TEXTS": b"asked"}, True),
        ({"PIXELS": 0.5, "IMAGE": b"x", "SEED": 7}, {"PIXELS": 0.6, "IMAGE": b"y", "SEED": 7}, True),
        ({"TEXT": b""}, {"TEXT": b"a"}, True),
        ({"TEXT": b""}, {"TEXT": b""}, False),
    ],
)
def test_what_counts_as_another_answer(one: dict[str, Any], other: dict[str, Any], differs: bool) -> None:
    large = {name: 0.8 if isinstance(value, float) else value for name, value in one.items()}
    asked = [{"N": np.array([[n]]), "OTHER": np.array([[b"asked"]], np.object_)} for n in range(2)]
    found = precision.compare(answering([one, large]), answering([other, large]), asked)
    assert found.loss == (0.5 if differs else 0)
