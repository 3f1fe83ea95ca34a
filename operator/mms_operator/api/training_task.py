"""What a training learns: the task, how its parameters follow the gradients, and how the result is measured."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from mms_operator.api.custom_task import Custom  # noqa: TC001 - pydantic evaluates annotations
from mms_operator.api.model_tasks import (
    ImageClassification,
    ImageGeneration,
    ObjectDetection,
    SpeechRecognition,
    TextClassification,
    TextMatching,
    TokenClassification,
    VideoUnderstanding,
    divided,
)
from mms_operator.api.types import FRACTION_PATTERN, SIGNED_DECIMAL_PATTERN, Model, decimal, rules
from mms_workloads.contract import METRICS, metrics_of

BATCH_SIZE = 64  # samples of all workers in a step, where the spec does not say


SOFTMAX_WORDS = 50_000  # of a vocabulary that each pair is compared with


class Subwords(Model):
    """N-grams of characters have vectors, too: a word's is the mean of its own and of theirs (Bojanowski et al., 2017).

    So rare words learn from others, and words that were never seen have a vector.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.minLength <= self.maxLength",
                "subwords.minLength must not be above maxLength: change one of them",
            )
        )
    )
    minLength: int = Field(default=3, ge=1, le=20, description="Characters of the shortest n-grams.")
    maxLength: int = Field(default=6, ge=1, le=20, description="Characters of the longest n-grams.")
    buckets: int = Field(
        default=500_000,
        ge=1,
        le=50_000_000,
        description="Vectors that all n-grams share by their hash. More keep them apart, and take more memory.",
    )


class Phrases(Model):
    """Two words that often follow one another become one, such as new_york (Mikolov et al., 2013)."""

    minCount: int = Field(default=5, ge=1, le=1_000_000, description="Pairs that are rarer stay two words.")
    threshold: str = decimal(
        "The score from which a pair becomes one word: (count - minCount) / (count of the one * count of the other) * "
        "words of the text. Higher: fewer phrases.",
        default="100",
    )


