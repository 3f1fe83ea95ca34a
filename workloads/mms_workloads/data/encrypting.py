"""Encrypts a data set block by block: streaming, in memory, resumable.

    <target>/blocks/00000000.mms, ...   each a small file of the data set's format, encrypted (data.sealed);
                                        00000000.tsv.mms where cells stand between tabs
    <target>/progress/00000000.json, ...  the blocks that are durable, some in each, until the end
    <target>/manifest.json              written last: what a training needs to read the data

A block ends with a record. Folders of images and sound become WebDataset blocks.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_workloads import store as stores
from mms_workloads.contract import Fields, Reason, RecordFormat, Store
from mms_workloads.data import formats, sealed
from mms_workloads.data.packing import pieces
from mms_workloads.data.sealed_reader import Manifest, Sealed, block_name, read_manifest, write_manifest
from mms_workloads.data.streaming import StreamingReader
from mms_workloads.store import Found, JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mms_workloads.data.packing import Place

PROGRESS = "progress"
SAVE_EVERY = 32  # blocks: what a resume may have to write again


@dataclass(frozen=True, slots=True)
class Done:
    """A durable block. place: where the next one begins in the source."""

    size: int
    digest: str
    salt: bytes
    place: Place
    ending: str = ""  # of its name


@dataclass(frozen=True, slots=True)
class Told:
    """How far it is."""

    blocks: int
    files: int  # of the source that are begun
    of_files: int
    bytes: int  # of plaintext


def encrypt(
    source: Store,
    target: Store,
    data_key: bytes,
    *,
    chosen: RecordFormat | None = None,
    block_bytes: int = 4 << 20,
    fields: Fields | None = None,
    tell: Callable[[Told], None] = lambda _: None,
) -> Manifest:
    """chosen: None where the files' names tell the format. What is written is encrypted. Raises JobError."""
    files = formats.shown(stores.glob(source))
    chosen = chosen or formats.detect(found.uri for found in files)
    if formats.by_folders(chosen):
        files = formats.mixed(files)
    uris = [found.uri for found in files]
    held_as: RecordFormat = "WebDataset" if chosen in {"ImageFolder", "WAV"} else chosen
    fields = fields or Fields()
    said = _fingerprint(files, chosen, block_bytes, fields)
    dataset, done = _resumed(target, data_key, said)
    total = sum(d.size for d in done)
    unsaved: list[Done] = []
    start = done[-1].place if done else (0, 0)
    reader = StreamingReader(source, uris, forgetful=chosen != "Parquet")
    for plain, place, ending in pieces(reader, chosen, fields, block_bytes, start):
        number = len(done)
        stored, salt = sealed.seal(data_key, dataset, number, plain)
        stores.write_bytes(stores.child(target, block_name(number, ending)), stored)
        unsaved.append(Done(len(plain), hashlib.sha256(stored).hexdigest(), salt, place, ending))
        done.append(unsaved[-1])
        total += len(plain)
        if len(unsaved) == SAVE_EVERY:
            _save(target, data_key, dataset, said, unsaved, count=len(done))
            unsaved = []
        tell(Told(len(done), min(place[0] + 1, len(files)), len(files), total))
    if not done:
        raise JobError(Reason.DATA_EMPTY, f"there is nothing in the {len(files)} files of {source.uri}")
    blocks = tuple(
        Found(stores.child(target, block_name(i, one.ending)).uri, one.size, one.digest) for i, one in enumerate(done)
    )
    manifest = Manifest(held_as, blocks, Sealed(dataset, tuple(one.salt for one in done)))
    write_manifest(target, data_key, manifest)
    stores.remove_folder(stores.child(target, PROGRESS))
    return manifest


def check(store: Store, data_key: bytes) -> Iterator[tuple[int, JobError | None]]:
    """Each block's number, and what is wrong with it. Raises JobError for the manifest."""
    manifest = read_manifest(store, data_key)
    for number, block in enumerate(manifest.blocks):
        try:
            stored = stores.read_bytes(stores.at(store, block.uri))
            if hashlib.sha256(stored).hexdigest() != block.etag:
                raise JobError(Reason.DATA_UNREADABLE, f"{block.uri} is not the file that the manifest names")  # noqa: TRY301 - told with the others
            key = manifest.sealed.key(data_key, number)
            sealed.unseal(key, manifest.sealed.dataset, number, stored, block.uri)
        except JobError as error:
            yield number, error
        else:
            yield number, None


def _fingerprint(files: Sequence[Found], chosen: str, block_bytes: int, fields: Fields) -> str:
    """fields: of a folder of sound they say which labels go into the blocks."""
    said = json.dumps([[(f.uri, f.size, f.etag) for f in files], chosen, block_bytes, fields.model_dump()])
    return hashlib.sha256(said.encode()).hexdigest()


def _save(target: Store, data_key: bytes, dataset: bytes, said: str, part: Sequence[Done], *, count: int) -> None:
    """count: of all blocks, of which the part is the last."""
    blocks = [
        {"size": d.size, "sha256": d.digest, "salt": d.salt.hex(), "place": d.place, "ending": d.ending} for d in part
    ]
    text = json.dumps({"dataset": dataset.hex(), "source": said, "first": count - len(part), "blocks": blocks})
    body = json.dumps({"progress": text, "mac": sealed.manifest_mac(data_key, dataset, text.encode())})
    stores.write_bytes(stores.child(target, f"{PROGRESS}/{count - len(part):08}.json"), body.encode())


def _resumed(target: Store, data_key: bytes, said: str) -> tuple[bytes, list[Done]]:
    """The data set's id, and the blocks that are durable. Raises JobError where the target holds something else."""
    present = stores.list_folder(target)
    where = target.uri.rstrip("/")
    if f"{where}/manifest.json" in present:
        raise JobError(Reason.STORAGE_IN_USE, f"{where} holds an encrypted data set: give another folder, or delete it")
    saved = [uri for uri in present if uri.startswith(f"{where}/{PROGRESS}/")]
    dataset, done = secrets.token_bytes(sealed.ID_BYTES), list[Done]()
    for uri in saved:
        try:
            outer = json.loads(stores.read_bytes(stores.at(target, uri)))
            body = json.loads(outer["progress"])
            dataset = bytes.fromhex(body["dataset"])
            intact = sealed.manifest_mac(data_key, dataset, outer["progress"].encode()) == outer["mac"]
        except (ValueError, KeyError, TypeError) as error:
            raise JobError(Reason.STORAGE_IN_USE, f"{uri} is no progress of mms data encrypt: {error}") from error
        if not intact:
            raise JobError(
                Reason.CREDENTIALS_INVALID,
                f"{where} was begun with another data key: give that one, or another target folder",
            )
        if body["source"] != said:
            raise JobError(
                Reason.STORAGE_IN_USE,
                f"{where} was begun from other files, another format, other fields or another block size: give another "
                "target folder",
            )
        if body["first"] != len(done):
            break  # what is behind a gap is written again
        done += [
            Done(b["size"], b["sha256"], bytes.fromhex(b["salt"]), tuple(b["place"]), b.get("ending", ""))
            for b in body["blocks"]
        ]
    return dataset, done
