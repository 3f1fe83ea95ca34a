"""Whole plans, as they were looked at once: tests/golden/<case>/{cr,observed}.yaml go in, plan.yaml comes out.

After a change that is meant, MMS_UPDATE_GOLDEN=1 writes the plans anew; `git diff` shows what the change does.
"""

from __future__ import annotations

import dataclasses
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mms_operator.api import names
from mms_operator.plan import service, training
from mms_operator.plan.types import ObservedService, ObservedTraining, Plan, ReferencedSecret
from mms_workloads.contract import Desired, StatusReport
from tests.unit.plan.world import NOW, SETTINGS

if TYPE_CHECKING:
    from mms_operator.plan.types import Object

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = sorted(folder.name for folder in GOLDEN.iterdir())
UPDATE = bool(os.environ.get("MMS_UPDATE_GOLDEN"))


@pytest.mark.parametrize("case", CASES)
def test_plan(case: str) -> None:
    folder = GOLDEN / case
    cr = yaml.safe_load((folder / "cr.yaml").read_text())
    observed = yaml.safe_load((folder / "observed.yaml").read_text()) or {}
    found = as_yaml(plan(cr, observed))
    if UPDATE:
        (folder / "plan.yaml").write_text(found)
    assert found == (folder / "plan.yaml").read_text()


def plan(cr: Object, observed: Object) -> Plan:
    secrets = {
        name: ReferencedSecret(name, None if keys is None else frozenset(keys))
        for name, keys in observed.get("secrets", {}).items()
    }
    pods = tuple(observed.get("pods", ()))
    if cr["kind"] == names.SERVICE:
        seen = ObservedService(observed.get("training"), tuple(observed.get("deployments", ())), pods, secrets)
        return service.plan(cr, seen, SETTINGS, NOW)
    expire, report = observed.get("certificatesExpire"), observed.get("report")
    return training.plan(
        cr,
        ObservedTraining(
            pods=pods,
            certificates_expire=datetime.fromisoformat(expire) if expire else None,
            secrets=secrets,
            report=StatusReport.model_validate(report) if report else None,
            confirmed=Desired.model_validate(observed["confirmed"]) if "confirmed" in observed else None,
            storage_owner=observed.get("storageOwner"),
        ),
        SETTINGS,
        NOW,
    )


def as_yaml(found: Plan) -> str:
    """Without the fields that are as by default; of the resource that certificates are for, the name is enough."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        if value != field.default and value is not None:
            fields[field.name] = plain(value)
    if "certificates" in fields:
        fields["certificates"]["owner"] = fields["certificates"]["owner"]["metadata"]["name"]
    return yaml.dump(fields, sort_keys=False, width=120, Dumper=_NoAliases)


def plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, str) else value


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True
