"""The master's side of an encrypted data set: which worker is given the key of which block, and the account of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mms_workloads.contract import Reason
from mms_workloads.data import sealed, sealed_reader
from mms_workloads.logs import logger
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from mms_workloads.contract import Data
    from mms_workloads.data.sealed_reader import Manifest, Sealed


def data_key(data: Data) -> bytes | None:
    """None where the data is not encrypted. Raises JobError."""
    if data.encryption is None:
        return None
    path = Path(data.encryption.keyFile)
    try:
        return sealed.read_key(path.read_bytes(), "the Secret of data.encryption.keySecretRef")
    except OSError as error:
        raise JobError(
            Reason.CREDENTIALS_INVALID, f"the data key of data.encryption cannot be read: {error}: check keySecretRef"
        ) from error


def read_manifest(data: Data, key: bytes) -> Manifest:
    """Raises JobError."""
    found = sealed_reader.read_manifest(data.store, key)
    if data.format not in {"Auto", found.format}:
        raise JobError(
            Reason.DATA_INVALID,
            f"data.format is {data.format}, and the encrypted data set in {data.store.uri} is of {found.format}: "
            "leave data.format out",
        )
    return found


@dataclass(slots=True)
class Keys:
    """The data key stays here. given: to each rank, how many keys. manifest: where no plan says what the data is."""

    secret: bytes
    manifest: Manifest | None = None
    given: Counter[int] = field(default_factory=Counter)

    def give(self, of: Sealed, rank: int, block: int, why: str) -> str:
        """The block's key in hexadecimal, for a worker; a line of the log says so."""
        self.given[rank] += 1
        logger().info("block key given", rank=rank, block=block, why=why)
        return of.key(self.secret, block).hex()
