"""What is inside a checkpoint: parameters.safetensors, progress.json, plan.bin. sync.checkpoints makes it durable."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mms_workloads import store as stores
from mms_workloads.contract import Reason
from mms_workloads.embedding.skipgram import Parameters
from mms_workloads.logs import logger
from mms_workloads.store import JobError
from mms_workloads.sync import checkpoints

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from mms_workloads.contract import CheckpointRef, Store
    from mms_workloads.train.state import State


def save(storage: Store, state: State, plan: bytes, scratch: Path, keep: int) -> CheckpointRef:
    """Of the state's base. Raises JobError; the checkpoint before it is untouched then."""
    with stores.scratch_folder(scratch, "checkpoint-") as folder:
        parameters_file = folder / "parameters.safetensors"
        write_tensors({"vectors": state.base.vectors, "contexts": state.base.contexts}, parameters_file)
        progress = folder / "progress.json"
        progress.write_text(json.dumps({"step": state.step, "applied": state.applied}))
        plan_file = folder / "plan.bin"
        plan_file.write_bytes(plan)
        files = {path.name: path for path in (parameters_file, progress, plan_file)}
        reference = checkpoints.save(storage, files, state.step)
    try:
        checkpoints.prune(storage, keep, reference)
    except JobError as error:  # the checkpoint is durable all the same
        logger().warning("old checkpoints stay", reason=error.reason, message=error.message)
    return reference


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises OSError, as other ways of writing a file do."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def load(storage: Store, reference: CheckpointRef, scratch: Path) -> Parameters:
    """Raises JobError ArtifactCorrupt when the parameters are not what was written."""
    with stores.scratch_folder(scratch, "checkpoint-") as folder:
        path = folder / "parameters.safetensors"
        stores.download(stores.at(storage, f"{reference.uri}/{path.name}"), path)
        if checkpoints.file_entry(path) != checkpoints.entries(storage, reference).get(path.name):
            raise JobError(Reason.ARTIFACT_CORRUPT, f"{reference.uri}/{path.name} is not what was written")
        tensors = load_file(path)
    return Parameters(tensors["vectors"].clone(), tensors["contexts"].clone())
