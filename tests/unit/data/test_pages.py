"""What a worker keeps of what it has read, and gets from its peers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_workloads.data import pages
from mms_workloads.data.pages import Pages, Peers
from mms_workloads.data.volume import Volume
from mms_workloads.sync.lending import Lending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONTENT = bytes(i * 7 % 251 for i in range(1000))


class Store:
    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def load(self, start: int, end: int) -> bytes:
        self.asked.append((start, end))
        return CONTENT[start:end]


@pytest.fixture(autouse=True, scope="module")
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "LEAST_BYTES", 64)
        yield


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=12), st.sampled_from([0, 100, 5000]))
def test_reads_are_the_files_bytes(
    tmp_path_factory: pytest.TempPathFactory, reads: list[tuple[int, int]], limit: int
) -> None:
    held, store = Pages(tmp_path_factory.mktemp("pages"), Volume(limit), 64), Store()
    for ends in reads:
        start, end = sorted(ends)
        assert held.read("s3://b/a", start, end, 1000, store.load) == CONTENT[start:end]
    if limit > 1000:
        assert len(store.asked) == len(set(store.asked)), "each page once"


def test_of_the_pages_beside_a_block_a_few_bytes_are_read(tmp_path: Path) -> None:
    held, store = Pages(tmp_path / "p", Volume(5000), 64), Store()
    for _ in range(2):
        assert held.read("s3://b/a", 63, 131, 1000, store.load) == CONTENT[63:131]
        assert store.asked == [(63, 64), (64, 128), (128, 131)]
    held.read("s3://b/a", 128, 150, 1000, store.load)
    assert store.asked[3:] == [(128, 192)]
    held.read("s3://b/a", 100, 131, 1000, store.load)
    assert len(store.asked) == 4, "what is there is used"


def test_the_volume_keeps_no_more_than_its_limit(tmp_path: Path) -> None:
    held, store = Pages(tmp_path / "p", Volume(200), 64), Store()
    for start in (0, 64, 128, 0, 192):
        held.read("s3://b/a", start, start + 64, 1000, store.load)
    assert sum(path.stat().st_size for path in (tmp_path / "p").iterdir()) <= 200
    store.asked.clear()
    held.read("s3://b/a", 0, 64, 1000, store.load)
    assert store.asked == [], "what was used last is kept"
    held.read("s3://b/a", 64, 128, 1000, store.load)
    assert store.asked == [(64, 128)], "what was not used is gone"


def test_a_process_that_comes_back_finds_its_pages(tmp_path: Path) -> None:
    store = Store()
    Pages(tmp_path, Volume(5000), 64).read("s3://b/a", 0, 1000, 1000, store.load)
    (tmp_path / "left.part").write_bytes(b"cut short")
    again = Pages(tmp_path, Volume(5000), 64)
    store.asked.clear()
    assert again.read("s3://b/a", 0, 1000, 1000, store.load) == CONTENT
    assert store.asked == []
    assert again.fetched.document() == {"volume": 1000, "peers": 0, "store": 0}


def peers(*held: Pages) -> tuple[Peers, list[str]]:
    """Peers with addresses a, b, ..."""
    asked: list[str] = []

    def ask(address: str, name: str) -> bytes | None:
        asked.append(address)
        return held["abcdef".index(address)].kept(name)

    return Peers(ask), asked


def test_a_page_comes_from_a_peer_that_has_had_the_block(tmp_path: Path) -> None:
    first, second = Pages(tmp_path / "a", Volume(5000), 64), Pages(tmp_path / "b", Volume(5000), 64)
    second.read("s3://b/a", 0, 1000, 1000, Store().load)
    known, asked = peers(first, second)
    known.know(3, ["a", "b"])
    third, store = Pages(tmp_path / "c", Volume(5000), 64, known), Store()
    with third.of(3):
        assert third.read("s3://b/a", 70, 120, 1000, store.load) == CONTENT[70:120]
    assert (store.asked, asked) == ([], ["a", "b"])
    assert third.fetched.document() == {"volume": 0, "peers": 64, "store": 0}
    with third.of(4):  # which nobody has had
        third.read("s3://b/a", 200, 210, 1000, store.load)
    assert store.asked == [(192, 256)]
    assert third.fetched.store == 64


@pytest.mark.parametrize("given_", [None, b"too short"], ids=["nothing", "another size"])
def test_a_peer_that_does_not_help_is_passed_over(tmp_path: Path, given_: bytes | None) -> None:
    known = Peers(lambda *_: given_)
    known.know(0, ["a"])
    held, store = Pages(tmp_path, Volume(5000), 64, known), Store()
    with held.of(0):
        assert held.read("s3://b/a", 0, 64, 1000, store.load) == CONTENT[:64]
    assert held.fetched.document() == {"volume": 0, "peers": 0, "store": 64}


def test_a_peer_gets_nothing_but_pages(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    volume = Volume(5000)
    volume.keep(tmp_path / "secret", 1)
    held = Pages(tmp_path / "p", volume, 64)
    assert held.kept("../secret") is None
    assert held.kept(str(tmp_path / "secret")) is None
    assert held.kept("") is None


def test_an_encrypted_block_is_one_page(tmp_path: Path) -> None:
    held, asked = Pages(tmp_path, Volume(5000), 64), list[int]()

    def load(then: Callable[[int], None] = asked.append) -> bytes:
        then(1)
        return CONTENT

    assert [held.whole("s3://b/0.mms", load) for _ in range(2)] == [CONTENT] * 2
    assert asked == [1]


def test_the_next_in_the_ring_is_asked_first() -> None:
    lending = Lending()
    assert lending.leased(7, 2) == []
    assert lending.leased(7, 0) == [2]
    assert lending.leased(7, 1) == [2, 0]
    assert lending.leased(7, 2) == [0, 1]
    lending.gone(0)
    assert lending.leased(7, 1) == [2]


def test_bytes_are_counted_whoever_starts_again() -> None:
    lending = Lending()
    lending.fetched(0, {"store": 5, "peers": 1, "volume": 0})
    lending.fetched(0, {"store": 7, "peers": 1, "volume": 9})
    lending.fetched(1, {"store": 1, "peers": 0, "volume": 0})
    lending.gone(0)
    lending.fetched(0, {"store": 2, "peers": 3, "volume": 0})
    assert lending.report() == {"storeBytes": 10, "peerBytes": 4, "volumeBytes": 9}
