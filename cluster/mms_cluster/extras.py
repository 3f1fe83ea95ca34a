"""Components of others that a test asks for: built from their Go modules, installed by the charts in these.

No part of `up`: a cluster has them from the first time on that they are asked for.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import yaml

from mms_cluster import gobuild, images, up
from mms_cluster.errors import ClusterError
from mms_cluster.images_plan import ImageRef, image_name
from mms_cluster.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mms_cluster.gobuild import Program
    from mms_cluster.provider import Provider

METRICS = "metrics-server"
METRICS_API = "v1beta1.metrics.k8s.io"
GATEWAY = "gateway"
GATEWAY_NAMESPACE = "envoy-gateway-system"
GATEWAY_CLASS = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "GatewayClass",
    "metadata": {"name": "envoy"},
    "spec": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
}
KEDA, KEDA_ADAPTER = "keda", "keda-adapter"  # the first is its namespace, too
KEDA_API = "v1beta1.external.metrics.k8s.io"
# Of the webhook there is the configuration alone, which the operator writes its authority into: it is ignored.
KEDA_FOLDERS = ("crd/bases", "general", "service_account", "rbac", "manager", "metrics-server", "webhooks")
KEDA_LEFT_OUT = frozenset({"kustomization.yaml", "webhooks.yaml"})
KEDA_USER = 65532  # any but root
KINDS_FIRST = frozenset({"CustomResourceDefinition", "Namespace"})


def metrics(cluster: Provider, report: Reporter | None = None) -> None:
    """What pods and nodes use of CPU and memory, every 10 s: what `kubectl top` and the HPA ask for.

    A cluster of the user's that has it keeps its own. Raises ClusterError where it has none.
    """
    report = report or Reporter()
    if cluster.borrowed:
        if _kubectl(cluster, "get", "apiservice", METRICS_API, check=False).returncode:
            raise ClusterError(f"{cluster.description} has no metrics API: install metrics-server there.")
        return
    image = _image(gobuild.METRICS, METRICS, f"/{METRICS}", report)
    cluster.load({METRICS: image})
    with report.step("installing metrics-server"):
        _install(cluster, METRICS, "kube-system", _chart(gobuild.METRICS, METRICS), metrics_values(image))
        _kubectl(cluster, "wait", "--for=condition=Available", f"apiservice/{METRICS_API}", "--timeout=60s")


def metrics_values(image: ImageRef) -> dict[str, Any]:
    """The chart's values. Kubelets of kind sign their own certificates; 10 s is the least that it takes."""
    probe = {"httpGet": {"path": "/readyz", "port": "https", "scheme": "HTTPS"}, "periodSeconds": 2}
    return {
        "image": {"repository": image.name, "tag": image.tag},
        "args": ["--kubelet-insecure-tls", "--metric-resolution=10s", "--kubelet-request-timeout=5s"],
        "readinessProbe": {**probe, "initialDelaySeconds": 0, "failureThreshold": 30},
        "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}},
    }


def gateway(cluster: Provider, report: Reporter | None = None) -> None:
    """Envoy Gateway, with the Gateway API's kinds and the GatewayClass `envoy`. Gateways have addresses in the cluster.

    On a cluster of the user's the class must be there: raises ClusterError where it is not.
    """
    report = report or Reporter()
    if cluster.borrowed:
        if _kubectl(cluster, "get", "gatewayclass", "envoy", check=False).returncode:
            raise ClusterError(f"{cluster.description} has no GatewayClass envoy: install Envoy Gateway there.")
        return
    control = _image(gobuild.GATEWAY, GATEWAY, "/usr/local/bin/envoy-gateway", report)
    envoy = images.build(("envoy",), report)["envoy"]
    cluster.load({GATEWAY: control, "envoy": envoy})
    chart = _chart(gobuild.GATEWAY, "gateway-helm")
    with report.step("installing Envoy Gateway"):
        # The module has the chart's values as a template, in which only the images are left open.
        usual = ("--values", str(chart / "values.tmpl.yaml"))
        _install(cluster, GATEWAY, GATEWAY_NAMESPACE, chart, gateway_values(control, envoy), *usual)
        _kubectl(cluster, "apply", "--server-side", "-f", "-", text=json.dumps(GATEWAY_CLASS))


def gateway_values(control: ImageRef, envoy: ImageRef) -> dict[str, Any]:
    """The chart's values: these images, no webhook that tells Envoy its zone, and no address outside the cluster."""
    found = {"envoyGateway": control.reference, "envoyProxy": envoy.reference}
    requests = {"requests": {"cpu": "50m", "memory": "128Mi"}}
    kubernetes = {"envoyService": {"type": "ClusterIP"}, "envoyDeployment": {"container": {"resources": requests}}}
    proxy = {"concurrency": 1, "provider": {"type": "Kubernetes", "kubernetes": kubernetes}}
    return {
        "global": {"images": {name: {"image": image, "pullPolicy": "IfNotPresent"} for name, image in found.items()}},
        "deployment": {"envoyGateway": {"resources": requests}},
        "config": {"envoyGateway": {"envoyProxy": proxy}},
        "topologyInjector": {"enabled": False},
    }


