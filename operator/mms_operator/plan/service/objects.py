"""The objects of a service, as they should be: Triton pods behind a Service. Pure builders."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mms_operator.api import names
from mms_operator.api.autoscaling import Mode
from mms_operator.api.service import Anomalies
from mms_operator.plan import objects, pod_template
from mms_operator.plan.service import edge, live, precision, pretrained
from mms_operator.plan.service.target import CREDENTIALS, location
from mms_operator.plan.training.job import master_host, reader_secret
from mms_workloads import contract

if TYPE_CHECKING:
    from mms_operator.api.service import ServiceSpec
    from mms_operator.api.service_status import ServedVersion
    from mms_operator.plan.stores import Location
    from mms_operator.plan.types import Held, Object, Settings

COMPONENT = "server"
MAIN = "triton"
CONTAINERS = (MAIN, "agent", "fetch", edge.NAME)
MODELS_DIR = "/models"
SERVE_FILE = "serve.json"
ETC = "/etc/mms"
VOLUMES = {"serve": ETC, "models": MODELS_DIR, "tmp": "/tmp", "shm": "/dev/shm", **edge.VOLUMES}  # noqa: S108 - the pod's own
# Until every node has heard that the pod is leaving, and the last gRPC channel has: it lives 10 s, give or take one.
PRE_STOP_SECONDS = 13
EXIT_TIMEOUT_SECONDS = 30  # Triton waits so long for clients to end their connections
GRACE_SECONDS = PRE_STOP_SECONDS + EXIT_TIMEOUT_SECONDS + 10
DIGEST_DIGITS = 12
MEASURE_SECONDS, TUNE_SECONDS = 60.0, 110.0
# Of the three containers, where the spec gives none.
_TRITON = {"requests": {"cpu": "100m", "memory": "256Mi"}}
# An agent's limit is for the moments when it fetches the next version, whose network is tried once then.
_AGENT = {"requests": {"cpu": "20m", "memory": "96Mi"}, "limits": {"memory": "2Gi"}}
# It takes parameters a few times a second, each time while clients wait for the same processors.
_FOLLOWING_AGENT = {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}}
# The kubelet writes an annotation into its file as soon as the pod is changed.
_TOLD = {"wanted": names.ANNOTATION_SERVE, "probe": names.ANNOTATION_PROBE, "live": names.ANNOTATION_LIVE}
_FETCH = {"requests": {"cpu": "50m", "memory": "128Mi"}}


@dataclass(frozen=True)
class Serving(objects.Owner):
    """A custom resource with its spec read."""

    spec: ServiceSpec
    settings: Settings

    @property
    def host(self) -> str:
        return f"{self.name}.{self.namespace}.svc.{self.settings.cluster_domain}"

    @property
    def store_secret(self) -> str:
        return f"{self.name}-serving-store"

    @property
    def selector(self) -> dict[str, str]:
        return {names.LABEL_SERVICE: self.name, names.LABEL_COMPONENT: COMPONENT}

    def location(self, version: ServedVersion) -> Location:
        return location(version, self.settings.default_store, self.store_secret)

    def config_map(self, version: ServedVersion) -> str:
        return f"{self.name}-serve-{short(version.lineage)}"

    def deployment(self, version: ServedVersion) -> str:
        return f"{self.name}-{short(version.lineage)}"

    def of_version(self, version: ServedVersion) -> dict[str, str]:
        """Selects the pods that began with one version: those of two live side by side during a rollout."""
        return {**self.selector, names.LABEL_ARTIFACT: short(version.lineage)}


def template(serving: Serving, version: ServedVersion) -> str:
    """Tells pods apart that may do more or less than others."""
    text = f"{version.lineage} {serving.spec.server.model_dump_json(exclude_defaults=True)}"
    if serving.spec.server.batching.autotune and serving.spec.objective is not None:
        text += f" {serving.spec.objective.latencyP99Milliseconds}"  # another objective has another best way
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_DIGITS]


def short(digest: str) -> str:
    """What tells a version's objects apart from those of another."""
    return contract.short(digest)


def labels(serving: Serving) -> dict[str, str]:
    return objects.labels(names.LABEL_SERVICE, serving.name, COMPONENT)


def batching(serving: Serving) -> contract.Batching:
    """What the spec asks for."""
    server = serving.spec.server
    return contract.Batching(
        preferredBatchSize=server.batching.preferredBatchSize or 0,
        maxQueueDelayMicroseconds=server.batching.maxQueueDelayMicroseconds,
        instances=server.instances,
    )


