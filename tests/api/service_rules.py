"""Changes of a ModelService, for each of its rules."""

from __future__ import annotations

from typing import Any

from mms_operator.api.names import SERVICES
from tests.api.cases import SECRET, created, names_of
from tests.api.crds import ARTIFACT, Object, merged

NIGHT = {"start": "22:00", "end": "06:00", "replicas": 3, "timeZone": "UTC"}
LISTENER = {"name": "front", "sectionName": "https", "hostnames": ["words.example.com"]}


OBJECTIVE = {"latencyP99Milliseconds": 50}
PRETRAINED = {"uri": "s3://models/vad"}


def pretrained(**fields: Any) -> Object:
    return {"spec": {"model": {"trainingRef": None, "pretrained": {**PRETRAINED, **fields}}}}


def repository(server: Object | None = None, mode: str = "Off", **fields: Any) -> Object:
    found = pretrained(**{"format": "TritonRepository", "trusted": True, **fields})
    objective = {"objective": OBJECTIVE} if mode == "Objective" else {}
    return merged(found, {"spec": {"server": server or {}, "autoscaling": {"mode": mode}, **objective}})


def scaled(**scaling: Any) -> Object:
    return {"spec": {"objective": OBJECTIVE, "autoscaling": {"mode": "Objective", **scaling}}}


def routed(**gateway: Any) -> Object:
    return {"spec": {"traffic": {"gateway": gateway}}}


TRAFFIC: Object = {
    "tls": SECRET, "apiKeys": SECRET, "limits": {"requestsPerSecond": 5}, "maxConnectionAgeSeconds": 60
}  # fmt: skip


STEP = {"percent": 5, "seconds": 60, "approval": False}
BARE = {
    "atEnd": "Pause", "dependence": 1, "falsePromote": "0.05", "falseRollback": "0.05", "limitSeconds": 1800,
    "probesPerSecond": 5,
}  # fmt: skip


ANALYSIS = {**BARE, "errorMargin": "0.01"}
LIVE = {**BARE, "disagreementLimit": "0.1", "liveInputs": {"perSecond": 2}}


