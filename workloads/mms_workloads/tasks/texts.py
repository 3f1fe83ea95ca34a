"""What the tasks that read text share: the words' numbers, and the network over them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn

from mms_workloads.contract import TOKENIZER, Pipeline, Text, TextInput
from mms_workloads.serve.pipelines import writing
from mms_workloads.tasks import starting
from mms_workloads.tasks import transformers_library as libraries
from mms_workloads.tasks.networks import EncoderBlock, places
from mms_workloads.train import device

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Encoding

    from mms_workloads.contract import ModelTask
    from mms_workloads.tasks.starting import Start
    from mms_workloads.tasks.task import Batch

PAD, UNKNOWN = "[PAD]", "[UNK]"
BETWEEN_WORDS = r"[^\p{L}\p{N}']+"
WORD_VECTORS = "wordEmbedding"
LABELLED = ("textClassification", "tokenClassification")  # their networks' head has a row for each label
PLACES = ("position_embeddings", "wpe", "embed_positions")  # as the library calls what it learns of places
IGNORED = -100  # a place that has no label: cross_entropy's ignore_index


@dataclass(frozen=True, slots=True)
class Words:
    """Numbers for text. vectors: float32 [V, e] that words have from another training; None: they are learnt here."""

    tokenizer: Tokenizer
    vectors: NDArray[np.float32] | None = None

    def numbers(self, given: Sequence[str], length: int) -> tuple[Tensor, Tensor, list[Encoding]]:
        """tokens, mask int64 [n, longest], longest at least 1; and what the tokenizer says of each text."""
        self.tokenizer.enable_truncation(length)
        self.tokenizer.enable_padding(pad_id=(fill := writing.filling(self.tokenizer)))
        found = self.tokenizer.encode_batch(list(given))
        for one in found:
            one.pad(1, pad_id=fill)  # none may have a word that is known
        shape = len(found), len(found[0].ids) if found else 1
        tokens = torch.tensor([one.ids for one in found], dtype=torch.int64).view(shape)
        mask = torch.tensor([one.attention_mask for one in found], dtype=torch.int64).view(shape)
        return tokens, mask, found

    def around(self) -> list[int]:
        """The tokens that the tokenizer puts around each text, such as [CLS] and [SEP]."""
        empty = self.tokenizer.encode("")
        pairs = zip(empty.ids, empty.special_tokens_mask, empty.attention_mask, strict=True)
        return [number for number, special, seen in pairs if special and seen]


def words(found: Mapping[str, int], spec: Text, start: Start) -> Words:
    """found: of the data set, as its schema has them; looked at where nothing else says which words there are.

    Raises JobError.
    """
    if start.kind == WORD_VECTORS:
        return _of_vectors(start)
    if start.folder is not None and (start.folder / TOKENIZER).exists():
        return Words(Tokenizer.from_file(str(start.folder / TOKENIZER)))
    if start.folder is not None and (start.kind is None or spec.architecture == "Pretrained"):
        raise start.refuse(f"there is no {TOKENIZER}, which cuts text: save the model with its fast tokenizer")
    split = _splitter()
    counts: Counter[str] = Counter()
    for between, count in found.items():
        for word, _ in split.pre_tokenize_str(between):
            counts[word] += count
    # Words that occur once say nothing that could be learnt; ties are broken by the word, so that all agree.
    ranked = sorted((word for word, count in counts.items() if count > 1), key=lambda word: (-counts[word], word))
    return Words(_word_level(ranked[: spec.maxVocabulary]))


def _splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(BETWEEN_WORDS), "removed")


def _word_level(ranked: Sequence[str]) -> Tokenizer:
    made = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate((PAD, UNKNOWN, *ranked))}, unk_token=UNKNOWN)
    )
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = _splitter()
    return made


def _of_vectors(start: Start) -> Words:
    from safetensors.numpy import load_file  # noqa: PLC0415

    assert start.folder is not None  # noqa: S101 - an artifact has one
    task = json.loads((start.folder / "model.json").read_text(encoding="utf-8"))
    if task.get("tokenizer", "Words") != "Words":
        raise start.refuse(f"its words are cut by {task['tokenizer']}, and only those of tokenizer Words can be read")
    lines = (start.folder / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
    vectors = load_file(start.folder / starting.WEIGHTS)["vectors"]
    ranked, counts = zip(*(line.split("\t")[:2] for line in lines), strict=True)
    # What all texts have in common says nothing: without it a text's mean is what sets it apart (Arora et al., 2017).
    # The scale is what networks begin with. A word without a vector is as the mean of all.
    vectors = vectors - np.average(vectors, axis=0, weights=np.array(counts, np.float64))
    scaled = vectors / max(1e-6, float(vectors.std()))
    rows = np.concatenate([np.zeros((2, vectors.shape[1]), np.float32), scaled.astype(np.float32)])
    return Words(_word_level(ranked), rows)


class Encoder(nn.Module):
    """tokens, mask int64 [n, L] -> float32 [n, L, d]."""

    def __init__(self, spec: Text, words: Words) -> None:
        super().__init__()
        size = words.tokenizer.get_vocab_size()
        width = spec.dimensions if words.vectors is None else words.vectors.shape[1]
        self.words = nn.Embedding(size, width, padding_idx=0)
        if words.vectors is not None:
            with torch.no_grad():
                self.words.weight.copy_(torch.from_numpy(words.vectors))
        else:
            nn.init.normal_(self.words.weight, std=1.0)
        self.enter = nn.Linear(width, spec.dimensions) if width != spec.dimensions else nn.Identity()
        self.blocks = nn.ModuleList(EncoderBlock(spec.dimensions, spec.heads, spec.dropout) for _ in range(spec.layers))
        self.dropout = nn.Dropout(spec.dropout)
        self.register_buffer("places", 0.1 * places(spec.maxLength, spec.dimensions), persistent=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.dropout(self.enter(self.words(tokens)) + self.places[: tokens.shape[1]])  # type: ignore[index]
        seen = mask > 0
        for block in self.blocks:
            x = block(x, seen)
        out: Tensor = x
        return out


class Classifier(nn.Module):
    """tokens, mask int64 [n, L] -> logits [n, labels]: of the mean and the greatest of all places."""

    def __init__(self, spec: Text, words: Words, labels: int) -> None:
        super().__init__()
        self.encoder = Encoder(spec, words)
        self.norm_mean = nn.LayerNorm(spec.dimensions)  # apart: the greatest values are far larger than the mean
        self.norm_greatest = nn.LayerNorm(spec.dimensions)
        self.head = nn.Linear(2 * spec.dimensions, labels)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x, seen = self.encoder(tokens, mask), mask[:, :, None].float()
        mean = (x * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)
        greatest = (x - 1e4 * (1 - seen)).amax(dim=1)
        out: Tensor = self.head(torch.cat((self.norm_mean(mean), self.norm_greatest(greatest)), dim=1))
        return out


class Tagger(nn.Module):
    """tokens, mask int64 [n, L] -> logits [n, L, labels]."""

    def __init__(self, spec: Text, words: Words, labels: int) -> None:
        super().__init__()
        self.encoder = Encoder(spec, words)
        self.mixed = nn.Conv1d(spec.dimensions, spec.dimensions, 3, padding=1)
        self.norm = nn.LayerNorm(spec.dimensions)
        self.head = nn.Linear(spec.dimensions, labels)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.encoder(tokens, mask) * mask[:, :, None]
        x = x + nn.functional.gelu(self.mixed(x.transpose(1, 2)).transpose(1, 2))
        out: Tensor = self.head(self.norm(x))
        return out


class Library(nn.Module):
    """A network of Transformers whose arguments have our names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.network(input_ids=tokens, attention_mask=mask).logits
        return logits