def measure(serving: Serving) -> contract.Measure:
    """What a pod is to find out of which nobody has measured what it can do."""
    wanted, tunes = serving.spec.objective, serving.spec.server.batching.autotune
    limit = serving.spec.server.resources.limits.get("cpu")
    within = wanted.latencyP99Milliseconds / 1000 if wanted else None
    return contract.Measure(
        limitSeconds=TUNE_SECONDS if tunes else MEASURE_SECONDS,
        processors=_processors(limit) if tunes else None,
        withinSeconds=within,
        objectiveSeconds=within if tunes else None,
    )


def _processors(quantity: str | None) -> int | None:
    """Whole ones of a quantity such as 500m or 2. None where it is no such number."""
    try:
        number = float(quantity[:-1]) / 1000 if quantity and quantity.endswith("m") else float(quantity or "")
    except ValueError:
        return None
    return max(1, math.ceil(number))


def config_map(
    serving: Serving, version: ServedVersion, reference: ServedVersion | None, **more: contract.Contract | None
) -> Object:
    """What its pods begin with. more: other fields of the file."""
    file = serve_file(serving, version, reference).model_copy(update=more)
    text = file.model_dump_json(indent=1, exclude_none=True)
    return _object(serving, "v1", "ConfigMap", serving.config_map(version), data={SERVE_FILE: text})


def serve_file(serving: Serving, version: ServedVersion, reference: ServedVersion | None = None) -> contract.ServeFile:
    """What tells a pod which artifact to serve, and which one to compare its answers with."""
    compared = None
    if reference is not None:
        pin = contract.ArtifactPin(uri=reference.uri, digest=reference.digest)
        compared = contract.Reference(
            artifact=pin, storage=serving.location(reference).store, pretrained=reference.pretrained is not None
        )
    return contract.ServeFile(
        namespace=serving.namespace,
        name=serving.name,
        artifact=contract.ArtifactPin(uri=version.uri, digest=version.digest),
        storage=serving.location(version).store,
        reference=compared,
        live=_source(serving, version),
        anomalies=serving.spec.server.anomalies.value,
        precision=precision.order(serving.spec.server),
        pretrained=pretrained.told(version),
    )


def _source(serving: Serving, version: ServedVersion) -> contract.LiveSource | None:
    """Where the parameters of a run are had that is followed."""
    if not version.live or version.training is None or version.version is None:
        return None
    _, uid, _ = version.digest.split(":")
    host = master_host(version.training, serving.namespace, serving.settings)
    orders = live.orders(serving.spec.rollout, None)
    return contract.LiveSource(masterHost=host, uid=uid, run=version.version, orders=orders)


def store_secret(serving: Serving) -> Object | None:
    default = serving.settings.default_store
    if default is None or not default.access_key_id:
        return None
    return objects.store_secret(
        serving.store_secret, labels(serving), default.access_key_id, default.secret_access_key
    )  # fmt: skip


def service(serving: Serving, route: ServedVersion | None) -> Object:
    """What clients ask. `route`: the only version that answers; None: all of them, by their pods."""
    return _service(serving, serving.name, serving.of_version(route) if route else serving.selector)


def next_service(serving: Serving, version: ServedVersion) -> Object:
    """Leads to the pods of the version that is being rolled out, for those who want to look at it first."""
    return service_of(serving, f"{serving.name}-next", version)


def service_of(serving: Serving, name: str, version: ServedVersion) -> Object:
    """Leads to the pods of one version."""
    return _service(serving, name, serving.of_version(version))


def _service(serving: Serving, name: str, selector: dict[str, str]) -> Object:
    ports = (
        ("http", contract.TRITON_HTTP_PORT),
        ("grpc", contract.TRITON_GRPC_PORT),
        ("metrics", contract.TRITON_METRICS_PORT),
    )
    spec = {
        "selector": selector,
        "ports": [{"name": port, "port": number, "targetPort": port, "protocol": "TCP"} for port, number in ports],
    }
    found = _object(serving, "v1", "Service", name, spec=spec)
    if _by_agent(serving):
        found["metadata"]["labels"][names.LABEL_AGENT] = str(contract.AGENT_PORT)
    return found


def _by_agent(serving: Serving) -> bool:
    """Whether pods are ready as soon as their agents say so: there is no container of the user that has to be."""
    spec = (serving.spec.server.podTemplate or {}).get("spec") or {}
    return all(container.get("name") in CONTAINERS for container in spec.get("containers") or ())


