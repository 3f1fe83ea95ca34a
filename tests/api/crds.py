"""The two kinds for tests with a real API server: their CRDs, the least of an object, requests."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mms_operator.api.names import GROUP, SERVICES, TRAININGS, VERSION

if TYPE_CHECKING:
    from mms_cluster.apionly import ApiOnly

Object = dict[str, Any]

CRDS = {
    plural: yaml.safe_load((Path(__file__).parents[2] / "crds" / f"{GROUP}_{plural}.yaml").read_text())
    for plural in (TRAININGS, SERVICES)
}
STRICT = "?fieldValidation=Strict"
MERGE = "application/merge-patch+json"
NOON = "2026-01-01T12:00:00Z"
DIGEST = "sha256:" + "0" * 64

BASE: dict[str, Object] = {
    TRAININGS: {
        "kind": "ModelTraining",
        "metadata": {"name": "words"},
        "spec": {
            "task": {"wordEmbedding": {}},
            "data": {"uri": "s3://corpora/words/*.txt"},
            "storage": {"uri": "s3://models/words"},
            "runPolicy": {"run": 2},
        },
    },
    SERVICES: {
        "kind": "ModelService",
        "metadata": {"name": "words"},
        "spec": {"model": {"trainingRef": {"name": "words"}}},
    },
}
ARTIFACT = {"uri": "s3://models/words/runs/1", "digest": DIGEST}


def eventually(look: Any) -> Any:
    deadline = time.monotonic() + 30
    while not (seen := look()):
        assert time.monotonic() < deadline, "nothing within 30 s"
        time.sleep(0.1)
    return seen


@dataclass(frozen=True)
class Kind:
    """One of the kinds in one namespace. Answers are (status code, object or Status)."""

    server: ApiOnly
    namespace: str
    plural: str

    @property
    def path(self) -> str:
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{self.plural}"

    def request(self, method: str, path: str, body: Object | None = None, kind: str = MERGE) -> tuple[int, Object]:
        status, answer = self.server.api.request(method, f"{self.path}{path}", body, kind)
        return status, json.loads(answer)

    def create(self, change: Object | None = None, query: str = STRICT) -> tuple[int, Object]:
        body = merged({"apiVersion": f"{GROUP}/{VERSION}", **BASE[self.plural]}, change or {})
        return self.request("POST", query, body, "application/json")

    def change(self, change: Object, part: str = "") -> tuple[int, Object]:
        return self.request("PATCH", f"/words{part}{STRICT}", change)

    def read(self) -> Object:
        return good(self.request("GET", "/words"))

    def with_status(self, status: Object, change: Object | None = None) -> Object:
        """A new object that has this status; {}: none yet."""
        made = good(self.create(change))
        if not status:
            return made
        return good(self.change({"status": status}, "/status"))


def merged(target: Object, patch: Object) -> Object:
    """JSON merge patch (RFC 7396)."""
    result = {key: value for key, value in target.items() if patch.get(key, ...) is not None}
    for key, value in patch.items():
        if isinstance(value, dict):
            result[key] = merged(result.get(key, {}), value)
        elif value is not None:
            result[key] = value
    return result


def good(answer: tuple[int, Object]) -> Object:
    status, body = answer
    assert status in {200, 201}, body
    return body


def refusal(answer: tuple[int, Object]) -> tuple[str, str]:
    """(field, message) of an invalid object's one fault."""
    status, body = answer
    assert status == 422, body
    (cause,) = body["details"]["causes"]
    return cause["field"], cause["message"]