class WordEmbedding(Model):
    """Word vectors by skip-gram or CBOW (Mikolov et al., 2013)."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.negatives) || self.objective == 'NegativeSampling'",
                "negatives is of objective NegativeSampling only: leave one of them out",
            ),
            (
                f"self.objective != 'Softmax' || self.maxVocabulary <= {SOFTMAX_WORDS}",
                f"objective Softmax compares each pair with all words: set maxVocabulary to {SOFTMAX_WORDS} or less",
            ),
            (
                "self.objective != 'Softmax' || !has(self.subwords)",
                "subwords are not of objective Softmax: leave them out, or take another objective",
            ),
        )
    )
    model: Literal["SkipGram", "CBOW"] = Field(
        default="SkipGram",
        description="SkipGram: each word near a word predicts it; better for rare words. CBOW: the mean of the words "
        "near it does; faster.",
    )
    objective: Literal["NegativeSampling", "HierarchicalSoftmax", "Softmax"] = Field(
        default="NegativeSampling",
        description="NegativeSampling: a word is told apart from a few random ones. HierarchicalSoftmax: its way down "
        "a Huffman tree of the vocabulary is predicted. Softmax: it is told apart from all others, the exact model "
        "that the two stand for, and slower by far.",
    )
    dimensions: int = Field(default=100, ge=2, le=4096, description="Length of a word's vector.")
    window: int = Field(default=5, ge=1, le=100, description="Words to each side of the centre, at most.")
    windowing: Literal["Dynamic", "Fixed"] = Field(
        default="Dynamic",
        description="Dynamic: for each centre a size from 1 to window is drawn, so that near words count more. Fixed: "
        "it is always window.",
    )
    negatives: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="With NegativeSampling: random words that each pair is told apart from. Absent: 5.",
    )
    minCount: int = Field(default=5, ge=1, le=1_000_000, description="Words that are rarer are left out.")
    maxVocabulary: int = Field(
        default=1_000_000, ge=2, le=50_000_000, description="The most frequent words that are kept."
    )
    subsample: str = decimal(
        "Frequent words are skipped at random: the frequency above which that begins. 0 turns it off.", default="0.001"
    )
    tokenizer: Literal["Words", "Whitespace", "Characters"] = Field(
        default="Words",
        description="Words: runs of letters and digits, lower-cased. Whitespace: split at white space, kept as is. "
        "Characters: each letter or digit by itself, lower-cased, as for Chinese text that is not split.",
    )
    subwords: Subwords | None = Field(default=None, description="Absent: a word has its own vector alone.")
    phrases: Phrases | None = Field(default=None, description="Absent: each word stands alone.")


class LanguageModel(Model):
    """What comes next in a text."""

    model_config = ConfigDict(json_schema_extra=rules(divided("languageModel")))
    architecture: Literal["Small", "Pretrained"] = Field(
        default="Small",
        description="Small: a decoder-only transformer (Vaswani et al., 2017; pre-norm as in GPT-2) over the bytes of "
        "a text. Pretrained: that of pretrained, a folder of Transformers with a causal network, such as GPT-2 or "
        "Llama, over the tokens of its tokenizer.json.",
    )
    dimensions: int = Field(default=128, ge=8, le=8192, description="Small: width of the layers.")
    layers: int = Field(default=4, ge=1, le=128, description="Small: transformer blocks.")
    heads: int = Field(default=4, ge=1, le=128, description="Small: attention heads; they divide dimensions.")
    contextLength: int = Field(
        default=128,
        ge=8,
        le=16_384,
        description="How many bytes a prediction looks back at, at most. Pretrained: tokens.",
    )


TASKS = (
    "wordEmbedding",
    "languageModel",
    "imageClassification",
    "objectDetection",
    "imageGeneration",
    "videoUnderstanding",
    "textClassification",
    "tokenClassification",
    "textMatching",
    "speechRecognition",
    "custom",
)


class Task(Model):
    """What to train: exactly one."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                " + ".join(f"(has(self.{name}) ? 1 : 0)" for name in TASKS) + " == 1",
                f"exactly one task must be set: {', '.join(TASKS[:-1])} or {TASKS[-1]}",
            )
        )
    )
    wordEmbedding: WordEmbedding | None = Field(default=None, description="Word vectors from a text corpus.")
    languageModel: LanguageModel | None = Field(
        default=None, description="A language model, which predicts how a text goes on."
    )
    imageClassification: ImageClassification | None = Field(default=None, description="What an image shows, by labels.")
    objectDetection: ObjectDetection | None = Field(default=None, description="Where in an image which objects are.")
    imageGeneration: ImageGeneration | None = Field(default=None, description="Images of a label.")
    videoUnderstanding: VideoUnderstanding | None = Field(default=None, description="What a video shows, by labels.")
    textClassification: TextClassification | None = Field(
        default=None, description="What a text is, by labels: its topic, or whether somebody liked a film."
    )
    tokenClassification: TokenClassification | None = Field(
        default=None, description="Which words of a text are names, and of what."
    )
    textMatching: TextMatching | None = Field(
        default=None, description="How near two texts are, and which of many is nearest to another."
    )
    speechRecognition: SpeechRecognition | None = Field(default=None, description="What is said in a sound.")
    custom: Custom | None = Field(
        default=None, description="A program of one's own, in an image of one's own (docs/custom.md)."
    )


