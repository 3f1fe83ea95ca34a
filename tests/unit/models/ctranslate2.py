"""Whisper's weights as CTranslate2 packs them, as Transformers has them.

The format: ModelSpec.save of ctranslate2/specs/model_spec.py, version 6.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from mms_workloads import vision  # noqa: F401 - before Transformers looks for torchvision

import transformers  # isort: skip

if TYPE_CHECKING:
    from pathlib import Path

    Arrays = dict[str, np.ndarray]

FLOAT16 = 4
HEADS = 6  # of tiny
START, END, NO_TIMESTAMPS, SPACE = 50257, 50256, 50362, 220  # tokens of the English vocabulary


def variables(path: Path) -> Arrays:
    """The matrices and vectors of a model.bin, by their names."""
    found: Arrays = {}
    with path.open("rb") as file:
        assert struct.unpack("<I", file.read(4)) == (6,)
        _string(file)
        _, count = struct.unpack("<II", file.read(8))
        for _ in range(count):
            name = _string(file)
            (rank,) = struct.unpack("<B", file.read(1))
            shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
            kind, size = struct.unpack("<BI", file.read(5))
            data = file.read(size)
            if rank and kind == FLOAT16:
                found[name] = np.frombuffer(data, "<f2").reshape(shape).astype(np.float32)
    return found


def whisper(source: Path, target: Path) -> None:
    """A Transformers folder of an English Whisper."""
    packed = variables(source / "model.bin")
    layers = sum(name.startswith("encoder/layer_") and name.endswith("ffn/linear_0/bias") for name in packed)
    words, size = packed["decoder/embeddings/weight"].shape
    suppressed = json.loads((source / "config.json").read_text())["suppress_ids"]
    config = transformers.WhisperConfig(
        vocab_size=words, d_model=size, encoder_layers=layers, decoder_layers=layers, num_mel_bins=80,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * size, decoder_ffn_dim=4 * size,
        decoder_start_token_id=START, bos_token_id=END, eos_token_id=END, pad_token_id=END,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    state = {f"model.{name}": torch.from_numpy(value.copy()) for name, value in _named(packed, layers).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert [name for name in missing if not name.endswith("proj_out.weight")] == []
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=START, bos_token_id=END, eos_token_id=END, pad_token_id=END, max_length=448,
        is_multilingual=False, no_timestamps_token_id=NO_TIMESTAMPS, return_timestamps=False,
        suppress_tokens=suppressed, begin_suppress_tokens=[SPACE, END],
    )  # fmt: skip
    model.save_pretrained(target)
    transformers.WhisperFeatureExtractor().save_pretrained(target)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(target)


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    return file.read(length)[:-1].decode()


def _named(packed: Arrays, layers: int) -> Arrays:
    found = {
        "decoder.embed_tokens.weight": packed["decoder/embeddings/weight"],
        **{
            f"encoder.{conv}.{part}": packed[f"encoder/{conv}/{part}"] for conv in ("conv1", "conv2") for part in _PARTS
        },
    }
    for side in ("encoder", "decoder"):
        found[f"{side}.embed_positions.weight"] = packed[f"{side}/position_encodings/encodings"]
        found |= _norm(packed, f"{side}/layer_norm", f"{side}.layer_norm")
        for place in range(layers):
            there, ours = f"{side}/layer_{place}", f"{side}.layers.{place}"
            found |= _projections(packed, f"{there}/self_attention/linear_0", f"{ours}.self_attn", "qkv")
            found |= _linear(packed, f"{there}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            found |= _norm(packed, f"{there}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            found |= _linear(packed, f"{there}/ffn/linear_0", f"{ours}.fc1")
            found |= _linear(packed, f"{there}/ffn/linear_1", f"{ours}.fc2")
            found |= _norm(packed, f"{there}/ffn/layer_norm", f"{ours}.final_layer_norm")
            if side == "decoder":
                found |= _projections(packed, f"{there}/attention/linear_0", f"{ours}.encoder_attn", "q")
                found |= _projections(packed, f"{there}/attention/linear_1", f"{ours}.encoder_attn", "kv")
                found |= _linear(packed, f"{there}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
                found |= _norm(packed, f"{there}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
    return found


_PARTS = ("weight", "bias")


def _linear(packed: Arrays, there: str, ours: str) -> Arrays:
    return {f"{ours}.{part}": packed[f"{there}/{part}"] for part in _PARTS}


def _norm(packed: Arrays, there: str, ours: str) -> Arrays:
    return {f"{ours}.weight": packed[f"{there}/gamma"], f"{ours}.bias": packed[f"{there}/beta"]}


def _projections(packed: Arrays, there: str, ours: str, which: str) -> Arrays:
    """Those of queries, keys and values are one matrix; keys have no bias."""
    found: Arrays = {}
    for part in _PARTS:
        for letter, value in zip(which, np.split(packed[f"{there}/{part}"], len(which)), strict=True):
            if (letter, part) != ("k", "bias"):
                found[f"{ours}.{letter}_proj.{part}"] = value
    return found