def build(kind: str, spec: Text, words: Words, labels: int, start: Start, *, seed: int) -> nn.Module:
    """kind: textClassification or tokenClassification. Raises JobError."""
    made = Classifier if kind == "textClassification" else Tagger
    return begun(
        kind,
        spec,
        start,
        small=lambda: made(spec, words, labels),
        library=lambda: _of_library(kind, spec, words, start, labels=labels, seed=seed),
        seed=seed,
    )


def begun(
    kind: str, spec: Text, start: Start, *, small: Callable[[], nn.Module], library: Callable[[], nn.Module], seed: int
) -> nn.Module:
    """small: makes a network with `encoder` and `head`; library: one of a folder of Transformers. Raises JobError."""
    if libraries.is_start(start, kind):
        return library()
    if spec.architecture == "Pretrained":
        raise libraries.missing(start, kind)
    with device.seeded(seed):
        network = small()
    if start.kind == WORD_VECTORS:
        if start.method == "LoRA":
            raise start.refuse("word vectors are trained with method Full, or stay as they are with Head")
        network.get_submodule("encoder.words").requires_grad_(requires_grad=start.method == "Full")
        return network
    if start.folder is None:
        return network
    if start.kind != kind:
        raise start.refuse(f"it is an artifact of {start.kind}: {kind} starts from one of its own, or of wordEmbedding")
    head = network.get_submodule("head")
    starting.load(network, start, *([head] if kind in LABELLED else []))
    return starting.trained_parts(network, head, start, seed)


def _of_library(kind: str, spec: Text, words: Words, start: Start, *, labels: int, seed: int) -> nn.Module:
    from mms_workloads import vision  # noqa: F401, PLC0415 - before transformers, which looks for torchvision

    # isort: split
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification  # noqa: PLC0415

    auto = AutoModelForSequenceClassification if kind == "textClassification" else AutoModelForTokenClassification
    if kind == "textClassification":
        _reads_both_ways(start)
    network, unset = libraries.make(auto, start, seed, num_labels=labels)
    made, head = Library(network), starting.last_linear(network)
    if start.kind is not None:
        starting.load(made, start, head)
    fit(network, words, kind, spec, start)
    return starting.trained_parts(made, head, start, seed, unset=unset)


