"""Artifacts with a pipeline, as a training publishes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.contract import Golden
from mms_workloads.serve import pipelines
from tests.unit.serve import artifacts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def publish(folder: Path, asked: Sequence[dict[str, NDArray[Any]]], version: int = 1) -> artifacts.Built:
    """Of a folder with pipeline.json and its network: the golden set, what each is answered, and the manifest."""
    served = pipelines.open(folder)
    cases = [pipelines.golden_case(served, one) for one in asked]
    golden = Golden(cases=cases, comparisons=cases)
    (folder / "golden.json").write_text(golden.model_dump_json())
    names = sorted(file.name for file in folder.iterdir() if file.name != "manifest.json")
    digest = artifacts.seal(folder, version=version, names=names, kind=served.pipeline.task)
    return artifacts.Built(folder, digest, [], np.zeros(0))
