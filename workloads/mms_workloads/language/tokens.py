"""A causal network of Transformers with its tokenizer, and text as its tokens.

A block's text is cut into tokens as a whole; a sample is a window of contextLength of them and the one after, so that
each token but a block's first is predicted once. How many bytes and characters the tokens stand for comes from their
offsets: so networks of other tokenizers, and of none, are measured alike.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from mms_workloads.contract import TOKENIZER
from mms_workloads.tasks import starting, transformers_library

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from mms_workloads.contract import LanguageModel
    from mms_workloads.tasks.starting import Start

KIND = "languageModel"
PLACES = ("max_position_embeddings", "n_positions", "max_seq_len")  # what configs call how far a network looks back


@dataclass(frozen=True, slots=True)
class Text:
    """Of each token, int64 [t]: its number, and the bytes and characters of the text up to its end."""

    numbers: NDArray[np.int64]
    bytes: NDArray[np.int64]
    characters: NDArray[np.int64]


def tokenizer(start: Start) -> Tokenizer:
    """Raises JobError."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - of those that start from a folder

    assert start.folder is not None  # noqa: S101 - the caller has seen to it
    path = start.folder / TOKENIZER
    if not path.exists():
        raise start.refuse(f"there is no {TOKENIZER}, which cuts text: save the model with its fast tokenizer")
    with starting.said(start):
        found: Tokenizer = Tokenizer.from_file(str(path))
    found.no_padding()
    found.no_truncation()
    return found


def cut(given: bytes, by: Tokenizer) -> Text:
    """given: UTF-8; what is none at its ends, where a block was cut, is left out."""
    text = given.decode(errors="ignore")
    found = by.encode(text, add_special_tokens=False)
    ends = np.array([end for _, end in found.offsets], np.int64)
    sizes = itertools.accumulate((len(one.encode()) for one in text), initial=0)
    upto = np.fromiter(sizes, np.int64, len(text) + 1)
    return Text(np.array(found.ids, np.int64), upto[ends], ends)


class Causal(nn.Module):
    """tokens int64 [n, L] -> logits float32 [n, L, V] of the token that follows each."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.network(input_ids=tokens, use_cache=False).logits
        return logits


def build(task: LanguageModel, start: Start, seed: int) -> Causal:
    """Raises JobError."""
    from mms_workloads import vision  # noqa: F401, PLC0415 - before transformers, which looks for torchvision

    # isort: split
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    network: Any
    network, unset = transformers_library.make(AutoModelForCausalLM, start, seed)
    network.float()
    config = network.config
    back = next((int(found) for name in PLACES if (found := getattr(config, name, None))), task.contextLength)
    if task.contextLength > back:
        raise start.refuse(f"it looks back at {back} tokens at most: set task.{KIND}.contextLength to that or less")
    words = tokenizer(start).get_vocab_size()
    if words > config.vocab_size:
        raise start.refuse(f"{TOKENIZER} has {words} tokens, and the network {config.vocab_size}: they are not of one")
    made = Causal(network)
    if start.kind is not None:
        starting.load(made, start)
    head = network.get_output_embeddings()
    starting.trained_parts(made, head, start, seed, new=False, unset=unset)
    return made
