"""Small networks with random weights, saved by Transformers as its hub has them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mms_workloads import vision  # noqa: F401 - before Transformers looks for torchvision

import transformers  # isort: skip

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "film", "was", "good", "bad", "Ada", "Paris", "in")
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghij")


def _seeded(kind: type, config: Any, folder: Path) -> Any:
    torch.manual_seed(3)
    model = kind(config).eval()
    model.save_pretrained(folder)
    return model


def tokenizer(folder: Path) -> transformers.PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=20
    )
    made.save_pretrained(folder)
    return made


def bert(folder: Path, kind: type, **more: Any) -> Any:
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **TINY, **more)
    return _seeded(kind, config, folder)


def sentences(folder: Path) -> Any:
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    kinds = ("Transformer", "Pooling", "Normalize")
    (folder / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{k}"} for k in kinds]))
    return bert(folder, transformers.BertModel)


def vit(folder: Path) -> tuple[Any, Any]:
    labels = {0: "cat", 1: "dog", 2: "horse"}
    config = transformers.ViTConfig(image_size=32, patch_size=8, id2label=labels, **TINY)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return _seeded(transformers.ViTForImageClassification, config, folder), processor


def convnext(folder: Path) -> tuple[Any, Any]:
    """Resized to more than it takes, and cut."""
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], image_size=32, num_labels=4)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, do_center_crop=True
    )
    processor.save_pretrained(folder)
    return _seeded(transformers.ConvNextForImageClassification, config, folder), processor


def yolos(folder: Path) -> tuple[Any, Any]:
    labels = {0: "person", 1: "car", 2: "tree"}
    config = transformers.YolosConfig(
        image_size=[32, 32], patch_size=8, num_detection_tokens=5, id2label=labels, **TINY
    )
    processor = transformers.YolosImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return _seeded(transformers.YolosForObjectDetection, config, folder), processor


def wav2vec2(folder: Path, norm: str) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({letter: place for place, letter in enumerate(LETTERS)}))
    made = transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json")
    made.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=norm == "layer").save_pretrained(
        folder
    )
    config = transformers.Wav2Vec2Config(
        vocab_size=len(LETTERS), conv_dim=(16, 16), conv_kernel=(10, 8), conv_stride=(5, 4), feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer", num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        pad_token_id=0, **TINY,
    )  # fmt: skip
    return _seeded(transformers.Wav2Vec2ForCTC, config, folder), made


def whisper(folder: Path) -> tuple[Any, Any, Any]:
    words = [*(f"word{place} " for place in range(40)), "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    words = [word.strip() for word in words]
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<|endoftext|>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|endoftext|>", pad_token="<|endoftext|>", bos_token="<|startoftranscript|>"
    )
    made.save_pretrained(folder)
    features = transformers.WhisperFeatureExtractor(feature_size=16)
    features.save_pretrained(folder)
    config = transformers.WhisperConfig(
        vocab_size=len(words), num_mel_bins=16, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_target_positions=16, decoder_start_token_id=41, pad_token_id=40, bos_token_id=41, eos_token_id=40,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return _seeded(transformers.WhisperForConditionalGeneration, config, folder), features, made


def causal(folder: Path, kind: str, text: str) -> None:
    """GPT-2 or Llama with a byte-level BPE of the text, as both have it."""
    folder.mkdir(exist_ok=True)
    end = "<|endoftext|>"
    cut = Tokenizer(models.BPE())
    cut.pre_tokenizer, cut.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    cut.train_from_iterator([text], trainer)
    cut.save(str(folder / "tokenizer.json"))
    words = cut.get_vocab_size()
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(
            vocab_size=words, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
        )
        _seeded(transformers.GPT2LMHeadModel, config, folder)
    else:
        config = transformers.LlamaConfig(
            vocab_size=words, max_position_embeddings=32, num_key_value_heads=1, bos_token_id=0, eos_token_id=0, **TINY
        )
        _seeded(transformers.LlamaForCausalLM, config, folder)
