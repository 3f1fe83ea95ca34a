"""What networks start from: folders of timm and Transformers, artifacts of before, word vectors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn

from mms_workloads.contract import (
    ImageGeneration,
    Pretrained,
    Store,
    TextClassification,
    TextMatching,
    TokenClassification,
)
from mms_workloads.store import JobError
from mms_workloads.tasks import sentences, starting, texts, transformers_library
from mms_workloads.tasks.image_generation import ImageGenerator
from mms_workloads.tasks.starting import Start
from mms_workloads.tasks.text_classification import TextClassifier
from tests.unit.serve import transformers_folders
from tests.unit.tasks import datasets, taught
from tests.unit.tasks.test_task_runs import PICTURE, artifact, job, metrics, run, served_as_published
from tests.unit.train.quick import QuickRun

if TYPE_CHECKING:
    from pathlib import Path


def trained(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def bert(folder: Path, words: list[str], kind: str = "Bert") -> None:
    """A small folder of Transformers with its tokenizer: of a network without a task, as hubs have them."""
    import mms_workloads.vision  # noqa: F401 - before transformers

    import transformers  # isort: skip

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", *words])}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "DistilBert":
        shape = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(words) + 2, pad_token_id=0, **shape)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [("Roberta", ("classifier.dense", "classifier.out_proj")), ("DistilBert", ("pre_classifier", "classifier"))],
)
def test_what_a_folder_has_no_weights_for_is_trained(tmp_path: Path, kind: str, layers: tuple[str, str]) -> None:
    """Between the body and the labels these networks have a layer more, which no folder without the task has."""
    words = [*datasets.GOOD, *datasets.BAD]
    bert(tmp_path, words, kind)
    spec = TextClassification(architecture="Pretrained", maxLength=16)
    wanted = {f"network.{layer}.{name}" for layer in layers for name in ("weight", "bias")}
    for method in ("Head", "LoRA"):
        start = taught.start(tmp_path, method=method)
        task = TextClassifier(spec, ["bad", "good"], start, texts.words({}, spec, start))
        network = task.build(1)
        found = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        adapters = {name for name in found if "lora_" in name}
        assert found - adapters == wanted
        assert bool(adapters) == (method == "LoRA")
    batch = task.prepare([{"input": word, "label": task.classes[word in datasets.GOOD]} for word in words])
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        task.loss(network.train(), batch, torch.Generator()).backward()
        optimizer.step()
    changed = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert wanted <= changed
    assert not {name for name in changed - wanted if "lora_" not in name}
    merged = starting.merged(network)
    assert not any("lora" in name for name in merged.state_dict())


@pytest.mark.parametrize("method", ["Full", "LoRA"])
def test_a_folder_of_transformers_is_trained_further(tmp_path: Path, method: str) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    bert(folder, [*datasets.GOOD, *datasets.BAD, *datasets.FILLING])
    training = job(
        tmp_path,
        {"textClassification": {"architecture": "Pretrained", "maxLength": 32}},
        datasets.opinions(tmp_path / "data", 600),
        pretrained={"store": {"uri": f"file://{folder}"}, "method": method, "adapter": {"rank": 4}},
        optimizer={"learningRate": 0.005, "epochs": 4 if method == "Full" else 10},
    )
    assert metrics(run(tmp_path, training))["accuracy"] > (0.95 if method == "Full" else 0.8)
    served_as_published(tmp_path, "textClassification")


@pytest.mark.parametrize("architecture", ["Small", "Pretrained"])
def test_a_folder_of_text_without_its_tokenizer(tmp_path: Path, architecture: Literal["Small", "Pretrained"]) -> None:
    """Its words have numbers of their own, and the data set's, which a run's plan leaves out then, would be others."""
    bert(tmp_path, datasets.GOOD)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(JobError, match=r"no tokenizer\.json, which cuts text: save the model with its fast tokenizer"):
        texts.words({"good": 9}, TextClassification(architecture=architecture), taught.start(tmp_path))


def test_folders_that_a_task_does_not_start_from(tmp_path: Path) -> None:
    transformers_folders.yolos(tmp_path / "folder")
    start = starting.fetch(Pretrained(store=Store(uri=f"file://{tmp_path}/folder")), tmp_path)
    task = ImageGenerator(ImageGeneration(), ["a"], start)
    with pytest.raises(JobError, match=rf"pretrained file://.*{task.kind} alone: name a .* in pretrained\.trainingRef"):
        task.build(1)


def word_vectors(folder: Path) -> Start:
    """An artifact of wordEmbedding: words that are alike have vectors that are."""
    rng = np.random.RandomState(0)
    good, bad = rng.randn(2, 16)
    vectors = {word: good + 0.3 * rng.randn(16) for word in datasets.GOOD}
    vectors |= {word: bad + 0.3 * rng.randn(16) for word in datasets.BAD}
    vectors |= {word: rng.randn(16) for word in datasets.FILLING}
    save_file(
        {"vectors": torch.tensor(np.array(list(vectors.values())), dtype=torch.float32)}, folder / "model.safetensors"
    )
    (folder / "vocabulary.txt").write_text("".join(f"{word}\t9\n" for word in vectors))
    (folder / "model.json").write_text(json.dumps({"tokenizer": "Words"}))
    return Start(folder, "u", "wordEmbedding", "Head")


def test_word_vectors_are_the_input(tmp_path: Path) -> None:
    start = word_vectors(tmp_path)
    spec = TextClassification(dimensions=8, layers=0)
    words = texts.words({}, spec, start)
    tokens, mask, _ = words.numbers(["A CHARMING film", "zebra"], 8)
    assert tokens[1].tolist()[0] == 1, "a word that has no vector is unknown"
    assert mask.sum(dim=1).tolist() == [3, 1]
    fixed = texts.build("textClassification", spec, words, 2, start, seed=1)
    free = texts.build("textClassification", spec, words, 2, Start(start.folder, "u", "wordEmbedding", "Full"), seed=1)
    assert trained(free) - trained(fixed) == fixed.encoder.words.weight.numel()  # type: ignore[union-attr]
    with pytest.raises(JobError, match="method Full, or stay as they are with Head"):
        texts.build("textClassification", spec, words, 2, Start(start.folder, "u", "wordEmbedding", "LoRA"), seed=1)


def test_an_artifact_is_trained_further(tmp_path: Path) -> None:
    """On the half of the digits that the first run did not see, with another number of labels."""
    first = tmp_path / "first"
    first.mkdir()
    digits = datasets.image_folder(tmp_path / "digits")
    before = run(first, job(first, {"imageClassification": PICTURE}, digits, optimizer={"epochs": 3}))
    assert before.artifact is not None
    second = tmp_path / "second"
    second.mkdir()
    few = f"file://{tmp_path}/digits/[0-4]/*.png"
    given: dict[str, Any] = {"store": {"uri": before.artifact.uri}, "digest": before.artifact.digest, "method": "Head"}
    after = job(second, {"imageClassification": PICTURE}, few, pretrained=given, optimizer={"epochs": 2})
    assert metrics(run(second, after))["accuracy"] > 0.93
    assert json.loads((artifact(second) / "pipeline.json").read_text())["labels"] == list("01234")
    wrong = job(tmp_path / "third", {"textClassification": {}}, datasets.opinions(tmp_path / "text"), pretrained=given)
    (tmp_path / "third").mkdir()
    with QuickRun(tmp_path / "third" / "run", wrong) as started:
        outcome = started.start().outcome(120)
    assert (outcome.reason, "starts from one of its own" in outcome.message) == ("PretrainedUnfit", True)


def test_what_was_altered_is_refused(tmp_path: Path) -> None:
    for name in ("folder", "scratch"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder" / "manifest.json").write_text("{}")
    given = Pretrained(store=Store(uri=f"file://{tmp_path}/folder"), digest="sha256:" + "0" * 64)
    with pytest.raises(JobError, match=r"manifest\.json has not the digest"):
        starting.fetch(given, tmp_path / "scratch")
    with pytest.raises(JobError, match="there are no files"):
        starting.fetch(Pretrained(store=Store(uri=f"file://{tmp_path}/nothing")), tmp_path / "scratch")


def test_what_a_folder_of_transformers_became_is_trained_further(tmp_path: Path) -> None:
    """The network is built again from the artifact's config.json; other labels have another last layer."""
    folder, artifact = tmp_path / "bert", tmp_path / "artifact"
    folder.mkdir()
    artifact.mkdir()
    bert(folder, [*datasets.GOOD, *datasets.BAD])
    spec = TextClassification(architecture="Pretrained", maxLength=16)
    given = taught.start(folder)
    words = texts.words({}, spec, given)
    first = texts.build("textClassification", spec, words, 2, given, seed=1)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1)
    save_file(first.state_dict(), artifact / "model.safetensors")
    transformers_library.write_config(first, artifact)
    texts.text_input(spec, words, artifact)
    made = taught.start(artifact, "textClassification")
    same, other = (
        texts.build("textClassification", spec, texts.words({}, spec, made), n, made, seed=2) for n in (2, 3)
    )
    tokens = torch.tensor([[2, 3, 1]])
    want = first.eval()(tokens, torch.ones_like(tokens))
    torch.testing.assert_close(same.eval()(tokens, torch.ones_like(tokens)), want)
    assert other.eval()(tokens, torch.ones_like(tokens)).shape == (1, 3)
    theirs = first.state_dict()
    assert all(torch.equal(t, theirs[n]) for n, t in other.state_dict().items() if "classifier" not in n)
    with pytest.raises(JobError, match=r"artifact of wordEmbedding without a network of Transformers"):
        texts.build("textClassification", spec, words, 2, taught.start(artifact, "wordEmbedding"), seed=1)


