"""Changes of a ModelTraining, for each of its rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mms_operator.api.names import TRAININGS, Phase
from mms_workloads.contract import METRICS, metrics_of
from tests.api.cases import SECRET, Case, created, names_of
from tests.api.crds import NOON, Object, merged

if TYPE_CHECKING:
    from collections.abc import Iterator


def started(phase: Phase) -> Object:
    return {"phase": phase.value, "startTime": NOON}


def fixed_within_run(field: str, change: Object, before: Object | None = None) -> Iterator[Case]:
    rule = f"spec.{field} is fixed once a run has started"
    raised = merged(change, {"spec": {"runPolicy": {"run": 3}}})
    for phase in (Phase.RUNNING, Phase.SUSPENDED, Phase.COMPLETE):
        yield Case(f"{field}-when-{phase}", rule, refused=True, change=change, status=started(phase), before=before)
    yield Case(f"{field}-without-status", rule, refused=False, change=change, status={}, before=before)
    yield Case(f"{field}-before-start", rule, refused=False, change=change, status={"phase": "Pending"}, before=before)
    for phase in (Phase.COMPLETE, Phase.FAILED):
        yield Case(
            f"{field}-next-run-when-{phase}", rule, refused=False, change=raised, status=started(phase), before=before
        )


def fixed_unless_suspended(field: str, change: Object, name: str = "") -> Iterator[Case]:
    name = name or field
    rule = f"spec.{field} can change only while the training is suspended"
    raised = merged(change, {"spec": {"runPolicy": {"run": 3}}})
    for phase in (Phase.RUNNING, Phase.SUSPENDING, Phase.COMPLETE):
        yield Case(f"{name}-when-{phase}", rule, refused=True, change=change, status=started(phase))
    for when, changed, status in (
        ("without-status", change, {}),
        ("before-start", change, {"phase": "Pending"}),
        ("when-Suspended", change, started(Phase.SUSPENDED)),
        ("next-run", raised, started(Phase.FAILED)),
    ):
        yield Case(f"{name}-{when}", rule, refused=False, change=changed, status=status)


def fixed_while_training(field: str, change: Object) -> Iterator[Case]:
    rule = f"spec.{field} can change only while the training is pending or suspended"
    raised = merged(change, {"spec": {"runPolicy": {"run": 3}}})
    for phase in (Phase.RUNNING, Phase.RESTARTING, Phase.SUSPENDING, Phase.COMPLETE):
        yield Case(f"{field}-when-{phase}", rule, refused=True, change=change, status=started(phase))
    for name, changed, status in (
        ("without-status", change, {}),
        ("when-Pending", change, started(Phase.PENDING)),
        ("when-Suspended", change, started(Phase.SUSPENDED)),
        ("next-run", raised, started(Phase.FAILED)),
    ):
        yield Case(f"{field}-{name}", rule, refused=False, change=changed, status=status)


def gates() -> Iterator[Case]:
    """Each task measures what it measures."""
    for kind, names in METRICS.items():

        def asking(metric: str, kind: str = kind) -> Object:
            task = {"wordEmbedding": None, kind: {}}
            return {"spec": {"task": task, "evaluation": {"gate": {"metric": metric, "atLeast": "0.5"}}}}

        yield from created(
            f"gate-of-{kind}",
            f"evaluation.gate.metric of task.{kind} must be",
            good={name: asking(name) for name in metrics_of(kind)},
            bad={"other": asking("bitsPerWord"), "cased": asking(names[0].upper())},
        )


def runs() -> Iterator[Case]:
    lowered, raised = ({"spec": {"runPolicy": {"run": run}}} for run in (1, 3))
    rule = "run can only be raised"
    yield Case("run-lowered-before-start", rule, refused=True, change=lowered, status={})
    yield Case("run-lowered-when-Complete", rule, refused=True, change=lowered, status=started(Phase.COMPLETE))
    yield Case("run-raised-before-start", rule, refused=False, change=raised, status={})
    rule = "spec.runPolicy.run can be raised only when the current run has ended"
    for phase in (Phase.RUNNING, Phase.RESTARTING, Phase.SUSPENDING, Phase.SUSPENDED):
        yield Case(f"run-raised-when-{phase}", rule, refused=True, change=raised, status=started(phase))
    for phase in (Phase.COMPLETE, Phase.FAILED):
        yield Case(f"run-raised-when-{phase}", rule, refused=False, change=raised, status=started(phase))
    suspended = {"spec": {"runPolicy": {"suspend": True, "backoffLimit": 9}, "workers": {"replicas": 5}}}
    yield Case("same-run-when-Running", rule, refused=False, change=suspended, status=started(Phase.RUNNING))


def language(task: Object | None = None, **parts: Object) -> Object:
    """Another task than that of the object that is made without a change."""
    return {"spec": {"task": {"wordEmbedding": None, "languageModel": task or {}}, **parts}}


def learning(task: str, **block: Any) -> Object:
    return {"spec": {"task": {"wordEmbedding": None, task: block}}}


def starting(**block: Any) -> Object:
    return merged(learning("textClassification"), {"spec": {"pretrained": block}})


START: Object = {"spec": {"pretrained": {"uri": "s3://models/a"}}}


def words(**block: Any) -> Object:
    return {"spec": {"task": {"wordEmbedding": block}}}


def sharded(**block: Any) -> Object:
    return {"spec": {"sync": {"mode": "ParameterServer", "parameterServer": block}}}


def synchronised() -> Iterator[Case]:
    """Of all of spec.sync, the number of shards may change while the training runs."""
    rule = "spec.sync can change only while the training is suspended"
    before = sharded(shards=2)
    for name, refused, change in (
        ("more-shards", False, sharded(shards=3)),
        ("fewer-shards", False, sharded(shards=1)),
        ("copies", True, sharded(replicas=2)),
        ("consistency", True, sharded(consistency="Asynchronous")),
        ("default-consistency", False, sharded(consistency="Synchronous", replicas=1)),
    ):
        yield Case(f"sync-{name}", rule, refused, change, status=started(Phase.RUNNING), before=before)
    first = {"spec": {"sync": {"mode": "ParameterServer"}}}
    yield Case("sync-shards-of-no-block", rule, False, sharded(shards=2), status=started(Phase.RUNNING), before=first)
    bounded = sharded(consistency="BoundedStaleness", staleness=2)
    for name, staleness in (("other-staleness", 3), ("no-staleness", None)):
        change = sharded(consistency="BoundedStaleness", staleness=staleness)
        yield Case(f"sync-{name}", rule, True, change, status=started(Phase.RUNNING), before=bounded)


def managed() -> Iterator[Case]:
    rule = "spec.managedBy is fixed"
    one, other = ({"spec": {"managedBy": name}} for name in ("kueue.x-k8s.io/multikueue", "example.com/other"))
    yield Case("managed-later", rule, True, one, status={})
    yield Case("managed-by-another", rule, True, other, status={}, before=one)
    yield Case("managed-no-more", rule, True, {"spec": {"managedBy": None}}, status={}, before=one)
    scaled = {"spec": {"workers": {"replicas": 3}}}
    yield Case("managed-as-before", rule, False, scaled, status={}, before=one)


def transforms() -> Iterator[Case]:
    """Each medium's own, and no other's."""
    for tasks, fitting, other in (
        (["imageClassification"], ["Identity", "Flip", "Crop", "Rotate", "Colour", "Noise", "Mixup"], "TimeMask"),
        (["objectDetection", "imageGeneration", "videoUnderstanding"], ["Identity", "Flip", "Noise"], "Mixup"),
        (["speechRecognition"], ["Identity", "Noise", "TimeMask", "FrequencyMask"], "Crop"),
        (
            ["textClassification", "tokenClassification", "textMatching"],
            ["Identity", "WordDropout", "WordSwap"],
            "Noise",
        ),
        (["wordEmbedding", "languageModel"], None, "Identity"),
    ):
        rule = f"data.augmentation of {', '.join(tasks)} takes"
        for task in tasks:
            of_task: Object = {"task": {"wordEmbedding": None, task: {}}}
            for refused, chosen in ((False, fitting), (True, [*(fitting or []), other])):
                data = {"augmentation": {"transforms": chosen}} if chosen else {"sharding": "Sequential"}
                yield Case(f"transforms-of-{task}-{refused}", rule, refused, {"spec": {**of_task, "data": data}})


def squares() -> Iterator[Case]:
    def sized(architecture: str, width: int) -> Object:
        image = {"architecture": architecture, "height": 64, "width": width}
        return {"spec": {"task": {"wordEmbedding": None, "imageClassification": image}}}

    yield from created(
        "square",
        "torchvision's ViT sees square images",
        good={"square": sized("torchvision/vit_b_16", 64), "other": sized("torchvision/convnext_tiny", 96)},
        bad={"wide": sized("torchvision/vit_b_16", 96)},
    )


GUARDED = {"lossSpike": "Report", "gradientOutlier": "Report", "deadData": "Off"}


def noised(task: str = "imageClassification", *, guard: Object = GUARDED, **parts: Object) -> Object:
    given = {"differential": {"epsilon": "8", "delta": "0.00001"}}
    return merged(learning(task), {"spec": {"privacy": given, "guard": guard, **parts}})


def private() -> Iterator[Case]:
    start = {"uri": "s3://models/minilm"}
    for name in ("epsilon", "delta", "maxGradientNorm"):
        good, bad = ({"differential": {"epsilon": "8", "delta": "0.1", name: value}} for value in ("0.5", "0"))
        yield from created(
            f"privacy-{name}",
            f"privacy.differential.{name} must be above 0",
            good={"some": noised(privacy=good)},
            bad={"none": noised(privacy=bad)},
        )
    yield from created(
        "privacy-task",
        "privacy is of task imageClassification, textClassification and tokenClassification",
        good={"image": noised(), "tags": noised("tokenClassification", pretrained=start)},
        bad={"pairs": noised("textMatching", pretrained=start), "boxes": noised("objectDetection")},
    )
    yield from created(
        "privacy-words",
        "privacy with a task of text needs pretrained",
        good={"pretrained": noised("textClassification", pretrained=start)},
        bad={"scratch": noised("textClassification")},
    )
    yield from created(
        "privacy-sync",
        "privacy needs sync.mode Ring and sync.compression None",
        good={"ring": noised(sync={"mode": "Ring"})},
        bad={"shards": noised(sync={"mode": "ParameterServer"}), "less": noised(sync={"compression": "BF16"})},
    )
    yield from created(
        "privacy-guard",
        "privacy needs guard {lossSpike: Report",
        good={"off": noised(guard={**GUARDED, "lossSpike": "Off"})},
        bad={
            "rollback": noised(guard={**GUARDED, "lossSpike": "Rollback"}),
            "drop": noised(guard={**GUARDED, "gradientOutlier": "Drop"}),
            "quarantine": noised(guard={**GUARDED, "deadData": "Quarantine"}),
        },
    )
    yield from created(
        "privacy-precision",
        "optimizer.precision must not be BF16 with privacy",
        good={"float32": noised(optimizer={"precision": "FP32"}), "auto": noised(optimizer={"precision": "Auto"})},
        bad={"bf16": noised(optimizer={"precision": "BF16"})},
    )
    yield from created(
        "privacy-image",
        "privacy needs the workers' own image",
        good={"own": noised(), "other": {"spec": {"workers": {"image": "other:1"}}}},
        bad={"both": noised(workers={"image": "other:1"})},
    )
    yield from created(
        "privacy-mixup",
        "data.augmentation must not have Mixup with privacy",
        good={"flip": noised(data={"augmentation": {"transforms": ["Flip"]}})},
        bad={"mixup": noised(data={"augmentation": {"transforms": ["Flip", "Mixup"]}})},
    )


FOLLOWS: Object = {"whenWorkersChange": "ScaleLearningRate"}


def pushes(consistency: str) -> Object:
    shards = {"shards": 2, "consistency": consistency}
    return {"optimizer": FOLLOWS, "sync": {"mode": "ParameterServer", "parameterServer": shards}}


STORAGE = "spec.storage.uri is fixed once a run has started"
SEALED: Object = {"spec": {"data": {"encryption": {"keySecretRef": {"name": "key"}}}}}


def custom(framework: str = "PyTorch", parts: Object | None = None, **block: Any) -> Object:
    """A training of one's own program, with other parts of the spec."""
    task = {"custom": {"image": "mine:1", "framework": framework, **block}}
    return merged(learning("custom"), {"spec": {"data": None, **(parts or {}), "task": task}})


