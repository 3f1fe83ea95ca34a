"""Encrypted data sets: what a key opens, what it does not, and what is told of damage."""

from __future__ import annotations

import gzip
import json
import os
import sys
from itertools import accumulate
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_workloads import store as stores
from mms_workloads.contract import DataFile, Fields, Reason, Store, WordEmbedding
from mms_workloads.data import (
    decompressing,
    encrypting,
    reader,
    readers,
    records,
    sealed,
    sealed_reader,
    streaming,
)
from mms_workloads.data.corpus import ByteCorpus, Corpus
from mms_workloads.data.keyring import Keyring
from mms_workloads.data.records import RecordCorpus
from mms_workloads.data.schema import Survey
from mms_workloads.data.streaming import StreamingReader
from mms_workloads.data.vocabulary import Vocabulary
from mms_workloads.store import JobError
from mms_workloads.sync import plan as plans
from mms_workloads.sync.counting import Counting
from mms_workloads.sync.plan import Plan
from tests.unit.data.counted import by_blocks, corpus, described, tar
from tests.unit.data.test_records import FORMATS, as_dealt

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.data.encrypting import Told
    from mms_workloads.data.sealed_reader import Manifest

KEY, OTHER, DATASET = b"k" * 32, b"o" * 32, b"d" * 16


@given(st.binary(max_size=3000), st.integers(1, 700), st.integers(0, 1 << 40))
def test_what_is_sealed_can_be_unsealed(plain: bytes, chunk: int, number: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealed, "CHUNK_BYTES", chunk)
        stored, salt = sealed.seal(KEY, DATASET, number, plain)
    assert sealed.unseal(sealed.block_key(KEY, DATASET, number, salt), DATASET, number, stored, "file:///b") == plain


def test_no_key_is_used_twice() -> None:
    first, second = (sealed.seal(KEY, DATASET, 7, b"the same") for _ in range(2))
    assert first[1] != second[1]
    assert first[0][-24:] != second[0][-24:]


CHUNK = 100
PLAIN = bytes(range(256)) * 2


def _altered(kind: str, stored: bytes) -> bytes:
    head, whole = len(stored) - len(PLAIN) - 6 * sealed.TAG_BYTES, CHUNK + sealed.TAG_BYTES
    chunks = [stored[i : i + whole] for i in range(head, len(stored), whole)]
    match kind:
        case "cut short":
            return stored[:-5]
        case "a chunk less":
            return stored[:head] + b"".join(chunks[:-1])
        case "longer":
            return stored + b"x"
        case "chunks swapped":
            return stored[:head] + b"".join([chunks[1], chunks[0], *chunks[2:]])
        case "empty":
            return b""
        case "other bytes":
            return b"x" * len(stored)
    at = {"header": 30, "size": 23, "first chunk": head + 3, "tag": len(stored) - 1}[kind]
    return stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :]


