"""Manifests of examples/ as trainings on this machine."""

from __future__ import annotations

from pathlib import Path

import yaml

from mms_operator.plan.types import ReferencedSecret
from mms_workloads.contract import Encryption, JobFile, Store
from tests.unit.plan.world import World, cr

EXAMPLES = Path(__file__).parents[3] / "examples"


def job_of(name: str, folder: Path, uri: str, *, pretrained: Path | None = None) -> JobFile:
    """The job file that the operator makes of the training of examples/NAME.yaml, with its places on this machine: the
    data at `uri`, its key in the folder, what is published below the folder, and what the run starts from.
    """
    found = World(cr(**next(yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text()))["spec"]))
    found.secrets = {"digits-key": ReferencedSecret("digits-key", frozenset({"key"}))}
    found.step()
    made = JobFile.model_validate_json(found.others["ConfigMap/words-job-1-1"]["data"]["job.json"])
    here = {"store": Store(uri=uri)}
    if made.data.encryption:
        here["encryption"] = Encryption(keyFile=str(folder / "key"))
    changes = {"data": made.data.model_copy(update=here), "storage": Store(uri=f"file://{folder}/storage")}
    if made.pretrained:
        changes["pretrained"] = made.pretrained.model_copy(update={"store": Store(uri=f"file://{pretrained}")})
    return made.model_copy(update={**changes, "masterHost": "127.0.0.1"})
