"""What networks start from: folders of timm and Transformers, artifacts of before, word vectors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from mms_workloads.contract import (
    Adapter,
    ImageClassification,
    ImageGeneration,
    Pretrained,
    Store,
    TextClassification,
)
from mms_workloads.store import JobError
from mms_workloads.tasks import starting, texts, transformers_library
from mms_workloads.tasks.image_generation import ImageGenerator
from mms_workloads.tasks.starting import Start
from mms_workloads.tasks.text_classification import TextClassifier
from tests.unit.serve import transformers_folders
from tests.unit.tasks import datasets, taught
from tests.unit.tasks.test_task_runs import PICTURE, artifact, job, metrics, run, served_as_published
from tests.unit.train.quick import QuickRun

if TYPE_CHECKING:
    from pathlib import Path

SPEC = ImageClassification(height=32, width=32, channels=3, architecture="timm/resnet10t")


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a hub has it: a network of a thousand labels, with statistics of its own."""
    import mms_workloads.vision  # noqa: F401 - before timm

    import timm  # isort: skip

    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(3)
    network = timm.create_model("resnet10t", num_classes=7)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "resnet10t",
        "num_classes": 7,
        "pretrained_cfg": {"mean": [0.4, 0.4, 0.4], "std": [0.3] * 3},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def trained(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_a_folder_of_timm(timm_folder: Path) -> None:
    whole, head, lora = (
        starting.picture_classifier(Start(timm_folder, "u", None, method), SPEC, 3, 1)
        for method in ("Full", "Head", "LoRA")
    )
    assert trained(head) == 512 * 3 + 3
    assert trained(head) < trained(lora) < trained(whole) / 2
    pixels = torch.randn(2, 3, 32, 32)
    for network in (whole, head, lora):
        assert network.eval()(pixels=pixels).shape == (2, 3)
    mean, std = starting.normalisation(Start(timm_folder, "u"), SPEC)
    assert (list(mean), list(std)) == ([0.4, 0.4, 0.4], [0.3, 0.3, 0.3])


def test_every_process_starts_alike(timm_folder: Path) -> None:
    for method in ("Full", "Head", "LoRA"):
        one, other = (
            starting.picture_classifier(Start(timm_folder, "u", None, method), SPEC, 3, 5).state_dict()
            for _ in range(2)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), method


def test_adapters_become_part_of_the_layers(timm_folder: Path) -> None:
    network = starting.picture_classifier(Start(timm_folder, "u", None, "LoRA", Adapter(rank=2)), SPEC, 3, 1).eval()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = network(pixels=pixels)
        merged = starting.merged(network)
        torch.testing.assert_close(merged(pixels=pixels), before, rtol=1e-3, atol=1e-4)
    assert not any("lora" in name for name in merged.state_dict())


def test_normalisation_by_batches_needs_weights() -> None:
    with pytest.raises(JobError, match=r"normalises by batches.*convnext"):
        starting.picture_classifier(starting.NOTHING, SPEC, 3, 1)
    with pytest.raises(JobError, match="timm knows no model"):
        starting.picture_classifier(starting.NOTHING, SPEC.model_copy(update={"architecture": "timm/nosuch"}), 3, 1)


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
