"""Programs of somebody else's as custom tasks: examples/custom as they are, but for the image and the store."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import yaml

from mms_cluster import images, install
from mms_operator.cli.forward import port_forward
from tests.e2e.kube import condition, own_storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_cluster import provider
    from tests.e2e.kube import Kube, Object

pytestmark = pytest.mark.e2e

EXAMPLES = install.CHART.parents[1] / "examples" / "custom"


def start(kube: Kube, example: str, image: str, change: Callable[[Object], None] = lambda _: None) -> str:
    """The name of the training."""
    script, training = yaml.safe_load_all((EXAMPLES / f"{example}.yaml").read_text())
    training["spec"]["task"]["custom"]["image"] = image
    change(training["spec"])
    kube.apply(script, training)
    name: str = training["metadata"]["name"]
    return name


def pods(kube: Kube, name: str, attempt: int, role: str = "worker") -> list[str]:
    selector = f"mms.dev/training={name},mms.dev/role={role},mms.dev/attempt={attempt}"
    return sorted(pod["metadata"]["name"] for pod in kube.list("pods", selector))


def said(kube: Kube, pod: str) -> Any:
    """What a worker's program says last, as JSON."""
    lines = [line for line in kube.run("logs", pod, "-c", "worker").splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


def logged(kube: Kube, pod: str, text: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while text not in (log := kube.run("logs", pod)):
        assert time.monotonic() < deadline, log
        time.sleep(0.5)


def gone(kube: Kube, selector: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while found := [p for p in kube.list("pods", selector) if p["status"]["phase"] == "Running"]:
        assert time.monotonic() < deadline, [pod["metadata"]["name"] for pod in found]
        time.sleep(0.5)


def test_pytorch_and_mxnet(kube: Kube, installed: provider.Provider) -> None:
    """Each world starts anew once: the one for a pod that is deleted, the other for a program that fails."""
    worker = installed.images["worker"].reference

    def of_pytorch(spec: Object) -> None:
        spec["storage"] = own_storage(kube)

    def of_mxnet(spec: Object) -> None:
        container = spec["workers"]["podTemplate"]["spec"]["containers"][0]
        container["env"] = [{"name": "FAIL_IN_ATTEMPT", "value": "1"}]

    torch, mxnet = start(kube, "pytorch", worker, of_pytorch), start(kube, "mxnet", worker, of_mxnet)
    kube.wait_phase(torch, "Running", 90)
    first, second = pods(kube, torch, 1)
    logged(kube, first, "checkpoint of step")
    kube.delete("pod", second, "--wait=false")

    done = kube.wait_phase(mxnet, "Complete", 120)["status"]
    assert (done["attempt"], done["restarts"]) == (2, 1)
    assert done["attempts"][0]["reason"] == "PermanentFailure"
    assert "an accident" in done["incidents"][0]["action"]
    assert "artifact" not in done
    assert "progress" not in done
    left, right = (said(kube, pod) for pod in pods(kube, mxnet, 2))
    assert left["parameters"] == right["parameters"]
    assert left["parameters"] == pytest.approx([1.5, -2.0, 0.75, 3.0], abs=1e-3)
    assert left["last"] < left["first"] / 100

    done = kube.wait_phase(torch, "Complete", 120)["status"]
    assert (done["attempt"], done["restarts"]) == (2, 0), "what others do does not count"
    assert done["incidentCounts"] == {"PodDeleted": 1}
    assert "WorldRestarts" in [event["reason"] for event in kube.events(torch)]
    left, right = (said(kube, pod) for pod in pods(kube, torch, 2))
    assert left["begin"] >= 50, "it goes on from its checkpoint"
    assert left["parameters"] == right["parameters"]
    assert max(left["loss"], right["loss"]) < 0.02

    # What it has left in the store is served, by the network's own tensors.
    served = yaml.safe_load((EXAMPLES / "served.yaml").read_text())
    storage = kube.get("modeltraining", torch)["spec"]["storage"]
    served["spec"]["model"]["pretrained"] |= {**storage, "uri": f"{storage['uri']}/runs/1/model"}
    kube.apply(served)
    kube.wait_condition("modelservice", "curve", "Ready", "True", seconds=120)
    x = np.linspace(-3, 3, 40, dtype=np.float32)[:, None]
    with port_forward(kube.namespace, "svc/curve", 8001) as address, triton.InferenceServerClient(address) as client:
        asked = triton.InferInput("x", x.shape, "FP32")
        asked.set_data_from_numpy(x)
        y = client.infer("predict", [asked]).as_numpy("y")
    assert np.mean((y - np.sin(2 * x)) ** 2) < 0.02

    gone(kube, f"mms.dev/training={mxnet}")
    assert condition(kube.get("modeltraining", mxnet), "Finished")["status"] == "True"


@pytest.mark.slow
def test_tensorflow_and_keras(kube: Kube, installed: provider.Provider) -> None:
    """Both from PyPI, two workers each, in one image; then TensorFlow with a server and a chief."""
    made = images.build(("frameworks",))
    installed.load(made)
    image = made["frameworks"].reference
    tensorflow, keras = start(kube, "tensorflow", image), start(kube, "keras", image)
    for name in (tensorflow, keras):
        done = kube.wait_phase(name, "Complete", 300)["status"]
        assert (done["attempt"], done["restarts"]) == (1, 0)
        left, right = (said(kube, pod) for pod in pods(kube, name, 1))
        assert left["workers"] == right["workers"] == 2
        assert left["parameters"] == right["parameters"]
        assert left["last"] < left["first"] / 10
    assert left["accuracy"] > 0.95
    assert said(kube, pods(kube, tensorflow, 1)[0])["parameters"] == pytest.approx([3, -2, 0.5], abs=0.01)

    served = start(kube, "tensorflow-servers", image)
    kube.wait_phase(served, "Complete", 300)
    found = said(kube, pods(kube, served, 1)[0])
    assert found["parameters"] == pytest.approx([3, -2, 0.5], abs=0.01)
    assert found["last"] < found["first"] / 10
    gone(kube, f"mms.dev/training={served}")  # what serves the chief goes with it
