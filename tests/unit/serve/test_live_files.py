"""A training's parameters as files: what is mapped, and what is not to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mms_workloads.contract import ArtifactManifest, Golden, JobIdentity, WordEmbedding
from mms_workloads.serve import embedding, golden, live_files, vectors_file
from mms_workloads.serve.embedding import Question
from mms_workloads.serve.live_files import Sample, UnfitError
from tests.unit.serve import artifacts

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

WORDS, COLUMNS = 50, 12
JOB = JobIdentity(namespace="d", name="words", uid="u", run=2)


def halves(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves, as bfloat16 has them, rounded towards zero."""
    return (rows.view(np.uint32) >> 16).astype(np.uint16)


def drawn(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(WORDS, COLUMNS)).astype(np.float32)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run's folder, with its words."""
    text = "".join(f"word{number}\t{WORDS - number}\n" for number in range(WORDS))
    folder = tmp_path / "artifact-r1"
    assert live_files.write_run(folder, text.encode(), WordEmbedding().model_dump_json().encode()) == WORDS
    return folder


def test_models_map_it_as_an_artifact(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_files, "ROWS_AT_ONCE", 7)  # parts, of which the last is shorter
    rows = halves(drawn())
    exact = live_files.widened(rows)
    assert np.abs(exact - drawn()).max() < 2**-6
    folder = run.with_name("artifact-r1-0")
    live_files.write_generation(folder, run, rows)
    plain, unit = (vectors_file.load(folder, unit=unit) for unit in (False, True))
    assert np.array_equal(plain.rows, exact)
    assert np.isfortran(unit.rows), "products with one vector read it in its order"
    assert np.allclose(unit.rows, exact / np.linalg.norm(exact, axis=1, keepdims=True), atol=1e-6)
    assert plain.words.rows([b"word7"]).tolist() == [7]


def column(tensor: dict[str, Any]) -> NDArray[Any]:
    strings = tensor["datatype"] == "BYTES"
    data = [one.encode() for one in tensor["data"]] if strings else tensor["data"]
    return np.array(data, object if strings else tensor["datatype"].lower()).reshape(tensor["shape"])


def test_the_first_ones_are_proved_as_an_artifact_is(run: Path) -> None:
    made = live_files.write_first(run, halves(drawn()), JOB)
    assert ArtifactManifest.model_validate_json((run / "manifest.json").read_bytes()) == made
    assert made.version == 2
    cases = Golden.model_validate_json((run / "golden.json").read_bytes()).cases
    assert [case.model for case in cases] == ["vectors", "neighbours"]
    loaded = {"vectors": vectors_file.load(run, unit=False), "neighbours": vectors_file.load(run, unit=True)}
    for case in cases:
        arrays = {one["name"].lower(): column(one) for one in golden.inputs(case)}
        question = Question(**arrays)
        (answer,) = getattr(embedding, case.model)(loaded[case.model], [question])
        assert not isinstance(answer, embedding.RequestError)
        outputs = {"VECTORS": answer} if case.model == "vectors" else {"SCORES": answer.scores}
        assert golden.difference(case, artifacts.tensors(outputs), 1e-4) is None
        wrong = {name: value + 0.01 for name, value in outputs.items()}
        assert golden.difference(case, artifacts.tensors(wrong), 1e-4) is not None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_leaves_nothing(run: Path, value: float) -> None:
    rows = drawn()
    rows[31, 3] = value
    folder = run.with_name("artifact-r1-0")
    with pytest.raises(UnfitError, match="word 31 is not finite"):
        live_files.write_generation(folder, run, halves(rows))
    assert not folder.exists()


def test_a_vector_of_zeros_stays(run: Path) -> None:
    rows = drawn()
    rows[3] = 0
    live_files.write_first(run, halves(rows), JOB)
    assert not vectors_file.load(run, unit=True).rows[3].any()


def test_bytes_that_are_no_vectors() -> None:
    with pytest.raises(UnfitError, match="7 bytes are no 2 vectors of 2 numbers"):
        live_files.matrix(memoryview(bytes(7)), 2, 2)
    with pytest.raises(UnfitError, match="comparisons"):
        live_files.sample(bytes(13))


def test_quality() -> None:
    """Word 0 is like word 1, and not like word 2."""
    rows = halves(np.array([[1, 0.1], [1, 0.2], [-1, 0.5]], np.float32))
    assert Sample(np.array([[0, 1, 2]])).quality(rows) == 1
    assert Sample(np.array([[0, 2, 1], [0, 1, 2], [1, 2, 2], [1, 0, 2]])).quality(rows) == 0.625
    assert live_files.sample(b"").quality(rows) is None
    spoilt = rows.copy()
    spoilt[0] = 0x7FC0  # NaN
    assert Sample(np.array([[0, 1, 2]])).quality(spoilt) == 0
