"""A service follows a training that runs, on the real cluster, while a client that does not retry asks it."""

from __future__ import annotations

import time
import urllib.request
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tritonclient.grpc as triton

from mms_operator.cli.forward import port_forward
from mms_workloads.contract import AGENT_PORT
from mms_workloads.serve import query
from tests.e2e.clients import asking
from tests.e2e.kube import Kube, condition, service, training
from tests.e2e.test_guard import with_faults
from tests.e2e.test_rollout import mms
from tests.e2e.test_training import pod_of

if TYPE_CHECKING:
    from tests.e2e.conftest import Corpora

pytestmark = pytest.mark.e2e

BOUND = 5000  # ms: two processors for two workers, two pods, a client and the cluster; the benchmark measures it
WAYS = ("close", "keep", "grpc")


def digest_of(kube: Kube) -> str:
    with port_forward(kube.namespace, "svc/words", 8001) as address:
        return query.neighbours(address, ["congress"], 3)[0].digest


def test_a_service_follows_a_training_and_then_serves_its_artifact(kube: Kube, corpora: Corpora) -> None:
    """Also when the worker that is asked is killed, and when somebody wants it to pause."""
    live = {"strategy": "LiveSync", "liveSync": {"maxStalenessMilliseconds": BOUND}}
    made = service("words")
    kube.apply(
        training("words", corpora.small, optimizer={"epochs": 4000}),
        {**made, "spec": {**made["spec"], "replicas": 2, "rollout": live}},
    )
    kube.wait_condition("modelservice", "words", "Live", "True", "Following", seconds=180)
    assert kube.get("modeltraining", "words")["status"]["phase"] == "Running"
    uid = kube.get("modeltraining", "words")["metadata"]["uid"]
    first = digest_of(kube)
    assert first.startswith(f"live:{uid}:1")
    with asking(kube, "words") as asked:
        time.sleep(5)
        assert digest_of(kube) != first
        for rank in (0, 1):  # each pod asks one of them
            name = next(
                pod["metadata"]["name"]
                for pod in kube.list("pods", f"mms.dev/training=words,mms.dev/role=worker,mms.dev/rank={rank}")
            )
            kube.delete("pod", name, "--grace-period=0", "--force")
            time.sleep(8)
        kube.wait_condition("modelservice", "words", "Live", "True", "Following", seconds=60)
        seen = kube.get("modelservice", "words")["status"]["live"]
        assert seen["ageP99Milliseconds"] <= BOUND, seen
        ages(kube)
        answers_are_of_one_copy(kube)
        mms("rollout", "pause", "words", "-n", kube.namespace)
        kube.wait_condition("modelservice", "words", "Live", "False", "FollowingPaused")
        assert "Paused" in mms("rollout", "status", "words", "-n", kube.namespace)
        mms("rollout", "resume", "words", "-n", kube.namespace)
        kube.wait_condition("modelservice", "words", "Live", "True", "Following")
    assert [asked.failures(way) for way in WAYS] == [0, 0, 0], asked.ways
    pods = {pod["metadata"]["uid"] for pod in kube.list("pods", "mms.dev/service=words")}
    with asking(kube, "words") as over:
        artifact = kube.wait_phase("words", "Complete", 900)["status"]["artifact"]
        kube.wait(
            "modelservice", "words",
            lambda s: s["status"]["versions"]["stable"]["digest"] == artifact["digest"], 60, "serving the artifact",
        )  # fmt: skip
        kube.wait_condition("modelservice", "words", "Ready", "True", "Available", seconds=60)
    assert [over.failures(way) for way in WAYS] == [0, 0, 0], over.ways
    assert {pod["metadata"]["uid"] for pod in kube.list("pods", "mms.dev/service=words")} == pods, "no pod was started"
    assert digest_of(kube) == artifact["digest"]
    found = kube.get("modelservice", "words")
    assert condition(found, "Live")["reason"] == "TrainingEnded"
    assert {event["reason"] for event in kube.events("words")} >= {"Following", "FollowingPaused", "TrainingEnded"}


