"""The two kinds, as a real API server sees them. Their rules are in test_rules.py."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from mms_cluster import gobuild
from mms_cluster.report import Reporter
from mms_operator.api.names import GROUP, SERVICES, TRAININGS, VERSION, Phase
from mms_operator.api.service import ModelService
from mms_operator.api.training import ModelTraining
from tests.api.crds import ARTIFACT, BASE, CRDS, DIGEST, NOON, STRICT, Kind, Object, eventually, good, merged

if TYPE_CHECKING:
    from pathlib import Path

    from mms_cluster.apionly import ApiOnly

pytestmark = pytest.mark.api


@pytest.fixture
def kubectl(apiserver: ApiOnly, namespace: str, tmp_path: Path) -> Any:
    command = [str(gobuild.build(gobuild.KUBE, Reporter())), "kubectl", f"--kubeconfig={apiserver.kubeconfig}"]

    def run(*arguments: str) -> str:
        where = ["-n", namespace, "--cache-dir", str(tmp_path)]
        return subprocess.run([*command, *where, *arguments], capture_output=True, text=True, check=False).stdout

    return run


# ---- the CRDs


def test_the_schemas_are_structural(crds: dict[str, Object]) -> None:
    for name, crd in crds.items():
        conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
        assert conditions["Established"] == "True", name
        assert conditions.get("NonStructuralSchema", "False") == "False", crd["status"]["conditions"]


@pytest.mark.parametrize("plural", CRDS)
def test_the_api_server_drops_nothing(crds: dict[str, Object], plural: str) -> None:
    """What it does not know in a CRD, it leaves out without a word."""
    sent = CRDS[plural]["spec"]["versions"]
    assert crds[f"{plural}.{GROUP}"]["spec"]["versions"] == sent


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("mt", "Trains a model on many workers"),
        ("modeltraining.spec.task.wordEmbedding.dimensions", "Length of a word's vector."),
        ("mt.spec.workers.podTemplate", "Overlay on the pods"),
        ("mt.status.conditions.reason", "Why, as one CamelCase word."),
        ("ms", "Serves a model on Triton"),
        ("modelservices.spec.model.artifact.digest", "sha256 of its manifest.json"),
    ],
)
def test_kubectl_explains(crds: object, kubectl: Any, field: str, said: str) -> None:
    assert eventually(lambda: said in " ".join(kubectl("explain", field).split()))


# ---- bounds, patterns, types

LANGUAGE: Object = {"task": {"wordEmbedding": None, "languageModel": {}}}


@pytest.mark.parametrize(
    ("plural", "change", "field"),
    [
        pytest.param(TRAININGS, {"data": {"uri": "ftp://corpora/words"}}, "data.uri", id="scheme"),
        pytest.param(TRAININGS, {"data": {"uri": "s3://a b"}}, "data.uri", id="blank-in-uri"),
        pytest.param(TRAININGS, {"data": {"uri": "s3://" + "a" * 1024}}, "data.uri", id="long-uri"),
        pytest.param(TRAININGS, {"data": {"endpoint": "minio:9000"}}, "data.endpoint", id="endpoint"),
        pytest.param(TRAININGS, {"data": {"secretRef": {"name": "Keys"}}}, "data.secretRef.name", id="secret-name"),
        pytest.param(TRAININGS, {"data": {"secretRef": {}}}, "data.secretRef.name", id="no-secret-name"),
        pytest.param(TRAININGS, {"task": None}, "task", id="no-task"),
        pytest.param(
            TRAININGS, {"task": {"wordEmbedding": {"dimensions": 1}}}, "task.wordEmbedding.dimensions", id="too-few"
        ),
        pytest.param(
            TRAININGS, {"task": {"wordEmbedding": {"dimensions": 4097}}}, "task.wordEmbedding.dimensions", id="too-many"
        ),
        pytest.param(
            TRAININGS, {"task": {"wordEmbedding": {"tokenizer": "None"}}}, "task.wordEmbedding.tokenizer", id="enum"
        ),
        pytest.param(TRAININGS, {"optimizer": {"learningRate": 0.1}}, "optimizer.learningRate", id="number"),
        pytest.param(TRAININGS, {"optimizer": {"learningRate": "1e-3"}}, "optimizer.learningRate", id="exponent"),
        pytest.param(TRAININGS, {"optimizer": {"epochs": "5"}}, "optimizer.epochs", id="text-for-integer"),
        pytest.param(TRAININGS, {"sync": {"mode": "Later"}}, "sync.mode", id="no-such-mode"),
        pytest.param(TRAININGS, {"sync": {"compression": "FP8"}}, "sync.compression", id="no-such-compression"),
        pytest.param(TRAININGS, {"sync": {"transport": "TLS"}}, "sync.transport", id="no-such-transport"),
        pytest.param(
            TRAININGS, {"sync": {"mode": "ParameterServer", "parameterServer": {"shards": 0}}},
            "sync.parameterServer.shards", id="no-shards",
        ),
        pytest.param(
            TRAININGS, {"sync": {"mode": "ParameterServer", "parameterServer": {"shards": 3, "replicas": 3}}},
            "sync.parameterServer.replicas", id="too-many-copies",
        ),
        pytest.param(TRAININGS, {"evaluation": {"split": "1.0"}}, "evaluation.split", id="all-is-held-out"),
        pytest.param(
            TRAININGS, {**LANGUAGE, "optimizer": {"name": "SGD", "momentum": "1"}}, "optimizer.momentum", id="momentum"
        ),
        pytest.param(
            TRAININGS, {"task": {"wordEmbedding": None, "languageModel": {"layers": 0}}}, "task.languageModel.layers",
            id="no-layers",
        ),
        pytest.param(
            TRAININGS, {"task": {"wordEmbedding": None, "custom": {"framework": "PyTorch"}}}, "task.custom.image",
            id="no-image",
        ),
        pytest.param(
            TRAININGS, {"task": {"wordEmbedding": None, "custom": {"image": "a", "framework": "JAX"}}},
            "task.custom.framework", id="no-such-framework",
        ),
        pytest.param(
            TRAININGS, {"task": {"wordEmbedding": None, "custom": {"image": "a", "framework": "Other", "port": 80}}},
            "task.custom.port", id="port-of-root",
        ),
        pytest.param(TRAININGS, {"data": {"format": "Excel"}}, "data.format", id="no-such-format"),
        pytest.param(TRAININGS, {"data": {"blockSize": "1M"}}, "data.blockSize", id="block-size"),
        pytest.param(TRAININGS, {"data": {"quality": {"maxBadRecords": -1}}}, "data.quality.maxBadRecords", id="bad"),
        pytest.param(TRAININGS, {"optimizer": {"name": "Adam"}}, "optimizer.name", id="no-such-optimizer"),
        pytest.param(TRAININGS, {"managedBy": "kueue"}, "managedBy", id="controller-without-domain"),
        pytest.param(
            TRAININGS, {"runPolicy": {"priorityClassName": "High Priority"}}, "runPolicy.priorityClassName",
            id="priority-class",
        ),
        pytest.param(TRAININGS, {"storage": {"uri": "https://models/words"}}, "storage.uri", id="not-writable"),
        pytest.param(TRAININGS, {"workers": {"image": "x" * 513}}, "workers.image", id="long-image"),
        pytest.param(
            TRAININGS, {"workers": {"resources": {"limits": {"cpu": "1.5x"}}}}, "workers.resources.limits.cpu",
            id="quantity",
        ),
        pytest.param(
            TRAININGS, {"workers": {"resources": {"limits": {"cpu": -1}}}}, "workers.resources.limits.cpu",
            id="negative-quantity",
        ),
        pytest.param(
            TRAININGS, {"workers": {"resources": {"limits": {f"r{n}": 1 for n in range(17)}}}},
            "workers.resources.limits", id="entries",
        ),
        pytest.param(SERVICES, {"replicas": -1}, "replicas", id="negative-replicas"),
        pytest.param(SERVICES, {"model": None}, "model", id="no-model"),
        pytest.param(
            SERVICES, {"model": {"trainingRef": None, "artifact": {**ARTIFACT, "digest": "sha256:0"}}},
            "model.artifact.digest", id="digest",
        ),
        pytest.param(
            SERVICES, {"model": {"trainingRef": None, "artifact": {"uri": ARTIFACT["uri"]}}}, "model.artifact.digest",
            id="no-digest",
        ),
    ],
)  # fmt: skip
def test_out_of_bounds(kinds: dict[str, Kind], plural: str, change: Object, field: str) -> None:
    status, answer = kinds[plural].create({"spec": change})
    assert status == 422, answer
    # Rules are asked once all else is right: that they were not is a second cause, without a field.
    fields = {cause["field"].lstrip(".") for cause in answer["details"]["causes"]} - {"<nil>"}
    assert fields == {f"spec.{field}"}, answer


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"task": {"wordEmbedding": {"dimensions": 2, "subsample": "0"}}}, id="at-the-bounds"),
        pytest.param({"workers": {"resources": {"requests": {"cpu": 1, "memory": "1.5Gi"}}}}, id="quantities"),
        pytest.param({"storage": {"uri": "file:///mnt/models"}}, id="mounted"),
        pytest.param({"evaluation": {"split": "0", "gate": {"metric": "contextAUC", "atLeast": "-0.5"}}}, id="gate"),
        pytest.param(
            {"managedBy": "example.com/a", "runPolicy": {"priorityClassName": "high", "retainRuns": 0}}, id="policy"
        ),
    ],
)
def test_within_bounds(trainings: Kind, change: Object) -> None:
    made = good(trainings.create({"spec": change}))["spec"]
    assert merged(made, change) == made


def test_unknown_fields(trainings: Kind) -> None:
    change = {"spec": {"worker": {"replicas": 3}}}
    status, answer = trainings.create(change)
    assert status == 400
    assert 'unknown field "spec.worker"' in answer["message"]
    assert "worker" not in good(trainings.create(change, query=""))["spec"]


def test_null_is_absent(trainings: Kind) -> None:
    """YAML says null where nothing follows a key."""
    body = {**BASE[TRAININGS], "apiVersion": f"{GROUP}/{VERSION}"}
    body = {**body, "spec": {**body["spec"], "storage": None, "optimizer": None, "workers": {"image": None}}}
    spec = good(trainings.request("POST", STRICT, body, "application/json"))["spec"]
    assert spec["optimizer"] == {"epochs": 5, "seed": 1}
    assert "storage" not in spec
    assert "image" not in spec["workers"]


def test_anything_is_kept_in_a_pod_template(trainings: Kind) -> None:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "later": {"x": [1]}}]}}
    made = good(trainings.create({"spec": {"workers": {"podTemplate": template}}}))
    assert made["spec"]["workers"]["podTemplate"] == template


# ---- defaults


@pytest.mark.parametrize(("plural", "model"), [(TRAININGS, ModelTraining), (SERVICES, ModelService)])
def test_defaults_are_the_models(kinds: dict[str, Kind], plural: str, model: Any) -> None:
    made = good(kinds[plural].create())
    assert "status" not in made
    assert made["spec"] == without_empty(model.model_validate(BASE[plural]).spec.model_dump(exclude_none=True))


def without_empty(spec: Object) -> Object:
    """Without the maps and lists that are empty by default: an API server leaves those out."""
    optional = {"requests", "limits", "schedules"}
    return {
        key: without_empty(value) if isinstance(value, dict) else value
        for key, value in spec.items()
        if key not in optional or value
    }


# ---- status


TRAINING_STATUS: Object = {
    "observedGeneration": 1,
    "phase": "Running",
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "reason": "Training",
            "message": "",
            "lastTransitionTime": NOON,
            "observedGeneration": 1,
        }
    ],
    "run": 2,
    "attempt": 1,
    "startTime": NOON,
    "completionTime": NOON,
    "restarts": 1,
    "attempts": [
        {"number": 1, "reason": "Suspended", "startTime": NOON, "endTime": NOON, "steps": 900, "lostSteps": 89}
    ],
    "replicas": 3,
    "selector": "mms.dev/training=words,mms.dev/role=worker",
    "workers": {"ready": 3, "standby": 1, "epoch": 7},
    "shards": {"ready": 2},
    "progress": {
        "activity": "Training",
        "percent": 41,
        "step": 12000,
        "loss": "0.231",
        "samplesPerSecond": 5_200_000,
        "etaSeconds": 33,
        "bytes": 33_000,
        "records": 736,
        "updateTime": NOON,
    },
    "checkpoint": {"uri": "s3://models/words/runs/2/checkpoints/1", "step": 11800, "digest": DIGEST, "time": NOON},
    "artifact": {
        "uri": "s3://models/words/runs/2",
        "digest": DIGEST,
        "version": 2,
        "installationStore": False,
        "endpoint": "https://s3.example.com",
        "region": "eu-central-1",
        "secretRef": {"name": "own"},
        "metrics": {"accuracy": "0.97"},
    },
    "pretrained": {
        "uri": "s3://models/before/runs/1",
        "digest": DIGEST,
        "version": 1,
        "installationStore": False,
        "endpoint": "https://s3.example.com",
        "region": "eu-central-1",
        "secretRef": {"name": "own"},
        "metrics": {"accuracy": "0.91"},
    },
    "privacy": {"epsilonSpent": "3.1415", "delta": "0.00001", "noiseMultiplier": "2.0166"},
    "precision": "BF16",
    "data": {
        "format": "CSV",
        "files": 2,
        "bytes": 81_000,
        "records": 1797,
        "classes": 10,
        "badRecords": 1,
        "storeBytes": 81_000,
        "peerBytes": 40_000,
        "volumeBytes": 20_000,
        "keysGiven": 7,
        "badKinds": [{"reason": "it has … cells, and the header … columns", "count": 1}],
        "bad": [{"uri": "s3://digits/a.csv", "offset": 1024, "reason": "it has 3 cells, and the header 4 columns"}],
    },
    "incidents": [{"time": NOON, "kind": "WorkerLost", "rank": 1, "step": 811, "action": "Replaced"}],
    "incidentCounts": {"WorkerLost": 51},
    "incarnations": [{"pod": "worker-0", "number": 2, "started": True}],
}
SERVED: Object = {
    "version": 2,
    "digest": DIGEST,
    "uri": "s3://models/words/runs/2",
    "training": "words",
    "installationStore": True,
    "endpoint": "http://minio:9000",
    "region": "eu-1",
    "secretRef": {"name": "keys"},
    "pretrained": {"format": "ONNX", "trusted": True, "pipeline": {"task": "textEmbedding"}, "files": DIGEST},
    "precision": {"chosen": "INT8", "speedUp": "2.31", "loss": "0.0050", "questions": 200, "message": "why"},
    "base": DIGEST,
    "replicas": 2,
}
SERVICE_STATUS: Object = {
    "observedGeneration": 1,
    "conditions": TRAINING_STATUS["conditions"],
    "url": "http://words.default.svc:8000",
    "grpcUrl": "words.default.svc:8001",
    "replicas": 3,
    "readyReplicas": 2,
    "selector": "mms.dev/service=words",
    "versions": {"stable": SERVED, "next": {**SERVED, "version": 3}, "previous": {**SERVED, "version": 1}},
    "autoscaling": {
        "replicas": 3,
        "reason": "1.5 times the work",
        "requestsPerSecond": "12",
        "latencyP99Milliseconds": "4.5",
        "capacity": [
            {
                "template": "0123456789ab",
                "curve": [{"concurrency": 1, "requestsPerSecond": "20.0", "latencyP99Milliseconds": "3.00"}],
                "requestsPerSecond": "20.0",
                "correction": "1.0000",
                "preferredBatchSize": 16,
                "maxQueueDelayMicroseconds": 200,
                "instances": 2,
                "measuredTime": NOON,
            }
        ],
        "coldStartSeconds": "6.0",
        "coldStarts": ["6.0"],
        "activatorPort": 20000,
        "history": [{"time": NOON, "replicas": 3, "reason": "1.5 times the work"}],
    },
    "live": {
        "phase": "Stale",
        "message": "1 of 2 pods answer with parameters older than 1000 ms",
        "run": 2,
        "step": 811,
        "pods": 1,
        "ageMilliseconds": 1200,
        "ageP50Milliseconds": 400,
        "ageP99Milliseconds": 1100,
        "ageMaxMilliseconds": 1300,
        "quality": "0.812",
        "paused": True,
    },
    "rollout": {
        "strategy": "Canary",
        "phase": "Waiting",
        "step": 1,
        "steps": 2,
        "percent": 10,
        "startTime": NOON,
        "reachedTime": NOON,
        "progressTime": NOON,
        "rollback": False,
        "paused": True,
        "newPods": "the artifact wants other tensors of classify than those that run",
        "analysis": {
            "verdict": "Continue",
            "message": "errors: no requests yet",
            "findings": [
                {
                    "metric": "errors",
                    "verdict": "Continue",
                    "canary": "0.01",
                    "stable": "0.02",
                    "estimate": "-0.01",
                    "bound": "0.01",
                    "message": "no evidence either way yet",
                }
            ],
            "forecast": "errors: about 400 requests to the canary",
            "startTime": NOON,
            "sampledTime": "2026-01-01T12:00:00.5+00:00",
            "compared": True,
            "liveInputs": {"compared": 40, "differing": 1, "message": "2 were too large to be taken"},
            "memory": "{}",
        },
    },
    "history": [{**SERVED, "time": NOON, "outcome": "Aborted", "message": "a pod could not take it"}],
    "keptUntil": NOON,
    "command": "promote @1",
}
STATUS = {TRAININGS: TRAINING_STATUS, SERVICES: SERVICE_STATUS}


@pytest.mark.parametrize("plural", STATUS)
def test_all_of_a_status_is_kept(kinds: dict[str, Kind], plural: str) -> None:
    schema = CRDS[plural]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert not unsaid(schema["properties"]["status"], STATUS[plural])
    assert kinds[plural].with_status(STATUS[plural])["status"] == STATUS[plural]


def unsaid(schema: Object, value: Any, path: str = "status") -> list[str]:
    """Fields of the schema that `value` does not have."""
    missing = []
    for name, field in schema.get("properties", {}).items():
        inner = f"{path}.{name}"
        missing += unsaid(field, value[name], inner) if name in value else [inner]
    if "items" in schema:
        missing += unsaid(schema["items"], value[0], f"{path}[]")
    return missing


@pytest.mark.parametrize("phase", Phase)
def test_phases(trainings: Kind, phase: Phase) -> None:
    assert trainings.with_status({"phase": phase.value})["status"]["phase"] == phase


@pytest.mark.parametrize("value", ["True", "False", "Unknown"])
def test_values_of_conditions(services: Kind, value: str) -> None:
    status = {"conditions": [{"type": "Ready", "status": value, "reason": "Available", "lastTransitionTime": NOON}]}
    assert services.with_status(status)["status"] == status


CONDITION = TRAINING_STATUS["conditions"][0]


@pytest.mark.parametrize(
    ("status", "field"),
    [
        pytest.param({"phase": "Paused"}, "status.phase", id="phase"),
        pytest.param({"conditions": [{**CONDITION, "status": "yes"}]}, "status.conditions[0].status", id="condition"),
        pytest.param({"conditions": [CONDITION, CONDITION]}, "status.conditions[1]", id="condition-twice"),
        pytest.param({"startTime": "noon"}, "status.startTime", id="time"),
        pytest.param({"progress": {"percent": 101}}, "status.progress.percent", id="percent"),
    ],
)
def test_no_such_status(trainings: Kind, status: Object, field: str) -> None:
    good(trainings.create())
    answer = trainings.change({"status": status}, "/status")
    assert answer[0] == 422, answer
    assert field in {cause["field"] for cause in answer[1]["details"]["causes"]}


def test_status_and_spec_are_written_apart(trainings: Kind) -> None:
    trainings.with_status({"phase": "Running"})
    good(trainings.change({"status": {"phase": "Failed"}}))
    good(trainings.change({"spec": {"workers": {"replicas": 9}}}, "/status"))
    read = trainings.read()
    assert read["status"] == {"phase": "Running"}
    assert read["spec"]["workers"]["replicas"] == 2


# ---- scale, columns


@pytest.mark.parametrize(
    ("plural", "replicas", "least"), [(TRAININGS, ("workers", "replicas"), 1), (SERVICES, ("replicas",), 0)]
)
def test_scale(kinds: dict[str, Kind], plural: str, replicas: tuple[str, ...], least: int) -> None:
    kind = kinds[plural]
    kind.with_status(STATUS[plural])
    scale = good(kind.request("GET", "/words/scale"))
    assert scale["status"] == {"replicas": 3, "selector": STATUS[plural]["selector"]}

    scale["spec"]["replicas"] = 7
    good(kind.request("PUT", "/words/scale", scale, "application/json"))
    wanted = kind.read()["spec"]
    for key in replicas:
        wanted = wanted[key]
    assert wanted == 7

    scale = good(kind.request("GET", "/words/scale"))
    scale["spec"]["replicas"] = least - 1
    assert kind.request("PUT", "/words/scale", scale, "application/json")[0] == 422


@pytest.mark.parametrize(
    ("plural", "narrow", "wide"),
    [
        pytest.param(
            TRAININGS,
            {"PHASE": "Running", "PROGRESS": "41", "WORKERS": "3", "LOSS": "0.231", "ETA": "33", "AGE": ...},
            {"RUN": "2", "REASON": "Training"},
            id="training",
        ),
        pytest.param(
            SERVICES,
            {
                "READY": "True",
                "VERSION": "2",
                "NEXT": "3",
                "ROLLOUT": "Waiting",
                "STEP": "1",
                "PERCENT": "10",
                "REPLICAS": "2",
                "P99": "4.5",
                "URL": "http://words.default.svc:8000",
                "AGE": ...,
            },
            {"REASON": "Training", "LIVE": "Stale", "STALENESS": "1100"},
            id="service",
        ),
    ],
)
def test_columns(kinds: dict[str, Kind], kubectl: Any, plural: str, narrow: Object, wide: Object) -> None:
    """kubectl prints the Table that the API server makes of the columns."""
    kinds[plural].with_status(STATUS[plural])
    short_name = CRDS[plural]["spec"]["names"]["shortNames"][0]
    for options, columns in (((), narrow), (("-o", "wide"), {**narrow, **wide})):
        head, row = (line.split() for line in kubectl("get", short_name, *options).splitlines())
        assert head == ["NAME", *columns]
        age = row[head.index("AGE")]
        assert row == ["words", *(age if value is ... else value for value in columns.values())]


def test_the_category_lists_both_kinds(trainings: Kind, services: Kind, kubectl: Any) -> None:
    good(trainings.create())
    good(services.create())
    listed = kubectl("get", "mms", "-o", "name").split()
    assert {"modeltraining.mms.dev/words", "modelservice.mms.dev/words"} <= set(listed)
