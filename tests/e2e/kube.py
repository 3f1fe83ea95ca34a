"""kubectl as the tests use it: apply, read, wait with a deadline."""

from __future__ import annotations

import base64
import json
import subprocess
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import s3fs
import yaml

from mms_operator.cli.forward import port_forward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Object = dict[str, Any]
POLL_SECONDS = 0.5


class RefusedError(Exception):
    """The API server's words."""


@dataclass(frozen=True)
class Kube:
    """One namespace of the cluster in KUBECONFIG."""

    namespace: str

    def run(self, *arguments: str, text: str | None = None) -> str:
        command = ["kubectl", "--namespace", self.namespace, *arguments]
        answer = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if answer.returncode:
            raise RefusedError(answer.stderr.strip())
        return answer.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """kubectl, left running: for what it goes on saying."""
        command = ["kubectl", "--namespace", self.namespace, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def apply(self, *objects: Object) -> None:
        self.run("apply", "-f", "-", text=yaml.safe_dump_all(objects))

    def get(self, kind: str, name: str) -> Object:
        return json.loads(self.run("get", kind, name, "-o", "json"))

    def list(self, kind: str, selector: str = "") -> list[Object]:
        return json.loads(self.run("get", kind, "-l", selector, "-o", "json"))["items"]

    def patch(self, kind: str, name: str, spec: Object) -> None:
        self.run("patch", kind, name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def delete(self, kind: str, name: str, *arguments: str) -> None:
        self.run("delete", kind, name, *arguments)

    def wait(self, kind: str, name: str, until: Callable[[Object], Any], seconds: float, what: str) -> Object:
        """The object once `until` holds for it. Fails with the object's last status and its pods."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.get(kind, name)
            if until(found):
                return found
            if time.monotonic() > deadline:
                pods = self.run("get", "pods", "-o", "wide")
                status = json.dumps(found.get("status", {}), indent=1)
                raise AssertionError(f"{kind}/{name} was not {what} within {seconds:.0f} s\n{status}\n{pods}")
            time.sleep(POLL_SECONDS)

    def wait_none(self, kind: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while left := self.run("get", kind, "-o", "name").split():
            assert time.monotonic() < deadline, f"{left} were not gone within {seconds:.0f} s"
            time.sleep(POLL_SECONDS)

    def wait_phase(self, name: str, phase: str, seconds: float = 180) -> Object:
        def reached(training: Object) -> bool:
            found = training.get("status", {}).get("phase")
            if found == "Failed" and phase != "Failed":
                raise AssertionError(f"{name} failed: {condition(training, 'Failed')}")
            return found == phase

        return self.wait("modeltraining", name, reached, seconds, phase)

    def wait_condition(
        self, kind: str, name: str, type_: str, status: str, reason: str = "", *, seconds: float = 120
    ) -> Object:
        """The condition, once it has that status (and reason) for the newest generation."""

        def reached(found: Object) -> bool:
            seen = condition(found, type_)
            current = found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]
            return current and seen.get("status") == status and reason in ("", seen["reason"])

        return condition(self.wait(kind, name, reached, seconds, f"{type_}={status} {reason}"), type_)

    def events(self, name: str) -> list[Object]:
        return json.loads(self.run("get", "events", "--field-selector", f"involvedObject.name={name}", "-o", "json"))[
            "items"
        ]


def installation_keys() -> dict[str, str]:
    """Of the store that the chart brings, by the names that clients of S3 look for."""
    keys = Kube("mms-system").get("secret", "mms-store")["data"]
    return {name: base64.b64decode(keys[name]).decode() for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}


@contextmanager
def installation_store() -> Iterator[s3fs.S3FileSystem]:
    """The store that the chart brings, with its own keys."""
    keys = installation_keys()
    with port_forward("mms-system", "svc/mms-store", 8333) as address:
        yield s3fs.S3FileSystem(
            key=keys["AWS_ACCESS_KEY_ID"],
            secret=keys["AWS_SECRET_ACCESS_KEY"],
            client_kwargs={"endpoint_url": f"http://{address}"},
        )


def own_storage(kube: Kube) -> Object:
    """A place of its own in the installation's store, with the keys in a Secret."""
    keys = Kube("mms-system").get("secret", "mms-store")["data"]
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine"}, "data": {k: keys[k] for k in names}}
    kube.apply(secret)
    return {
        "uri": f"s3://mms/shared-{uuid.uuid4().hex[:8]}",
        "endpoint": "http://mms-store.mms-system:8333",
        "secretRef": {"name": "mine"},
    }


def give_up_storage(kube: Kube, storage: Object) -> None:
    """As a condition says to a user whose training is gone: its claim on the storage is deleted."""
    keys = kube.get("secret", storage["secretRef"]["name"])["data"]
    key, secret = (base64.b64decode(keys[name]).decode() for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    with port_forward("mms-system", "svc/mms-store", 8333) as address:
        store = s3fs.S3FileSystem(
            key=key,
            secret=secret,
            client_kwargs={"endpoint_url": f"http://{address}"},
            config_kwargs={"s3": {"addressing_style": "path"}},
        )
        store.rm_file(f"{storage['uri']}/runs/1/owner.json")


def condition(found: Object, type_: str) -> Object:
    return next((c for c in found.get("status", {}).get("conditions", []) if c["type"] == type_), {})


def training(name: str, data_uri: str, **spec: Any) -> Object:
    """A small, quick ModelTraining; `spec` replaces whole parts of the spec."""
    return {
        "apiVersion": "mms.dev/v1alpha1",
        "kind": "ModelTraining",
        "metadata": {"name": name},
        "spec": {
            "task": {"wordEmbedding": {"dimensions": 48, "minCount": 3}},
            "data": {"uri": data_uri},
            "optimizer": {"epochs": 2},
            "workers": {"replicas": 2},
            **spec,
        },
    }


def service(name: str, **model: Any) -> Object:
    return {
        "apiVersion": "mms.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": name},
        "spec": {"model": model or {"trainingRef": {"name": name}}},
    }