CASES = [
    *names_of(SERVICES),
    *created(
        "model",
        "exactly one of trainingRef, artifact and pretrained must be set",
        good={
            "training": {"spec": {"model": {"trainingRef": {"name": "words"}}}},
            "artifact": {"spec": {"model": {"trainingRef": None, "artifact": ARTIFACT}}},
            "pretrained": pretrained(),
        },
        bad={
            "both": {"spec": {"model": {"artifact": ARTIFACT}}},
            "training-and-pretrained": {"spec": {"model": {"pretrained": PRETRAINED}}},
            "neither": {"spec": {"model": {"trainingRef": None}}},
        },
        plural=SERVICES,
    ),
    *created(
        "trusted",
        "this format runs code of the files in the pod: set trusted if you trust them",
        good={
            "no-code": pretrained(format="ONNX"),
            "trusted": pretrained(format="Python", trusted=True),
            "by-its-fields": pretrained(pipeline={"task": "textEmbedding", "text": {"maxLength": 64}}),
        },
        bad={name: pretrained(format=name) for name in ("TorchScript", "TorchExport", "TritonRepository", "Python")},
        plural=SERVICES,
    ),
    *created(
        "scaled-repository",
        "autoscaling mode Objective measures pods by golden questions",
        good={
            "external": repository(mode="External"),
            "another-format": repository(mode="Objective", format="ONNX"),
            "not-known": repository(mode="Objective", format="Auto"),
        },
        bad={"objective": repository(mode="Objective")},
        plural=SERVICES,
    ),
    *created(
        "batches-of-a-repository",
        "server.batching and server.instances are not for a TritonRepository",
        good={
            "none": repository({"batching": {"maxQueueDelayMicroseconds": 0}, "instances": 1}),
            "another-format": repository({"instances": 2}, format="Python"),
        },
        bad={
            "instances": repository({"instances": 2}),
            "size": repository({"batching": {"preferredBatchSize": 8}}),
            "delay": repository({"batching": {"maxQueueDelayMicroseconds": 100}}),
        },
        plural=SERVICES,
    ),
    *created(
        "anomalies-of-a-repository",
        "server.anomalies Count is not for a TritonRepository",
        good={
            "off": repository({"anomalies": "Off"}),
            "another-format": repository({"anomalies": "Count"}, format="ONNX"),
        },
        bad={"count": repository({"anomalies": "Count"})},
        plural=SERVICES,
    ),
    *created(
        "precision-of-a-repository",
        "server.precision is not for a TritonRepository",
        good={
            "auto": repository({"precision": "Auto"}),
            "another-format": repository({"precision": "INT8"}, format="ONNX"),
        },
        bad={one.lower(): repository({"precision": one}) for one in ("INT8", "BF16")},
        plural=SERVICES,
    ),
    *created(
        "canary",
        "canary is for strategy Canary",
        good={
            "canary": {"spec": {"rollout": {"strategy": "Canary", "canary": {"steps": [STEP]}}}},
            "default": {"spec": {"rollout": {"strategy": "Canary"}}},
        },
        bad={
            "blue-green": {"spec": {"rollout": {"strategy": "BlueGreen", "canary": {}}}},
            "no-strategy": {"spec": {"rollout": {"canary": {"steps": [STEP]}}}},
        },
        plural=SERVICES,
    ),
    *created(
        "gateway",
        "gateway needs at least one of http and grpc",
        good={"http": routed(http=LISTENER), "grpc": routed(grpc=LISTENER)},
        bad={"none": routed()},
        plural=SERVICES,
    ),
    *created(
        "listeners",
        "http and grpc must differ in name, sectionName or hostnames",
        good={
            "section": routed(http=LISTENER, grpc={**LISTENER, "sectionName": "grpc"}),
            "name": routed(http=LISTENER, grpc={**LISTENER, "name": "other"}),
            "hostnames": routed(http=LISTENER, grpc={**LISTENER, "hostnames": ["grpc.example.com"]}),
            "one-section": routed(http={"name": "front"}, grpc={"name": "front", "sectionName": "grpc"}),
            "one-hostname": routed(http=LISTENER, grpc={"name": "front", "sectionName": "https"}),
            "names-only": routed(http={"name": "front"}, grpc={"name": "other"}),
        },
        bad={
            "same": routed(http=LISTENER, grpc=LISTENER),
            "same-name-only": routed(http={"name": "front"}, grpc={"name": "front"}),
        },
        plural=SERVICES,
    ),
    *created(
        "autotune",
        "server.batching.autotune needs autoscaling mode Objective",
        good={
            "objective": merged(scaled(), {"spec": {"server": {"batching": {"autotune": True}}}}),
            "off": {"spec": {"server": {"batching": {"preferredBatchSize": 16}, "instances": 2}}},
        },
        bad={"external": {"spec": {"autoscaling": {"mode": "External"}, "server": {"batching": {"autotune": True}}}}},
        plural=SERVICES,
    ),
    *created(
        "objective",
        "autoscaling mode Objective needs objective",
        good={
            "both": {"spec": {"objective": OBJECTIVE, "autoscaling": {"mode": "Objective"}}},
            "external": {"spec": {"autoscaling": {"mode": "External"}}},
            "objective-alone": {"spec": {"objective": OBJECTIVE}},
        },
        bad={"none": {"spec": {"autoscaling": {"mode": "Objective"}}}},
        plural=SERVICES,
    ),
    *created(
        "replicas",
        "minReplicas must not be above maxReplicas",
        good={"same": scaled(minReplicas=3, maxReplicas=3)},
        bad={"above": scaled(minReplicas=4, maxReplicas=3)},
        plural=SERVICES,
    ),
    *created(
        "zero",
        "scaleToZeroAfterSeconds needs mode Objective",
        good={"objective": scaled(scaleToZeroAfterSeconds=60)},
        bad={
            "external": {"spec": {"autoscaling": {"mode": "External", "scaleToZeroAfterSeconds": 60}}},
            "off": {"spec": {"autoscaling": {"scaleToZeroAfterSeconds": 60}}},
        },
        plural=SERVICES,
    ),
    *created(
        "limits",
        "minReplicas, maxReplicas, upPerMinute",
        good={
            "objective": scaled(minReplicas=2, maxReplicas=20, upPerMinute=1, downPerMinute=1, schedules=[NIGHT]),
        },
        bad={
            name: {"spec": {"autoscaling": {"mode": "External", name: value}}}
            for name, value in {
                "minReplicas": 2,
                "maxReplicas": 20,
                "upPerMinute": 1,
                "downPerMinute": 1,
                "schedules": [NIGHT],
            }.items()
        },
        plural=SERVICES,
    ),
    *created(
        "schedule",
        "a schedule's replicas must not be above maxReplicas",
        good={"same": scaled(maxReplicas=3, schedules=[NIGHT])},
        bad={"above": scaled(maxReplicas=2, schedules=[NIGHT])},
        plural=SERVICES,
    ),
    *created(
        "analysis",
        "analysis needs a step to decide in",
        good={"canary": {"spec": {"rollout": {"strategy": "Canary", "analysis": ANALYSIS}}}},
        bad={
            "rolling": {"spec": {"rollout": {"strategy": "RollingUpdate", "analysis": ANALYSIS}}},
            "default": {"spec": {"rollout": {"analysis": ANALYSIS}}},
            "live": {"spec": {"rollout": {"strategy": "LiveSync", "analysis": ANALYSIS}}},
        },
        plural=SERVICES,
    ),
    *created(
        "bounds",
        "analysis needs at least one of errorMargin, latencyMargin and disagreementLimit",
        good={
            bound: {"spec": {"rollout": {"strategy": "Canary", "analysis": {**BARE, bound: "0.1"}}}}
            for bound in ("errorMargin", "latencyMargin", "disagreementLimit")
        },
        bad={"none": {"spec": {"rollout": {"strategy": "Canary", "analysis": {}}}}},
        plural=SERVICES,
    ),
    *created(
        "live-inputs",
        "liveInputs is judged by disagreementLimit",
        good={
            "limit": {
                "spec": {
                    "rollout": {
                        "strategy": "Canary",
                        "analysis": {**BARE, "disagreementLimit": "0.1", "liveInputs": {"perSecond": 5}},
                    }
                }
            }
        },
        bad={
            "no-limit": {"spec": {"rollout": {"strategy": "Canary", "analysis": {**ANALYSIS, "liveInputs": {}}}}},
        },
        plural=SERVICES,
    ),
    *created(
        "live-inputs-in-one-pod",
        "with HotSwap both versions answer live inputs in the same pod",
        good={
            "no-latency": {"spec": {"rollout": {"strategy": "HotSwap", "analysis": LIVE}}},
            "own-pods": {"spec": {"rollout": {"strategy": "Canary", "analysis": {**LIVE, "latencyMargin": "0.2"}}}},
        },
        bad={"latency": {"spec": {"rollout": {"strategy": "HotSwap", "analysis": {**LIVE, "latencyMargin": "0.2"}}}}},
        plural=SERVICES,
    ),
    *created(
        "latency-of-idle-pods",
        "with BlueGreen the next version's pods have no clients",
        good={
            "errors": {"spec": {"rollout": {"strategy": "BlueGreen", "analysis": ANALYSIS}}},
            "canary": {"spec": {"rollout": {"strategy": "Canary", "analysis": {**ANALYSIS, "latencyMargin": "0.2"}}}},
        },
        bad={"latency": {"spec": {"rollout": {"strategy": "BlueGreen", "analysis": {**BARE, "latencyMargin": "0.2"}}}}},
        plural=SERVICES,
    ),
    *created(
        "hot-swap",
        "hotSwap is for strategy HotSwap",
        good={"hot-swap": {"spec": {"rollout": {"strategy": "HotSwap", "hotSwap": {"seconds": 5}}}}},
        bad={"canary": {"spec": {"rollout": {"strategy": "Canary", "hotSwap": {}}}}},
        plural=SERVICES,
    ),
    *created(
        "blue-green",
        "blueGreen is for strategy BlueGreen",
        good={"blue-green": {"spec": {"rollout": {"strategy": "BlueGreen", "blueGreen": {"approval": True}}}}},
        bad={"canary": {"spec": {"rollout": {"strategy": "Canary", "blueGreen": {}}}}},
        plural=SERVICES,
    ),
    *created(
        "edge",
        "tls, apiKeys, limits and maxConnectionAgeSeconds need the edge",
        good={
            "asked-for": {"spec": {"traffic": {"edge": "Sidecar"}}},
            "without": {"spec": {"traffic": {"edge": "None"}}},
            **{f"needed-by-{name}": {"spec": {"traffic": {name: value}}} for name, value in TRAFFIC.items()},
        },
        bad={f"for-{name}": {"spec": {"traffic": {"edge": "None", name: value}}} for name, value in TRAFFIC.items()},
        plural=SERVICES,
    ),
    *created(
        "burst",
        "burst is what may come above requestsPerSecond",
        good={"both": {"spec": {"traffic": {"limits": {"requestsPerSecond": 5, "burst": 0}}}}},
        bad={"alone": {"spec": {"traffic": {"limits": {"burst": 5, "bodyBytes": 1}}}}},
        plural=SERVICES,
    ),
    *created(
        "limits",
        "limits needs at least one of requestsPerSecond, concurrentRequests and bodyBytes",
        good={
            limit: {"spec": {"traffic": {"limits": {limit: 1}}}}
            for limit in ("requestsPerSecond", "concurrentRequests", "bodyBytes")
        },
        bad={"none": {"spec": {"traffic": {"limits": {"per": "Pod"}}}}},
        plural=SERVICES,
    ),
    *created(
        "live-sync",
        "liveSync is for strategy LiveSync",
        good={"live-sync": {"spec": {"rollout": {"strategy": "LiveSync", "liveSync": {}}}}},
        bad={"hot-swap": {"spec": {"rollout": {"strategy": "HotSwap", "liveSync": {}}}}},
        plural=SERVICES,
    ),
    *created(
        "live-of-a-training",
        "strategy LiveSync follows a training",
        good={"training": {"spec": {"rollout": {"strategy": "LiveSync"}}}},
        bad={
            "artifact": {
                "spec": {"model": {"trainingRef": None, "artifact": ARTIFACT}, "rollout": {"strategy": "LiveSync"}}
            }
        },
        plural=SERVICES,
    ),
]
