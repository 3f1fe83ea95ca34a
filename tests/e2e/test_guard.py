"""Anomalies are injected into the pods of real trainings: they are found, corrected, and told in the status.

The faults come with a ConfigMap that is mounted beside the program: the images are those that users get.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import faults
from tests.e2e.kube import condition
from tests.e2e.test_training import pod_of, steps
from tests.e2e.test_training_plane import incidents, language

if TYPE_CHECKING:
    from tests.e2e.conftest import Corpora
    from tests.e2e.kube import Kube, Object

pytestmark = pytest.mark.e2e

MARGIN = 0.15  # bits per byte between a disturbed and an undisturbed run; a spoilt one is off by 0.5 and more
PLACE = {"from": 40, "to": 41}
# Anomalies that spoil the model where nothing is done about them; a flipped bit or a slow rank need not.
SPOIL = {"NonFinite", "LossSpike", "GradientOutlier"}
OFF = {"lossSpike": "Off", "gradientOutlier": "Off"}
OPTIMIZER = {"name": "AdamW", "learningRate": "0.005", "globalBatchSize": 32, "epochs": 1}


@pytest.fixture
def small(corpora: Corpora) -> str:
    return corpora.small


def disturbed(kube: Kube, name: str, uri: str, *given: dict[str, Any], workers: int = 2, **spec: Any) -> None:
    template = with_faults(kube, *given)
    spec = {"optimizer": OPTIMIZER, "checkpoint": {"intervalSeconds": 1}, **spec}
    kube.apply(language(name, uri, workers={"replicas": workers, "podTemplate": template}, **spec))


def with_faults(kube: Kube, *given: dict[str, Any]) -> dict[str, Any]:
    """The template of workers that have them."""
    source = Path(faults.__file__).read_text(encoding="utf-8")
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "faults"},
            "data": {"sitecustomize.py": f"{source}\n\ninstall()\n"},
        }
    )
    container = {
        "name": "worker",
        "env": [
            {"name": "PYTHONPATH", "value": "/faults"},
            {"name": faults.VARIABLE, "value": json.dumps(given)},
        ],
        "volumeMounts": [{"name": "faults", "mountPath": "/faults"}],
    }
    return {"spec": {"volumes": [{"name": "faults", "configMap": {"name": "faults"}}], "containers": [container]}}


def bits(done: Object) -> float:
    return float(done["status"]["artifact"]["metrics"]["bitsPerByte"])


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, float]:
    return {}


def usual(kube: Kube, known: dict[str, float], uri: str) -> float:
    if not known:
        kube.apply(language("undisturbed", uri, workers={"replicas": 2}, optimizer=OPTIMIZER))
        known["bits"] = bits(kube.wait_phase("undisturbed", "Complete", 240))
    return known["bits"]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("workers", "fault", "kind", "restarts"),
    [
        pytest.param(2, {"kind": "nan", "rank": 1, **PLACE}, "NonFinite", 0, id="nan"),
        pytest.param(3, {"kind": "flip", "rank": 1, "once": True, **PLACE}, "Corruption", 1, id="flip", marks=SLOW),
        pytest.param(2, {"kind": "wreck", "once": True, **PLACE}, "LossSpike", 0, id="loss", marks=SLOW),
        pytest.param(
            3, {"kind": "scale", "by": 1e4, "rank": 2, **PLACE}, "GradientOutlier", 0, id="outlier", marks=SLOW
        ),
        pytest.param(
            2, {"kind": "slow", "seconds": 0.3, "rank": 1, "from": 5, "to": 60}, "Straggler", 0, id="slow", marks=SLOW
        ),
    ],
)
def test_an_anomaly(
    kube: Kube, small: str, undisturbed: dict[str, float], *, workers: int, fault: Any, kind: str, restarts: int
) -> None:
    """It is corrected; a run without a guard does not end as well."""
    expected = usual(kube, undisturbed, small)
    disturbed(kube, kind.lower(), small, fault, workers=workers)
    done = kube.wait_phase(kind.lower(), "Complete", 300)
    assert kind in incidents(done), done["status"]["incidents"]
    assert done["status"].get("restarts", 0) == restarts
    assert bits(done) == pytest.approx(expected, abs=MARGIN)
    assert kind in kube.run("describe", f"mt/{kind.lower()}"), "people see it"
    if kind in SPOIL:
        disturbed(kube, "unguarded", small, fault, {"kind": "unguarded"}, workers=workers, guard=OFF)
        left = kube.wait("modeltraining", "unguarded", has_ended, 300, "at its end")
        assert is_spoilt(left, expected), left["status"]


def has_ended(found: Object) -> bool:
    return found.get("status", {}).get("phase") in {"Complete", "Failed"}


def is_spoilt(done: Object, expected: float) -> bool:
    if done["status"]["phase"] == "Failed":
        return "the parameters are not finite" in condition(done, "Failed")["message"]
    return bits(done) > expected + MARGIN


@SLOW
def test_a_worker_that_is_stopped(kube: Kube, small: str) -> None:
    """Its supervisor writes down where it stood and forks it again."""
    kube.apply(language("stopped", small))
    kube.wait("modeltraining", "stopped", lambda t: steps(t) >= 10, 120, "training")
    pod = pod_of(kube, "stopped", "worker", 1)
    script = "import os, signal; c = open('/proc/1/task/1/children').read().split(); os.kill(int(c[0]), signal.SIGSTOP)"
    subprocess.run(
        ["kubectl", "-n", kube.namespace, "exec", pod, "--", "/opt/venv/bin/python", "-c", script],
        check=True,
        capture_output=True,
    )
    found = kube.wait("modeltraining", "stopped", lambda t: "WorkerJoined" in incidents(t), 90, "whole again")
    assert found["status"].get("restarts", 0) == 0
    log = kube.run("logs", pod_of(kube, "stopped", "worker", 1))
    assert "worker hangs and is killed" in log
    assert "most recent call first" in log


@SLOW
def test_dead_data(kube: Kube, corpora: Corpora, tmp_path: Path) -> None:
    dead = (b"a" * 79 + b"\n") * 10_000
    uri = corpora.put("a.txt", corpora.text[:200_000] + dead, tmp_path / "dead")
    kube.apply(language("dead", uri, optimizer=OPTIMIZER))
    degraded = kube.wait(
        "modeltraining",
        "dead",
        lambda t: any(c["reason"] == "DeadData" for c in t["status"].get("conditions", [])),
        120,
        "aware of it",
    )
    assert "DeadData" in incidents(degraded)
    kube.wait_phase("dead", "Complete", 240)
