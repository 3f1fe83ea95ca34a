"""An encrypted data set: its manifest, and a reader that decrypts blocks in memory."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_args

from mms_workloads import store as stores
from mms_workloads.contract import Reason, RecordFormat
from mms_workloads.data import formats, pages, sealed
from mms_workloads.data.reader import Reader
from mms_workloads.store import Found, JobError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mms_workloads.contract import Store
    from mms_workloads.data.keyring import Keyring

MANIFEST = "manifest.json"
BLOCKS = "blocks"
KEPT_BLOCKS = 2  # decrypted ones, in memory: the one that is read, and the one read ahead


@dataclass(frozen=True, slots=True)
class Sealed:
    """What the keys of a data set's blocks are derived from, besides the data key."""

    dataset: bytes
    salts: tuple[bytes, ...]

    def key(self, data_key: bytes, block: int) -> bytes:
        return sealed.block_key(data_key, self.dataset, block, self.salts[block])

    def document(self) -> dict[str, Any]:
        return {"dataset": self.dataset.hex(), "salts": [salt.hex() for salt in self.salts]}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Sealed:
        return cls(bytes.fromhex(document["dataset"]), tuple(bytes.fromhex(salt) for salt in document["salts"]))


@dataclass(frozen=True, slots=True)
class Manifest:
    format: RecordFormat
    blocks: tuple[Found, ...]  # etag: sha256 of the block's file; size: of the plaintext
    sealed: Sealed


def folder_of(store: Store) -> Store:
    """Of a data set that is named by its folder or its manifest."""
    return stores.at(store, store.uri.rstrip("/").removesuffix(f"/{MANIFEST}"))


def block_name(number: int, ending: str = "") -> str:
    """ending: what the block's own format is told by, besides the data set's."""
    return f"{BLOCKS}/{number:08}{ending}{formats.SEALED}"


def write_manifest(folder: Store, data_key: bytes, found: Manifest) -> None:
    """Raises JobError."""
    entries = [
        {"size": block.size, "sha256": block.etag, "salt": salt.hex(), "ending": formats.suffix(block.uri)}
        for block, salt in zip(found.blocks, found.sealed.salts, strict=True)
    ]
    body = {"version": 1, "dataset": found.sealed.dataset.hex(), "format": found.format, "blocks": entries}
    text = json.dumps(body, separators=(",", ":"))
    mac = sealed.manifest_mac(data_key, found.sealed.dataset, text.encode())
    stores.write_bytes(stores.child(folder, MANIFEST), json.dumps({"manifest": text, "mac": mac}, indent=1).encode())


def read_manifest(store: Store, data_key: bytes) -> Manifest:
    """Raises JobError: DataNotFound, DataUnreadable, CredentialsInvalid."""
    folder = folder_of(store)
    file = stores.child(folder, MANIFEST)
    try:
        outer = json.loads(stores.read_bytes(file))
        text = str(outer["manifest"])
        body = json.loads(text)
        dataset = bytes.fromhex(body["dataset"])
        entries = [
            (int(b["size"]), str(b["sha256"]), bytes.fromhex(b["salt"]), str(b.get("ending", "")))
            for b in body["blocks"]
        ]
        if body["format"] not in get_args(RecordFormat):
            raise ValueError(f"unknown format {body['format']}")  # noqa: TRY301 - told with the others
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(
            Reason.DATA_UNREADABLE, f"{file.uri} is no manifest of an encrypted data set: {error}. Encrypt it again"
        ) from error
    if sealed.manifest_mac(data_key, dataset, text.encode()) != outer.get("mac"):
        raise JobError(
            Reason.CREDENTIALS_INVALID,
            f"{file.uri} was made with another data key, or was altered: give the key that mms data encrypt was given "
            "(data.encryption.keySecretRef, --key-file)",
        )
    blocks = tuple(
        Found(stores.child(folder, block_name(i, ending)).uri, size, digest)
        for i, (size, digest, _, ending) in enumerate(entries)
    )
    chosen = cast("RecordFormat", body["format"])
    return Manifest(chosen, blocks, Sealed(dataset, tuple(salt for _, _, salt, _ in entries)))


class SealedReader(Reader):
    """Files are blocks. Ciphertext is read, plaintext is in memory only."""

    def __init__(self, store: Store, uris: Sequence[str], scratch: Path, dataset: bytes, keys: Keyring) -> None:
        super().__init__(store, uris, scratch)
        self._dataset, self._keys = dataset, keys
        self._plain: OrderedDict[int, bytes] = OrderedDict()
        self._keeping = threading.Lock()

    def _far(self, _: int) -> bool:
        """The key of one may come later than that of another."""
        return False

    def size(self, file: int) -> int:
        return self._sizes[file] if file in self._sizes else len(self._block(file))

    def _bytes(self, file: int, start: int, end: int) -> bytes:
        plain = self._block(file)
        return plain if (start, end) == (0, len(plain)) else plain[start:end]

    def _block(self, file: int) -> bytes:
        with self._keeping:
            if file in self._plain:
                self._plain.move_to_end(file)
                return self._plain[file]
        uri = self.uris[file]
        plain = sealed.unseal(self._keys.key(file), self._dataset, file, self._sealed(file), uri)
        with self._keeping:
            self._plain[file] = plain
            while len(self._plain) > KEPT_BLOCKS:
                self._plain.popitem(last=False)
        return plain

    def _sealed(self, file: int) -> bytes:
        uri, held = self.uris[file], pages.HELD.pages
        place = stores.at(self._store, uri)
        if held is None or uri.startswith("file://"):
            return stores.read_bytes(place)
        return held.whole(uri, lambda: stores.read_bytes(place))