def hub(folder: Path, kind: str, **more: Any) -> Path:
    """A folder of Transformers with a network of that kind, and a tokenizer of 18 words."""
    folder.mkdir()
    bert(folder, [*datasets.GOOD, *datasets.BAD])
    for file in ("config.json", "model.safetensors"):
        (folder / file).unlink()
    import transformers

    torch.manual_seed(1)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = getattr(transformers, f"{kind}Config")(**{**shape, "vocab_size": 18, "pad_token_id": 0, **more})
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", ["textClassification", "tokenClassification", "textMatching"])
@pytest.mark.parametrize(
    ("network", "length", "why"),
    [
        (("Bert", {"max_position_embeddings": 20}), 20, ""),
        (("Bert", {"max_position_embeddings": 20}), 21, r"for 20 tokens, and task\.\w+\.maxLength is 21: set it to 20"),
        (("Roberta", {"max_position_embeddings": 22, "pad_token_id": 1}), 20, ""),
        (("Roberta", {"max_position_embeddings": 22, "pad_token_id": 1}), 21, "places for 20 tokens"),
        (("Bert", {"vocab_size": 17}), 16, r"tokenizer\.json has a token of number 17, and its network knows 17: give"),
    ],
)
def test_limits_of_a_network_of_text(
    tmp_path: Path, task: str, network: tuple[str, dict[str, Any]], length: int, why: str
) -> None:
    start = taught.start(hub(tmp_path / "hub", network[0], **network[1]))
    spec: Any = {
        "textClassification": TextClassification, "tokenClassification": TokenClassification,
        "textMatching": TextMatching,
    }[task](architecture="Pretrained", maxLength=length)  # fmt: skip
    words = texts.words({}, spec, start)

    def build() -> torch.nn.Module:
        if task == "textMatching":
            return sentences.build(task, spec, words, start, seed=1, calibrated=None)
        return texts.build(task, spec, words, 2, start, seed=1)

    if why:
        with pytest.raises(JobError, match=why):
            build()
        return
    full = torch.full((2, length), 3)
    build().eval()(tokens=full, mask=torch.ones_like(full))


