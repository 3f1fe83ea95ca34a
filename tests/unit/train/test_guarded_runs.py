"""Anomalies are injected into runs of real processes: found, corrected, and the model is as good as without them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests import faults
from tests.unit.train import runs
from tests.unit.train.quick import QuickRun
from tests.unit.train.runs import SECONDS, kinds

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import JobFile, Outcome, StatusReport

TASK = {"languageModel": {"dimensions": 16, "layers": 1, "heads": 2, "contextLength": 16}}
MARGIN = 0.1  # bits per byte between a disturbed and an undisturbed run; between two seeds it is half of that
WRECKED = 3.0  # bits per byte of a model that an anomaly has spoilt: letters are told apart, no more
SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4, 5))]
SERVED = {"syncMode": "ParameterServer", "parameterServer": {"shards": 2}}
COPIED = {"syncMode": "ParameterServer", "parameterServer": {"shards": 2, "replicas": 2}}
# In the first of these steps that the rank takes part in: on a busy machine it may be away for one.
PLACE = {"from": 120, "to": 400, "once": True}


def job(folder: Path, workers: int, seed: int = 1, **changes: Any) -> JobFile:
    optimizer = {"name": "AdamW", "learningRate": 0.01, "globalBatchSize": 32, "epochs": 1, "seed": seed}
    changes = {"checkpoint": {"intervalSeconds": 1}, **changes}
    return runs.job(folder, workers=workers, task=TASK, optimizer=optimizer, **changes)


def bits(outcome: Outcome) -> float:
    assert outcome.result == "Complete", outcome
    assert outcome.artifact is not None
    value = outcome.artifact.metrics["bitsPerByte"]
    return value if math.isfinite(value) else math.inf


def run(folder: Path, training: JobFile, *given: dict[str, Any], patch: pytest.MonkeyPatch) -> Any:
    """The outcome, and the last status that was seen. A worker that is evicted is replaced, as the operator would."""
    patch.setenv(faults.VARIABLE, json.dumps(given))
    with QuickRun(folder / "run", training) as made:
        made.start()
        replaced = 0

        def ended(report: StatusReport) -> bool:
            nonlocal replaced
            for rank in range(training.workers):
                if made.processes[f"worker-{rank}"].poll() == 75 and report.outcome is None:
                    replaced += 1
                    patch.setenv(faults.VARIABLE, "[]")
                    made.start_worker(rank)
            return report.outcome is not None

        report = made.until(ended, SECONDS)
        return made.outcome(SECONDS), report, replaced


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    known: dict[int, float] = {}

    def of(seed: int) -> float:
        if seed not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv(faults.VARIABLE, raising=False)
                known[seed] = bits(runs.run_to_the_end(folder, job(folder, 2, seed)))
        return known[seed]

    return of


@dataclass(frozen=True)
class Case:
    workers: int
    mode: dict[str, Any]
    fault: dict[str, Any]
    kind: str


CASES = {
    "nan-ring": Case(2, {}, {"kind": "nan", "rank": 1, **PLACE}, "NonFinite"),
    "nan-shards": Case(2, SERVED, {"kind": "nan", "rank": 1, **PLACE}, "NonFinite"),
    "outlier-of-two": Case(2, {}, {"kind": "scale", "by": 1e4, "rank": 1, **PLACE}, "GradientOutlier"),
    "outlier-shards": Case(3, SERVED, {"kind": "scale", "by": 1e4, "rank": 1, **PLACE}, "GradientOutlier"),
    "loss-ring": Case(2, {}, {"kind": "wreck", **PLACE}, "LossSpike"),
    "loss-shards": Case(2, SERVED, {"kind": "wreck", **PLACE}, "LossSpike"),
    "flip-of-a-shard": Case(2, COPIED, {"kind": "flip-shard", "rank": 1, "from": 120}, "Corruption"),
    "flip-of-two": Case(2, {}, {"kind": "flip", "rank": 1, **PLACE}, "Corruption"),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_anomaly_is_corrected(
    tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, seed: int, case: Case
) -> None:
    training = job(tmp_path, case.workers, seed, **case.mode)
    outcome, report, replaced = run(tmp_path, training, case.fault, patch=monkeypatch)
    assert case.kind in kinds(report), report.incidents
    assert bits(outcome) == pytest.approx(undisturbed(seed), abs=MARGIN)
    assert replaced == 0


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"kind": "nan", "rank": 1, **PLACE}, id="nan"),
        pytest.param({"kind": "wreck", **PLACE}, id="loss"),
    ],
)
def test_without_a_guard_it_spoils_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    training = job(tmp_path, 2, guard={"lossSpike": "Off", "gradientOutlier": "Off"})
    outcome, _, _ = run(tmp_path, training, fault, {"kind": "unguarded"}, patch=monkeypatch)
    not_finite = outcome.result == "Failed" and "the parameters are not finite" in outcome.message
    assert not_finite or bits(outcome) > WRECKED, outcome


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rank_with_flipped_bits_is_outvoted_and_replaced(
    tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    fault = {"kind": "flip", "rank": 1, **PLACE}
    outcome, report, replaced = run(tmp_path, job(tmp_path, 3, seed), fault, patch=monkeypatch)
    assert "Corruption" in kinds(report)
    assert replaced == 1
    assert bits(outcome) == pytest.approx(undisturbed(seed), abs=MARGIN)


def test_a_rank_whose_gradients_stay_bad_is_replaced(
    tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = {"kind": "scale", "by": 1e4, "rank": 2, "from": 120, "to": 100_000}
    outcome, report, replaced = run(tmp_path, job(tmp_path, 3), fault, patch=monkeypatch)
    assert kinds(report).count("GradientOutlier") >= 2
    assert replaced == 1
    assert bits(outcome) == pytest.approx(undisturbed(1), abs=MARGIN)


@pytest.mark.parametrize(("guard", "backs"), [({}, 1), ({"nonFinite": "Rollback"}, 2)], ids=["skip", "roll back"])
def test_a_block_whose_samples_are_never_finite(
    tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, guard: dict[str, Any], backs: int
) -> None:
    """A few bad samples are skipped; where they go on, all go back and leave the block out. At once, they leave out the
    samples, as those are of several blocks, and then the block.
    """
    fault = {"kind": "poison", "block": 5}
    outcome, report, _ = run(tmp_path, job(tmp_path, 2, guard=guard), fault, patch=monkeypatch)
    said = [incident.action for incident in report.incidents if "back to" in incident.action]
    assert [said[-1].endswith("without blocks 5"), len(said)] == [True, backs], said
    assert f"at {0.5**backs:g} of the learning rate" in said[-1]
    assert bits(outcome) == pytest.approx(undisturbed(1), abs=MARGIN)


def test_a_slow_rank_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = {"kind": "slow", "seconds": 0.3, "rank": 1, "from": 20, "to": 65}
    outcome, report, _ = run(tmp_path, job(tmp_path, 2), fault, patch=monkeypatch)
    assert outcome.result == "Complete"
    assert [i.rank for i in report.incidents if i.kind == "Straggler"] == [1]


def test_a_slow_rank_is_replaced_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = {"kind": "slow", "seconds": 0.3, "rank": 1, "from": 20, "to": 100_000}
    training = job(tmp_path, 2, guard={"straggler": "Replace"})
    outcome, _, replaced = run(tmp_path, training, fault, patch=monkeypatch)
    assert (outcome.result, replaced) == ("Complete", 1)


@pytest.mark.parametrize("task", [TASK, {"wordEmbedding": {"dimensions": 8, "minCount": 1}}], ids=["bytes", "words"])
def test_dead_data_is_quarantined(tmp_path: Path, task: dict[str, Any]) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text(runs.text(800))
    (corpus / "b.txt").write_text(("aaa " * 19 + "aaa\n" if "wordEmbedding" in task else "a" * 79 + "\n") * 1000)
    training = runs.job(tmp_path, workers=2, task=task, optimizer={"epochs": 2})
    with QuickRun(tmp_path / "run", training) as made:
        report = made.start().until(lambda r: r.outcome, SECONDS)
        outcome = made.outcome(SECONDS)
    assert outcome.result == "Complete"
    assert report.quarantined in {9, 10}  # one of them may be held out
    assert kinds(report).count("DeadData") == report.quarantined


@pytest.mark.usefixtures("paced")
def test_a_new_master_knows_what_is_quarantined(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text(runs.text(800))
    (corpus / "b.txt").write_text(("a" * 79 + "\n") * 300)  # the last three blocks, and a part of the one before
    training = runs.job(tmp_path, task=TASK, optimizer={"epochs": 40})
    with QuickRun(tmp_path / "run", training) as made:
        before = made.start().until(lambda r: r.quarantined == 3, SECONDS)
        made.kill("master")
        made.start_master()
        after = made.until(lambda r: r.data and r.data.doneBytes, SECONDS)  # an epoch has begun
        assert after.quarantined == before.quarantined
        assert kinds(after).count("DeadData") == before.quarantined


def test_nothing_but_dead_data(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text(("a" * 79 + "\n") * 500)
    outcome = runs.run_to_the_end(tmp_path, runs.job(tmp_path, workers=1, task=TASK))
    assert (outcome.result, outcome.reason) == ("Failed", "DataEmpty")
    assert "the same" in outcome.message
