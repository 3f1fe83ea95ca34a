"""Records of a real S3 service, as a worker reads them: in pages that it keeps, and decompressed."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from mms_workloads import store as stores
from mms_workloads.contract import Data, Reason, Store
from mms_workloads.data import pages
from mms_workloads.data.pages import Pages
from mms_workloads.data.volume import Volume
from mms_workloads.store import JobError
from tests.unit import weed
from tests.unit.data.counted import by_blocks, corpus
from tests.unit.data.test_records import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[weed.Weed]:
    with weed.Weed(tmp_path_factory.mktemp("weed")) as running:
        yield running


@pytest.fixture
def s3(service: weed.Weed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Store]:
    """A store in the service, for who may write or read: s3(uri, "admin" or "reader")."""
    for name, (key, secret) in {"admin": weed.ADMIN, "reader": weed.READER}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "AWS_ACCESS_KEY_ID").write_text(key)
        (tmp_path / name / "AWS_SECRET_ACCESS_KEY").write_text(secret)
    monkeypatch.setenv("MMS_CREDENTIALS_DIR", str(tmp_path))
    monkeypatch.setattr(stores, "ATTEMPTS", 1)  # the backoff is not waited for

    def place(uri: str, credentials: str = "reader") -> Store:
        return Store(uri=uri, endpoint=service.endpoint, credentials=credentials)

    return place


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pages:
    """What a worker keeps."""
    volume = Volume(1 << 20)
    found = Pages(tmp_path / "scratch" / "worker" / "pages", volume, 4096)
    monkeypatch.setattr(pages.HELD, "volume", volume)
    monkeypatch.setattr(pages.HELD, "pages", found)
    return found


@pytest.mark.parametrize(
    ("name", "suffix"), [("JSONLines", ""), ("JSONLines", ".gz"), ("CSV", ""), ("CSV", ".gz"), ("Parquet", "")]
)
def test_records_of_s3(tmp_path: Path, s3: Callable[..., Store], held: Pages, name: str, suffix: str) -> None:
    (folder := tmp_path / "data").mkdir()
    made = FORMATS[name][0](folder)
    place, size = f"s3://records/{name}{suffix.replace('.', '-')}", 0
    for path in sorted(folder.iterdir()):
        content = gzip.compress(path.read_bytes()) if suffix else path.read_bytes()
        size += len(content)
        stores.write_bytes(s3(f"{place}/sub=1/{path.name}{suffix}", "admin"), content)
    data = Data(store=s3(f"{place}/*/*"), blockBytes=1500)
    found = corpus(data, tmp_path / "scratch")
    assert found.schema.format == name
    assert len(found.blocks) > 2
    assert by_blocks(found) == made
    fetched = held.fetched
    assert fetched.store == (0 if suffix else size), "each page once, in both passes"
    assert bool(fetched.volume) == (not suffix)


def test_records_of_s3_that_nobody_has(tmp_path: Path, s3: Callable[..., Store]) -> None:
    stores.write_bytes(s3("s3://records/there/a.jsonl", "admin"), b'{"text": "a"}\n')
    with pytest.raises(JobError) as raised:
        corpus(Data(store=s3("s3://records/elsewhere/*.jsonl")), tmp_path / "scratch")
    assert raised.value.reason == Reason.DATA_NOT_FOUND