def test_a_network_that_goes_on_with_a_text_tells_no_labels(tmp_path: Path) -> None:
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "hidden_size": 32}
    start = taught.start(hub(tmp_path / "hub", "GPT2", **shape))
    spec = TextClassification(architecture="Pretrained", maxLength=16)
    with pytest.raises(JobError, match=r"kind gpt2, which goes on with a text.*such as BERT and RoBERTa"):
        texts.build("textClassification", spec, texts.words({}, spec, start), 2, start, seed=1)


def small(folder: Path, labels: int = 2, **more: Any) -> Start:
    """An artifact of a Small textClassification."""
    spec = TextClassification(dimensions=16, heads=2, **more)
    words = texts.words({" ".join(datasets.GOOD): 2}, spec, starting.NOTHING)
    network = texts.build("textClassification", spec, words, labels, starting.NOTHING, seed=3)
    save_file({name: one for name, one in network.state_dict().items() if one.dim()}, folder / "model.safetensors")
    texts.text_input(spec, words, folder)
    return taught.start(folder, "textClassification")


def test_an_artifact_of_other_labels_keeps_all_but_the_head(tmp_path: Path) -> None:
    start = small(tmp_path, layers=1)
    spec = TextClassification(dimensions=16, heads=2, layers=1)
    made = texts.build("textClassification", spec, texts.words({}, spec, start), 5, start, seed=9).state_dict()
    given = load_file(tmp_path / "model.safetensors")
    assert {name for name in made if not torch.equal(made[name], given[name])} == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"layers": 2},
            r"encoder\.blocks\.1\.\S+ is not there and would be \[.*and \d+ more\. Set the fields of the task",
        ),
        ({"layers": 0}, r"encoder\.blocks\.0\.\S+ is \[.*\] and would be not there"),
        ({"layers": 1, "dimensions": 32}, r"is \[.*16.*\] and would be \[.*32"),
    ],
)
def test_an_artifact_of_another_shape_is_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    start = small(tmp_path, layers=1)
    spec = TextClassification(**{"dimensions": 16, "heads": 2, **changes})
    with pytest.raises(JobError, match=why):
        texts.build("textClassification", spec, texts.words({}, spec, start), 2, start, seed=9)


