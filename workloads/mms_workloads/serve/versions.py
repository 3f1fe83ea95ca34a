"""Versions of a pod's models in Triton: folders beside each other, of which the highest that is ready answers.

    python -m mms_workloads.serve.versions SECONDS

has Triton load the models as their folders are now, within that time, over gRPC: a load over HTTP holds up every
connection that its thread of the server has, for as long as it takes. A version that is there and has not changed is
not loaded again; one whose folder is gone is unloaded in milliseconds, once it has answered what it was asked. Both
have the same config.pbtxt: had they not, Triton would load both anew.
"""

from __future__ import annotations

import os
import py_compile
import shutil
import sys
from typing import TYPE_CHECKING

from mms_workloads import contract, logs, pod
from mms_workloads.contract import Outcome, Reason
from mms_workloads.serve import child, generations, repository
from mms_workloads.serve.generations import Generations
from mms_workloads.serve.layout import CONTROL_HEADER, read_layout, read_models
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mms_workloads.serve.layout import Layout
    from mms_workloads.serve.repository import Model

LOAD_SECONDS = 300.0  # that a model may take; Triton itself has no limit
UNLOAD_SECONDS = 30.0  # where nothing is to be loaded, unless a load before it has not ended


def arrange(layout: Layout, wanted: set[int]) -> bool:
    """Makes the models' folders be those of these versions; whether anything had to be done. Raises JobError."""
    ours = [model for model in read_models(layout.running).models if model.code is not None]
    try:
        changed = [_arrange(layout, model, wanted) for model in ours]
    except OSError as error:
        raise JobError(Reason.INTERNAL, f"cannot write to {layout.repository}: {error}", retryable=True) from error
    return any(changed)


def there(layout: Layout) -> set[int]:
    """The versions that every model has."""
    ours = [model for model in read_models(layout.running).models if model.code is not None]
    found = [set(_versions(layout.repository / model.name)) for model in ours]
    return set.intersection(*found) if found else set()


def settle(layout: Layout) -> None:
    """Before a Triton that has nothing loads the models: only what serves, not what an attempt cut short has left.

    Raises JobError.
    """
    try:
        before = generations.read(layout.generations)
    except (OSError, ValueError) as error:
        raise JobError(Reason.MODEL_LOAD_FAILED, f"{layout.generations}: {error}") from error
    serving = before.of(before.serving)
    if serving is None:
        raise JobError(Reason.MODEL_LOAD_FAILED, f"{layout.generations}: {before.serving} serves and is not held")
    held = [one for one in before.held if one.triton == serving.triton]
    if held != before.held:
        generations.write(layout.generations, Generations(serving=before.serving, held=held))
    arrange(layout, {serving.triton})


async def load(layout: Layout, environment: Mapping[str, str], seconds: float = LOAD_SECONDS) -> None:
    """Has Triton load the models as their folders are now. Raises JobError.

    One that is told so while another load goes on waits for it, and is carried out although nobody waits for it.
    """
    ports = {"MMS_TRITON_GRPC_PORT": str(layout.grpc_port)}
    await child.run(layout, {**environment, **ports}, "mms_workloads.serve.versions", str(seconds))


def write(folder: Path, model: Model) -> None:
    """A version's folder, with byte code.

    Byte code that is there is not written by the server's process: its writing would change the folder's time, and the
    next load would load the version again.
    """
    folder.mkdir(parents=True)
    path = folder / "model.py"
    path.write_text(repository.code(model), encoding="utf-8")
    py_compile.compile(str(path), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


def _arrange(layout: Layout, model: Model, wanted: set[int]) -> bool:
    base, part = layout.repository / model.name, layout.models / ".version.part"
    there = _versions(base)
    for version in sorted(set(there) - wanted):
        shutil.rmtree(part, ignore_errors=True)
        there[version].rename(part)  # whole or not at all, for a Triton that looks meanwhile
        shutil.rmtree(part)
    for version in sorted(wanted - set(there)):
        generations.forget_reports(layout.generations, version)
        shutil.rmtree(part, ignore_errors=True)
        write(part, model)
        part.rename(base / str(version))
    return set(there) != wanted


def _versions(base: Path) -> dict[int, Path]:
    return {int(one.name): one for one in base.iterdir() if one.is_dir() and one.name.isdigit()}


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    import tritonclient.grpc as triton  # noqa: PLC0415 - the agent, which imports this module, does without
    from tritonclient.utils import InferenceServerException  # noqa: PLC0415

    (seconds,) = map(float, arguments)
    layout = read_layout(environment)
    unlocked = {f"triton-grpc-protocol-{CONTROL_HEADER}": layout.control_key.read_text().strip()}
    with triton.InferenceServerClient(f"127.0.0.1:{layout.grpc_port}") as client:
        for name in read_models(layout.running).names:
            try:
                client.load_model(name, headers=unlocked, client_timeout=seconds)
            except InferenceServerException as error:
                status, said = str(error.status()), str(error.message())
                why = f"it did not within {seconds:g} s" if "DEADLINE_EXCEEDED" in status else said
                outcome = _failed(name, why, gone="UNAVAILABLE" in status)
                pod.write_outcome(pod.termination_log(environment), outcome)
                return contract.EXIT_RETRY if outcome.retryable else contract.EXIT_PERMANENT
    return contract.EXIT_DONE


def _failed(model: str, why: str, *, gone: bool) -> Outcome:
    """Of what a model's process raises Triton hands on the text alone, with where it was raised."""
    wrong = Reason.GOLDEN_MISMATCH if Reason.GOLDEN_MISMATCH in why else Reason.MODEL_LOAD_FAILED
    said = f"Triton cannot load model {model}: {why.partition('At:')[0].strip()}"
    return Outcome(result="Failed", reason=wrong, message=said, retryable=gone)


if __name__ == "__main__":
    logs.configure()
    sys.exit(main(sys.argv[1:]))