@pytest.mark.parametrize(
    "kind",
    [
        "cut short", "a chunk less", "longer", "chunks swapped", "empty", "other bytes", "header", "size",
        "first chunk", "tag",
    ],
)  # fmt: skip
def test_an_altered_block_is_told(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(sealed, "CHUNK_BYTES", CHUNK)
    stored, salt = sealed.seal(KEY, DATASET, 3, PLAIN)
    key = sealed.block_key(KEY, DATASET, 3, salt)
    with pytest.raises(JobError, match="file:///b cannot be decrypted") as raised:
        sealed.unseal(key, DATASET, 3, _altered(kind, stored), "file:///b")
    assert raised.value.reason is Reason.DATA_UNREADABLE


def test_a_block_in_another_ones_place_is_told() -> None:
    stored, salt = sealed.seal(KEY, DATASET, 3, PLAIN)
    with pytest.raises(JobError, match="it is block 3"):
        sealed.unseal(sealed.block_key(KEY, DATASET, 3, salt), DATASET, 4, stored, "file:///b")


def test_the_key_of_one_block_opens_no_other() -> None:
    blocks = [sealed.seal(KEY, DATASET, i, PLAIN) for i in range(4)]
    for i, (_, salt) in enumerate(blocks):
        key = sealed.block_key(KEY, DATASET, i, salt)
        for j, (stored, _) in enumerate(blocks):
            if i == j:
                assert sealed.unseal(key, DATASET, j, stored, "x") == PLAIN
            else:
                with pytest.raises(JobError, match="does not fit its key"):
                    sealed.unseal(key, DATASET, j, stored, "x")


@pytest.mark.parametrize(
    "text",
    [KEY, KEY.hex().encode() + b"\n", b"a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=\n"],
    ids=["raw", "hex", "b64"],
)
def test_a_key_as_people_write_it(text: bytes) -> None:
    assert sealed.read_key(text, "key") == KEY


def test_what_is_no_key() -> None:
    with pytest.raises(JobError, match="openssl rand -hex 32"):
        sealed.read_key(b"secret", "the file key")


# Data sets


def _encrypted(folder: Path, made: Path, block_bytes: int = 700) -> tuple[Store, Manifest]:
    target = Store(uri=f"file://{folder}/sealed")
    source = Store(uri=f"file://{made}")
    return target, encrypting.encrypt(source, target, KEY, block_bytes=block_bytes)


def _counted(target: Store, found: Manifest, ring: Keyring, scratch: Path) -> Plan:
    data = described(target.uri, quality={"maxBadRecords": 3})
    counting = Counting.encrypted(found, data)
    assert counting.format
    for task, segments in enumerate(counting.tasks):
        for s in segments:
            ring.put(s.file, found.sealed.key(KEY, s.file))
        reader = readers.counting(
            target, counting.uris(task), segments, scratch, dataset=found.sealed.dataset, keys=ring
        )
        survey, sizes = records.count(reader, segments, data, counting.format)
        counting.add_survey(task, Survey.unpack(survey.pack()), sizes)
    plan = counting.plan(None, data.blockBytes)
    assert plans.unpack(plans.pack(plan)) == plan
    return plan


@pytest.mark.parametrize("name", FORMATS)
def test_an_encrypted_data_set_has_the_same_records(tmp_path: Path, name: str) -> None:
    (folder := tmp_path / "data").mkdir()
    made = FORMATS[name][0](folder)
    target, found = _encrypted(tmp_path, folder)
    assert len(found.blocks) > 2
    ring = Keyring()
    plan = _counted(target, found, ring, tmp_path / "scratch")
    assert plan.schema
    assert (plan.schema.input, plan.schema.label, plan.schema.records) == (*FORMATS[name][1:], len(made))
    held = RecordCorpus(target, plan, described(target.uri), tmp_path / "scratch" / "blocks", ring)
    assert as_dealt(by_blocks(held), name) == as_dealt(made, name)
    assert [error for _, error in encrypting.check(target, KEY) if error] == []


def _records(folder: Path, source: Path, block_bytes: int = 700) -> list[tuple[object, object]]:
    target, found = _encrypted(folder, source, block_bytes)
    ring = Keyring()
    plan = _counted(target, found, ring, folder / "scratch")
    return by_blocks(RecordCorpus(target, plan, described(target.uri), folder / "scratch" / "blocks", ring))


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_what_separates_cells_is_told_by_the_name_of_the_table(tmp_path: Path, name: str) -> None:
    made = [(f"a, b and c {i}", "good") for i in range(60)]
    text = "text\tlabel\tby, with, at\n" + "".join(f"{one}\t{label}\tx\n" for one, label in made)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert by_blocks(corpus(described(tmp_path / name), tmp_path / "plain")) == made
    assert _records(tmp_path, tmp_path / name) == made


def test_tables_of_both_kinds_are_encrypted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where it is taken up, too."""
    monkeypatch.setattr(encrypting, "SAVE_EVERY", 1)
    (folder := tmp_path / "data").mkdir()
    (folder / "a.csv").write_text("text,label\n" + "x\ty,good\n" * 60)
    (folder / "b.tsv").write_text("text\tlabel\tby, with, at\n" + "x, y\tgood\tz\n" * 60)

    def stop(told: Told) -> None:
        if told.files == 2:
            raise KeyboardInterrupt

    source, target = Store(uri=f"file://{folder}"), Store(uri=f"file://{tmp_path}/sealed")
    with pytest.raises(KeyboardInterrupt):
        encrypting.encrypt(source, target, KEY, block_bytes=300, tell=stop)
    assert _records(tmp_path, folder, 300) == [("x\ty", "good")] * 60 + [("x, y", "good")] * 60


def test_records_of_two_tars_stay_apart(tmp_path: Path) -> None:
    """Though the last one of the first and the first one of the second have one name."""
    (folder := tmp_path / "data").mkdir()
    tar(folder / "a.tar", {"1.txt": b"one", "1.cls": b"x", "2.txt": b"two", "2.cls": b"x"})
    tar(folder / "b.tar", {"2.txt": b"three", "2.cls": b"y", "3.txt": b"four", "3.cls": b"y"})
    made = [("one", "x"), ("two", "x"), ("three", "y"), ("four", "y")]
    assert by_blocks(corpus(described(folder), tmp_path / "plain")) == made
    assert _records(tmp_path, folder, 1 << 20) == made


def test_a_worker_without_the_lease_cannot_decrypt_a_block(tmp_path: Path) -> None:
    (folder := tmp_path / "data").mkdir()
    FORMATS["JSONLines"][0](folder)
    target, found = _encrypted(tmp_path, folder)
    plan = _counted(target, found, Keyring(), tmp_path)
    ring = Keyring()
    ring.put(1, found.sealed.key(KEY, 1))
    held = RecordCorpus(target, plan, described(target.uri), tmp_path / "blocks", ring)
    assert held.records(1)
    with pytest.raises(JobError, match="this worker has no lease of it"):
        held.records(0)
    ring.put(0, found.sealed.key(KEY, 1))  # the key of a lease that it does have
    with pytest.raises(JobError, match="does not fit its key"):
        held.records(0)


def test_keys_are_asked_for_where_the_master_gives_them() -> None:
    ring = Keyring()
    ring.ask = {3: b"three"}.get
    assert ring.key(3) == b"three"
    with pytest.raises(JobError, match="block 4 is encrypted"):
        ring.key(4)


def test_nothing_unencrypted_touches_the_disk(tmp_path: Path) -> None:
    (folder := tmp_path / "data").mkdir()
    made = [f"secret text number {i}\n" for i in range(400)]
    (folder / "a.txt").write_text("".join(made))
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in made))
    for name, chosen in (("a.txt", None), ("b.jsonl", "JSONLines")):
        place = tmp_path / name
        target = Store(uri=f"file://{place}/sealed")
        found = encrypting.encrypt(Store(uri=f"file://{folder}/{name}"), target, KEY, block_bytes=1000)
        ring = Keyring()
        if chosen:
            plan = _counted(target, found, ring, place / "scratch")
            held = RecordCorpus(target, plan, described(target.uri), place / "scratch" / "blocks", ring)
            assert [record["input"] for b in range(len(held.blocks)) for record in held.records(b)] == made
        else:
            files = tuple(DataFile(uri=b.uri, size=b.size) for b in found.blocks)
            plan = Plan(files, 1000, Vocabulary(("secret", "text"), (400, 400)), sealed=found.sealed)
            for block in range(len(files)):
                ring.put(block, found.sealed.key(KEY, block))
            text = ByteCorpus(target, plan, place / "scratch" / "blocks", ring)
            assert b"".join(text.bytes(b).tobytes() for b in range(len(files))).decode() == "".join(made)
            words = Corpus(target, plan, WordEmbedding(minCount=1), place / "scratch" / "words", ring)
            assert sum((words.tokens(b) >= 0).sum() for b in range(len(files))) == 800
        written = [path.read_bytes() for path in place.rglob("*") if path.is_file()]
        assert written
        assert not any(b"secret" in data or b"number" in data for data in written)


def test_encryption_is_taken_up_where_it_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encrypting, "SAVE_EVERY", 4)
    for name, (make, *_) in FORMATS.items():
        (folder := tmp_path / name / "data").mkdir(parents=True)
        made = make(folder)
        source, target = Store(uri=f"file://{folder}"), Store(uri=f"file://{tmp_path / name}/sealed")

        class Stop(Exception):  # noqa: N818
            pass

        def stop(told: Told) -> None:
            if told.blocks == 7:
                raise Stop

        first: list[bytes] = []
        try:
            encrypting.encrypt(source, target, KEY, block_bytes=300, tell=stop)
        except Stop:
            first = [(tmp_path / name / "sealed" / sealed_reader.block_name(i)).read_bytes() for i in range(4)]
            with pytest.raises(JobError, match="another data key"):
                encrypting.encrypt(source, target, OTHER, block_bytes=300)
            with pytest.raises(JobError, match="another format, other fields or another block size"):
                encrypting.encrypt(source, target, KEY, block_bytes=301)
        assert first, name
        found = encrypting.encrypt(source, target, KEY, block_bytes=300)
        again = [(tmp_path / name / "sealed" / sealed_reader.block_name(i)).read_bytes() for i in range(4)]
        assert again == first, "what was durable is not written again"
        assert not (tmp_path / name / "sealed" / "progress").exists() or not list(
            (tmp_path / name / "sealed" / "progress").iterdir()
        )
        ring = Keyring()
        plan = _counted(target, found, ring, tmp_path / name)
        held = RecordCorpus(target, plan, described(target.uri), tmp_path / name / "blocks", ring)
        assert as_dealt(by_blocks(held), name) == as_dealt(made, name), name


def test_a_folder_that_holds_a_data_set_is_not_written_over(tmp_path: Path) -> None:
    (folder := tmp_path / "data").mkdir()
    FORMATS["Text"][0](folder)
    _encrypted(tmp_path, folder)
    with pytest.raises(JobError, match="holds an encrypted data set"):
        _encrypted(tmp_path, folder)


def test_the_manifest_tells_another_key_and_a_change(tmp_path: Path) -> None:
    (folder := tmp_path / "data").mkdir()
    FORMATS["Text"][0](folder)
    target, found = _encrypted(tmp_path, folder)
    assert sealed_reader.read_manifest(target, KEY) == found
    assert sealed_reader.read_manifest(stores.child(target, "manifest.json"), KEY) == found
    with pytest.raises(JobError, match="another data key, or was altered") as raised:
        sealed_reader.read_manifest(target, OTHER)
    assert raised.value.reason is Reason.CREDENTIALS_INVALID
    path = tmp_path / "sealed" / "manifest.json"
    outer = json.loads(path.read_text())
    body = json.loads(outer["manifest"])
    body["blocks"].pop()
    path.write_text(json.dumps({**outer, "manifest": json.dumps(body)}))
    with pytest.raises(JobError, match="or was altered"):
        sealed_reader.read_manifest(target, KEY)
    path.write_text("{}")
    with pytest.raises(JobError, match="no manifest of an encrypted data set"):
        sealed_reader.read_manifest(target, KEY)


def test_check_names_the_blocks_that_are_damaged(tmp_path: Path) -> None:
    (folder := tmp_path / "data").mkdir()
    FORMATS["CSV"][0](folder)
    target, _ = _encrypted(tmp_path, folder)
    path = tmp_path / "sealed" / sealed_reader.block_name(1)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (tmp_path / "sealed" / sealed_reader.block_name(2)).unlink()
    wrong = {number: error.message for number, error in encrypting.check(target, KEY) if error}
    assert set(wrong) == {1, 2}
    assert "not the file that the manifest names" in wrong[1]
    assert "there is nothing at" in wrong[2]


def test_plain_text_is_cut_at_its_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two\n" * 300)
    target, found = _encrypted(tmp_path, tmp_path / "a.txt", 100)
    assert found.format == "Text"
    for number, block in enumerate(found.blocks):
        plain = sealed.unseal(
            found.sealed.key(KEY, number),
            found.sealed.dataset,
            number,
            stores.read_bytes(stores.at(target, block.uri)),
            "",
        )
        assert plain.endswith(b"two\n")
        assert len(plain) == block.size


def test_the_same_data_is_read_without_encryption(tmp_path: Path) -> None:
    (folder := tmp_path / "data").mkdir()
    made = FORMATS["Parquet"][0](folder)
    assert by_blocks(corpus(described(folder), tmp_path)) == made


COMPRESSED = {
    ".gz": gzip.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.fixture(scope="module")
def written() -> list[str]:
    """Files that are opened for writing, whoever opens them."""
    found: list[str] = []

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR):
            found.append(str(arguments[0]))

    sys.addaudithook(audit)  # it cannot be taken away
    return found


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("name", ["Text", "JSONLines", "CSV", "Parquet", "WebDataset"])
def test_nothing_is_written_while_compressed_files_are_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[str], name: str, suffix: str
) -> None:
    (folder := tmp_path / "data").mkdir()
    made = FORMATS[name][0](folder)
    for file in sorted(folder.iterdir()):
        file.with_name(file.name + suffix).write_bytes(COMPRESSED[suffix](file.read_bytes()))
        file.unlink()
    (temporary := tmp_path / "tmp").mkdir(mode=0o500)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(decompressing, "decompress", None)
    monkeypatch.setattr(reader, "decompress", None)
    source, target = Store(uri=f"file://{folder}"), Store(uri=f"file://{tmp_path}/sealed")
    written.clear()
    encrypting.encrypt(source, target, KEY, block_bytes=700)
    opened = list(written)
    assert opened
    assert all(path.startswith(f"{tmp_path}/sealed/") for path in opened)
    assert not list(temporary.iterdir())
    monkeypatch.undo()
    found = sealed_reader.read_manifest(target, KEY)
    ring = Keyring()
    plan = _counted(target, found, ring, tmp_path / "scratch")
    held = RecordCorpus(target, plan, described(target.uri), tmp_path / "scratch" / "blocks", ring)
    assert by_blocks(held) == made


@pytest.mark.parametrize("behind", [1, 100, 1 << 20])
def test_a_compressed_file_is_read_on_and_a_little_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    monkeypatch.setattr(streaming, "BEHIND_BYTES", behind)
    monkeypatch.setattr(decompressing, "CHUNK_BYTES", 64)
    content = bytes(range(256)) * 20
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    (tmp_path / "b.gz").write_bytes(gzip.compress(content[::-1]))
    held = StreamingReader(Store(uri="file:///x"), [f"file://{tmp_path}/{name}.gz" for name in "ab"])
    assert [held.size(0), held.size(1)] == [len(content)] * 2
    for file, start, end in ((0, 0, 700), (0, 600, 900), (0, 0, 10), (1, 3000, 4000), (0, 5000, 5120), (0, 5110, 5120)):
        assert held.read(file, start, end) == (content if file == 0 else content[::-1])[start:end]
    with pytest.raises(JobError, match="changed while it was read"):
        held.read(0, 5000, 5121)


def test_the_mark_of_utf8_is_no_text_whichever_file_it_begins(tmp_path: Path) -> None:
    (folder := tmp_path / "data").mkdir()
    for name in "abc":
        line = json.dumps({"text": f"said in {name}", "label": "x"})
        (folder / f"{name}.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\n")
    assert _records(tmp_path, folder, 1 << 20) == [(f"said in {name}", "x") for name in "abc"]


def test_other_fields_are_another_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encrypting, "SAVE_EVERY", 1)
    (folder := tmp_path / "data").mkdir()
    FORMATS["WAV with a table"][0](folder)

    def stop(_: Told) -> None:
        raise KeyboardInterrupt

    source, target = Store(uri=f"file://{folder}"), Store(uri=f"file://{tmp_path}/sealed")
    with pytest.raises(KeyboardInterrupt):
        encrypting.encrypt(source, target, KEY, block_bytes=700, tell=stop)
    with pytest.raises(JobError, match="other fields"):
        encrypting.encrypt(source, target, KEY, block_bytes=700, fields=Fields(label="file_name"), tell=stop)


def test_what_is_told_of_bytes_is_their_sum(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two\n" * 300)
    told: list[Told] = []
    found = encrypting.encrypt(
        Store(uri=f"file://{tmp_path}/a.txt"), Store(uri=f"file://{tmp_path}/s"), KEY, block_bytes=100, tell=told.append
    )
    assert [one.bytes for one in told] == list(accumulate(block.size for block in found.blocks))
