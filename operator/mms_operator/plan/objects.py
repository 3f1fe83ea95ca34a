"""Parts that the objects of both kinds share: labels, security, volumes."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mms_operator.api import names
from mms_workloads.contract import SECRET_ACCESS_KEY, SECRET_ACCESS_KEY_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mms_operator.plan.types import Object, Settings

# A node that is lost is marked so after 40 s by default; from then on its pods are waited for this long, not 5 minutes.
LOST_NODE_SECONDS = 5
USER = 10001  # the one that the images are made for

# The restricted pod security standard.
POD_SECURITY: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_CREDENTIAL_KEYS = (SECRET_ACCESS_KEY_ID, SECRET_ACCESS_KEY)


@dataclass(frozen=True)
class Owner:
    """A custom resource that objects are made for."""

    cr: Object

    @property
    def name(self) -> str:
        return str(self.cr["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.cr["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        return str(self.cr["metadata"]["uid"])


def labels(owner_label: str, owner: str, component: str) -> dict[str, str]:
    return {
        names.LABEL_NAME: "mms",
        names.LABEL_INSTANCE: owner,
        names.LABEL_COMPONENT: component,
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_PART_OF: "mms",
        owner_label: owner,
    }


def pod_spec(settings: Settings) -> dict[str, Any]:
    """What every pod has: no access to the Kubernetes API, no rights, the registry's Secrets."""
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        "tolerations": [
            {
                "key": f"node.kubernetes.io/{state}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": LOST_NODE_SECONDS,
            }
            for state in ("not-ready", "unreachable")
        ],
    }
    if settings.images.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.images.pull_secrets]
    return spec


def credentials_source(secret: str, folder: str) -> Object:
    """A source of a projected volume: the keys of a store's Secret as files in credentials/<folder>."""
    items = [{"key": key, "path": f"credentials/{folder}/{key}"} for key in _CREDENTIAL_KEYS]
    return {"secret": {"name": secret, "items": items}}


def config_source(config_map: str, file: str) -> Object:
    return {"configMap": {"name": config_map, "items": [{"key": file, "path": file}]}}


def store_secret(name: str, own_labels: Mapping[str, str], access_key_id: str, secret_access_key: str) -> Object:
    """A copy of the installation's keys beside the pods that use them."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": dict(own_labels)},
        "type": "Opaque",
        "data": {
            SECRET_ACCESS_KEY_ID: b64encode(access_key_id.encode()).decode(),
            SECRET_ACCESS_KEY: b64encode(secret_access_key.encode()).decode(),
        },
    }


def missing_keys(keys: Iterable[str]) -> tuple[str, ...]:
    present = set(keys)
    return tuple(key for key in _CREDENTIAL_KEYS if key not in present)
