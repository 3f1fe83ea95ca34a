"""A language model: what it learns, and runs of it as real processes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mms_workloads.contract import (
    LEAST_QUESTIONS,
    DataFile,
    Desired,
    Golden,
    JobFile,
    LanguageModel,
    Outcome,
    PrecisionOrder,
    Reason,
)
from mms_workloads.data.vocabulary import Vocabulary
from mms_workloads.language import learner as learners
from mms_workloads.language import transformer
from mms_workloads.language.learner import LanguageLearner
from mms_workloads.language.transformer import Transformer
from mms_workloads.serve import pipelines, precision
from mms_workloads.store import JobError
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.sync.plan import Plan
from mms_workloads.train.learner import Place, make, share
from mms_workloads.train.state import agree
from tests.unit.train import runs
from tests.unit.train.quick import QuickRun
from tests.unit.train.runs import SECONDS, until_step

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.pod import Pod

TASK = {"dimensions": 16, "layers": 2, "heads": 2, "contextLength": 16}


def job(folder: Path, **changes: Any) -> JobFile:
    optimizer = {
        "name": "AdamW",
        "learningRate": 0.01,
        "globalBatchSize": 32,
        "epochs": 1,
        **changes.pop("optimizer", {}),
    }
    return runs.job(folder, task={"languageModel": TASK}, optimizer=optimizer, **changes)


def parameters(folder: Path, outcome: Outcome) -> dict[str, torch.Tensor]:
    assert (outcome.result, outcome.reason) == ("Complete", "TrainingComplete"), outcome
    return load_file(folder / "storage" / "artifact" / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, runs.run_to_the_end(folder, job(folder))


def test_it_learns(alone: tuple[Path, Outcome]) -> None:
    folder, outcome = alone
    assert outcome.artifact is not None
    metrics = outcome.artifact.metrics
    assert metrics["bitsPerByte"] == pytest.approx(metrics["lossPerByte"] / math.log(2))
    assert metrics["bitsPerCharacter"] == metrics["bitsPerByte"], "of plain letters each is a byte"
    assert metrics["bitsPerByte"] < 2.5, "of 8 without any knowledge, and about 4 of letters that are told apart only"
    place = folder / "storage" / "artifact"
    assert json.loads((place / "model.json").read_text()) == {"architecture": "Small", **TASK}
    module = Transformer(LanguageModel.model_validate(TASK), seed=9)
    module.load_state_dict(parameters(folder, outcome))
    served = pipelines.open(place)
    golden = Golden.model_validate_json((place / "golden.json").read_bytes())
    assert golden.cases
    text = b"topic1word2 topic1word3 topic1"
    with torch.no_grad():
        logits = module(torch.tensor(list(text[:16]))[None])
    bits = torch.nn.functional.cross_entropy(logits[0], torch.tensor(list(text[1:17]))) / math.log(2)
    rows = np.array([[text[:17]], [text]], dtype=np.object_)
    lengths = np.array([[0], [8]], np.int32)
    answer = served.answer({"TEXT": rows, "LENGTH": lengths})
    assert float(answer["BITS_PER_BYTE"][0, 0]) == pytest.approx(float(bits), abs=1e-3)
    assert answer["COMPLETION"][0, 0] == b""
    assert answer["COMPLETION"][1, 0].startswith(b"word"), "the words of the corpus are topicNwordM"
    drawn = [
        served.answer({"TEXT": rows[:1], "LENGTH": lengths[1:], "SEED": np.array([[seed]])})["COMPLETION"][0, 0]
        for seed in (1, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_resumed_it_is_the_same_to_the_bit(alone: tuple[Path, Outcome], tmp_path: Path) -> None:
    training = job(tmp_path)
    with QuickRun(tmp_path / "first", training) as run:
        run.start()
        until_step(run, 20)
        run.desire(Desired(suspend=True, workers=1))
        suspended = run.outcome(SECONDS)
    assert suspended.checkpoint is not None
    with QuickRun(tmp_path / "second", training, attempt=2) as run:
        outcome = run.start().outcome(SECONDS)
    assert outcome.step == alone[1].step
    resumed, undisturbed = parameters(tmp_path, outcome), parameters(*alone)
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


def test_resumed_with_another_number_of_workers(alone: tuple[Path, Outcome], tmp_path: Path) -> None:
    with QuickRun(tmp_path / "first", job(tmp_path, workers=2)) as run:
        run.start()
        until_step(run, 20)
        run.desire(Desired(suspend=True, workers=2))
        suspended = run.outcome(SECONDS)
    assert suspended.checkpoint is not None
    files = {p.name for p in (tmp_path / "storage" / "checkpoints" / suspended.checkpoint.uri.split("/")[-1]).iterdir()}
    assert files >= {"part-0-of-2.safetensors", "part-1-of-2.safetensors", "progress.json", "plan.bin"}
    with QuickRun(tmp_path / "second", job(tmp_path, workers=1), attempt=2) as run:
        outcome = run.start().outcome(SECONDS)
    assert outcome.artifact is not None
    assert alone[1].artifact is not None
    there, here = alone[1].artifact.metrics["bitsPerByte"], outcome.artifact.metrics["bitsPerByte"]
    assert here == pytest.approx(there, abs=0.1)


def learner(folder: Path, sharding: str = "Random", **changes: Any) -> LanguageLearner:
    text = runs.text(200).encode()
    (folder / "a.txt").write_bytes(text)
    plan = Plan((DataFile(uri=f"file://{folder}/a.txt", size=len(text)),), 1000, Vocabulary((), ()))
    training = job(folder, **changes)
    training = training.model_copy(update={"data": training.data.model_copy(update={"sharding": sharding})})
    task = training.task.languageModel
    assert task is not None
    return LanguageLearner.of(training, task, plan, folder / "cache")


def test_an_evaluation_of_nothing_is_none(tmp_path: Path) -> None:
    one = learner(tmp_path)
    one.task = one.task.model_copy(update={"contextLength": 2000})
    with pytest.raises(JobError, match=r"nothing to evaluate: none of .* a window of 2000 .*lower") as raised:
        one.evaluate(one.start())
    assert raised.value.reason is Reason.DATA_EMPTY


def test_an_evaluation_of_some_text_looks_at_all_parts_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = learner(tmp_path)
    one.held_out = range(len(one.corpus.blocks))
    assert len(one.held_out) >= 8
    monkeypatch.setattr(learners, "EVALUATION_BYTES", 3500)
    used = one.evaluate(one.start()).report["heldOutBlocks"]
    assert isinstance(used, list)
    assert used == sorted(used)
    assert 4 <= len(used) < len(one.held_out)
    assert used[-1] >= len(one.held_out) // 2


def test_held_out_text_chooses_a_precision(tmp_path: Path) -> None:
    one = learner(tmp_path, evaluation={"split": 0.1})
    assert len(one.held_out) == 2, "of each there are several pieces"
    (folder := tmp_path / "artifact").mkdir()
    state = one.start()
    golden = one.write(state, one.evaluate(state), folder)
    assert (len(golden.cases), len(golden.comparisons), len(golden.questions)) == (4, 0, LEAST_QUESTIONS - 4)
    held_out = b"\n".join(one.corpus.bytes(block).tobytes() for block in one.held_out)
    assert all(given["TEXT"][0, 0] in held_out for given in precision.asked(golden))
    (folder / "golden.json").write_text(golden.model_dump_json())
    found = precision.apply(folder, PrecisionOrder(wanted="Auto", maxLoss=0.05), trusted=False)
    assert found.questions == LEAST_QUESTIONS
    assert found.chosen == "INT8" or found.message in {f"INT8 {why}" for why in (precision.LOSES, precision.NO_FASTER)}


def test_a_data_epoch_holds_each_window_once(tmp_path: Path) -> None:
    for sharding in ("Random", "Sequential"):
        one = learner(tmp_path, sharding=sharding)
        size = one.size(0)
        assert size > 20
        whole = one._samples(Slice(0, 0, 0, size, size))
        parts = torch.cat([one._samples(Slice(0, 0, i, min(i + 7, size), size)) for i in range(0, size, 7)])
        assert torch.equal(parts, whole)
        ordered = torch.from_numpy(one.corpus.bytes(0))[: size * 16 + 1].unfold(0, 17, 16).long()
        assert sorted(map(tuple, whole.tolist())) == sorted(map(tuple, ordered.tolist()))
        assert torch.equal(whole, ordered) == (sharding == "Sequential")
    again = one._samples(Slice(1, 0, 0, size, size))
    assert torch.equal(again, whole)  # Sequential


def test_the_gradient_is_the_sum_over_the_samples_whoever_takes_them(tmp_path: Path) -> None:
    one = learner(tmp_path)
    size = one.size(0)

    def gradient(*cuts: tuple[int, int]) -> torch.Tensor:
        state = one.start()
        agree(state, 0, "l", Progress.none(9))
        for start, stop in cuts:
            one.compute(state, [Slice(0, 0, start, stop, size)], Place(0, 1))
        return state.gradient

    torch.testing.assert_close(gradient((0, 5), (5, 9)), gradient((0, 9)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("members", [1, 2, 3, 5, 32])
def test_the_global_batch_is_kept_or_grows_with_the_workers(tmp_path: Path, members: int) -> None:
    kept = job(tmp_path, workers=3)
    assert sum(share(kept, Place(p, members)) for p in range(members)) == 32
    scaled = job(tmp_path, workers=2, optimizer={"whenWorkersChange": "ScaleLearningRate"})
    assert [share(scaled, Place(p, members)) for p in range(members)] == [16] * members


def test_the_learning_rate_scales_where_asked(tmp_path: Path) -> None:
    for rule, expected in (("KeepGlobalBatch", 0.01), ("ScaleLearningRate", 0.03)):
        one = learner(tmp_path, workers=1, optimizer={"whenWorkersChange": rule})
        state = one.start()
        agree(state, 0, "l", Progress.none(len(one.corpus.blocks)))
        assert one.rate(state, 3) == pytest.approx(expected)


def test_workers_that_start_after_a_change_of_their_number_learn_as_the_others(tmp_path: Path, pod: Pod) -> None:
    """The job file of each says what was wanted when its pod was made; the plan, what the run began with."""
    plan = Plan((DataFile(uri=f"file://{tmp_path}/a", size=10),), 10, Vocabulary((), ()), workers=2)
    found = list[tuple[float, int, int]]()
    for count in (2, 4):
        of_pod = job(tmp_path, workers=count, optimizer={"whenWorkersChange": "ScaleLearningRate"})
        one = make(dataclasses.replace(pod, job=of_pod), plan, "sha256:0")
        state = one.start()
        agree(state, 0, "l", Progress.none(1))
        found.append((one.rate(state, 4), one.batch(Place(0, 4)), one.batch(Place(3, 4))))
    assert found == [(pytest.approx(0.02), 16, 16)] * 2


@pytest.mark.parametrize("changes", [{}, {"dimensions": 48, "layers": 3, "heads": 4, "contextLength": 40}])
def test_how_many_numbers_a_model_is(changes: dict[str, int]) -> None:
    task = LanguageModel.model_validate(TASK | changes)
    assert transformer.parameters(task) == sum(p.numel() for p in Transformer(task, 1).parameters())


def test_a_process_that_takes_a_dead_ones_place_imports_nothing_large() -> None:
    """Before its first message: the supervisor has loaded all else before it forks."""
    program = f"""
import sys
from types import SimpleNamespace
from mms_workloads.contract import LanguageModel
from mms_workloads.train import process
before = set(sys.modules)
from mms_workloads.language.learner import LanguageLearner
LanguageLearner.tables(SimpleNamespace(task=LanguageModel.model_validate({TASK!r})))
print(*sorted(name for name in set(sys.modules) - before if not name.startswith("mms_")))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
