"""The words that a service tags are those that were tagged in training, whatever the tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from mms_workloads.contract import Pipeline, TextInput, TokenClassification
from mms_workloads.serve.pipelines.tagging import Tag
from mms_workloads.serve.pipelines.writing import filling
from mms_workloads.tasks import texts
from mms_workloads.tasks.starting import NOTHING
from mms_workloads.tasks.token_classification import TokenTagger

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = ("B-LOC", "B-ORG", "B-PER", "I-LOC", "I-PER", "O")
RECORDS = (
    {"input": ["Jean-Paul", "met", "Ada", "in", "U.S."], "label": ["B-PER", "O", "B-PER", "O", "B-LOC"]},
    {"input": ["Ada"], "label": ["B-PER"]},
    {"input": ["A-B", "-", ""], "label": ["B-ORG", "O", "O"]},
)
LETTERS = [*sorted(set("Jean-Paul met Ada in U.S. A-B")), "\u0120", "\u2581"]


def words() -> Tokenizer:
    """As a task makes it of its data."""
    return texts.words({"Jean Paul met Ada in U S": 2}, TokenClassification(), NOTHING).tokenizer


def letters(made: Any) -> Tokenizer:
    found = Tokenizer(models.BPE({letter: number for number, letter in enumerate(LETTERS)}, [], unk_token="-"))
    found.pre_tokenizer = made
    return found


def without_words() -> Tokenizer:
    """Of Llama's kind: spaces are letters, and all of a text is one word."""
    found = letters(None)
    found.normalizer = normalizers.Replace(" ", "\u2581")
    return found


TOKENIZERS = {
    "words": words,
    "byte level": lambda: letters(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "with prefix": lambda: letters(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "metaspace": lambda: letters(pre_tokenizers.Metaspace()),
    "bert": lambda: letters(pre_tokenizers.BertPreTokenizer()),
    "no words": without_words,
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("length", [64, 5])
def test_what_is_trained_is_served(tmp_path: Path, name: str, length: int) -> None:
    spec = TokenClassification(maxLength=length)
    tagger = TokenTagger(spec, CLASSES, NOTHING, texts.Words(TOKENIZERS[name]()))
    batch = tagger.prepare(RECORDS)
    given = texts.text_input(spec, tagger.words, tmp_path)
    served = Tag(Pipeline(task="tokenClassification", labels=list(CLASSES), text=given), tmp_path)
    asked = tagger.questions(RECORDS)
    prepared = served.prepare({"TEXT": np.concatenate([one["TEXT"] for one in asked])})
    np.testing.assert_array_equal(prepared.feeds["tokens"], batch["tokens"])
    np.testing.assert_array_equal(prepared.feeds["mask"], batch["mask"])
    said, places = prepared.about
    for row, found in enumerate(places):
        assert [token for token, _, _ in found] == (batch["tags"][row] >= 0).nonzero()[:, 0].tolist()
        assert not any(character.isspace() for _, start, end in found for character in said[row][start:end])
    if length == 64:
        answer = served.finish(_right(batch), prepared)
        told = list(zip(answer["WORDS"][0].tolist(), answer["TAGS"][0].tolist(), strict=True))
        assert told[0][1] == b"B-PER"
        assert {tag for word, tag in told[1:-1] if word in {b"Paul", b"-"}} <= {b"I-PER"}
        assert told[-1][1] == (b"B-LOC" if told[-1][0] == b"U.S." else b"I-LOC")
        assert {tag for tag in answer["TAGS"][2].tolist() if tag} <= {b"B-ORG", b"O"}  # there is no I-ORG


def _right(batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Logits of a network that tells what it was taught."""
    return {"logits": torch.nn.functional.one_hot(batch["tags"].clamp(min=0), len(CLASSES)).float().numpy()}


@pytest.mark.parametrize("kind", [texts.Classifier, texts.Tagger])
def test_texts_without_a_known_word(kind: type[torch.nn.Module]) -> None:
    found = texts.words({}, TokenClassification(), NOTHING)
    tokens, mask, _ = found.numbers(["...", "", "!"], 8)
    assert tokens.shape == mask.shape == (3, 1)
    assert not mask.any()
    network = kind(TokenClassification(), found, 2).eval()
    assert torch.isfinite(network(tokens, mask)).all()


def test_a_text_is_filled_up_as_in_serving(tmp_path: Path) -> None:
    made = Tokenizer(models.WordLevel({"a": 0, "<pad>": 1}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    assert texts.Words(made).numbers(["a a", "a"], 8)[0].tolist() == [[0, 0], [0, 1]]
    made.save(str(tmp_path / "tokenizer.json"))
    served = Tag(Pipeline(task="tokenClassification", labels=["a"], text=TextInput(maxLength=8)), tmp_path)
    assert served.padded["tokens"] == filling(made) == 1
