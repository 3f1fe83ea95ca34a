"""What is installed of others: their charts' values, and what happens on a cluster that is not ours."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from mms_cluster import extras
from mms_cluster.errors import ClusterError
from mms_cluster.images_plan import ImageRef
from mms_cluster.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass
class Users:
    """A cluster of the user's, whose kubectl says yes or no."""

    folder: Path
    says: int
    borrowed: bool = True
    description: str = "the one of KUBECONFIG=theirs"
    images: dict[str, ImageRef] = field(default_factory=dict)

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "theirs"

    def tools(self) -> Path:
        kubectl = self.folder / "kubectl"
        kubectl.write_text(f'#!/bin/sh\necho "$@" >> {self.folder}/asked\nexit {self.says}\n')
        kubectl.chmod(0o755)
        return self.folder


@pytest.mark.parametrize(
    ("add", "lacks"),
    [
        pytest.param(extras.metrics, "has no metrics API: install metrics-server", id="metrics"),
        pytest.param(extras.gateway, "has no GatewayClass envoy: install Envoy Gateway", id="gateway"),
        pytest.param(extras.keda, "has no ScaledObject: install KEDA", id="keda"),
    ],
)
def test_nothing_is_installed_on_a_cluster_of_the_users(
    tmp_path: Path, add: Callable[[Any, Reporter], None], lacks: str
) -> None:
    report = Reporter(io.StringIO())
    add(Users(tmp_path, says=0), report)
    with pytest.raises(ClusterError, match=lacks):
        add(Users(tmp_path, says=1), report)
    assert all(" get " in line for line in (tmp_path / "asked").read_text().splitlines())


def test_charts_are_told_our_images(tmp_path: Path) -> None:
    control, envoy = (ImageRef(f"localhost/{name}", "7", tmp_path) for name in ("control", "envoy"))
    assert extras.metrics_values(control)["image"] == {"repository": "localhost/control", "tag": "7"}
    named = extras.gateway_values(control, envoy)["global"]["images"]
    assert named["envoyGateway"]["image"] == "localhost/control:7"
    assert named["envoyProxy"]["image"] == "localhost/envoy:7"


DEPLOYMENT = """
kind: Deployment
spec:
  template:
    spec:
      securityContext: {{runAsNonRoot: true}}
      containers:
        - name: {name}
          image: theirs
          readinessProbe: {{httpGet: {{path: /readyz}}, initialDelaySeconds: 20}}
---
"""


def test_objects_of_keda_have_our_images(tmp_path: Path) -> None:
    for folder, name in (("manager", "keda-operator"), ("metrics-server", "keda-metrics-apiserver")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "deployment.yaml").write_text(DEPLOYMENT.format(name=name))
        (tmp_path / folder / "kustomization.yaml").write_text("kind: Kustomization")
    found = {name: ImageRef(f"localhost/{name}", "7", tmp_path) for name in (extras.KEDA, extras.KEDA_ADAPTER)}
    objects = extras.keda_objects(tmp_path, found)
    assert [one["kind"] for one in objects] == ["Deployment", "Deployment"]
    containers = [one["spec"]["template"]["spec"]["containers"][0] for one in objects]
    assert [one["image"] for one in containers] == ["localhost/keda:7", "localhost/keda-adapter:7"]
    assert all(one["spec"]["template"]["spec"]["securityContext"]["runAsUser"] for one in objects)
    assert all(one["readinessProbe"]["initialDelaySeconds"] == 0 for one in containers)
