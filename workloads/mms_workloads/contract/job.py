"""The job file: what the master and the workers of a run are to do, and what the operator wants of them later."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mms_workloads.contract.base import CONTRACT_VERSION, Contract, JobIdentity, NonNegativeInt, PositiveInt, Store
from mms_workloads.contract.data import Data


class Subwords(Contract):
    """N-grams of characters whose vectors are part of a word's (Bojanowski et al., 2017)."""

    minLength: PositiveInt = 3
    maxLength: PositiveInt = 6
    buckets: PositiveInt = 500_000  # vectors that all n-grams share by their hash


class Phrases(Contract):
    """Two words that occur together more often than by chance become one (Mikolov et al., 2013)."""

    minCount: PositiveInt = 5
    # (count - minCount) / (count of the one * count of the other) * all words: higher means fewer phrases
    threshold: Annotated[float, Field(ge=0)] = 100.0


class WordEmbedding(Contract):
    """Word vectors by skip-gram or CBOW (Mikolov et al., 2013)."""

    model: Literal["SkipGram", "CBOW"] = "SkipGram"
    objective: Literal["NegativeSampling", "HierarchicalSoftmax", "Softmax"] = "NegativeSampling"
    dimensions: PositiveInt = 100
    window: PositiveInt = 5
    windowing: Literal["Dynamic", "Fixed"] = (
        "Dynamic"  # Dynamic: each centre's window is 1 to `window` words, at random
    )
    negatives: PositiveInt = 5
    minCount: PositiveInt = 5
    maxVocabulary: PositiveInt = 1_000_000
    subsample: Annotated[float, Field(ge=0)] = 1e-3  # 0 turns it off
    tokenizer: Literal["Words", "Whitespace", "Characters"] = "Words"
    subwords: Subwords | None = None
    phrases: Phrases | None = None


class LanguageModel(Contract):
    """A model of what comes next in a text. architecture Small: a decoder-only transformer (Vaswani et al., 2017;
    pre-norm as in GPT-2) over bytes; Pretrained: a causal network of Transformers over the tokens of its tokenizer.
    """

    architecture: Literal["Small", "Pretrained"] = "Small"
    dimensions: PositiveInt = 128
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    contextLength: PositiveInt = 128  # bytes that a prediction looks at; Pretrained: tokens


class Picture(Contract):
    """What images are brought to before a network sees them. architecture: Small, timm/NAME or torchvision/NAME."""

    architecture: str = "Small"
    height: PositiveInt = 32
    width: PositiveInt = 32
    channels: Literal[1, 3] = 3
    resize: Literal["Stretch", "Crop", "Pad"] = "Stretch"


class ImageClassification(Picture):
    """An image has one of the labels."""


class ObjectDetection(Picture):
    """Boxes and labels of the objects in an image: one stage without anchors (Tian et al., 2019)."""

    height: PositiveInt = 64
    width: PositiveInt = 64


class ImageGeneration(Picture):
    """Images of a label, by conditional flow matching (Lipman et al., 2023)."""

    hidden: PositiveInt = 64  # channels of the network
    steps: PositiveInt = 16  # of Euler's method from noise to an image


class VideoUnderstanding(Picture):
    """A video has one of the labels; `frames` of it, evenly spaced, are looked at."""

    frames: PositiveInt = 8


class Text(Contract):
    """architecture Small: words, their vectors, and a transformer encoder over them; Pretrained: Transformers' own."""

    architecture: Literal["Small", "Pretrained"] = "Small"
    dimensions: PositiveInt = 64
    layers: NonNegativeInt = 1
    heads: PositiveInt = 4
    maxLength: PositiveInt = 128  # tokens; a text that is longer loses its end
    maxVocabulary: PositiveInt = 20_000
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class TextClassification(Text):
    """A text has one of the labels."""


class TokenClassification(Text):
    """Each word of a text has one of the tags: B-X and I-X of entities, O of none (IOB2)."""


class TextMatching(Text):
    """How near two texts are in meaning: each becomes a vector, and their cosine is the score."""

    search: NonNegativeInt = (
        0  # texts of the data set that the artifact holds, among which those near another are found
    )


class SpeechRecognition(Contract):
    """What is said, letter by letter: connectionist temporal classification (Graves et al., 2006).

    architecture Small: a transformer encoder over the energies of sound; Pretrained: a CTC network of Transformers.
    """

    architecture: Literal["Small", "Pretrained"] = "Small"
    sampleRate: PositiveInt = 16_000
    maxSeconds: Annotated[float, Field(gt=0)] = 10.0  # longer records are left out
    alphabet: str = " 'abcdefghijklmnopqrstuvwxyz"  # of transcripts, both lower-cased; others are left out
    dimensions: PositiveInt = 144
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class Task(Contract):
    """Exactly one arm is set."""

    wordEmbedding: WordEmbedding | None = None
    languageModel: LanguageModel | None = None
    imageClassification: ImageClassification | None = None
    objectDetection: ObjectDetection | None = None
    imageGeneration: ImageGeneration | None = None
    videoUnderstanding: VideoUnderstanding | None = None
    textClassification: TextClassification | None = None
    tokenClassification: TokenClassification | None = None
    textMatching: TextMatching | None = None
    speechRecognition: SpeechRecognition | None = None

    @property
    def kind(self) -> str | None:
        """The name of the arm that is set; None where this release knows none that is."""
        return next((name for name in type(self).model_fields if getattr(self, name) is not None), None)