def customs() -> Iterator[Case]:
    """What a program of one's own cannot be told."""
    for block, change in (
        ("optimizer", {"epochs": 3}),
        ("optimizer", {"learningRate": "0.1"}),
        ("evaluation", {"split": "0.1"}),
        ("evaluation", {"gate": {"metric": "accuracy", "atLeast": "0.9"}}),
        ("sync", {"mode": "ParameterServer"}),
        ("guard", {"nonFinite": "Fail"}),
        ("checkpoint", {"intervalSeconds": 5}),
        ("pretrained", {"uri": "s3://models/minilm"}),
    ):
        good = merged(learning("textClassification"), {"spec": {block: change}})
        bad = custom(parts={block: change})
        rule = f"{block} does not apply to task.custom"
        yield from created(f"custom-{block}-{next(iter(change))}", rule, good={"ours": good}, bad={"custom": bad})
    data = {"uri": "s3://corpora/a", "endpoint": "http://minio:9000", "region": "eu", **SECRET}
    yield from created(
        "custom-data",
        "of data only uri, endpoint, region and secretRef apply to task.custom",
        good={"none": custom(), "address": custom(parts={"data": data})},
        bad={
            "format": custom(parts={"data": {**data, "format": "CSV"}}),
            "fields": custom(parts={"data": {**data, "fields": {"input": "text"}}}),
            "bad-records": custom(parts={"data": {**data, "quality": {"maxBadRecords": 3}}}),
        },
    )
    yield from created(
        "no-data",
        "data must be set: only task.custom does without",
        good={"custom": custom()},
        bad={"ours": {"spec": {"data": None}}},
    )
    for name, rule, bad in (
        ("least", "workers.minReplicas and standby do not apply to task.custom", {"minReplicas": 2}),
        ("standby", "workers.minReplicas and standby do not apply to task.custom", {"standby": 1}),
        ("image", "workers.image does not apply to task.custom", {"image": "other:1"}),
    ):
        yield from created(
            f"custom-{name}",
            rule,
            good={"ours": {"spec": {"workers": bad}}, "custom": custom(parts={"workers": {"maxReplicas": 8}})},
            bad={"custom": custom(parts={"workers": bad})},
        )
    yield from created(
        "custom-runs",
        "runPolicy.retainRuns does not apply to task.custom",
        good={"ours": {"spec": {"runPolicy": {"retainRuns": 1}}}, "custom": custom()},
        bad={"custom": custom(parts={"runPolicy": {"retainRuns": 1}})},
    )
    yield from created(
        "chief",
        "task.custom.servers of TensorFlow need workers.replicas of at least 2",
        good={
            "two": custom("TensorFlow", servers=1),
            "mxnet": custom("MXNet", {"workers": {"replicas": 1}}, servers=1),
        },
        bad={"alone": custom("Keras", {"workers": {"replicas": 1}}, servers=1)},
    )
    yield from created(
        "servers",
        "servers are of framework TensorFlow, Keras and MXNet only",
        good={"mxnet": custom("MXNet", servers=2), "keras": custom("Keras", servers=2)},
        bad={"pytorch": custom(servers=1), "other": custom("Other", servers=1)},
    )
    yield from created(
        "evaluator",
        "evaluator is of framework TensorFlow and Keras only",
        good={"tensorflow": custom("TensorFlow", evaluator=True), "none": custom("MXNet", evaluator=False)},
        bad={"mxnet": custom("MXNet", evaluator=True)},
    )
    rule = "spec.task is fixed once a run has started"
    other = {"spec": {"task": {"custom": {"image": "mine:2"}}}}
    for phase in (Phase.PENDING, Phase.SUSPENDED):
        yield Case(f"image-when-{phase}", rule, False, other, status=started(phase), before=custom())
    for phase in (Phase.RUNNING, Phase.RESTARTING, Phase.COMPLETE):
        yield Case(f"image-when-{phase}", rule, True, other, status=started(phase), before=custom())
    ours = {"spec": {"task": {"custom": None, "wordEmbedding": {}}}}
    read = custom(parts={"data": {"uri": "s3://corpora/a"}})
    yield Case("task-when-Pending", rule, True, ours, status=started(Phase.PENDING), before=read)
    rule = "spec.data is fixed once a run has started"
    moved = {"spec": {"data": {"uri": "s3://corpora/b"}}}
    yield Case("data-of-none", rule, True, moved, status=started(Phase.RUNNING), before=custom())


