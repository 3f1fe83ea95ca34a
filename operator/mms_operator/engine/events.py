"""Kubernetes events about a custom resource (events.k8s.io/v1)."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from mms_operator.api import names
from mms_operator.engine.problems import MESSAGE_LIMIT
from mms_operator.engine.resources import EVENT

NAME_LIMIT = 253 - 17  # of what the name of an event may hold, without what makes it unique

if TYPE_CHECKING:
    from datetime import datetime

    from mms_operator.plan.types import Event, Object


def manifest(about: Object, event: Event, now: datetime, instance: str) -> Object:
    metadata = about["metadata"]
    prefix = metadata["name"][:NAME_LIMIT].rstrip("-.")
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"name": f"{prefix}.{uuid.uuid4().hex[:16]}", "namespace": metadata["namespace"]},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": f"{names.GROUP}/operator",
        "reportingInstance": instance[:128],
        "action": "Reconcile",
        "type": event.type,
        "reason": event.reason,
        "note": event.message.encode()[:MESSAGE_LIMIT].decode(errors="ignore"),
        "regarding": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
    }
