"""Where things are stored, and with whose keys: from the fields of a spec to the contract's Store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api.names import Reason
from mms_operator.plan.objects import missing_keys
from mms_workloads.contract import SECRET_ACCESS_KEY, SECRET_ACCESS_KEY_ID, Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_operator.api.types import StoreAccess
    from mms_operator.plan.types import DefaultStore, ReferencedSecret


@dataclass(frozen=True)
class Location:
    """A store as a pod reaches it. `field` is the part of the spec that says so."""

    field: str
    store: Store
    secret: str | None = None  # with the keys; a copy of the installation's where `installation` is set
    installation: bool = False

    def whose(self) -> str:
        """For messages: which keys these are."""
        if self.installation:
            return f"{self.field} uses the installation's store"
        if self.secret:
            return f"{self.field}.secretRef names the Secret {self.secret}"
        return f"{self.field} has no secretRef: access is anonymous, or by the pod's own identity"


def locate(field: str, uri: str, access: StoreAccess, folder: str) -> Location:
    """A location that the spec gives itself. `folder` is where its keys are mounted, below CREDENTIALS_DIR."""
    secret = access.secretRef.name if access.secretRef else None
    store = Store(uri=uri, endpoint=access.endpoint, region=access.region, credentials=folder if secret else None)
    return Location(field, store, secret)


def installation(field: str, uri: str, default: DefaultStore, folder: str, secret: str) -> Location:
    """A location in the installation's store. `secret` is the name of the copy of its keys."""
    has_keys = bool(default.access_key_id)
    return Location(
        field,
        Store(
            uri=uri, endpoint=default.endpoint, region=default.region, credentials=folder if has_keys else None
        ),
        secret if has_keys else None,
        installation=True,
    )  # fmt: skip


def is_default(uri: str, access: StoreAccess, default: DefaultStore | None) -> bool:
    """Whether an s3:// address without an endpoint or keys of its own means the installation's store."""
    return default is not None and uri.startswith("s3://") and access.endpoint is None and access.secretRef is None


@dataclass(frozen=True)
class SecretProblem:
    reason: Reason
    message: str


def secret_problem(location: Location, secrets: Mapping[str, ReferencedSecret]) -> SecretProblem | None:
    """What is wrong with the Secret that a location names. One that was not looked at yet is given the benefit."""
    if location.secret is None or location.installation or location.secret not in secrets:
        return None
    keys = secrets[location.secret].keys
    wanted = f"{SECRET_ACCESS_KEY_ID} and {SECRET_ACCESS_KEY}"
    if keys is None:
        return SecretProblem(
            Reason.SECRET_NOT_FOUND,
            f"{location.field}.secretRef names the Secret {location.secret}, which does not exist: create it with the "
            f"keys {wanted}",
        )
    if missing := missing_keys(keys):
        has = ", ".join(sorted(keys)) or "no key"
        return SecretProblem(
            Reason.SECRET_KEY_MISSING,
            f"the Secret {location.secret} that {location.field}.secretRef names lacks {' and '.join(missing)} "
            f"(it has {has}): add what is missing",
        )
    return None
