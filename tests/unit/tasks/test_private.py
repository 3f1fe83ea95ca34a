"""Differential privacy: what is spent, the noise that is there, what is refused, and that it learns all the same."""

from __future__ import annotations

import base64
import json
import math
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from mms_workloads import privacy
from mms_workloads.contract import Adapter, Checkpoint, Differential, ImageClassification, Optimizer, TextClassification
from mms_workloads.data.schema import Schema
from mms_workloads.media import images
from mms_workloads.store import JobError
from mms_workloads.sync import plan as plans
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.tasks import starting, texts
from mms_workloads.tasks.image_classification import ImageClassifier
from mms_workloads.tasks.learner import TaskLearner
from mms_workloads.tasks.private import PrivateState
from mms_workloads.tasks.starting import Start
from mms_workloads.tasks.text_classification import TextClassifier
from mms_workloads.train.learner import Place
from mms_workloads.train.state import agree
from tests.unit.tasks import datasets, examples
from tests.unit.tasks.test_starting import bert
from tests.unit.tasks.test_task_runs import PICTURE, SECONDS, artifact, job, served_as_published
from tests.unit.train.quick import QuickRun

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")

GIVEN = Differential(epsilon=8, delta=1e-5, maxGradientNorm=0.5)
ADAM = Optimizer(name="AdamW", learningRate=0.002)


