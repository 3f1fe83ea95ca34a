"""Rollouts on the real cluster, while a client that does not retry asks through the Service."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from safetensors.numpy import load, save
from typer.testing import CliRunner

from mms_operator.cli import app
from mms_operator.cli.forward import port_forward
from mms_workloads.serve import query
from tests.e2e.clients import asking
from tests.e2e.kube import Kube, condition, installation_store, service
from tests.e2e.published import published_again, with_other_weights

pytestmark = pytest.mark.e2e

LIMIT_MIB, PADDING_MIB = 320, 192  # of the container of Triton, and of the second version


def mms(*arguments: str) -> str:
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    return answer.output


def command(kube: Kube, said: str) -> None:
    """As GitOps and kubectl say it."""
    kube.run("annotate", "--overwrite", "modelservice", "words", f"mms.dev/rollout={said}")


def serve(kube: Kube, artifact: dict[str, str], **spec: Any) -> None:
    made = service("words", artifact=artifact)
    kube.apply({**made, "spec": {**made["spec"], **spec}})


def test_canary(kube: Kube, artifacts: list[dict[str, str]]) -> None:
    """Step by step with a promotion, then back; no request fails but on connections that Triton cuts."""
    first, second = artifacts
    how = {"rollout": {"strategy": "Canary", "canary": {"steps": [{"percent": 50, "seconds": 5, "approval": True}]}}}
    serve(kube, first, replicas=2, **how)
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    with asking(kube, "words") as half:
        serve(kube, second, replicas=2, **how)
        kube.wait_condition("modelservice", "words", "Ready", "False", "AwaitingPromotion")
        assert kube.get("modelservice", "words")["status"]["rollout"]["percent"] == 50
        time.sleep(3)  # what is measured: who answers in that time
    assert half.failures("close") == 0, half.ways
    assert len(half.versions("close")) == 2, half.ways
    with asking(kube, "words") as rest:
        mms("rollout", "promote", "words", "-n", kube.namespace)
        kube.wait_condition("modelservice", "words", "Ready", "True", "Available")
    assert rest.failures("close") == 0, rest.ways
    assert rest.failures("grpc") == 0, rest.ways
    assert [one["outcome"] for one in kube.get("modelservice", "words")["status"]["history"]] == ["Served", "Served"]
    with asking(kube, "words") as back:
        mms("rollout", "rollback", "words", "-n", kube.namespace)
        kube.wait_condition("modelservice", "words", "Ready", "False", "RolledBack")
    assert back.failures("close") == 0, back.ways
    status = kube.get("modelservice", "words")["status"]
    assert status["versions"]["stable"]["digest"] == first["digest"]
    assert {event["reason"] for event in kube.events("words")} >= {"RollingOut", "AwaitingPromotion", "RolledBack"}
    assert "RolledBack" in mms("rollout", "status", "words", "-n", kube.namespace)


def test_abort(kube: Kube, artifacts: list[dict[str, str]]) -> None:
    first, second = artifacts
    how = {"rollout": {"strategy": "Canary", "canary": {"steps": [{"percent": 50, "seconds": 3600}]}}}
    serve(kube, first, **how)
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    with asking(kube, "words") as asked:
        serve(kube, second, **how)
        kube.wait("modelservice", "words", lambda s: s["status"].get("rollout", {}).get("percent") == 50, 120, "half")
        for said, phase in (("pause", "Paused"), ("resume", "Waiting")):
            command(kube, said)
            kube.wait(
                "modelservice", "words", lambda s, phase=phase: s["status"]["rollout"]["phase"] == phase, 30, phase
            )
        command(kube, "abort")
        kube.wait_condition("modelservice", "words", "Ready", "False", "RolloutAborted")
    assert asked.failures("close") == asked.failures("grpc") == 0, asked.ways
    assert condition(kube.get("modelservice", "words"), "Available")["status"] == "True"
    with port_forward(kube.namespace, "svc/words", 8001) as address:
        assert query.neighbours(address, ["congress"], 3)[0].digest == first["digest"]


def test_blue_green(kube: Kube, artifacts: list[dict[str, str]]) -> None:
    """All at once, and back at once, since the pods of the version before are still there."""
    first, second = artifacts
    how = {"rollout": {"strategy": "BlueGreen", "blueGreen": {"approval": True, "keepSeconds": 600}}}
    serve(kube, first, **how)
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    with asking(kube, "words") as asked:
        serve(kube, second, **how)
        kube.wait_condition("modelservice", "words", "Ready", "False", "AwaitingPromotion")
        with port_forward(kube.namespace, "svc/words-next", 8001) as address:
            assert query.neighbours(address, ["congress"], 3)[0].digest == second["digest"]
        mms("rollout", "promote", "words", "-n", kube.namespace)
        kube.wait_condition("modelservice", "words", "Ready", "True", "Available")
        began = time.monotonic()
        mms("rollout", "rollback", "words", "-n", kube.namespace)
        kube.wait_condition("modelservice", "words", "Ready", "False", "RolledBack")
        took = time.monotonic() - began
    assert asked.failures("close") == 0, asked.ways
    assert took < 10, "its pods were there"
    selector = kube.get("service", "words")["spec"]["selector"]
    assert selector["mms.dev/artifact"] == first["digest"].removeprefix("sha256:")[:12]


def test_hot_swap(kube: Kube, artifacts: list[dict[str, str]]) -> None:
    """The running pods take the next version and go back: no pod is started, no request fails in any way of asking."""
    first, second = artifacts
    how = {"rollout": {"strategy": "HotSwap"}}
    serve(kube, first, replicas=2, **how)
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    # A pod hears of a version by an annotation, which its kubelet may tell it a minute and a half later.
    pods = {pod["metadata"]["uid"] for pod in kube.list("pods", "mms.dev/service=words")}
    with asking(kube, "words", rate=20) as asked:
        serve(kube, second, replicas=2, **how)
        kube.wait_condition("modelservice", "words", "Ready", "True", "Available", seconds=150)
        mms("rollout", "rollback", "words", "-n", kube.namespace)
        kube.wait_condition("modelservice", "words", "Ready", "False", "RolledBack", seconds=150)
        mms("rollout", "retry", "words", "-n", kube.namespace)
        kube.wait_condition("modelservice", "words", "Ready", "True", "Available", seconds=150)
    assert [asked.failures(way) for way in ("close", "keep", "grpc")] == [0, 0, 0], asked.ways
    assert [len(asked.versions(way)) for way in ("close", "keep", "grpc")] == [2, 2, 2], asked.ways
    assert {pod["metadata"]["uid"] for pod in kube.list("pods", "mms.dev/service=words")} == pods
    corrupt = {**first, "digest": "sha256:" + "0" * 64}
    serve(kube, corrupt, replicas=2, **how)
    seen = kube.wait_condition("modelservice", "words", "Ready", "False", "RolloutAborted", seconds=150)
    assert "ArtifactCorrupt" in seen["message"]
    with port_forward(kube.namespace, "svc/words", 8001) as address:
        assert query.neighbours(address, ["congress"], 3)[0].digest == second["digest"]
    kube.run("scale", "modelservice", "words", "--replicas=3")
    kube.wait("modelservice", "words", lambda s: s["status"]["readyReplicas"] == 3, 120, "of three pods")
    versions = kube.get("modelservice", "words")["status"]["versions"]
    assert versions["stable"]["digest"] == second["digest"]
    assert versions["stable"]["base"] == first["digest"]
    third = published_again(second)
    serve(kube, third, replicas=3, **how)
    kube.wait_condition("modelservice", "words", "Ready", "True", "Available", seconds=150)
    command(kube, f"rollback {first['digest']}")
    kube.wait_condition("modelservice", "words", "Ready", "False", "RolledBack", seconds=150)
    assert kube.get("modelservice", "words")["status"]["versions"]["stable"]["digest"] == first["digest"]


def test_hot_swap_without_room(kube: Kube, artifacts: list[dict[str, str]]) -> None:
    """Of two versions that do not both fit into the container's memory the first answers on."""
    first, second = artifacts
    padding = np.zeros(PADDING_MIB << 18, np.float32)
    large = with_other_weights(second, lambda weights: save({**load(weights), "padding": padding}))
    limits = {"limits": {"memory": f"{LIMIT_MIB}Mi"}, "requests": {"memory": "256Mi", "cpu": "50m"}}
    how = {"rollout": {"strategy": "HotSwap"}, "server": {"resources": limits}}
    serve(kube, first, **how)
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    with asking(kube, "words") as asked:
        serve(kube, large, **how)
        seen = kube.wait_condition("modelservice", "words", "Ready", "False", "RolloutAborted", seconds=60)
    assert "raise spec.server.resources.limits.memory" in seen["message"], seen
    assert [asked.failures(way) for way in ("close", "keep", "grpc")] == [0, 0, 0], asked.ways
    assert asked.versions("grpc") == {"1"}, asked.ways