def ages(kube: Kube) -> None:
    """As Prometheus reads them."""
    for pod in kube.list("pods", "mms.dev/service=words"):
        with (
            port_forward(kube.namespace, f"pod/{pod['metadata']['name']}", AGENT_PORT) as address,
            urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer,
        ):
            lines = answer.read().decode().splitlines()
        age = next(float(line.split()[1]) for line in lines if line.startswith("mms_agent_live_age_seconds "))
        assert 0 < age <= BOUND / 1000, lines


def answers_are_of_one_copy(kube: Kube) -> None:
    """A word that is asked often in one request has one vector in its answer, and another one in a later copy."""
    with port_forward(kube.namespace, "svc/words", 8001) as address, triton.InferenceServerClient(address) as client:
        words = triton.InferInput("WORDS", [256, 1], "BYTES")
        words.set_data_from_numpy(np.full((256, 1), b"congress", dtype=object))
        seen: dict[str, bytes] = {}
        deadline = time.monotonic() + 30
        while len(seen) < 5:
            assert time.monotonic() < deadline, f"{len(seen)} copies in half a minute"
            answer = client.infer("vectors", [words])
            vectors, digests = answer.as_numpy("VECTORS"), set(answer.as_numpy("DIGEST").ravel().tolist())
            assert len(digests) == 1, digests
            assert (vectors == vectors[0]).all(), digests
            vector, digest = vectors[0].tobytes(), digests.pop().decode()
            assert seen.setdefault(digest, vector) == vector, "a copy does not change"
    assert len(set(seen.values())) > 1, "what is trained changes"


def test_the_last_good_parameters_outlive_the_training(kube: Kube, corpora: Corpora) -> None:
    made = service("words")
    live = {"strategy": "LiveSync", "liveSync": {"maxStalenessMilliseconds": BOUND}}
    kube.apply(
        training("words", corpora.small, optimizer={"epochs": 10_000}, workers={"replicas": 1}),
        {**made, "spec": {**made["spec"], "rollout": live}},
    )
    kube.wait_condition("modelservice", "words", "Live", "True", "Following", seconds=180)
    kube.delete("modeltraining", "words")
    kube.wait_condition("modelservice", "words", "Live", "False", "TrainingEnded")
    kube.wait_condition("modelservice", "words", "Ready", "True", "Available")
    assert digest_of(kube).startswith("live:")


def test_parameters_that_are_no_good_do_not_answer(kube: Kube, corpora: Corpora) -> None:
    """The training forgets what it has learnt: what it knew before answers, and the condition says why."""
    template = with_faults(kube, {"kind": "forget", "from": 0, "to": 1_000_000, "file": "/tmp/forget"})
    made = service("words")
    live = {"strategy": "LiveSync", "liveSync": {"maxStalenessMilliseconds": BOUND}}
    kube.apply(
        training(
            "words", corpora.whole,
            optimizer={"epochs": 1000},
            workers={"replicas": 1, "podTemplate": template},
            guard={"lossSpike": "Off", "gradientOutlier": "Off", "corruption": "Off"},
        ),
        {**made, "spec": {**made["spec"], "rollout": live}},
    )  # fmt: skip
    kube.wait_condition("modelservice", "words", "Live", "True", "Following", seconds=180)
    kube.wait("modelservice", "words", lambda s: float(s["status"]["live"].get("quality") or 0) > 0.56, 120, "any good")
    kube.run("exec", pod_of(kube, "words", "worker"), "--", "touch", "/tmp/forget")
    seen = kube.wait_condition("modelservice", "words", "Live", "False", "ParametersWithheld", seconds=30)
    assert "told from chance" in seen["message"]
    answers = digest_of(kube)
    with asking(kube, "words") as asked:
        time.sleep(3)  # what is measured: who answers in that time
        assert digest_of(kube) == answers
    assert [asked.failures(way) for way in WAYS] == [0, 0, 0], asked.ways
    status = kube.get("modelservice", "words")["status"]
    assert status["live"]["phase"] == "Withheld", status["live"]
    assert condition({"status": status}, "Ready")["status"] == "True"
    assert "ParametersWithheld" in {event["reason"] for event in kube.events("words")}
