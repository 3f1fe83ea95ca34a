"""An artifact in the pod's volume, as fetch verified it and left it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_workloads.contract import ArtifactManifest, Golden, Reason
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from mms_workloads.serve.layout import Layout


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a pod is to serve."""

    digest: str
    manifest: ArtifactManifest
    golden: Golden


def read_artifact(layout: Layout, digest: str) -> Artifact:
    """Raises JobError."""
    folder = layout.artifact(digest)
    try:
        manifest = ArtifactManifest.model_validate_json((folder / "manifest.json").read_bytes())
        return Artifact(digest, manifest, Golden.model_validate_json((folder / "golden.json").read_bytes()))
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        raise JobError(
            Reason.MODEL_LOAD_FAILED, f"{folder}: {error}: the fetch container must run first, on the same volume"
        ) from error
