"""Checkpoints and artifacts: their manifests, their files and their golden sets."""

from __future__ import annotations

from typing import Literal

from mms_workloads.contract.base import (
    CONTRACT_VERSION,
    Contract,
    DataFile,
    FileEntry,
    JobIdentity,
    NonNegativeInt,
    PositiveInt,
)
from mms_workloads.contract.pipeline import ModelTask


class CheckpointFile(Contract):
    """A file of a checkpoint, in its manifest.json."""

    blake3: str  # hex of its 256 bits
    size: NonNegativeInt  # bytes


class Provenance(Contract):
    job: JobIdentity
    createdAt: str
    mmsVersion: str
    seed: int
    workers: PositiveInt
    data: list[DataFile]
    jobFileDigest: str  # sha256:<hex> of the job file's bytes


class ArtifactPin(Contract):
    """An artifact by its address and content."""

    uri: str
    digest: str  # sha256:<hex> of manifest.json's bytes


class ArtifactRef(ArtifactPin):
    version: PositiveInt  # the run
    metrics: dict[str, float] = {}


class ArtifactManifest(Contract):
    """manifest.json at the root of an artifact. Its own SHA-256 is the artifact's digest.

    Every artifact holds model.safetensors, golden.json (Golden) and evaluation.json (metrics, how they were measured).
    wordEmbedding: vectors [V, d] float32, contexts [V, d] float32; vocabulary.txt (UTF-8, one `word<TAB>count` a line,
    in the order of the rows); with subwords also ngrams [buckets, d]; model.json (WordEmbedding); report.html, to be
    looked at. languageModel: the transformer's parameters, float32; model.json (LanguageModel). Of Transformers: the
    network's config.json, from which it is built again to be trained further. What is served has pipeline.json
    (Pipeline) and the network that it names.
    """

    contractVersion: Literal[1] = CONTRACT_VERSION
    kind: Literal["wordEmbedding", "tritonRepository"] | ModelTask
    version: PositiveInt
    files: dict[str, FileEntry]
    metrics: dict[str, float]
    provenance: Provenance


class GoldenTensor(Contract):
    """An input of any shape, as Triton's binary protocol has it."""

    datatype: Literal["BYTES", "FP32", "INT64", "INT32"]
    shape: list[PositiveInt]
    raw: str  # base64; numbers little-endian in row-major order, strings each after their length in four bytes


class GoldenCase(Contract):
    """One request and its right answer, computed where the model was trained. Strings and numbers as JSON lists."""

    model: str  # the Triton model's name
    inputs: dict[str, list[str] | list[int] | list[float]] = {}  # [n, 1]; of word vectors
    tensors: dict[str, GoldenTensor] = {}  # inputs, of the other kinds
    # Outputs are flattened in row-major order; their shapes follow from the inputs and the model.
    outputs: dict[str, list[str] | list[int] | list[float]]


LEAST_QUESTIONS = 20  # different ones of a golden set, for another precision to be judged by them


class Golden(Contract):
    """golden.json of an artifact."""

    contractVersion: Literal[1] = CONTRACT_VERSION
    absoluteTolerance: float = 1e-4  # of floats; strings and integers are compared exactly
    cases: list[GoldenCase]
    asItIs: bool = False  # of a Triton repository that was not made here: there is nothing to ask
    # Requests that another version may well answer otherwise: how often it does is what an analysis is told.
    comparisons: list[GoldenCase] = []
    # Inputs that a precision is chosen by, beside those of the cases and comparisons: answers that are numbers alone
    # tell nothing of another version, so that their tasks have no comparisons.
    questions: list[dict[str, GoldenTensor]] = []
