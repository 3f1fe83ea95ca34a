"""podTemplate: what of it is allowed, and how it is laid over a pod.

An allow-list: a field that is not named here is refused with its path, so that a pod can never get more rights than the
installation's policy gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mms_operator.api import names
from mms_operator.plan.objects import CONTAINER_SECURITY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_SECURITY_FIELDS = frozenset({"readOnlyRootFilesystem", "runAsGroup", "runAsUser"})  # free: they take rights away
# What the restricted pod security standard asks for, and holds anyway.
_RESTRICTED: Object = {
    **CONTAINER_SECURITY,
    "privileged": False,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_OWN_LABELS = (f"{names.GROUP}/", "app.kubernetes.io/")
_OWN_ENV = ("MMS_",)


def violations(
    field: str,
    template: Object | None,
    policy: PodPolicy,
    own_containers: tuple[str, ...],
    own_volumes: Mapping[str, str],
    *,
    own_variables: tuple[str, ...] = (),
) -> list[str]:
    """What of a podTemplate is refused, and why.

    `own_containers` are the names of the pods' own containers, `own_volumes` those of their volumes with where they are
    mounted, `own_variables` how variables of the environment begin that the operator sets besides MMS_.
    """
    if template is None:
        return []
    if wrong := _shapes(field, template):
        return wrong
    found = [
        *_unknown(field, template, {"metadata", "spec"}),
        *_metadata(f"{field}.metadata", template.get("metadata") or {}),
    ]
    path = f"{field}.spec"
    for key, value in (template.get("spec") or {}).items():
        if key == "containers":
            found += _containers(f"{path}.containers", value, policy, own_containers, (*_OWN_ENV, *own_variables))
            found += _mounts(f"{path}.containers", value, own_containers, own_volumes)
        elif key == "volumes":
            found += _volumes(f"{path}.volumes", value, policy, own_volumes)
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


def overlay(pod: Object, template: Object | None, *, sidecars: bool) -> Object:
    """The pod with an accepted template laid over it. `sidecars`: whether containers that it has not are added."""
    if not template:
        return pod
    metadata, spec = template.get("metadata") or {}, template.get("spec") or {}
    merged_metadata = dict(pod["metadata"])
    for key in ("labels", "annotations"):
        if metadata.get(key):
            merged_metadata[key] = {**metadata[key], **pod["metadata"].get(key, {})}
    merged = dict(pod["spec"])
    for key, value in spec.items():
        if key in {"volumes", "imagePullSecrets", "tolerations"}:
            merged[key] = [*merged.get(key, []), *value]
        elif key != "containers":
            merged[key] = value
    given = {container["name"]: container for container in spec.get("containers") or []}
    own = {container["name"] for container in _own(pod)}
    for group in ("initContainers", "containers"):
        if group in merged:
            merged[group] = [_merge(container, given.get(container["name"], {})) for container in merged[group]]
    if sidecars:
        added = [_sidecar(container) for name, container in given.items() if name not in own]
        merged["containers"] = [*merged["containers"], *added]
    return {**pod, "metadata": merged_metadata, "spec": merged}


def _own(pod: Object) -> Iterator[Object]:
    yield from pod["spec"].get("initContainers", [])
    yield from pod["spec"]["containers"]


def _merge(container: Object, given: Object) -> Object:
    merged = dict(container)
    if given.get("env"):
        names = {variable.get("name") for variable in given["env"]}
        kept = [variable for variable in container.get("env", []) if variable["name"] not in names]
        merged["env"] = [*kept, *given["env"]]
    for key in ("envFrom", "volumeMounts"):
        if given.get(key):
            merged[key] = [*container.get(key, []), *given[key]]
    if given.get("resources"):
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


def _volumes(path: str, volumes: Any, policy: PodPolicy, own: Mapping[str, str]) -> list[str]:
    found = []
    for number, volume in enumerate(volumes or []):
        if volume.get("name") in own:
            found.append(f"{path}[{number}].name {volume['name']} is a volume of ours: give it another name")
        sources = (volume.get("projected") or {}).get("sources") or []
        if any("serviceAccountToken" in source for source in sources) and not policy.service_accounts:
            found.append(
                f"{path}[{number}].projected with a serviceAccountToken needs the installation's policy.serviceAccounts"
            )
        for kind in volume.keys() - {"name"}:
            if kind == "hostPath":
                if not policy.allow_host_path:
                    found.append(f"{path}[{number}].hostPath needs the installation's policy.allowHostPath")
            elif kind not in policy.volume_kinds:
                kinds = ", ".join(policy.volume_kinds)
                found.append(f"{path}[{number}].{kind} is not among the installation's policy.volumeKinds ({kinds})")
    return found


def _containers(
    path: str, containers: Any, policy: PodPolicy, own: tuple[str, ...], variables: tuple[str, ...]
) -> list[str]:
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
                if _is_of(variables, variable.get("name", ""))
            ]
        found += _security(f"{here}.securityContext", container.get("securityContext") or {}, policy)
        if name not in own and not policy.allow_host_namespaces:
            found += _of_the_host(here, container)
    return found


def _of_the_host(path: str, container: Object) -> list[str]:
    """Where a sidecar would use the node's network: its ports, or the kubelet's way to anywhere in place of a probe."""
    found = [
        f"{path}.ports[{number}].{key}"
        for number, port in enumerate(container.get("ports") or [])
        for key in ("hostPort", "hostIP")
        if port.get(key)
    ]
    found += [
        f"{path}.{probe}.{way}.host"
        for probe in _PROBES
        for way in ("httpGet", "tcpSocket")
        if ((container.get(probe) or {}).get(way) or {}).get("host")
    ]
    return [f"{one} needs the installation's policy.allowHostNamespaces: leave it out, or allow that" for one in found]


def _is_of(variables: tuple[str, ...], name: str) -> bool:
    return name in variables or name.startswith(tuple(prefix for prefix in variables if prefix.endswith("_")))


def _mounts(path: str, containers: Any, own: tuple[str, ...], own_volumes: Mapping[str, str]) -> list[str]:
    """Mounts of our own containers that would hide what we mount."""
    ours = set(own_volumes.values())
    return [
        f"{path}[{number}].volumeMounts: {mount['mountPath']} is where a volume of ours is: mount it elsewhere"
        for number, container in enumerate(containers or [])
        if container.get("name") in own
        for mount in container.get("volumeMounts") or []
        if str(mount.get("mountPath", "")).rstrip("/") in ours
    ]


_LISTS = ("containers", "volumes", "tolerations", "topologySpreadConstraints", "imagePullSecrets")
_EXAMPLES = dict.fromkeys(("env", "envFrom", "volumeMounts"), "{name: ..., value: ...}") | {
    "ports": "{containerPort: ...}"
}  # of what a container's lists have
_CONTAINER_LISTS = ("env", "envFrom", "volumeMounts", "ports", "command", "args")


def _shapes(field: str, template: Object) -> list[str]:
    """Where an object or a list was meant and something else is written: the commonest mistake."""
    found = [
        f"{field}.{key} must be an object with fields"
        for key in ("metadata", "spec")
        if _is_no(dict, template.get(key))
    ]
    if found:
        return found
    metadata, spec = template.get("metadata") or {}, template.get("spec") or {}
    found = [
        f"{field}.metadata.{key} must be an object of names and texts"
        for key in ("labels", "annotations")
        if _is_no(dict, metadata.get(key))
    ]
    for key in _LISTS:
        if _is_no(list, spec.get(key)) or any(not isinstance(item, dict) for item in spec.get(key) or ()):
            found.append(f"{field}.spec.{key} must be a list of objects, each beginning with a dash")
    if found:
        return found
    for number, container in enumerate(spec.get("containers") or ()):
        path = f"{field}.spec.containers[{number}]"
        found += [f"{path}.{key} must be a list" for key in _CONTAINER_LISTS if _is_no(list, container.get(key))]
        found += [
            f"{path}.{key} must be a list of objects, such as {example}"
            for key, example in _EXAMPLES.items()
            if isinstance(container.get(key), list) and any(not isinstance(item, dict) for item in container[key])
        ]
        found += [
            f"{path}.{key} must be an object with fields"
            for key in ("securityContext", *_PROBES)
            if _is_no(dict, container.get(key))
        ]
        found += [
            f"{path}.{probe}.{way} must be an object with fields"
            for probe in _PROBES
            for way in ("httpGet", "tcpSocket")
            if isinstance(container.get(probe), dict) and _is_no(dict, container[probe].get(way))
        ]
    return found


def _is_no(kind: type, value: Any) -> bool:
    return value is not None and not isinstance(value, kind)


def _security(path: str, context: Object, policy: PodPolicy) -> list[str]:
    if policy.allow_privileged:
        return []
    return [
        f"{path}.{key} needs the installation's policy.allowPrivileged"
        for key, value in context.items()
        if key not in _SECURITY_FIELDS and _RESTRICTED.get(key) != value
    ] + (
        [f"{path}.runAsUser 0 needs the installation's policy.allowPrivileged"] if context.get("runAsUser") == 0 else []
    )
