"""Models that were not trained here: what tells one from another, and that all pods serve the same files. Pure.

A version of one is known by its address and settings. Its files are known by the digest that the spec gives, or that
the first pod reports: there is one pod until it has, and the others are told to take nothing else.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_operator.api.service_status import PretrainedFiles, ServedVersion
from mms_operator.plan import stores
from mms_workloads import contract

if TYPE_CHECKING:
    from mms_operator.api.service import PretrainedModel
    from mms_operator.api.service_status import Versions
    from mms_operator.plan.service.seen import Seen
    from mms_operator.plan.types import DefaultStore

PIPELINE_LIMIT = 1 << 16  # bytes as JSON: the status has it of each version that it knows
_CHECKED = {"task": "imageClassification"}  # what a pipeline is completed with, to be checked, where the files say it


def problem(asked: PretrainedModel | None) -> str | None:
    """What no model can be served by."""
    if asked is None or not asked.pipeline:
        return None
    if (size := len(json.dumps(asked.pipeline, ensure_ascii=False).encode())) > PIPELINE_LIMIT:
        return (
            f"spec.model.pretrained.pipeline has {size} bytes as JSON, {PIPELINE_LIMIT} at most: put it as "
            "pipeline.json beside the model's files"
        )
    try:
        contract.Pipeline.model_validate({**_CHECKED, **asked.pipeline})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        return f"spec.model.pretrained.pipeline.{field}: {first['msg']}"
    if unknown := sorted(set(asked.pipeline) - set(contract.Pipeline.model_fields)):
        return f"spec.model.pretrained.pipeline.{unknown[0]}: there is no such field: docs/serving.md has them"
    return None


def version_of(asked: PretrainedModel, default: DefaultStore | None) -> ServedVersion:
    # What is not said stays unsaid: for another operator, which may know more fields, it is the same version.
    told = asked.model_dump(mode="json", exclude={"secretRef"}, exclude_none=True, exclude_defaults=True)
    identity = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return ServedVersion(
        digest=f"sha256:{identity}",
        uri=asked.uri.rstrip("/"),
        installationStore=stores.is_default(asked.uri, asked, default),
        endpoint=asked.endpoint,
        region=asked.region,
        secretRef=asked.secretRef,
        pretrained=PretrainedFiles(
            format=asked.format, trusted=asked.trusted, pipeline=asked.pipeline, files=asked.digest
        ),
    )


def known(version: ServedVersion, versions: Versions, seen: Seen) -> ServedVersion:
    """With the files that its first pod has found, as far as that is known."""
    if not unknown(version) or version.pretrained is None:
        return version
    pinned = (versions.stable, versions.next, versions.previous)
    before = [one.pretrained.files for one in pinned if one and one.digest == version.digest and one.pretrained]
    mine = [report for report in seen.agents.values() if report.digest == version.digest]
    reported = sorted(report.files for report in mine if report.files)
    files = next((one for one in (*before, *reported) if one), None)
    return version.model_copy(update={"pretrained": version.pretrained.model_copy(update={"files": files})})


def unknown(version: ServedVersion | None) -> bool:
    """Whether a pod is to find out which files there are."""
    return version is not None and version.pretrained is not None and version.pretrained.files is None


def told(version: ServedVersion) -> contract.PretrainedModel | None:
    """What pods hear of it."""
    found = version.pretrained
    if found is None:
        return None
    return contract.PretrainedModel(
        format=found.format.value, digest=found.files, trusted=found.trusted, pipeline=found.pipeline
    )
