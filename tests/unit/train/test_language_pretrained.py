"""A language model from a causal network of Transformers: its own tokens, measured by bytes and characters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mms_workloads.contract import DataFile, LanguageModel
from mms_workloads.data.vocabulary import Vocabulary
from mms_workloads.language import tokens
from mms_workloads.language.pretrained import TokenLearner
from mms_workloads.serve import pipelines
from mms_workloads.store import JobError
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.sync.plan import Plan
from mms_workloads.tasks.starting import Start
from mms_workloads.train.learner import Place
from mms_workloads.train.state import agree
from tests.unit.serve import transformers_folders
from tests.unit.train import runs
from tests.unit.train.test_language import job

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.train.flat import FlatState

LENGTH = 12
TEXT = runs.text(400).replace("word", "wört")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llama")
    transformers_folders.causal(made, "llama", TEXT)
    return made


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    transformers_folders.causal(made, request.param, TEXT)
    return made


def learner(place: Path, folder: Path, **given: Any) -> TokenLearner:
    (place / "a.txt").write_text(TEXT)
    task = {"architecture": "Pretrained", "contextLength": LENGTH}
    training = job(place, pretrained={"store": {"uri": f"file://{folder}"}, **given})
    training = training.model_copy(update={"task": training.task.model_validate({"languageModel": task})})
    found = training.task.languageModel
    assert found is not None
    files = (DataFile(uri=f"file://{place}/a.txt", size=len(TEXT.encode())),)
    plan = Plan(files, 2000, Vocabulary((), ()))
    (place / "scratch").mkdir(exist_ok=True)
    return TokenLearner.begin(training, found, plan, place / "scratch" / "blocks")


def taught(one: TokenLearner, steps: int, rate: float) -> FlatState:
    state = one.start()
    agree(state, 0, "l", Progress.none(len(one.corpus.blocks)))
    for step in range(steps):
        block = one.trained_on[step % len(one.trained_on)]
        size = one.size(block)
        stats = one.compute(state, [Slice(step, block, 0, size, size)], Place(0, 1))
        state.update(stats.samples, rate)
        state.agreement.step += 1
        state.reset()
    return state


def test_tokens_are_counted_back_to_characters(folder: Path) -> None:
    cut_by = tokens.tokenizer(Start(folder, "u"))
    given = "żółw topic1wört2 日本".encode()
    found = tokens.cut(b"\x82" + given + b"\xe6", cut_by)
    assert (found.bytes[-1], found.characters[-1]) == (len(given), len(given.decode()))
    assert len(found.numbers) == len(found.bytes) > 5
    assert (np.diff(found.bytes) >= 0).all()
    assert len(tokens.cut(b"", cut_by).numbers) == 0


def test_it_learns_is_served_and_trained_further(llama: Path, tmp_path: Path) -> None:
    """As GPT-2 does on a cluster: tests/e2e/test_fine_tuning.py."""
    one = learner(tmp_path, llama)
    before = one.evaluate(one.start()).metrics
    state = taught(one, 40, 0.01)
    after = one.evaluate(state).metrics
    assert after["bitsPerByte"] < 0.7 * before["bitsPerByte"]
    assert after["bitsPerCharacter"] > after["bitsPerByte"], "some characters are two bytes"
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    golden = one.write(state, one.evaluate(state), artifact)
    assert golden.cases
    assert (artifact / "config.json").exists()
    served = pipelines.open(artifact)
    text = "topic1wört2 topic1wört3 topic1wört1 topic1wört5"
    found = tokens.cut(text.encode(), tokens.tokenizer(one.start_from))
    numbers = torch.from_numpy(found.numbers)
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(numbers) - 1, LENGTH):
            window = numbers[None, start : start + LENGTH + 1]
            logits = state.module.eval()(window[:, :-1])[0]
            nats += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
    want = nats / math.log(2) / int(found.bytes[-1] - found.bytes[0])
    rows = np.array([[text.encode()], ["topic1wört2 topic1".encode()]], dtype=np.object_)
    answer = served.answer({"TEXT": rows, "LENGTH": np.array([[0], [9]], np.int32)})
    assert float(answer["BITS_PER_BYTE"][0, 0]) == pytest.approx(want, abs=1e-3)
    assert answer["COMPLETION"][0, 0] == b""
    assert 0 < len(answer["COMPLETION"][1, 0]) <= 9
    seeds = np.array([[5]])
    asked = {"TEXT": rows[1:], "LENGTH": np.array([[20]], np.int32), "SEED": seeds}
    assert served.answer(asked)["COMPLETION"] == served.answer(asked)["COMPLETION"]

    again = tokens.build(one.task, Start(artifact, "u", "languageModel"), 5)
    theirs = state.module.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in again.state_dict().items())


def test_adapters_alone_are_trained(folder: Path, tmp_path: Path) -> None:
    one = learner(tmp_path, folder, method="LoRA", adapter={"rank": 2})
    state = one.start()
    names = [name for name, p in state.module.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    assert one.tables()[0].rows == state.parameters.numel() < 10_000
    before = one.evaluate(state).metrics
    after = one.evaluate(taught(one, 20, 0.03)).metrics
    assert next(iter(after.values())) < next(iter(before.values()))


def test_a_round_is_the_same_whoever_computes_it(folder: Path, tmp_path: Path) -> None:
    """With what layers leave out at random."""
    one = learner(tmp_path, folder)
    gradients = []
    for _ in range(2):
        state = one.start()
        agree(state, 0, "l", Progress.none(len(one.corpus.blocks)))
        torch.rand(3)
        one.compute(state, [Slice(0, 0, 0, 4, one.size(0))], Place(0, 1))
        gradients.append(state.gradient.clone())
    assert torch.equal(*gradients)
    assert float(gradients[0].norm()) > 0


def test_folders_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"looks back at 32 tokens at most: set task\.languageModel\.contextLength"):
        tokens.build(LanguageModel(architecture="Pretrained", contextLength=64), Start(folder, "u"), 1)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("{}")
    with pytest.raises(JobError, match=r"there is no tokenizer\.json"):
        tokens.tokenizer(Start(tmp_path / "none", "u"))