def keda(cluster: Provider, report: Reporter | None = None) -> None:
    """KEDA, without its admission webhook. On a cluster of the user's: raises ClusterError where it is not there."""
    report = report or Reporter()
    if cluster.borrowed:
        if _kubectl(cluster, "get", "crd", "scaledobjects.keda.sh", check=False).returncode:
            raise ClusterError(f"{cluster.description} has no ScaledObject: install KEDA there.")
        return
    found = {
        KEDA: _image(gobuild.KEDA, KEDA, "/keda", report),
        KEDA_ADAPTER: _image(gobuild.KEDA_ADAPTER, KEDA_ADAPTER, "/usr/local/bin/keda-adapter", report),
    }
    cluster.load(found)
    with report.step("installing KEDA"):
        try:
            _install_keda(cluster, keda_objects(gobuild.module(gobuild.KEDA) / "config", found))
        except ClusterError:
            remove(cluster, KEDA)  # an API that nobody answers would hold up the deletion of every namespace
            raise


def _install_keda(cluster: Provider, objects: list[dict[str, Any]]) -> None:
    for kind in (True, False):  # the kinds first
        text = yaml.safe_dump_all([one for one in objects if (one["kind"] in KINDS_FIRST) is kind])
        _kubectl(cluster, "apply", "--server-side", "--force-conflicts", "-f", "-", text=text)
    for name in ("keda-operator", "keda-metrics-apiserver"):
        _kubectl(cluster, "rollout", "status", f"deployment/{name}", "--namespace", KEDA, "--timeout=3m")
    _kubectl(cluster, "wait", "--for=condition=Available", f"apiservice/{KEDA_API}", "--timeout=2m")


def keda_objects(config: Path, found: Mapping[str, ImageRef]) -> list[dict[str, Any]]:
    """What the module's own configuration installs, with these images, and probes that do not wait for nothing."""
    files = [path for folder in KEDA_FOLDERS for path in sorted((config / folder).glob("*.yaml"))]
    files = [path for path in files if path.name not in KEDA_LEFT_OUT]
    documents = [one for path in files for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]
    for one in documents:
        if one["kind"] == "Deployment":
            pod = one["spec"]["template"]["spec"]
            pod["securityContext"]["runAsUser"] = KEDA_USER  # their images say it themselves
            (container,) = pod["containers"]
            name = KEDA if container["name"] == "keda-operator" else KEDA_ADAPTER
            if name in found:  # what is taken away needs none
                container |= {"image": found[name].reference, "imagePullPolicy": "IfNotPresent"}
            container["resources"] = {"requests": {"cpu": "20m", "memory": "64Mi"}}
            container["readinessProbe"] |= {"initialDelaySeconds": 0, "periodSeconds": 2, "failureThreshold": 30}
    return documents


def remove(cluster: Provider, name: str) -> None:
    """Take away what was added by this name; but the Gateway API's kinds, which the operator watches, and the class."""
    if cluster.borrowed:
        return
    if name == "metrics":
        _helm(cluster, "kube-system", "uninstall", METRICS, "--ignore-not-found", "--wait")
    elif name == KEDA:
        objects = keda_objects(gobuild.module(gobuild.KEDA) / "config", {})
        _kubectl(cluster, "delete", "--ignore-not-found", "-f", "-", text=yaml.safe_dump_all(objects))
    else:
        _helm(cluster, GATEWAY_NAMESPACE, "uninstall", GATEWAY, "--ignore-not-found")
        # Envoy would wait minutes for clients to leave, and meanwhile the namespace could not be used again.
        _kubectl(cluster, "delete", "pods", "--all", "--namespace", GATEWAY_NAMESPACE, "--grace-period=1")
        _kubectl(cluster, "delete", "namespace", GATEWAY_NAMESPACE, "--ignore-not-found")


def _image(program: Program, name: str, path: str, report: Reporter) -> ImageRef:
    """Of one static program. Its tag changes with all that changes the program."""
    built = gobuild.build(program, report)
    full, tag = image_name(name), built.parent.name.rpartition("-")[2]
    return ImageRef(full, tag, up.image(f"{full}:{tag}", path, built))


def _chart(program: Program, name: str) -> Path:
    return gobuild.module(program) / "charts" / name


def _install(cluster: Provider, name: str, namespace: str, chart: Path, values: dict[str, Any], *more: str) -> None:
    """Installs or upgrades the release, and waits for its pods; takes away what does not come up.

    An API that nobody answers would hold up the deletion of every namespace.
    """
    command = ["upgrade", "--install", name, str(chart), "--create-namespace", "--atomic", "--timeout", "3m", *more]
    _helm(cluster, namespace, *command, "--values", "-", text=json.dumps(values))


def _helm(cluster: Provider, namespace: str, *arguments: str, text: str = "") -> None:
    helm = [str(cluster.tools() / "helm"), f"--kubeconfig={cluster.kubeconfig}", "--namespace", namespace]
    _run([*helm, *arguments], text)


def _kubectl(
    cluster: Provider, *arguments: str, text: str = "", check: bool = True
) -> subprocess.CompletedProcess[str]:
    command = [str(cluster.tools() / "kubectl"), f"--kubeconfig={cluster.kubeconfig}", *arguments]
    return _run(command, text, check=check)


def _run(command: list[str], text: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done


EXTRAS = {"gateway": gateway, "keda": keda, "metrics": metrics}
