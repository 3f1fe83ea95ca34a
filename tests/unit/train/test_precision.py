"""In which numbers products are computed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mms_workloads.contract import DataFile, LanguageModel
from mms_workloads.data import vocabulary
from mms_workloads.data.counts import Counts
from mms_workloads.data.vocabulary import Vocabulary
from mms_workloads.language.transformer import Transformer
from mms_workloads.store import Found
from mms_workloads.sync import plan as plans
from mms_workloads.sync import wire
from mms_workloads.sync.dispatcher import Dispatcher
from mms_workloads.sync.links import Link
from mms_workloads.sync.plan import Plan
from mms_workloads.sync.wire import Message
from mms_workloads.train import learner as learners
from mms_workloads.train import precision
from tests.unit.tasks import cases, plain
from tests.unit.tasks import test_task_runs as tasks
from tests.unit.train import runs
from tests.unit.train.quick import QuickRun
from tests.unit.train.runs import SECONDS

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import JobFile, Outcome

CPUINFO = "processor\t: 0\nmodel name\t: a CPU\nflags\t\t: fpu avx2 {}\n\nprocessor\t: 1\nflags\t\t: fpu avx2 {}\n"


@pytest.mark.parametrize(
    ("flags", "there"),
    [("avx512f", False), ("avx512_bf16", True), ("amx_tile amx_bf16 amx_int8", True), ("no_avx512_bf16", False)],
)
def test_instructions_of_a_processor(flags: str, there: bool) -> None:
    assert precision.in_cpuinfo(CPUINFO.format(flags, flags)) == there


def test_a_processor_that_tells_nothing() -> None:
    assert not precision.in_cpuinfo("")


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.norm, self.out = nn.Embedding(10, 32), nn.LayerNorm(32), nn.Linear(32, 96)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(self.norm(self.rows(numbers)))
        return out


NETWORKS: dict[str, tuple[nn.Module, torch.Tensor, float]] = {
    # 2 x 32 x 96 operations of a row, of 32 + 96 numbers of four bytes.
    "linear": (nn.Linear(32, 96), torch.zeros(5, 32), 2 * 32 * 96 / (4 * (32 + 96))),
    "linear-of-tokens": (nn.Linear(32, 96), torch.zeros(5, 7, 32), 2 * 32 * 96 / (4 * (32 + 96))),
    "lookups-and-norms-are-none": (Lookup(), torch.zeros(3, 4, dtype=torch.int64), 2 * 32 * 96 / (4 * (32 + 96))),
    # Of an image 8 x 8 numbers of 16 channels come in, 4 x 4 of 32 go out, each of which takes 9 x 16 products.
    "strided": (
        nn.Conv2d(16, 32, 3, 2, 1),
        torch.zeros(2, 16, 8, 8),
        2 * 16 * 32 * 9 * 16 / (4 * (64 * 16 + 16 * 32)),
    ),
    "depthwise": (nn.Conv2d(16, 16, 3, 1, 1, groups=16), torch.zeros(2, 16, 8, 8), 2 * 9 / (4 * 2)),
    "sound": (nn.Conv1d(4, 8, 5, padding=2), torch.zeros(2, 4, 10), 2 * 8 * 5 * 4 / (4 * (4 + 8))),
    "none": (nn.ReLU(), torch.zeros(2, 4), 0.0),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_operations_by_byte(case: str) -> None:
    network, given, expected = NETWORKS[case]
    for batch in (given, given[:1]):
        assert precision.intensity(network, lambda given, batch=batch: given(batch)) == pytest.approx(expected)  # type: ignore[misc]
    assert not any(module._forward_hooks for module in network.modules())


def chosen(wanted: Any, width: int) -> str:
    network = Transformer(LanguageModel(dimensions=width, layers=1, heads=4, contextLength=16), 1)
    example = torch.zeros(2, 16, dtype=torch.int64)
    return precision.Precision(wanted, lambda given: given(example)).chosen(network)


@pytest.mark.parametrize(
    ("wanted", "width", "expected"),
    [("Auto", 64, "FP32"), ("Auto", 256, "BF16"), ("FP32", 256, "FP32"), ("BF16", 64, "BF16")],
)
def test_wide_networks_gain(wanted: str, width: int, expected: str) -> None:
    assert chosen(wanted, width) == expected


def test_an_example_draws_nothing_of_what_training_draws() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    before = torch.get_rng_state()
    precision.Precision("Auto", lambda given: given(torch.ones(8, 4))).chosen(network)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("wanted", "there", "found"), [("Auto", True, "Auto"), ("Auto", False, "FP32"), ("BF16", False, "BF16")]
)
def test_without_the_instructions_it_is_float32(tmp_path: Path, wanted: str, *, there: bool, found: str) -> None:
    plan = Plan((DataFile(uri="file:///a", size=9),), 9, Vocabulary((), ()), bf16=there)
    assert learners.begun_with(job(tmp_path, wanted), plans.unpack(plans.pack(plan))).optimizer.precision == found


def test_one_worker_without_the_instructions_is_enough(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(runs.text(50))
    for others, expected in ((True, True), (False, False)):
        training = job(tmp_path, "Auto", workers=2)
        it = Dispatcher.start(training, [Found(f"file://{tmp_path}/a.txt", 9, "e")], None)
        links = [Link(rank, 0, lambda _: None, lambda: None, bf16=bf16) for rank, bf16 in enumerate((True, others))]
        assert not it.count(links)
        fields = {"task": 0, "sizes": {"0": 9}}
        it.counted(links[0], Message(wire.COUNTED, fields, vocabulary.pack_counts(Counts())))
        assert it.count(links)
        assert it.plan
        assert plans.unpack(it.plan).bf16 == expected


def job(folder: Path, wanted: str, **changes: Any) -> JobFile:
    return runs.job(
        folder,
        task={"languageModel": {"dimensions": 32, "layers": 1, "heads": 2, "contextLength": 16}},
        optimizer={"name": "AdamW", "learningRate": 0.003, "globalBatchSize": 16, "epochs": 2, "precision": wanted},
        **changes,
    )


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("float32")
    return folder, runs.run_to_the_end(folder, job(folder, "FP32"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_in_bf16_learns_as_much(in_float32: tuple[Path, Outcome], tmp_path: Path, workers: int) -> None:
    with QuickRun(tmp_path / "run", job(tmp_path, "BF16", workers=workers)) as run:
        assert run.start().until(lambda report: report.precision is not None, SECONDS).precision == "BF16"
        outcome = run.outcome(SECONDS)
    there, here = (one.artifact for one in (in_float32[1], outcome))
    assert there
    assert here
    assert here.metrics["bitsPerByte"] == pytest.approx(there.metrics["bitsPerByte"], abs=0.1)
    ours, theirs = (load_file(one / "storage" / "artifact" / "model.safetensors") for one in (tmp_path, in_float32[0]))
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours), "it was computed as before"


def test_word_vectors_have_kernels_of_their_own(tmp_path: Path) -> None:
    with QuickRun(tmp_path / "run", runs.job(tmp_path)) as run:
        report = run.start().until(lambda report: report.step > 0, SECONDS)
        run.outcome(SECONDS)
    assert report.precision is None


CONVOLUTIONAL = {"image-classification", "object-detection", "video-understanding"}  # of enough channels


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        *((name, {}, "BF16" if name in CONVOLUTIONAL else "FP32") for name in cases.CASES),
        ("text-classification", {"dimensions": 256}, "BF16"),
    ],
)
def test_each_task_passes_an_example(tmp_path: Path, name: str, changes: dict[str, int], expected: str) -> None:
    case = cases.CASES[name]
    ((kind, task),) = case.task.items()
    training = tasks.job(tmp_path, {kind: {**task, **changes}}, case.data(tmp_path / "data"))
    pod: Any = SimpleNamespace(job=training, scratch=tmp_path)
    learner = learners.make(pod, replace(plain.counted(training, tmp_path), bf16=True), "plain")
    assert learner.precision(learner.start()) == expected
