"""`mms data encrypt` and `mms data check`: what they say while they work."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mms_workloads import store as stores
from mms_workloads.contract import Data, Fields, Quality, Store
from mms_workloads.data import encrypting, readers, records, sealed, sealed_reader
from mms_workloads.sync.counting import Counting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from mms_workloads.contract import RecordFormat
    from mms_workloads.data.schema import Schema

MOST_CLASSES = 10  # in the table


@dataclass(frozen=True)
class Place:
    """Where a data set is, as options say it. endpoint, region: of an S3-compatible service."""

    uri: str
    endpoint: str | None = None
    region: str | None = None

    def store(self) -> Store:
        uri = self.uri if "://" in self.uri else f"file://{Path(self.uri).absolute()}"
        return Store(uri=uri, endpoint=self.endpoint, region=self.region)


@dataclass(frozen=True)
class Looks:
    """What the records are said to look like."""

    format: RecordFormat | None = None
    input: str | None = None
    pair: str | None = None
    label: str | None = None

    def fields(self) -> Fields:
        return Fields(input=self.input, pair=self.pair, label=self.label)


def key(file: Path) -> bytes:
    """Raises store.JobError, OSError."""
    return sealed.read_key(file.read_bytes(), str(file))


def encrypt(source: Place, target: Place, key_file: Path, looks: Looks, *, block_bytes: int, console: Console) -> str:
    """A line for people. Raises store.JobError, OSError."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn()
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("encrypting", total=None, said="")
        found = encrypting.encrypt(
            source.store(),
            target.store(),
            key(key_file),
            chosen=looks.format,
            block_bytes=block_bytes,
            fields=looks.fields(),
            tell=lambda told: bars.update(
                bar, total=told.of_files, completed=told.files, said=f"{told.blocks} blocks, {told.bytes >> 20} MiB"
            ),
        )
    size = sum(block.size for block in found.blocks)
    return (
        f"{len(found.blocks)} blocks of {found.format}, {size} bytes, in {target.store().uri}. In the ModelTraining: "
        "data.uri is that folder, data.encryption.keySecretRef names a Secret with the key"
    )


def damaged(place: Place, key_file: Path) -> Iterator[tuple[int, str | None]]:
    """Of an encrypted data set: each block, and what is wrong with it. Raises store.JobError, OSError."""
    for number, error in encrypting.check(sealed_reader.folder_of(place.store()), key(key_file)):
        yield number, error.message if error else None


def schema(place: Place, looks: Looks, most_bad: int) -> tuple[Schema, list[str]]:
    """What a training's counting pass would find, and the files. Raises store.JobError."""
    data = Data(
        store=place.store(),
        format=looks.format or "Auto",
        fields=looks.fields(),
        quality=Quality(maxBadRecords=most_bad),
    )
    counting = Counting.start(stores.glob(data.store), data)
    assert counting.format is not None  # noqa: S101 - of records there is one
    with tempfile.TemporaryDirectory(prefix="mms-data-") as scratch:
        for task, segments in enumerate(counting.tasks):
            reader = readers.counting(data.store, counting.uris(task), segments, Path(scratch))
            counting.add_survey(task, *records.count(reader, segments, data, counting.format))
    plan = counting.plan(None, data.blockBytes)
    assert plan.schema is not None  # noqa: S101 - of records there is one
    return plan.schema, [f.uri for f in plan.files]


def table(found: Schema, names: list[str]) -> Table:
    said = Table(show_header=False, box=None)
    rows = [
        ("format", found.format),
        ("files", str(len(names))),
        ("records", str(found.records)),
        ("input", found.input),
        ("label", found.label),
    ]
    if found.classes:
        first = ", ".join(f"{name} ({count})" for name, count in list(found.classes.items())[:MOST_CLASSES])
        rows.append((f"{len(found.classes)} classes", first + (", ..." if len(found.classes) > MOST_CLASSES else "")))
    if found.images:
        height, width = found.images.height, found.images.width
        rows += [
            ("channels", str(found.images.channels)),
            ("height", f"{height.least} to {height.most}, median {height.median}"),
            ("width", f"{width.least} to {width.most}, median {width.median}"),
        ]
    if found.lengths:
        rows.append(("length", f"{found.lengths.mean:.1f} on average, {found.lengths.longest:g} at most"))
    rows.append(("bad records", str(len(found.bad))))
    rows += [("", f"{names[bad.file]} at {bad.offset}: {bad.reason}") for bad in found.bad]
    for row in rows:
        said.add_row(*map(escape, row))
    return said