def activated(serving: Serving) -> dict[str, str]:
    """The Services whose clients activators may take, by the EndpointSlices that lead there."""
    services = [serving.name]
    if serving.spec.traffic.gateway is not None:
        services.append(f"{serving.name}-stable")
    return {f"{name}-activator": name for name in services}


def activation(serving: Serving, held: Held, name: str, service: str) -> Object:
    """Leads a Service's clients to the activators, too: while no pod answers they are the only ones that do."""
    family = "IPv6" if ":" in held.addresses[0] else "IPv4"
    addresses = [one for one in held.addresses if (":" in one) == (family == "IPv6")]
    ports = (("http", held.port), ("grpc", held.port + 1))
    found = _object(
        serving, "discovery.k8s.io/v1", "EndpointSlice", name,
        addressType=family,
        endpoints=[{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
        ports=[{"name": port, "port": number, "protocol": "TCP"} for port, number in ports],
    )  # fmt: skip
    found["metadata"]["labels"] |= {
        names.LABEL_SERVICE_NAME: service,
        names.LABEL_SLICE_MANAGED_BY: names.ACTIVATOR,
    }
    return found


def disruption_budget(serving: Serving) -> Object:
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": serving.selector}}
    return _object(serving, "policy/v1", "PodDisruptionBudget", serving.name, spec=spec)


def network_policy(serving: Serving) -> Object:
    """Clients may come from anywhere, to the ports that they ask at; the agent's is for probes and Prometheus."""
    ports: tuple[int, ...] = (
        contract.TRITON_HTTP_PORT,
        contract.TRITON_GRPC_PORT,
        contract.TRITON_METRICS_PORT,
        contract.AGENT_PORT,
    )
    if serving.spec.traffic.sidecar:
        ports = (*ports, contract.EDGE_PORT)
    spec = {
        "podSelector": {"matchLabels": serving.selector},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"port": port, "protocol": "TCP"} for port in ports]}],
    }
    return _object(serving, "networking.k8s.io/v1", "NetworkPolicy", f"{serving.name}-serving", spec=spec)


def deployment(serving: Serving, version: ServedVersion, replicas: int) -> Object:
    """The pods of one version. When their template changes they are replaced one by one, each by one that answers."""
    plain = {"metadata": _pod_metadata(serving, version), "spec": _pod_spec(serving, version)}
    template = pod_template.overlay(plain, serving.spec.server.podTemplate, sidecars=True)
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": serving.of_version(version)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "progressDeadlineSeconds": serving.spec.rollout.progressDeadlineSeconds,
        "revisionHistoryLimit": 2,
        "template": template,
    }
    found = _object(serving, "apps/v1", "Deployment", serving.deployment(version), spec=spec)
    found["metadata"]["annotations"] = {
        names.ANNOTATION_DIGEST: version.lineage,
        names.ANNOTATION_SERVE: version.digest,
    }
    return found


def _pod_metadata(serving: Serving, version: ServedVersion) -> Object:
    annotations = {names.ANNOTATION_DIGEST: version.lineage, **edge.pod_annotations(serving.spec.traffic)}
    asked = batching(serving)
    if asked != contract.Batching():
        annotations[names.ANNOTATION_BATCHING] = asked.model_dump_json()
    wanted = precision.order(serving.spec.server)
    if wanted.wanted != "FP32":
        annotations[names.ANNOTATION_PRECISION] = wanted.model_dump_json()
    if serving.spec.server.anomalies is not Anomalies.REFUSE:
        annotations[names.ANNOTATION_ANOMALIES] = serving.spec.server.anomalies.value
    if serving.spec.autoscaling.mode is Mode.OBJECTIVE:
        annotations[names.ANNOTATION_CAPACITY] = template(serving, version)
    return {"labels": {**labels(serving), **serving.of_version(version)}, "annotations": annotations}