class Optimizer(Model):
    """How the parameters follow the gradients. What is absent is as the task has it by default."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!has(self.learningRate) || double(self.learningRate) > 0.0", "learningRate must be above 0"),
            (
                "!has(self.momentum) || (has(self.name) && self.name == 'SGD')",
                "momentum is of SGD only: set optimizer.name to SGD, or leave momentum out",
            ),
        )
    )
    name: Literal["SGD", "Adagrad", "AdamW"] | None = Field(
        default=None,
        description="SGD, Adagrad (Duchi et al., 2011) or AdamW (Loshchilov and Hutter, 2019). "
        "Absent: SGD for wordEmbedding, which knows no other; AdamW for the others.",
    )
    learningRate: str | None = decimal(
        "Step size. wordEmbedding: at the start; it falls linearly to zero. "
        "Absent: 0.025 for wordEmbedding, 0.05 for one of model CBOW or with subwords; 0.001 for the others, 0.0001 "
        "where all parameters of a pretrained network are trained.",
        default=None,
    )
    momentum: str | None = decimal(
        "Of SGD: the part of the last step that the next one keeps. Absent: 0.", FRACTION_PATTERN, default=None
    )
    weightDecay: str | None = decimal(
        "How strongly parameters are drawn to zero: apart from the gradient for AdamW, else added to it. Absent: 0.",
        default=None,
    )
    globalBatchSize: int | None = Field(
        default=None,
        ge=1,
        le=1_048_576,
        description=f"Samples that all workers together learn from in a step. Absent: {BATCH_SIZE}. "
        "wordEmbedding: each worker takes up to 48 blocks of the text in a round instead.",
    )
    epochs: int = Field(default=5, ge=1, le=10_000, description="How often each sample is seen.")
    whenWorkersChange: Literal["KeepGlobalBatch", "ScaleLearningRate"] | None = Field(
        default=None,
        description="KeepGlobalBatch: fewer workers take more samples each. ScaleLearningRate: each worker takes as "
        "many as before, and the learning rate follows the batch (Goyal et al., 2017). Absent: KeepGlobalBatch.",
    )
    precision: Literal["Auto", "FP32", "BF16"] | None = Field(
        default=None,
        description="In which numbers a network's products are computed in training; parameters, gradients, the "
        "optimizer, evaluation and the artifact are float32. Auto: BF16 on GPUs, and on CPUs that have instructions "
        "for it where the network's layers are wide enough to gain by it; status.precision says which it is. "
        "Absent: Auto.",
    )
    seed: int = Field(default=1, ge=0, le=2**31 - 1, description="Start of every random choice.")


class Gate(Model):
    """What a result must reach to be published."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("has(self.atLeast) != has(self.atMost)", "exactly one of atLeast and atMost must be set in a gate")
        )
    )
    metric: str = Field(
        description="A metric of the evaluation, as status.artifact.metrics names it: "
        + "; ".join(f"{', '.join(names)} of {kind}" for kind, names in METRICS.items())
        + ". With training before it, as in trainingAccuracy, where the data has so few blocks that none is held out.",
        max_length=64,
    )
    atLeast: str | None = decimal("The least value that passes.", SIGNED_DECIMAL_PATTERN, default=None)
    atMost: str | None = decimal("The greatest value that passes.", SIGNED_DECIMAL_PATTERN, default=None)


def gates_fit() -> list[tuple[str, str]]:
    """Rules (CEL) of a training's spec: the gate asks for what its task measures."""
    found = []
    for kind, names in METRICS.items():
        fits = f"self.evaluation.gate.metric in {list(metrics_of(kind))}"
        named = f"{' or '.join(names)}, or one of them with training before it where nothing is held out"
        found.append(
            (
                f"!has(self.task.{kind}) || !has(self.evaluation.gate) || {fits}",
                f"evaluation.gate.metric of task.{kind} must be {named}",
            )
        )
    return found


class Evaluation(Model):
    """How the result is measured before it is published."""

    split: str = decimal(
        "Part of the data, in blocks, that is never trained on and measures the result. 0: it is measured on what it "
        "was trained on.",
        FRACTION_PATTERN,
        default="0.02",
    )
    gate: Gate | None = Field(
        default=None,
        description="A result that misses it is not published: the run has failed, with reason GateMissed. "
        "Absent: every result is published.",
    )
