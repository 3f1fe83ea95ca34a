"""A Triton model repository for an artifact: pure functions from what it serves to the text of files.

A wordEmbedding artifact becomes four models on the python backend. Of each, the batch is the list of what is asked, so
that one request asks for n words, and Triton merges requests without delay into larger batches:

    vectors      WORDS string [n, 1] or IDS int64 [n, 1]      -> VECTORS float32 [n, d]
    neighbours   the same, and K int32 [n, 1], absent: 10     -> WORDS string [n, k], SCORES float32 [n, k]
    analogies    the same, of WORDS or IDS [n, 3]             -> the same
    similarity   TEXTS string [n, 2]                          -> SCORES float32 [n, 1]

Artifacts of the other kinds have one model each, whose tensors its pipeline says (serve/pipelines). K is the same
number in each row. All also answer DIGEST string [n, 1] and VERSION int64 [n, 1]: the artifact's digest, and the run
that made it. (Triton 2.51 has no parameters in the responses of its python backend, and its own version of a model is
the program's: weights change within a running model, see taking.py.) The models of word vectors map the same files, so
the page cache holds one copy of the weights.

Triton: model_configuration.md of the server's documentation, triton-inference-server/python_backend README.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mms_workloads.contract import Contract

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import Batching

VECTORS = "vectors"
NEIGHBOURS = "neighbours"
ANALOGIES = "analogies"
SIMILARITY = "similarity"
MODELS = (VECTORS, NEIGHBOURS, ANALOGIES, SIMILARITY)  # of word vectors

MODEL_VERSION = 1  # in Triton, of a pod's first artifact
HELD_VERSIONS = 2

# Rows in one execution: bounds how long others wait behind it, 50 ms at 30,000 words on a core. A longer request is
# refused by Triton, which names the limit.
MAX_BATCH_SIZE = 256

_CLASSES = {VECTORS: "Vectors", NEIGHBOURS: "Neighbours", ANALOGIES: "Analogies", SIMILARITY: "Similarity"}
_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT64": "TYPE_INT64", "INT32": "TYPE_INT32"}


class Tensor(Contract):
    """Of a model. shape: without the rows; -1: any."""

    name: str
    datatype: Literal["BYTES", "FP32", "INT64", "INT32"]
    shape: list[int]
    optional: bool = False


class Model(Contract):
    """A model of the repository.

    code: module and class; none: its files are the artifact's own. program: what runs in its processes beside our code,
    and is not to run where another does: the network's runtime and, of files that are programs, their digest.
    parameters: those of the artifact, which the model reads when it maps it.
    """

    name: str
    code: tuple[str, str] | None
    program: str = ""
    inputs: list[Tensor] = []  # noqa: RUF012 - pydantic copies it
    outputs: list[Tensor] = []  # noqa: RUF012
    rows: int = MAX_BATCH_SIZE
    parameters: dict[str, str] = {}  # noqa: RUF012


class Models(Contract):
    """What a pod's Triton runs; of an artifact, what it would have to."""

    models: list[Model]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.models)


def word_models() -> Models:
    """Those of a wordEmbedding artifact."""
    return Models(models=[_word_model(name) for name in MODELS])


def _word_model(name: str) -> Model:
    code = ("mms_workloads.serve.triton_models", _CLASSES[name])
    scores = Tensor(name="SCORES", datatype="FP32", shape=[1 if name == SIMILARITY else -1])
    if name == SIMILARITY:
        return Model(name=name, code=code, inputs=[Tensor(name="TEXTS", datatype="BYTES", shape=[2])], outputs=[scores])
    words = 3 if name == ANALOGIES else 1
    inputs = [
        Tensor(name="WORDS", datatype="BYTES", shape=[words], optional=True),
        Tensor(name="IDS", datatype="INT64", shape=[words], optional=True),
    ]
    if name == VECTORS:  # artifacts of other dimensions may follow
        vectors = Tensor(name="VECTORS", datatype="FP32", shape=[-1])
        return Model(name=name, code=code, inputs=inputs, outputs=[vectors])
    inputs.append(Tensor(name="K", datatype="INT32", shape=[1], optional=True))
    return Model(
        name=name, code=code, inputs=inputs, outputs=[Tensor(name="WORDS", datatype="BYTES", shape=[-1]), scores]
    )


def configs(generations: Path, batching: Batching, models: Models) -> dict[str, str]:
    """The models' configurations by path. `generations`: the file that says which artifacts are held."""
    ours = [model for model in models.models if model.code is not None]
    return {f"{model.name}/config.pbtxt": config(model, generations, batching) for model in ours}


def config(model: Model, generations: Path, batching: Batching) -> str:
    """config.pbtxt of a model. Each field is given: the server does not complete configurations."""
    size = min(batching.preferredBatchSize, model.rows)
    preferred = f"preferred_batch_size: [{size}] " if size else ""
    about = [Tensor(name="DIGEST", datatype="BYTES", shape=[1]), Tensor(name="VERSION", datatype="INT64", shape=[1])]
    return "\n".join(
        [
            f"name: {_quoted(model.name)}",
            'backend: "python"',
            f"max_batch_size: {model.rows}",
            *(f"input {{ {_tensor(tensor)} }}" for tensor in model.inputs),
            *(f"output {{ {_tensor(tensor)} }}" for tensor in [*model.outputs, *about]),
            f"instance_group {{ kind: KIND_CPU count: {batching.instances} }}",
            f"dynamic_batching {{ {preferred}max_queue_delay_microseconds: {batching.maxQueueDelayMicroseconds} }}",
            # A version beside the one that answers; of both the configuration is the same.
            f"version_policy {{ latest {{ num_versions: {HELD_VERSIONS} }} }}",
            f'parameters {{ key: "generations" value {{ string_value: {_quoted(str(generations))} }} }}',
            "",
        ]
    )


def code(model: Model) -> str:
    """model.py: the model itself is in this package, compiled when the image was built."""
    assert model.code is not None  # noqa: S101 - of those that are rendered
    module, name = model.code
    return f"from {module} import {name} as TritonPythonModel\n"


def _tensor(tensor: Tensor) -> str:
    shape = ", ".join(map(str, tensor.shape))
    text = f'name: "{tensor.name}" data_type: {_TYPES[tensor.datatype]} dims: [{shape}]'
    return text + (" optional: true" if tensor.optional else "")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