IMAGE = {"height": 4, "width": 4}
PROGRAMS = {
    "one": ({"task": "imageClassification", "labels": ["red", "green"], "image": IMAGE}, '{"logits": means[:, :2]}'),
    "two": ({"task": "imageClassification", "labels": ["red", "green"], "image": IMAGE}, '{"logits": -means[:, :2]}'),
    "three": (
        {"task": "objectDetection", "labels": ["thing"], "image": IMAGE},
        '{"boxes": np.zeros((len(means), 1, 4)), "scores": np.ones((len(means), 1, 1))}',
    ),
}
PROGRAM = """
import numpy as np

def load(folder):
    def answer(feeds):
        means = feeds["pixels"].mean(axis=(2, 3))
        return %s
    return answer
"""


def test_hot_swap_of_programs(kube: Kube) -> None:
    """Another program is a version in Triton beside the one before, another task needs new pods."""
    with installation_store() as store:
        for name, (pipeline, answer) in PROGRAMS.items():
            store.pipe_file(f"models/programs/{name}/pipeline.json", json.dumps(pipeline).encode())
            store.pipe_file(f"models/programs/{name}/model.py", (PROGRAM % answer).encode())

    def take(name: str) -> dict[str, Any]:
        """What is stable then."""
        made = service("colours", pretrained={"uri": f"s3://models/programs/{name}", "trusted": True})
        kube.apply({**made, "spec": {**made["spec"], "replicas": 2, "rollout": {"strategy": "HotSwap"}}})
        kube.wait_condition("modelservice", "colours", "Ready", "True", "Available", seconds=180)
        found: dict[str, Any] = kube.get("modelservice", "colours")["status"]["versions"]["stable"]
        assert found["uri"].endswith(name), found
        return found

    def pods() -> set[str]:
        return {pod["metadata"]["uid"] for pod in kube.list("pods", "mms.dev/service=colours")}

    first = take("one")
    before = pods()
    assert answered(kube, "classify") == (first["digest"], "1", b"red")
    second = take("two")
    assert answered(kube, "classify") == (second["digest"], "2", b"green")
    mms("rollout", "rollback", "colours", "-n", kube.namespace)
    kube.wait_condition("modelservice", "colours", "Ready", "False", "RolledBack", seconds=60)
    kube.wait(
        "modelservice", "colours", lambda s: "Not back yet" not in condition(s, "Ready")["message"], 60, "all are back"
    )
    assert answered(kube, "classify") == (first["digest"], "1", b"red")
    assert pods() == before, "no pod was started"
    third = take("three")
    kube.wait("modelservice", "colours", lambda _: not pods() & before, 120, "served by new pods alone")
    assert answered(kube, "detect") == (third["digest"], "1", b"thing")
    said = [event["message"] for event in kube.events("colours")]
    assert any("by new pods" in one and "is for detect" in one for one in said), said


def answered(kube: Kube, model: str) -> tuple[str, str, bytes]:
    """Of a red image: the artifact's digest, Triton's version of the model, and the likeliest label."""
    pixels = np.zeros((1, 3, 4, 4), np.float32)
    pixels[:, 0] = 1
    red = triton.InferInput("PIXELS", list(pixels.shape), "FP32")
    red.set_data_from_numpy(pixels)
    with (
        port_forward(kube.namespace, "svc/colours", 8001) as address,
        triton.InferenceServerClient(address) as client,
    ):
        found = client.infer(model, [red])
        digest, label = (found.as_numpy(name)[0, 0] for name in ("DIGEST", "LABELS"))
        return digest.decode(), found.get_response().model_version, label