@pytest.mark.parametrize(("epsilon", "epochs"), [(8.0, 1), (8.0, 20), (1.0, 5)])
def test_what_is_spent_is_what_opacus_says(epsilon: float, epochs: int) -> None:
    from opacus.accountants import RDPAccountant

    given = Differential(epsilon=epsilon, delta=1e-5)
    multiplier = privacy.noise_multiplier(epsilon, 1e-5, epochs)
    theirs = RDPAccountant()
    said = [privacy.report(given, epochs, count).epsilonSpent for count in range(epochs + 1)]
    assert said[0] == 0
    for count in range(1, epochs + 1):
        theirs.step(noise_multiplier=multiplier, sample_rate=1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of orders at the edge
            assert said[count] == pytest.approx(theirs.get_epsilon(1e-5))
    assert said == sorted(said)
    assert 0.95 * epsilon < said[-1] <= epsilon


def test_it_is_no_less_than_gaussian_mechanisms_spend() -> None:
    """The exact delta of E Gaussian mechanisms (Balle and Wang, 2018), of which the accountant's is a bound."""
    for epochs in (1, 10):
        mu = math.sqrt(epochs) / privacy.noise_multiplier(8.0, 1e-5, epochs)
        below = (1 + math.erf((mu / 2 - 8 / mu) / math.sqrt(2))) / 2
        above = (1 + math.erf((-mu / 2 - 8 / mu) / math.sqrt(2))) / 2
        assert below - math.exp(8) * above < 1e-5


def test_passes_of_the_most_used_record() -> None:
    progress = Progress([2, 1, 3], {0: (5, 10)})
    assert privacy.passes(progress, [0, 1]) == 3
    assert privacy.passes(progress, [1]) == 1
    assert privacy.passes(progress, [1], [Slice(1, 1, 0, 5, 10)]) == 2
    assert privacy.passes(Progress([0]), [0]) == 0


def test_the_budget_is_not_passed(tmp_path: Path) -> None:
    given = job(tmp_path, {"imageClassification": PICTURE}, "file:///x", privacy=GIVEN.model_dump())
    task, _ = classifier()
    learner = TaskLearner(given, task, _NoRecords(), [0], [], task.kind)
    state = learner.start()
    agree(state, 0, "1", Progress([3]))
    place = Place(0, 1)
    assert learner.compute(state, [Slice(3, 0, 0, 5, 5)], place).privacy is not None
    with pytest.raises(JobError, match=r"would be in 5 data epochs, and the noise of spec.privacy is for 4"):
        learner.compute(state, [Slice(4, 0, 0, 5, 5)], place)


class _NoRecords:
    blocks = (None,)
    schema = Schema("ImageFolder", "image", "string", {"a": 1})

    def records(self, block: int) -> list[Any]:  # noqa: ARG002 - as of a data set
        return []

    def count(self, block: int) -> int:  # noqa: ARG002 - as above
        return 0


def classifier() -> tuple[ImageClassifier, dict[str, Tensor]]:
    task = ImageClassifier(ImageClassification(**PICTURE), list("0123456789"), starting.NOTHING)  # type: ignore[arg-type]
    drawn, labels = datasets.digits()
    records = [{"input": datasets.png(i), "label": n} for i, n in zip(drawn[:40], labels[:40], strict=True)]
    return task, task.prepare(records)


def state_of(task: ImageClassifier, multiplier: float) -> PrivateState:
    return PrivateState(task.build(1).train(), ADAM, GIVEN, multiplier)


def loss_of(task: ImageClassifier | TextClassifier) -> Any:
    return lambda network, batch: task.loss(network, batch, torch.Generator())


def test_each_record_is_clipped() -> None:
    task, batch = classifier()
    state, network = state_of(task, 1.0), task.build(1).train()
    total = state.add(batch, loss_of(task), 1)
    wanted = torch.zeros_like(state.gradient)
    for record in range(40):
        network.zero_grad()
        task.loss(network, {n: t[record : record + 1] for n, t in batch.items()}, torch.Generator()).backward()
        own = torch.cat([p.grad.reshape(-1) for p in network.parameters() if p.grad is not None])
        assert own.norm() > GIVEN.maxGradientNorm
        wanted += own * (GIVEN.maxGradientNorm / own.norm())
    torch.testing.assert_close(state.gradient, wanted, atol=1e-4, rtol=1e-3)
    assert total == pytest.approx(task.loss(network, batch, torch.Generator()).item(), rel=1e-4)
    state.reset()
    state.add({name: tensor[:1] for name, tensor in batch.items()}, loss_of(task), 1)
    assert state.gradient.norm() == pytest.approx(GIVEN.maxGradientNorm, rel=1e-3)


def test_adapters_are_trained_privately(tmp_path: Path) -> None:
    bert(tmp_path, [*datasets.GOOD, *datasets.BAD, *datasets.FILLING])
    spec = TextClassification(architecture="Pretrained", maxLength=16)
    start = Start(tmp_path, "u", None, "LoRA", Adapter(rank=2))
    task = TextClassifier(spec, ["bad", "good"], start, texts.words({}, spec, start))
    records = [
        {"input": f"a film {w}", "label": label}
        for label in task.classes
        for w in (datasets.BAD, datasets.GOOD)[label == "good"]
    ]
    batch, network = task.prepare(records), task.build(1)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:  # zero at first: the gradients of the others would be, too
            nn.init.normal_(parameter, std=0.1)
    state = PrivateState(network.train(), ADAM, GIVEN, 1.0)
    agree(state, 0, "1", Progress.none(1))
    state.add({name: tensor[:1] for name, tensor in batch.items()}, loss_of(task), 1)
    assert state.gradient.norm() == pytest.approx(GIVEN.maxGradientNorm, rel=1e-3)
    trained = [p for p in network.parameters() if p.requires_grad]
    assert len(trained) > 4
    assert all(p.grad is not None and p.grad.any() for p in trained)
    assert len(state.gradient) == sum(p.numel() for p in trained) < sum(p.numel() for p in network.parameters()) / 4
    losses = []
    for _ in range(60):
        state.reset()
        losses.append(state.add(batch, loss_of(task), 1))
        state.update(len(records), 0.005)
    assert losses[-1] < losses[0] / 2, losses


def test_a_record_that_is_not_finite_counts_for_nothing() -> None:
    _, given = classifier()
    batch = {"pixels": given["pixels"].flatten(1).float() / 255, "label": given["label"]}
    state = PrivateState(nn.Linear(64, 10).train(), ADAM, GIVEN, 1.0)

    def loss(network: nn.Module, given: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(network(given["pixels"]), given["label"], reduction="sum")

    state.add({name: torch.cat((t[:3], t[4:])) for name, t in batch.items()}, loss, 1)
    wanted = state.gradient.clone()
    state.reset()
    batch["pixels"][3] = torch.nan
    state.add(batch, loss, 1)
    torch.testing.assert_close(state.gradient, wanted)


@pytest.mark.parametrize("members", [1, 3])
def test_the_sum_over_ranks_has_the_noise_of_the_multiplier(members: int) -> None:
    task, _ = classifier()
    states = [state_of(task, 2.0) for _ in range(members)]
    for state in states:
        state.add_noise(members)
    noise = torch.stack([state.gradient for state in states])
    assert noise.sum(dim=0).std() == pytest.approx(2.0 * GIVEN.maxGradientNorm, rel=0.05)
    assert noise.sum(dim=0).mean().abs() < 0.05
    if members > 1:
        assert abs(float(torch.corrcoef(noise)[0, 1])) < 0.1, "no two ranks have the same"


def test_an_update_reaches_the_network_that_gradients_are_of() -> None:
    task, batch = classifier()
    state = state_of(task, 1.0)
    agree(state, 0, "1", Progress.none(1))
    before = state.add(batch, loss_of(task), 1)
    state.update(40, 0.01)
    state.reset()
    assert state.add(batch, loss_of(task), 1) < before


class Mixing(nn.Module):
    """Opacus takes the layer's gradients for those of single records; they are of places in other records, too."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        flat = pixels.flatten(1)
        out: Tensor = self.head(flat + flat.flip(0))
        return out


class Normalised(Mixing):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)


@pytest.mark.parametrize(("network", "why"), [(Normalised, "BatchNorm"), (Mixing, "single records' gradients of ")])
def test_networks_that_mix_records_are_refused(network: type[nn.Module], why: str) -> None:
    task, batch = classifier()
    with pytest.raises(JobError, match=f"privacy.differential: .*{why}"):
        PrivateState(network().train(), ADAM, GIVEN, 1.0).add(batch, loss_of(task), 1)


def test_the_example(tmp_path: Path) -> None:
    training = examples.job_of("data/private", tmp_path, datasets.image_folder(tmp_path / "digits"))
    assert training.privacy == Differential(epsilon=8, delta=1e-4, maxGradientNorm=1)
    training = training.model_copy(update={"checkpoint": Checkpoint(intervalSeconds=1)})
    with QuickRun(tmp_path / "run", training) as started:
        said = started.start().until(lambda report: report.privacy is not None, SECONDS).privacy
        outcome = started.outcome(SECONDS)
        assert outcome.artifact is not None, f"{outcome}\n{started.logs()}"
    assert said is not None
    found = outcome.artifact.metrics
    assert 0 < said.epsilonSpent <= found["epsilonSpent"] <= 8
    assert said.noiseMultiplier == found["noiseMultiplier"] == privacy.noise_multiplier(8.0, 1e-4, 6)
    assert found["epsilonSpent"] > 7.5
    assert found["accuracy"] > 0.7  # a tenth by chance, 0.82 to 0.85 with other noise, 0.97 without any
    served = served_as_published(tmp_path, "imageClassification")
    assert served.pipeline.statistics is None, "what the data's images are like is of its records"
    plan = plans.unpack(next((tmp_path / "storage" / "checkpoints").rglob("plan.bin")).read_bytes())
    assert plan.schema is not None
    assert (plan.schema.images, set(plan.schema.classes.values())) == (None, {0}), "nor in a checkpoint"
    golden = json.loads((artifact(tmp_path) / "golden.json").read_text())
    asked = [base64.b64decode(case["tensors"]["IMAGE"]["raw"])[4:] for case in golden["cases"] + golden["comparisons"]]
    pixels = {image.tobytes() for image in datasets.digits()[0]}
    assert not [one for one in asked if images.decode(one, 1).tobytes() in pixels]