def test_labels_that_a_generator_did_not_know_are_trained(tmp_path: Path) -> None:
    spec = ImageGeneration(height=8, width=8, channels=1, hidden=8)
    before = ImageGenerator(spec, ["a"], starting.NOTHING).build(1)
    save_file({name: one for name, one in before.state_dict().items() if one.dim()}, tmp_path / "model.safetensors")
    start = taught.start(tmp_path, "imageGeneration", "Head")
    found = ImageGenerator(spec, ["a", "b"], start).build(2)
    free = {name for name, parameter in found.named_parameters() if parameter.requires_grad}
    assert free == {"label.weight", "leave.weight", "leave.bias"}


class TwoHeads(nn.Module):
    """As some vision transformers have them."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(4, 4), nn.Linear(4, labels), nn.Linear(4, labels)


def test_all_layers_of_other_labels_are_learnt_anew(tmp_path: Path) -> None:
    before, after = TwoHeads(3), TwoHeads(5)
    save_file(before.state_dict(), tmp_path / "model.safetensors")
    unset = starting.load(after, Start(tmp_path, "u", "imageClassification"), after.second)
    heads = [*after.first.parameters(), *after.second.parameters()]
    assert {id(one) for one in unset} == {id(one) for one in heads}
    assert torch.equal(after.body.weight, before.body.weight)
    wider = TwoHeads(5)
    wider.body = nn.Linear(4, 6)
    with pytest.raises(JobError, match="body"):
        starting.load(wider, Start(tmp_path, "u", "imageClassification"), wider.second)