def _reads_both_ways(start: Start) -> None:
    """Raises JobError: of a text a causal network tells the label at its last token, which it looks for by a token that
    texts are filled up with, and most have none.
    """
    from transformers.models.auto import modeling_auto  # noqa: PLC0415

    kind = starting.config(start).get("model_type")
    causal, masked = (getattr(modeling_auto, f"MODEL_FOR_{what}_LM_MAPPING_NAMES") for what in ("CAUSAL", "MASKED"))
    if kind in causal and kind not in masked:
        raise start.refuse(
            f"its network is of kind {kind}, which goes on with a text, and textClassification starts from those that "
            "read it as a whole, such as BERT and RoBERTa: give a folder of one. languageModel trains this one further"
        )


def fit(network: Any, words: Words, kind: str, spec: Text, start: Start) -> None:
    """Raises JobError: the network of Transformers has no place for as many tokens, or none for some token."""
    for name, module in network.named_modules():
        if name.rpartition(".")[2] in PLACES and isinstance(module, nn.Embedding):
            # RoBERTa and what followed it begin to count behind the token that fills up.
            before = module.padding_idx + 1 if module.padding_idx is not None else getattr(module, "offset", 0)
            if spec.maxLength > (most := module.num_embeddings - before):
                raise start.refuse(
                    f"its network has places for {most} tokens, and task.{kind}.maxLength is {spec.maxLength}: set it "
                    f"to {most} or less"
                )
    known = network.get_input_embeddings().num_embeddings
    last = max(words.tokenizer.get_vocab().values(), default=0)
    if last >= known:
        raise start.refuse(
            f"its {TOKENIZER} has a token of number {last}, and its network knows {known}: give the {TOKENIZER} that "
            "the network was trained with"
        )


def moved(batch: Batch, network: nn.Module, of: str = "") -> tuple[Tensor, Tensor]:
    """tokens, mask of a batch without the columns that are padding in all of it. of: before their names."""
    on = next(network.parameters()).device
    tokens, mask = batch[f"{of}tokens"], batch[f"{of}mask"]
    longest = max(1, int(mask.sum(dim=1).max()))
    return device.moved(tokens[:, :longest], on), device.moved(mask[:, :longest], on)


def exported(network: nn.Module, spec: Text) -> tuple[nn.Module, Batch, Mapping[str, Sequence[str]]]:
    length = max(2, min(16, spec.maxLength))
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, length // 2 :] = 0
    example = {"tokens": torch.ones(2, length, dtype=torch.int64), "mask": mask}
    return network, example, {"tokens": ("n", "L"), "mask": ("n", "L")}


class TextTask:
    """What the tasks have in common whose networks read words. spec, classes and words: set by the task."""

    kind: ModelTask
    spec: Text
    classes: Sequence[str]
    words: Words

    def augment(self, batch: Batch, transform: str, generator: torch.Generator) -> Batch:
        return augmented(batch, self.words, transform, generator)

    def logits(self, network: nn.Module, batch: Batch) -> Tensor:
        tokens, mask = moved(batch, network)
        found: Tensor = network(tokens=tokens, mask=mask).float()
        return found

    def exported(self, network: nn.Module) -> tuple[nn.Module, Batch, Mapping[str, Sequence[str]]]:
        return exported(network, self.spec)

    def outputs(self) -> Sequence[str]:
        return ["logits"]

    def pipeline(self, folder: Path) -> Pipeline:
        given = text_input(self.spec, self.words, folder)
        return Pipeline(task=self.kind, labels=list(self.classes), text=given)


def text_input(spec: Text, words: Words, folder: Path) -> TextInput:
    """Writes the tokenizer."""
    words.tokenizer.no_padding()
    words.tokenizer.no_truncation()
    words.tokenizer.save(str(folder / TOKENIZER))
    return TextInput(maxLength=spec.maxLength)


def augmented(batch: Batch, words: Words, transform: str, generator: torch.Generator) -> Batch:
    """The batch's tokens under a transform of data/augmentation.py; tags go with them."""
    from mms_workloads.data import augmentation  # noqa: PLC0415 - torchvision takes a second to import

    unknown = words.tokenizer.token_to_id(UNKNOWN)
    unknown = words.tokenizer.token_to_id("<unk>") if unknown is None else unknown
    around = torch.tensor(words.around(), dtype=batch["tokens"].dtype)
    ordinary = batch["mask"] * ~torch.isin(batch["tokens"], around)
    tokens, tags = augmentation.apply_text(
        transform, batch["tokens"], ordinary, generator, unknown=unknown or 0, tags=batch.get("tags")
    )
    return {**batch, "tokens": tokens} if tags is None else {**batch, "tokens": tokens, "tags": tags}