CASES = [
    *names_of(TRAININGS),
    *customs(),
    *created(
        "task",
        "exactly one task must be set",
        good={"embedding": {"spec": {"task": {"wordEmbedding": {"model": "SkipGram"}}}}, "language": language()},
        bad={
            "none": {"spec": {"task": {"wordEmbedding": None}}},
            "both": {"spec": {"task": {"languageModel": {}}}},
        },
    ),
    *created(
        "heads",
        "languageModel.dimensions must be divisible by heads",
        good={"three": language(task={"dimensions": 96, "heads": 3})},
        bad={"default-heads": language(task={"dimensions": 126}), "three": language(task={"heads": 3})},
    ),
    *(
        case
        for name in ("textClassification", "tokenClassification", "textMatching", "speechRecognition")
        for case in created(
            f"heads-{name}",
            f"{name}.dimensions must be divisible by heads",
            good={"three": learning(name, dimensions=96, heads=3)},
            bad={"three": learning(name, dimensions=64, heads=3)},
        )
    ),
    *created(
        "pair",
        "data.fields.pair is of task.textMatching",
        good={"matching": merged(learning("textMatching"), {"spec": {"data": {"fields": {"pair": "reply"}}}})},
        bad={"other": merged(learning("textClassification"), {"spec": {"data": {"fields": {"pair": "reply"}}}})},
    ),
    *created(
        "search",
        "task.textMatching.search must be 0 with data.encryption",
        good={"none": merged(learning("textMatching"), SEALED), "open": learning("textMatching", search=9)},
        bad={"some": merged(learning("textMatching", search=9), SEALED)},
    ),
    *private(),
    *created(
        "pretrained",
        "exactly one of uri and trainingRef must be set in pretrained",
        good={"uri": starting(uri="s3://models/minilm"), "training": starting(trainingRef={"name": "words"})},
        bad={"none": starting(), "both": starting(uri="s3://models/minilm", trainingRef={"name": "words"})},
    ),
    *created(
        "pretrained-digest",
        "digest belongs to pretrained.uri",
        good={"uri": starting(uri="s3://models/a", digest="sha256:" + "0" * 64)},
        bad={"training": starting(trainingRef={"name": "words"}, digest="sha256:" + "0" * 64)},
    ),
    *created(
        "pretrained-store",
        "endpoint, region and secretRef belong to pretrained.uri",
        good={"uri": starting(uri="s3://models/a", region="eu")},
        bad={"training": starting(trainingRef={"name": "words"}, region="eu")},
    ),
    *created(
        "pretrained-lora",
        "lora is of method LoRA only",
        good={"lora": starting(uri="s3://models/a", method="LoRA", lora={"rank": 4})},
        bad={"head": starting(uri="s3://models/a", method="Head", lora={"rank": 4})},
    ),
    *created(
        "pretrained-task",
        "pretrained does not apply to task.wordEmbedding",
        good={"texts": starting(uri="s3://models/a")},
        bad={"words": START},
    ),
    *created(
        "pretrained-language",
        "pretrained with task.languageModel needs its architecture Pretrained",
        good={
            "full": language({"architecture": "Pretrained"}, pretrained={"uri": "s3://models/a"}),
            "lora": language({"architecture": "Pretrained"}, pretrained={"uri": "s3://models/a", "method": "LoRA"}),
        },
        bad={
            "small": language(pretrained={"uri": "s3://models/a"}),
            "head": language({"architecture": "Pretrained"}, pretrained={"uri": "s3://models/a", "method": "Head"}),
        },
    ),
    *created(
        "pretrained-architecture",
        "a task's architecture Pretrained needs pretrained",
        good={
            "uri": merged(learning("speechRecognition", architecture="Pretrained"), START),
            "small": learning("textMatching", architecture="Small"),
        },
        bad={
            name: learning(name, architecture="Pretrained")
            for name in (
                "languageModel",
                "textClassification",
                "tokenClassification",
                "textMatching",
                "speechRecognition",
            )
        },
    ),
    *fixed_within_run(
        "pretrained", {"spec": {"pretrained": {"uri": "s3://models/b"}}}, before=starting(uri="s3://models/a")
    ),
    *created(
        "negatives",
        "negatives is of objective NegativeSampling only",
        good={
            "sampling": {"spec": {"task": {"wordEmbedding": {"negatives": 7}}}},
            "tree": {"spec": {"task": {"wordEmbedding": {"objective": "HierarchicalSoftmax", "model": "CBOW"}}}},
        },
        bad={"tree": {"spec": {"task": {"wordEmbedding": {"objective": "HierarchicalSoftmax", "negatives": 5}}}}},
    ),
    *created(
        "softmax",
        "objective Softmax compares each pair with all words",
        good={"few words": words(objective="Softmax", maxVocabulary=50_000)},
        bad={"by default": words(objective="Softmax"), "many": words(objective="Softmax", maxVocabulary=50_001)},
    ),
    *created(
        "softmax-subwords",
        "subwords are not of objective Softmax",
        good={"tree": words(objective="HierarchicalSoftmax", subwords={})},
        bad={"softmax": words(objective="Softmax", maxVocabulary=100, subwords={})},
    ),
    *created(
        "subword-lengths",
        "subwords.minLength must not be above maxLength",
        good={"equal": words(subwords={"minLength": 4, "maxLength": 4})},
        bad={"by default": words(subwords={"minLength": 7}), "two": words(subwords={"minLength": 3, "maxLength": 2})},
    ),
    *created(
        "learning-rate",
        "learningRate must be above 0",
        good={"tiny": {"spec": {"optimizer": {"learningRate": "0.000000000001"}}}},
        bad={zero: {"spec": {"optimizer": {"learningRate": zero}}} for zero in ("0", "000000000.000")},
    ),
    *created(
        "momentum",
        "momentum is of SGD only",
        good={"sgd": language(optimizer={"name": "SGD", "momentum": "0.9"})},
        bad={
            "by-default": language(optimizer={"momentum": "0.9"}),
            "adagrad": language(optimizer={"name": "Adagrad", "momentum": "0"}),
        },
    ),
    *created(
        "optimizer-of-embedding",
        "optimizer.name must be SGD with task.wordEmbedding",
        good={"sgd": {"spec": {"optimizer": {"name": "SGD"}}}, "language": language(optimizer={"name": "AdamW"})},
        bad={name: {"spec": {"optimizer": {"name": name}}} for name in ("Adagrad", "AdamW")},
    ),
    *created(
        "language-only",
        "optimizer.momentum, weightDecay, globalBatchSize, whenWorkersChange and precision do not apply",
        good={
            "embedding": {"spec": {"optimizer": {"learningRate": "0.05", "seed": 3, "epochs": 1}}},
            "language": language(optimizer={"weightDecay": "0.1", "whenWorkersChange": "ScaleLearningRate"}),
        },
        bad={
            name: {"spec": {"optimizer": {"name": "SGD", name: value}}}
            for name, value in (
                ("momentum", "0.9"),
                ("weightDecay", "0"),
                ("globalBatchSize", 64),
                ("whenWorkersChange", "KeepGlobalBatch"),
                ("precision", "BF16"),
            )
        },
    ),
    *created(
        "without-synchrony",
        "optimizer.whenWorkersChange must be absent without sync.parameterServer.consistency Synchronous",
        good={
            "synchronous": language(**pushes("Synchronous")),
            "default": language(optimizer=FOLLOWS, sync={"mode": "ParameterServer", "parameterServer": {"shards": 2}}),
            "absent": language(sync={**pushes("Asynchronous")["sync"]}),
        },
        bad={name: language(**pushes(name)) for name in ("BoundedStaleness", "Asynchronous")},
    ),
    *created(
        "compression",
        "sync.compression must be None or BF16 with task.wordEmbedding",
        good={
            **{kind: {"spec": {"sync": {"compression": kind}}} for kind in ("None", "BF16")},
            "language": language(sync={"compression": "Int8"}),
        },
        bad={"Int8": {"spec": {"sync": {"compression": "Int8"}}}},
    ),
    *created(
        "batch",
        "workers.replicas must be at most optimizer.globalBatchSize",
        good={
            "as-many": language(optimizer={"globalBatchSize": 3}, workers={"replicas": 3}),
            "default": language(workers={"replicas": 64}),
            "embedding": merged(sharded(), {"spec": {"workers": {"replicas": 65}}}),
        },
        bad={
            "more": language(optimizer={"globalBatchSize": 3}, workers={"replicas": 4}),
            "default": language(workers={"replicas": 65}, sync={"mode": "ParameterServer"}),
        },
    ),
    *created(
        "ring",
        "workers.replicas and maxReplicas must be at most 64 with sync.mode Ring",
        good={
            "as-many": {"spec": {"workers": {"replicas": 64, "maxReplicas": 64}}},
            "served": merged(sharded(), {"spec": {"workers": {"replicas": 65, "maxReplicas": 256}}}),
        },
        bad={
            "more": {"spec": {"workers": {"replicas": 65}}},
            "may-be-more": {"spec": {"workers": {"replicas": 2, "maxReplicas": 65}}},
        },
    ),
    *created(
        "format",
        "data.format must be Auto or Text, without data.fields",
        good={"text": {"spec": {"data": {"format": "Text"}}}},
        bad={
            "table": {"spec": {"data": {"format": "CSV"}}},
            "input": {"spec": {"data": {"fields": {"input": "text"}}}},
            "label": language(data={"fields": {"label": "stars"}}),
        },
    ),
    *created(
        "sizes-of-encrypted-blocks",
        "data.blockSizes must be Equal with data.encryption",
        good={"equal": {"spec": {"data": {"encryption": {"keySecretRef": {"name": "key"}}}}}},
        bad={
            "varied": {"spec": {"data": {"encryption": {"keySecretRef": {"name": "key"}}, "blockSizes": "Varied"}}},
        },
    ),
    *transforms(),
    *squares(),
    *gates(),
    *created(
        "gate",
        "exactly one of atLeast and atMost",
        good={
            "least": {"spec": {"evaluation": {"gate": {"metric": "contextAUC", "atLeast": "0.6"}}}},
            "most": {"spec": {"evaluation": {"gate": {"metric": "contextAUC", "atMost": "-1.5"}}}},
        },
        bad={
            "none": {"spec": {"evaluation": {"gate": {"metric": "contextAUC"}}}},
            "both": {"spec": {"evaluation": {"gate": {"metric": "contextAUC", "atLeast": "0", "atMost": "1"}}}},
        },
    ),
    *created(
        "block-of-the-mode",
        "sync.parameterServer is of mode ParameterServer only",
        good={"without-block": {"spec": {"sync": {"mode": "ParameterServer"}}}, "with-block": sharded()},
        bad={"ring": {"spec": {"sync": {"parameterServer": {}}}}},
    ),
    *created(
        "copies",
        "replicas 2 needs shards of at least 2",
        good={"two-of-two": sharded(shards=2, replicas=2), "one": sharded()},
        bad={"one-shard": sharded(shards=1, replicas=2), "default-shards": sharded(replicas=2)},
    ),
    *created(
        "staleness",
        "staleness is of consistency BoundedStaleness only",
        good={
            "bounded": sharded(consistency="BoundedStaleness", staleness=0),
            "default": sharded(consistency="BoundedStaleness"),
        },
        bad={"synchronous": sharded(staleness=4), "asynchronous": sharded(consistency="Asynchronous", staleness=4)},
    ),
    *created(
        "range-of-workers",
        "workers.replicas must be from minReplicas to maxReplicas",
        good={
            "within": {"spec": {"workers": {"replicas": 3, "minReplicas": 2, "maxReplicas": 4}}},
            "exact": {"spec": {"workers": {"replicas": 3, "minReplicas": 3, "maxReplicas": 3}}},
        },
        bad={
            "below": {"spec": {"workers": {"replicas": 1, "minReplicas": 2}}},
            "above": {"spec": {"workers": {"replicas": 5, "maxReplicas": 4}}},
        },
    ),
    *fixed_within_run("task", {"spec": {"task": {"wordEmbedding": {"window": 7}}}}),
    *fixed_within_run("data", {"spec": {"data": {"sharding": "Sequential"}}}),
    *fixed_within_run("optimizer", {"spec": {"optimizer": {"epochs": 9}}}),
    *fixed_within_run("evaluation", {"spec": {"evaluation": {"split": "0.1"}}}),
    *fixed_within_run(
        "privacy", {"spec": {"privacy": {"differential": {"epsilon": "9", "delta": "0.00001"}}}}, before=noised()
    ),
    *fixed_within_run("storage.uri", {"spec": {"storage": {"uri": "s3://other/words"}}}),
    Case("storage-removed", STORAGE, refused=True, change={"spec": {"storage": None}}, status=started(Phase.RUNNING)),
    Case(
        "storage-other-address",
        STORAGE,
        refused=False,
        change={"spec": {"storage": {"endpoint": "http://minio:9000"}}},
        status=started(Phase.RUNNING),
    ),
    *fixed_unless_suspended("sync", {"spec": {"sync": {"transport": "Plain"}}}),
    *fixed_unless_suspended("sync", sharded(), name="sync.mode"),
    *synchronised(),
    *managed(),
    *fixed_unless_suspended("checkpoint", {"spec": {"checkpoint": {"keep": 9}}}),
    *fixed_unless_suspended("guard", {"spec": {"guard": {"patience": 9}}}),
    *fixed_while_training("workers.resources", {"spec": {"workers": {"resources": {"limits": {"memory": "1Gi"}}}}}),
    *fixed_while_training("workers.image", {"spec": {"workers": {"image": "registry/other:1"}}}),
    *runs(),
]
