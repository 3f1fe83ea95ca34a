"""Which transcript a sound has, and which files of a folder are data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_workloads import store as stores
from mms_workloads.contract import Fields, Reason, Store
from mms_workloads.data import formats, members
from mms_workloads.store import Found, JobError
from tests.unit.data.counted import by_blocks, corpus, counted, described, png, tar, wav
from tests.unit.data.test_records import served

if TYPE_CHECKING:
    from pathlib import Path


def _sounds(folder: Path, *names: str) -> dict[bytes, str]:
    """Names by what is in the files."""
    made = {}
    for number, name in enumerate(names):
        (path := folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav(number))
        made[wav(number)] = name
    return made


def _told(folder: Path, scratch: Path) -> dict[str, object]:
    """The labels of files by their names."""
    found = by_blocks(corpus(described(folder), scratch))
    names = {path.read_bytes(): str(path.relative_to(folder)) for path in folder.rglob("*.[wW][aA][vV]")}
    return {names[data]: label for data, label in found}


TABLES: dict[str, tuple[list[str], dict[str, str], dict[str, str]]] = {
    "paths": (
        ["spk1/001.wav", "spk2/001.wav"],
        {"metadata.csv": "file_name,text\nspk1/001.wav,hello\nspk2/001.wav,goodbye\n"},
        {"spk1/001.wav": "hello", "spk2/001.wav": "goodbye"},
    ),
    "paths without suffixes": (
        ["spk1/001.wav", "spk2/001.wav"],
        {"metadata.csv": "id,text\n./spk1/001,hello\nspk2/001,goodbye\n"},
        {"spk1/001.wav": "hello", "spk2/001.wav": "goodbye"},
    ),
    "a table in each folder": (
        ["spk1/001.wav", "spk2/001.wav"],
        {"spk1/a.csv": "file,text\n001.wav,hello\n", "spk2/a.jsonl": '{"file": "001.wav", "text": "goodbye"}\n'},
        {"spk1/001.wav": "hello", "spk2/001.wav": "goodbye"},
    ),
    "bare names": (
        ["clips/001.wav", "clips/002.WAV"],
        {"train.csv": "path,sentence\n001.wav,hello\n002.Wav,goodbye\n"},
        {"clips/001.wav": "hello", "clips/002.WAV": "goodbye"},
    ),
    "elsewhere": (
        ["clips/001.wav"],
        {"train.csv": "path,sentence\n/mnt/data/001.wav,hello\n"},
        {"clips/001.wav": "hello"},
    ),
    "the same row twice": (
        ["clips/001.wav"],
        {"train.csv": "path,text\n001.wav,hello\n", "all.csv": "path,text\n001.wav,hello\n"},
        {"clips/001.wav": "hello"},
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_sound_has_the_label_of_its_path(tmp_path: Path, case: str) -> None:
    names, tables, wanted = TABLES[case]
    _sounds(folder := tmp_path / "data", *names)
    for name, text in tables.items():
        (folder / name).write_text(text)
    assert _told(folder, tmp_path) == wanted
    assert counted(described(folder), tmp_path / "again").schema.bad == ()


def test_a_bare_name_of_several_files_names_none(tmp_path: Path) -> None:
    """Also where each is counted by another worker."""
    _sounds(folder := tmp_path / "data", *(f"spk{i}/001.wav" for i in range(3)), "spk0/002.wav")
    (folder / "metadata.csv").write_text("file_name,text\n001.wav,hello\n002.wav,goodbye\n")
    uris = [f.uri for f in stores.glob(Store(uri=f"file://{folder}"))]
    for number, uri in enumerate(uris):
        known = formats.Companions("WAV", uris).of({number}) | {number}
        names = [one if i in known else "" for i, one in enumerate(uris)]
        if uri.endswith("001.wav"):
            assert formats.twins(names)["001"] > 1
    schema = counted(described(folder), tmp_path).schema
    assert schema
    assert {bad.reason for bad in schema.bad} == {
        "several files have its name: tables must have their paths, from the table's folder"
    }
    assert (len(schema.bad), schema.records) == (3, 1)


def test_a_sound_has_one_label(tmp_path: Path) -> None:
    _sounds(folder := tmp_path / "data", "001.wav")
    (folder / "metadata.csv").write_text("file_name,text\n001.wav,hello\n001.WAV,goodbye\n")
    with pytest.raises(JobError, match=r"metadata.csv at byte 29: .*/001 has two different labels") as raised:
        counted(described(folder), tmp_path)
    assert raised.value.reason is Reason.DATA_INVALID


def test_a_table_whose_lines_are_no_objects(tmp_path: Path) -> None:
    _sounds(folder := tmp_path / "data", "001.wav")
    (folder / "metadata.jsonl").write_text("[1]\n")
    with pytest.raises(JobError, match="no JSON object") as raised:
        counted(described(folder), tmp_path)
    assert raised.value.reason is Reason.DATA_INVALID


def test_names_of_a_web_server_are_decoded(tmp_path: Path) -> None:
    (folder := tmp_path / "data" / "hot dog").mkdir(parents=True)
    (folder / "0.png").write_bytes(png(0))
    with served(tmp_path / "data") as address:
        data = described(f"{address}/hot%20dog/0.png")
        assert counted(data, tmp_path).schema.classes == {"hot dog": 1}
    labels = members.Transcripts()
    labels.add("http://host/my data/a b", "said")
    assert labels.of("http://host/my%20data/a%20b.wav") == ("said", "")


SHOWN = {
    "a camera's": (["a/_DSC1.jpg", "a/2.jpg"], ["a/_DSC1.jpg", "a/2.jpg"]),
    "with its transcript": (["_1.wav", "_1.txt", "_2.txt"], ["_1.wav", "_1.txt"]),
    "tools'": (["a.parquet", "_SUCCESS", "_metadata", ".a.crc"], ["a.parquet"]),
    "folders of tools": (["a/1.png", ".git/2.png", "a/.thumbs/1.png"], ["a/1.png"]),
    "all below one": ([".cache/a/1.png", ".cache/b/2.png"], [".cache/a/1.png", ".cache/b/2.png"]),
    "one alone": ([".cache/1.png"], [".cache/1.png"]),
    "none": ([], []),
}


@pytest.mark.parametrize("case", SHOWN)
def test_which_files_are_data(case: str) -> None:
    names, wanted = SHOWN[case]
    found = formats.shown([Found(f"s3://b/x/{name}", 1, None) for name in names])
    assert [f.uri.removeprefix("s3://b/x/") for f in found] == wanted


def test_what_a_camera_has_named_is_a_record(tmp_path: Path) -> None:
    (folder := tmp_path / "data" / "a").mkdir(parents=True)
    for number, name in enumerate(("_DSC0001.png", "2.png", ".3.png")):
        (folder / name).write_bytes(png(number))
    assert sorted(i for i, _ in by_blocks(corpus(described(tmp_path / "data"), tmp_path))) == sorted([png(0), png(1)])
    said = {"./_1.png": png(0), "./_1.cls": b"a", "./._1.png": b"Mac", ".git/2.png": b"no"}
    tar(tmp_path / "a.tar", said)
    assert by_blocks(corpus(described(tmp_path / "a.tar"), tmp_path / "tar")) == [(png(0), "a")]


def test_a_table_is_of_the_fields_that_are_given(tmp_path: Path) -> None:
    _sounds(folder := tmp_path / "data", "1.wav")
    (folder / "a.csv").write_text("file,one,two\n1.wav,x,y\n")
    data = described(folder, fields=Fields(label="two"))
    assert by_blocks(corpus(data, tmp_path)) == [(wav(0), "y")]