class Adapter(Contract):
    """Low-rank changes beside the linear layers, which stay as they are (Hu et al., 2022)."""

    rank: PositiveInt = 8
    alpha: PositiveInt = 16


class Pretrained(Contract):
    """What the run starts from: a folder of Transformers, timm or torchvision, or an artifact, which has a digest.

    Full: all parameters are trained. Head: the last layer's alone. LoRA: adapters and the last layer. What the folder
    has no weights for is trained with each. Of an artifact of wordEmbedding the words' vectors are the input of a text
    task's network: trained with Full, fixed with Head.
    """

    store: Store
    digest: str | None = None
    method: Literal["Full", "LoRA", "Head"] = "Full"
    adapter: Adapter = Adapter()


class Optimizer(Contract):
    """wordEmbedding: SGD whose rate falls linearly, a block per worker and round; of the rest only seed and epochs."""

    name: Literal["SGD", "Adagrad", "AdamW"] = "SGD"
    learningRate: Annotated[float, Field(gt=0)] = 0.025
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of SGD
    weightDecay: Annotated[float, Field(ge=0)] = 0.0  # decoupled for AdamW (Loshchilov and Hutter, 2019), else added
    globalBatchSize: PositiveInt = 64  # samples of all workers in a step
    epochs: PositiveInt = 5
    whenWorkersChange: Literal["KeepGlobalBatch", "ScaleLearningRate"] = "KeepGlobalBatch"
    precision: Literal["Auto", "FP32", "BF16"] = "Auto"  # of a network's products in the forward pass
    seed: int = 1


class Differential(Contract):
    """Differential privacy of the records that are trained on, by DP-SGD (Abadi et al., 2016): gradients of single
    records are clipped to maxGradientNorm, and noise is added for (epsilon, delta) after all data epochs.
    """

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    maxGradientNorm: Annotated[float, Field(gt=0)] = 1.0


class Gate(Contract):
    """What an artifact must reach to be published; one of the bounds is set."""

    metric: str  # see metrics.py
    atLeast: float | None = None
    atMost: float | None = None


class EvaluationSpec(Contract):
    split: Annotated[float, Field(ge=0, le=0.5)] = 0.02  # part of the blocks that is never trained on
    gate: Gate | None = None


class ParameterServer(Contract):
    """Shards 0..n-1 hold the parameters; the optimizer runs on them."""

    shards: PositiveInt = 1
    replicas: Annotated[int, Field(ge=1, le=2)] = 1  # 2: each shard's state is on the next shard too
    consistency: Literal["Synchronous", "BoundedStaleness", "Asynchronous"] = "Synchronous"
    staleness: NonNegativeInt = 4  # BoundedStaleness: steps that a worker may be ahead of the slowest


class Guard(Contract):
    """What is done about anomalies of training."""

    nonFinite: Literal["Skip", "Rollback", "Fail"] = "Skip"  # NaN or Inf in a gradient; Skip: patience, then Rollback
    lossSpike: Literal["Rollback", "Report", "Off"] = "Rollback"
    gradientOutlier: Literal["Drop", "Report", "Off"] = "Drop"  # Drop: patience, then the worker is replaced
    corruption: Literal["Repair", "Off"] = "Repair"  # copies of the parameters that should be equal are not
    straggler: Literal["Report", "Replace", "Off"] = "Report"
    deadData: Literal["Quarantine", "Off"] = "Quarantine"  # blocks that are all the same
    patience: PositiveInt = 5  # anomalous rounds in a row before the stronger measure


class Checkpoint(Contract):
    intervalSeconds: PositiveInt = 60
    keep: PositiveInt = 2


class JobFile(Contract):
    """All that the master and the workers of a run need to know; the same for every pod of the run."""

    contractVersion: Literal[1] = CONTRACT_VERSION
    job: JobIdentity
    task: Task
    data: Data
    pretrained: Pretrained | None = None
    optimizer: Optimizer = Optimizer()
    evaluation: EvaluationSpec = EvaluationSpec()
    privacy: Differential | None = None
    syncMode: Literal["Ring", "ParameterServer"] = "Ring"
    compression: Literal["None", "BF16", "Int8"] = "None"  # of gradients and changes on the wire
    transport: Literal["MutualTLS", "Plain"] = "MutualTLS"  # of gradients and parameters; control is always mutual TLS
    parameterServer: ParameterServer | None = None  # set in that mode
    workers: PositiveInt  # how many the first membership epoch waits for
    minWorkers: PositiveInt = 1  # with fewer nobody trains
    retainRuns: NonNegativeInt = 5  # runs whose folders stay beside this one's when it is complete
    protectedRuns: list[PositiveInt] = []  # runs that a service serves: they stay whatever their age
    guard: Guard = Guard()
    checkpoint: Checkpoint = Checkpoint()
    storage: Store  # the run's own folder, .../runs/<run>
    masterHost: str  # DNS name of the master's Service; also a SAN of the master's certificate


class Desired(Contract):
    """PUT /v1/desired of the master: what the operator wants of the running job. Idempotent."""

    suspend: bool = False
    workers: PositiveInt
    minWorkers: PositiveInt = 1
    shards: NonNegativeInt = 0  # 0 in Ring mode
