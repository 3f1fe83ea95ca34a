"""What a podTemplate may do, and what comes of it."""

from __future__ import annotations

from typing import Any

import pytest

from mms_operator.plan import pod_template
from mms_operator.plan.types import PodPolicy

NONE = PodPolicy()
ALL = PodPolicy(
    allow_host_path=True, allow_host_namespaces=True, allow_privileged=True, service_accounts=("s3",),
    runtime_classes=("gvisor",), volume_kinds=("nfs", "projected"),
)  # fmt: skip
OWN = ("worker", "master")
VOLUMES = {"job": "/etc/mms", "tmp": "/tmp"}


def refused(template: dict[str, Any], policy: PodPolicy = NONE) -> list[str]:
    return pod_template.violations("t", template, policy, OWN, VOLUMES)


def sidecar(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "x", "image": "y", **fields}]}}


ALLOWED = {
    "scheduling": {"spec": {"nodeSelector": {"a": "b"}, "tolerations": [{}], "affinity": {}, "schedulerName": "x"}},
    "metadata": {"metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}}},
    "volumes": {"spec": {"volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "a"}}]}},
    "own container": {"spec": {"containers": [{"name": "worker", "env": [{"name": "A", "value": "b"}]}]}},
    "sidecar": {"spec": {"containers": [{"name": "log", "image": "x", "command": ["y"], "ports": []}]}},
    "fewer rights": {"spec": {"containers": [{"name": "log", "image": "x", "securityContext": {"runAsUser": 5}}]}},
    "what the restricted standard asks for": sidecar(
        securityContext={
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
    ),
    "a probe of the pod itself": sidecar(
        ports=[{"containerPort": 80, "hostPort": 0}], readinessProbe={"httpGet": {"port": 80, "host": ""}}
    ),
    "host namespaces off": {"spec": {"hostNetwork": False}},
}

FORBIDDEN = {
    "host network": ({"spec": {"hostNetwork": True}}, "t.spec.hostNetwork needs"),
    "host pid": ({"spec": {"hostPID": True}}, "t.spec.hostPID needs"),
    "host path": ({"spec": {"volumes": [{"name": "a", "hostPath": {}}]}}, "t.spec.volumes[0].hostPath needs"),
    "volume kind": ({"spec": {"volumes": [{"name": "a", "nfs": {}}]}}, "t.spec.volumes[0].nfs is not among"),
    "service account": ({"spec": {"serviceAccountName": "s3"}}, "t.spec.serviceAccountName 's3' is not among"),
    "token": (
        {"spec": {"volumes": [{"name": "a", "projected": {"sources": [{"serviceAccountToken": {}}]}}]}},
        "t.spec.volumes[0].projected with a serviceAccountToken needs",
    ),
    "runtime class": ({"spec": {"runtimeClassName": "gvisor"}}, "t.spec.runtimeClassName 'gvisor' is not among"),
    "privileged": (
        {"spec": {"containers": [{"name": "x", "image": "y", "securityContext": {"privileged": True}}]}},
        "t.spec.containers[0].securityContext.privileged needs",
    ),
    "capabilities": (
        {"spec": {"containers": [{"name": "x", "image": "y", "securityContext": {"capabilities": {"add": ["A"]}}}]}},
        "t.spec.containers[0].securityContext.capabilities needs",
    ),
    "root": (
        {"spec": {"containers": [{"name": "x", "image": "y", "securityContext": {"runAsUser": 0}}]}},
        "t.spec.containers[0].securityContext.runAsUser 0 needs",
    ),
    "root by another name": (
        sidecar(securityContext={"runAsNonRoot": False}), "t.spec.containers[0].securityContext.runAsNonRoot needs",
    ),
    "another seccomp profile": (
        sidecar(securityContext={"seccompProfile": {"type": "Unconfined"}}),
        "t.spec.containers[0].securityContext.seccompProfile needs",
    ),
    "host port": (
        sidecar(ports=[{"containerPort": 1}, {"containerPort": 2, "hostPort": 2}]),
        "t.spec.containers[0].ports[1].hostPort needs the installation's policy.allowHostNamespaces",
    ),
    "host address": (
        sidecar(ports=[{"containerPort": 1, "hostIP": "10.0.0.1"}]), "t.spec.containers[0].ports[0].hostIP needs",
    ),
    "probe of another host": (
        sidecar(livenessProbe={"httpGet": {"port": 80, "host": "169.254.169.254"}}),
        "t.spec.containers[0].livenessProbe.httpGet.host needs",
    ),
    "connection to another host": (
        sidecar(startupProbe={"tcpSocket": {"port": 22, "host": "10.0.0.1"}}),
        "t.spec.containers[0].startupProbe.tcpSocket.host needs",
    ),
}  # fmt: skip

NEVER = {
    "unknown": ({"spec": {"hostname": "x"}}, "t.spec.hostname is no field"),
    "init containers": ({"spec": {"initContainers": []}}, "t.spec.initContainers is no field"),
    "top level": ({"kind": "Pod"}, "t.kind is no field"),
    "name": ({"metadata": {"name": "x"}}, "t.metadata.name is no field"),
    "our label": ({"metadata": {"labels": {"mms.dev/rank": "9"}}}, "mms.dev/rank is set by the operator"),
    "our image": ({"spec": {"containers": [{"name": "worker", "image": "x"}]}}, ".image of container worker"),
    "our command": ({"spec": {"containers": [{"name": "master", "command": []}]}}, ".command of container master"),
    "our environment": (
        {"spec": {"containers": [{"name": "worker", "env": [{"name": "MMS_RANK", "value": "9"}]}]}},
        "MMS_RANK is set by the operator",
    ),
    "our volume": ({"spec": {"volumes": [{"name": "job", "emptyDir": {}}]}}, "job is a volume of ours"),
    "our folder": (
        {"spec": {"containers": [{"name": "worker", "volumeMounts": [{"name": "a", "mountPath": "/tmp/"}]}]}},
        "/tmp/ is where a volume of ours is",
    ),
    "env as an object": ({"spec": {"containers": [{"name": "worker", "env": {"A": "b"}}]}}, "env must be a list"),
    "env of texts": ({"spec": {"containers": [{"name": "worker", "env": ["A=b"]}]}}, "such as {name: ..., value: ...}"),
    "ports as numbers": (sidecar(ports=[80]), "ports must be a list of objects"),
    "probe as a text": (sidecar(livenessProbe="/healthz"), "livenessProbe must be an object"),
    "probe's way as a text": (sidecar(livenessProbe={"httpGet": "/healthz"}), "httpGet must be an object"),
    "volumes as an object": ({"spec": {"volumes": {"a": {}}}}, "t.spec.volumes must be a list of objects"),
    "containers as texts": ({"spec": {"containers": ["worker"]}}, "t.spec.containers must be a list of objects"),
    "spec as a list": ({"spec": []}, "t.spec must be an object"),
    "metadata as a text": ({"metadata": "x"}, "t.metadata must be an object"),
    "labels as a list": ({"metadata": {"labels": ["a"]}}, "t.metadata.labels must be an object"),
    "sidecar without image": ({"spec": {"containers": [{"name": "x"}]}}, "t.spec.containers[0].image is missing"),
    "container without name": ({"spec": {"containers": [{"image": "x"}]}}, "t.spec.containers[0].name is missing"),
    "sidecar lifecycle": ({"spec": {"containers": [{"name": "x", "image": "y", "lifecycle": {}}]}}, "lifecycle of a"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_allowed(case: str) -> None:
    assert refused(ALLOWED[case]) == []


@pytest.mark.parametrize("case", FORBIDDEN)
def test_forbidden_unless_the_policy_allows_it(case: str) -> None:
    template, words = FORBIDDEN[case]
    assert [said for said in refused(template) if said.startswith(words)], refused(template)
    assert refused(template, ALL) == []


@pytest.mark.parametrize("case", NEVER)
def test_never_allowed(case: str) -> None:
    template, words = NEVER[case]
    for policy in (NONE, ALL):
        assert [said for said in refused(template, policy) if words in said], refused(template, policy)


def test_no_template() -> None:
    assert pod_template.violations("t", None, NONE, OWN, VOLUMES) == []


POD = {
    "metadata": {"name": "p", "labels": {"mms.dev/role": "worker"}},
    "spec": {
        "volumes": [{"name": "job"}],
        "containers": [{"name": "worker", "image": "i", "env": [{"name": "MMS_RANK", "value": "0"}], "resources": {}}],
    },
}
TEMPLATE = {
    "metadata": {"labels": {"team": "a", "mms.dev/role": "x"}, "annotations": {"n": "b"}},
    "spec": {
        "nodeSelector": {"gpu": "yes"},
        "volumes": [{"name": "extra", "emptyDir": {}}],
        "containers": [
            {
                "name": "worker",
                "env": [{"name": "A", "value": "b"}],
                "volumeMounts": [{"name": "extra", "mountPath": "/extra"}],
                "resources": {"limits": {"memory": "1Gi"}},
            },
            {"name": "log", "image": "x", "securityContext": {"runAsUser": 5}},
        ],
    },
}


def test_overlay() -> None:
    found = pod_template.overlay(POD, TEMPLATE, sidecars=True)
    assert found["metadata"] == {
        "name": "p", "labels": {"team": "a", "mms.dev/role": "worker"}, "annotations": {"n": "b"},
    }  # fmt: skip
    assert found["spec"]["nodeSelector"] == {"gpu": "yes"}
    assert [volume["name"] for volume in found["spec"]["volumes"]] == ["job", "extra"]
    worker, log = found["spec"]["containers"]
    assert [variable["name"] for variable in worker["env"]] == ["MMS_RANK", "A"]
    assert worker["resources"] == {"limits": {"memory": "1Gi"}}
    assert log["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        "runAsUser": 5,
    }  # fmt: skip
    assert POD["spec"]["volumes"] == [{"name": "job"}], "what it was given is as it was"


def test_overlay_without_sidecars() -> None:
    found = pod_template.overlay(POD, TEMPLATE, sidecars=False)
    (worker,) = found["spec"]["containers"]
    assert len(worker["env"]) == 2
