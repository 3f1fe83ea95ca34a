"""podTemplate: what of it is allowed, and how it is laid over a pod.

An allow-list: a field that is not named here is refused with its path, so that a pod can never get more rights than the
installation's policy gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mms_operator.api import names
from mms_operator.plan.objects import CONTAINER_SECURITY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mms_operator.plan.types import Object, PodPolicy

_FREE_POD_FIELDS = frozenset(
    {
        "affinity", "imagePullSecrets", "nodeSelector", "priorityClassName", "schedulerName", "tolerations",
        "topologySpreadConstraints",
    }
)  # fmt: skip
_HOST_FIELDS = frozenset({"hostNetwork", "hostPID", "hostIPC"})
_MAIN_FIELDS = frozenset({"name", "env", "envFrom", "resources", "volumeMounts"})
_SIDECAR_FIELDS = _MAIN_FIELDS | {
    "args", "command", "image", "imagePullPolicy", "livenessProbe", "ports", "readinessProbe", "securityContext",
    "startupProbe", "workingDir",
}  # fmt: skip
_SECURITY_FIELDS = frozenset({"readOnlyRootFilesystem", "runAsGroup", "runAsUser"})  # free: they take rights away
_OWN_LABELS = (f"{names.GROUP}/", "app.kubernetes.io/")
_OWN_ENV = ("MMS_",)


def violations(field: str, template: Object | None, policy: PodPolicy, own_containers: tuple[str, ...]) -> list[str]:
    """What of a podTemplate is refused, and why. `own_containers` are the names of the pods' own containers."""
    if template is None:
        return []
    found = [
        *_unknown(field, template, {"metadata", "spec"}),
        *_metadata(f"{field}.metadata", template.get("metadata") or {}),
    ]
    path = f"{field}.spec"
    for key, value in (template.get("spec") or {}).items():
        if key == "containers":
            found += _containers(f"{path}.containers", value, policy, own_containers)
        elif key == "volumes":
            found += _volumes(f"{path}.volumes", value, policy)
        else:
            found += _pod_field(path, key, value, policy)
    return found


def _pod_field(path: str, key: str, value: Any, policy: PodPolicy) -> list[str]:
    named = {
        "serviceAccountName": (policy.service_accounts, "serviceAccounts"),
        "runtimeClassName": (policy.runtime_classes, "runtimeClasses"),
    }
    if key in named:
        allowed, setting = named[key]
        return [] if value in allowed else [f"{path}.{key} {value!r} is not among the installation's policy.{setting}"]
    if key in _HOST_FIELDS:
        allowed_here = policy.allow_host_namespaces or not value
        return [] if allowed_here else [f"{path}.{key} needs the installation's policy.allowHostNamespaces"]
    return [] if key in _FREE_POD_FIELDS else [f"{path}.{key} is no field that a podTemplate may set"]


def overlay(pod: Object, template: Object | None, main: str, *, sidecars: bool, resources: bool) -> Object:
    """The pod with an accepted template laid over it. `main` names the container that `containers` entries may change.

    `resources`: whether those of the main container are taken; `sidecars`: whether further containers are added.
    """
    if not template:
        return pod
    metadata, spec = template.get("metadata") or {}, template.get("spec") or {}
    merged_metadata = dict(pod["metadata"])
    for key in ("labels", "annotations"):
        if metadata.get(key):
            merged_metadata[key] = {**metadata[key], **pod["metadata"].get(key, {})}
    merged = dict(pod["spec"])
    for key, value in spec.items():
        if key in {"volumes", "imagePullSecrets"}:
            merged[key] = [*merged.get(key, []), *value]
        elif key != "containers":
            merged[key] = value
    given = {container["name"]: container for container in spec.get("containers") or []}
    own = {container["name"] for container in _own(pod)}
    for group in ("initContainers", "containers"):
        if group in merged:
            merged[group] = [
                _merge(container, given.get(container["name"], {}), resources=resources or container["name"] != main)
                for container in merged[group]
            ]
    if sidecars:
        added = [_sidecar(container) for name, container in given.items() if name not in own and name != main]
        merged["containers"] = [*merged["containers"], *added]
    return {**pod, "metadata": merged_metadata, "spec": merged}


def _own(pod: Object) -> Iterator[Object]:
    yield from pod["spec"].get("initContainers", [])
    yield from pod["spec"]["containers"]


def _merge(container: Object, given: Object, *, resources: bool) -> Object:
    merged = dict(container)
    for key in ("env", "envFrom", "volumeMounts"):
        if given.get(key):
            merged[key] = [*container.get(key, []), *given[key]]
    if resources and given.get("resources"):
        merged["resources"] = given["resources"]
    return merged


def _sidecar(container: Object) -> Object:
    security = {**CONTAINER_SECURITY, **container.get("securityContext", {})}
    return {"imagePullPolicy": "IfNotPresent", **container, "securityContext": security}


def _unknown(path: str, value: Object, allowed: set[str]) -> list[str]:
    return [f"{path}.{key} is no field that a podTemplate may set" for key in value if key not in allowed]


def _metadata(path: str, metadata: Object) -> list[str]:
    found = _unknown(path, metadata, {"labels", "annotations"})
    for kind in ("labels", "annotations"):
        found += [
            f"{path}.{kind}: {key} is set by the operator"
            for key in metadata.get(kind) or {}
            if key.startswith(_OWN_LABELS)
        ]
    return found


def _volumes(path: str, volumes: Any, policy: PodPolicy) -> list[str]:
    found = []
    for number, volume in enumerate(volumes or []):
        for kind in volume.keys() - {"name"}:
            if kind == "hostPath":
                if not policy.allow_host_path:
                    found.append(f"{path}[{number}].hostPath needs the installation's policy.allowHostPath")
            elif kind not in policy.volume_kinds:
                kinds = ", ".join(policy.volume_kinds)
                found.append(f"{path}[{number}].{kind} is not among the installation's policy.volumeKinds ({kinds})")
    return found


def _containers(path: str, containers: Any, policy: PodPolicy, own: tuple[str, ...]) -> list[str]:
    found = []
    for number, container in enumerate(containers or []):
        here, name = f"{path}[{number}]", container.get("name")
        if not name:
            found.append(f"{here}.name is missing: {' or '.join(own)} for our own container, another for a sidecar")
            continue
        allowed = _MAIN_FIELDS if name in own else _SIDECAR_FIELDS
        what = f"of container {name}" if name in own else "of a sidecar"
        found += [f"{here}.{key} {what} may not be set" for key in container if key not in allowed]
        if name not in own and not container.get("image"):
            found.append(f"{here}.image is missing; our own containers are called {' and '.join(own)}")
        if name in own:
            found += [
                f"{here}.env: {variable['name']} is set by the operator"
                for variable in container.get("env") or []
                if variable.get("name", "").startswith(_OWN_ENV)
            ]
        found += _security(f"{here}.securityContext", container.get("securityContext") or {}, policy)
    return found


def _security(path: str, context: Object, policy: PodPolicy) -> list[str]:
    if policy.allow_privileged:
        return []
    return [
        f"{path}.{key} needs the installation's policy.allowPrivileged"
        for key, value in context.items()
        if key not in _SECURITY_FIELDS and CONTAINER_SECURITY.get(key) != value
    ] + (
        [f"{path}.runAsUser 0 needs the installation's policy.allowPrivileged"] if context.get("runAsUser") == 0 else []
    )
