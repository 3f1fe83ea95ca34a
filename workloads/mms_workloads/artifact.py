"""The artifact of a run: written file by file, read back, and made valid by its manifest at the end.

<storage>/artifact/: the model's files, golden.json, evaluation.json, manifest.json.
"""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from typing import TYPE_CHECKING

from mms_workloads import store as stores
from mms_workloads.contract import ArtifactManifest, ArtifactRef, FileEntry, Gate, Provenance, Reason
from mms_workloads.store import JobError
from mms_workloads.sync import checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import IO

    from mms_workloads.contract import Store
    from mms_workloads.pod import Pod
    from mms_workloads.sync.plan import Plan
    from mms_workloads.train.learner import Evaluation, Learner
    from mms_workloads.train.state import State

FOLDER = "artifact"


def publish(
    pod: Pod, learner: Learner, state: State, plan: Plan, still_asked: Callable[[], bool]
) -> ArtifactRef | None:
    """Evaluates, and writes the artifact; on return it is durable and was read back. Raises JobError: GateMissed, ...

    An intact artifact of the same run that is there already, from a worker that was lost after writing it, is replaced.
    None when this worker is not `still_asked` for it before it writes, or just before the manifest would make it valid:
    then another one writes the artifact, or has done so and the master has told its digest.
    """
    job = pod.job
    evaluation = learner.evaluate(state)
    if job.evaluation.gate:
        check_gate(job.evaluation.gate, evaluation.metrics)
    target = stores.child(job.storage, FOLDER)
    with stores.scratch_folder(pod.scratch, f"{stores.ON_ITS_WAY}artifact-") as folder:
        files = _write_files(folder, learner, state, evaluation)
        if not still_asked():
            return None
        entries = {name: _stored(stores.child(target, name), path) for name, path in files.items()}
    manifest = ArtifactManifest.model_validate(
        {
            "kind": learner.kind,
            "version": job.job.run,
            "files": entries,
            "metrics": evaluation.metrics,
            "provenance": Provenance(
                job=job.job,
                createdAt=checkpoints.now(),
                mmsVersion=_version(),
                seed=job.optimizer.seed,
                workers=job.workers,
                data=list(plan.files),
                jobFileDigest=pod.job_digest,
            ),
        }
    )
    data = manifest.model_dump_json(indent=1, exclude_none=True).encode()
    if not still_asked():
        return None
    file = stores.child(target, checkpoints.MANIFEST)
    stores.write_bytes(file, data)
    if stores.read_bytes(file) != data:
        raise JobError(Reason.STORAGE_UNREACHABLE, f"{file.uri} reads back differently", retryable=True)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return ArtifactRef(uri=target.uri, digest=digest, version=job.job.run, metrics=evaluation.metrics)


def _stored(file: Store, path: Path) -> FileEntry:
    """Uploads a local file and reads it back. Raises JobError."""
    with path.open("rb") as stream:
        entry = _digest(stream)
    stores.upload(file, path)
    with stores.open_read(file) as stream:
        found = _digest(stream)
    if found != entry:
        raise JobError(
            Reason.ARTIFACT_CORRUPT,
            f"{file.uri} is not what was written: {found.size} bytes, SHA-256 {found.sha256}, and not {entry.size} "
            f"bytes, {entry.sha256}",
        )
    return entry


def _digest(stream: IO[bytes]) -> FileEntry:
    """SHA-256, which users have a tool for."""
    digest = hashlib.file_digest(stream, "sha256")  # type: ignore[arg-type]
    return FileEntry(sha256=digest.hexdigest(), size=stream.tell())


def check_gate(gate: Gate, metrics: dict[str, float]) -> None:
    """Raises JobError GateMissed when the metric is not as good as asked, or was not measured."""
    measured = metrics.get(gate.metric)
    if measured is None:
        raise JobError(
            Reason.GATE_MISSED,
            f"evaluation.gate asks for {gate.metric}, which was not measured: there are {', '.join(sorted(metrics))}",
        )
    low = gate.atLeast is not None and not measured >= gate.atLeast
    high = gate.atMost is not None and not measured <= gate.atMost
    if low or high:
        bound = f"at least {gate.atLeast}" if low else f"at most {gate.atMost}"
        raise JobError(
            Reason.GATE_MISSED,
            f"{gate.metric} is {measured:.4f} and evaluation.gate asks for {bound}: no artifact is published. Train "
            "longer or on more data, or change the gate, and raise runPolicy.run",
        )


def _write_files(folder: Path, learner: Learner, state: State, evaluation: Evaluation) -> dict[str, Path]:
    cases = learner.write(state, evaluation, folder)
    (folder / "golden.json").write_text(cases.model_dump_json(indent=1), encoding="utf-8")
    document = {"metrics": evaluation.metrics, **evaluation.report}
    (folder / "evaluation.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    return {path.name: path for path in sorted(folder.iterdir())}


def _version() -> str:
    try:
        return metadata.version("massive-model-serving")
    except metadata.PackageNotFoundError:
        return "unknown"
