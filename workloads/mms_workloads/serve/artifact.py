"""An artifact in the pod's volume, as fetch verified it and left it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_workloads.contract import ArtifactManifest, Golden, PrecisionReport, Reason
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from mms_workloads.serve.layout import Layout


PRECISION_FILE = "precision.json"  # of an artifact's folder in a pod: what runs, and why


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a pod is to serve."""

    digest: str
    manifest: ArtifactManifest
    golden: Golden
    files: str | None = None  # digest of those of a model that was not trained here
    precision: PrecisionReport | None = None


def read_artifact(layout: Layout, digest: str) -> Artifact:
    """Raises JobError."""
    folder = layout.artifact(digest)
    try:
        manifest = ArtifactManifest.model_validate_json((folder / "manifest.json").read_bytes())
        golden = Golden.model_validate_json((folder / "golden.json").read_bytes())
        listing = folder / "files.sha256"
        files = "sha256:" + hashlib.sha256(listing.read_bytes()).hexdigest() if listing.exists() else None
        told = folder / PRECISION_FILE
        precision = PrecisionReport.model_validate_json(told.read_bytes()) if told.exists() else None
        return Artifact(digest, manifest, golden, files, precision)
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        raise JobError(
            Reason.MODEL_LOAD_FAILED, f"{folder}: {error}: the fetch container must run first, on the same volume"
        ) from error
