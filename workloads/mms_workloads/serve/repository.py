"""A Triton model repository for an artifact: pure functions from the manifest to the text of files.

A wordEmbedding artifact becomes four models on the python backend. Of each, the batch is the list of what is asked, so
that one request asks for n words, and Triton merges requests without delay into larger batches:

    vectors      WORDS string [n, 1] or IDS int64 [n, 1]      -> VECTORS float32 [n, d]
    neighbours   the same, and K int32 [n, 1], absent: 10     -> WORDS string [n, k], SCORES float32 [n, k]
    analogies    the same, of WORDS or IDS [n, 3]             -> the same
    similarity   TEXTS string [n, 2]                          -> SCORES float32 [n, 1]

K is the same number in each row. All also answer DIGEST string [n, 1] and VERSION int64 [n, 1]: the artifact's digest,
and the run that made it. (Triton 2.51 has no parameters in the responses of its python backend, and its own version of
a model is the code's, MODEL_VERSION: weights change within a running model.) The models map the same files, so the
page cache holds one copy of the weights.

Triton: model_configuration.md of the server's documentation, triton-inference-server/python_backend README.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import Batching

VECTORS = "vectors"
NEIGHBOURS = "neighbours"
ANALOGIES = "analogies"
SIMILARITY = "similarity"
MODELS = (VECTORS, NEIGHBOURS, ANALOGIES, SIMILARITY)

MODEL_VERSION = 1  # of the code and the tensors' names and types

# Rows in one execution: bounds how long others wait behind it, 50 ms at 30,000 words on a core. A longer request is
# refused by Triton, which names the limit.
MAX_BATCH_SIZE = 256

_CLASSES = {VECTORS: "Vectors", NEIGHBOURS: "Neighbours", ANALOGIES: "Analogies", SIMILARITY: "Similarity"}


def render(generations: Path, batching: Batching) -> dict[str, str]:
    """The files of the repository by their path in it. `generations`: the file that says which artifacts are held."""
    files = configs(generations, batching)
    for model in MODELS:
        files[f"{model}/{MODEL_VERSION}/model.py"] = code(model)
    return files


def configs(generations: Path, batching: Batching) -> dict[str, str]:
    """What changes with the way of batching, by path."""
    return {f"{model}/config.pbtxt": config(model, generations, batching) for model in MODELS}


def config(model: str, generations: Path, batching: Batching) -> str:
    """config.pbtxt of a model. Each field is given: the server does not complete configurations."""
    inputs, outputs = _tensors(model)
    preferred = f"preferred_batch_size: [{batching.preferredBatchSize}] " if batching.preferredBatchSize else ""
    outputs += [_tensor("DIGEST", "TYPE_STRING", 1), _tensor("VERSION", "TYPE_INT64", 1)]
    parameters = {"generations": str(generations)}
    return "\n".join(
        [
            f"name: {_quoted(model)}",
            'backend: "python"',
            f"max_batch_size: {MAX_BATCH_SIZE}",
            *(f"input {{ {tensor} }}" for tensor in inputs),
            *(f"output {{ {tensor} }}" for tensor in outputs),
            f"instance_group {{ kind: KIND_CPU count: {batching.instances} }}",
            f"dynamic_batching {{ {preferred}max_queue_delay_microseconds: {batching.maxQueueDelayMicroseconds} }}",
            *(
                f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
                for key, value in parameters.items()
            ),
            "",
        ]
    )


def code(model: str) -> str:
    """model.py: the model itself is in this package, compiled when the image was built."""
    return f"from mms_workloads.serve.triton_models import {_CLASSES[model]} as TritonPythonModel\n"


def _tensors(model: str) -> tuple[list[str], list[str]]:
    """Inputs, and outputs that are the model's own."""
    if model == SIMILARITY:
        return [_tensor("TEXTS", "TYPE_STRING", 2)], [_tensor("SCORES", "TYPE_FP32", 1)]
    words = 3 if model == ANALOGIES else 1
    inputs = [_tensor("WORDS", "TYPE_STRING", words, optional=True), _tensor("IDS", "TYPE_INT64", words, optional=True)]
    if model == VECTORS:
        return inputs, [_tensor("VECTORS", "TYPE_FP32", -1)]  # artifacts of other dimensions may follow
    inputs.append(_tensor("K", "TYPE_INT32", 1, optional=True))
    return inputs, [_tensor("WORDS", "TYPE_STRING", -1), _tensor("SCORES", "TYPE_FP32", -1)]


def _tensor(name: str, data_type: str, size: int, *, optional: bool = False) -> str:
    return f'name: "{name}" data_type: {data_type} dims: [{size}]' + (" optional: true" if optional else "")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