def _pod_spec(serving: Serving, version: ServedVersion) -> Object:
    spec = objects.pod_spec(serving.settings)
    where = serving.location(version)
    sources = [objects.config_source(serving.config_map(version), SERVE_FILE), _told(serving)]
    if where.secret:
        sources.append(objects.credentials_source(where.secret, CREDENTIALS))
    follows = live.uses_reader(serving.spec.rollout, version)
    named = serving.spec.model.trainingRef
    training = version.training if version.live or named is None else named.name
    if follows and training is not None:
        sources.append(_reader_source(training))
    spec |= {
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "initContainers": [_fetch(serving), _agent(serving, follows=follows)],
        "containers": [_triton(serving)],
        "volumes": [
            {"name": "serve", "projected": {"defaultMode": 0o440, "sources": sources}},
            {"name": "models", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            # The python backend passes tensors to the models' processes through it.
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
        ],
    }
    # With one replica, too: scaling must not change the pods.
    spec["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": serving.selector},
        }
    ]
    if serving.spec.traffic.sidecar:
        spec |= {
            "terminationGracePeriodSeconds": edge.grace_seconds(EXIT_TIMEOUT_SECONDS),
            "initContainers": [_fetch(serving), _agent(serving, follows=follows), edge.behind(_triton(serving))],
            "containers": [edge.container(serving.spec, _container(serving, edge.NAME, edge.MODULE, edge.RESOURCES))],
            "volumes": [*spec["volumes"], *edge.volumes(serving.spec.traffic)],
        }
    return spec


def _told(serving: Serving) -> Object:
    """What a running pod hears."""
    analysis = serving.spec.rollout.analysis
    sampled = {"inputs": names.ANNOTATION_INPUTS} if analysis and analysis.liveInputs else {}
    items = [
        {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
        for path, annotation in (_TOLD | sampled).items()
    ]
    return {"downwardAPI": {"items": items}}


def _fetch(serving: Serving) -> Object:
    return _container(serving, "fetch", "mms_workloads.serve.fetch", _FETCH)


def _reader_source(training: str) -> Object:
    """Pods outlive the training, and its Secret."""
    folder = contract.READER_TLS_DIR.removeprefix(f"{ETC}/")
    items = [{"key": key, "path": f"{folder}/{key}"} for key in ("tls.crt", "tls.key", "ca.crt")]
    return {"secret": {"name": reader_secret(training), "optional": True, "items": items}}


def _agent(serving: Serving, *, follows: bool) -> Object:
    """A native sidecar: it starts before Triton and ends after it."""
    container = _container(serving, "agent", "mms_workloads.serve.agent", _FOLLOWING_AGENT if follows else _AGENT)
    if serving.spec.traffic.sidecar:
        container["env"] = edge.environment()
    return {
        **container,
        "restartPolicy": "Always",
        "ports": [{"name": "agent", "containerPort": contract.AGENT_PORT}],
        # Whoever waits for a pod that starts waits for this, too.
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": "agent"},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "agent"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
    }


def _triton(serving: Serving) -> Object:
    resources = serving.spec.server.resources.model_dump(exclude_defaults=True)
    container = _container(serving, MAIN, "mms_workloads.serve.triton", resources or _TRITON)
    environment = [{"name": "MMS_EXIT_TIMEOUT_SECONDS", "value": str(EXIT_TIMEOUT_SECONDS)}]
    if serving.spec.objective is not None:
        environment.append({"name": "MMS_SUMMARIES", "value": "true"})
    # Certificates and the store's keys are the agent's: what answers clients needs none.
    own = [mount for mount in container["volumeMounts"] if mount["name"] != "serve"]
    mounts = [*own, {"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108 - the pod's own
    return {
        **container,
        "env": environment,
        "ports": [
            {"name": "http", "containerPort": contract.TRITON_HTTP_PORT},
            {"name": "grpc", "containerPort": contract.TRITON_GRPC_PORT},
            {"name": "metrics", "containerPort": contract.TRITON_METRICS_PORT},
        ],
        # The agent, which is part of the same pod, is not ready unless all models are: the server's own readiness goes
        # false while any version loads, and stays so after a failed load.
        "readinessProbe": {
            "httpGet": {"path": "/v2/health/live", "port": "http"},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
        },
        "startupProbe": {
            "httpGet": {"path": "/v2/health/live", "port": "http"},
            "periodSeconds": 1,
            "failureThreshold": 120,
        },
        "livenessProbe": {
            "httpGet": {"path": "/v2/health/live", "port": "http"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP_SECONDS)]}}},
        "volumeMounts": mounts,
    }


def _container(serving: Serving, name: str, module: str, resources: Any) -> dict[str, Any]:
    images = serving.settings.images
    return {
        "name": name,
        "image": serving.spec.server.image or images.server,
        "imagePullPolicy": images.pull_policy,
        "command": ["python", "-m", module],
        "resources": resources,
        "securityContext": objects.CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "serve", "mountPath": ETC, "readOnly": True},
            {"name": "models", "mountPath": MODELS_DIR},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
        ],
    }


def _object(serving: Serving, api_version: str, kind: str, name: str, **body: Any) -> Object:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "labels": labels(serving)},
        **body,
    }
