"""What a model's process holds, as the file of generations changes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from mms_workloads.serve import generations, memory, shelf
from mms_workloads.serve.generations import Generation, Generations
from mms_workloads.serve.shelf import NotHeldError, Shelf

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class Loads:
    """Maps a folder to its name, unless it is called bad."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def __call__(self, folder: Path) -> str:
        self.loaded.append(folder.name)
        if folder.name.startswith("bad"):
            raise ValueError("it is bad")
        return folder.name


@pytest.fixture
def loads() -> Loads:
    return Loads()


def tell(root: Path, serving: str, *held: str) -> Path:
    path = root / "generations.json"
    (root / "control-key").write_text("key\n")
    for name in held:
        (root / name).mkdir(exist_ok=True)
    one = [Generation(digest=name, version=number, folder=str(root / name)) for number, name in enumerate(held, 1)]
    generations.write(path, Generations(serving=serving, held=one))
    return path


@pytest.fixture
def held(tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """Holds a; it looks at the file when it is told to."""
    monkeypatch.setattr(shelf, "WATCH_SECONDS", 3600)
    made = Shelf(tell(tmp_path, "a", "a"), "m_0", loads)
    yield made
    made.close()


def test_what_serves_answers_those_who_name_nothing(held: Shelf) -> None:
    assert held.view.pick(None).content == held.view.pick("a").content == "a"
    with pytest.raises(NotHeldError, match="b is not held"):
        held.view.pick("b")


def test_another_is_held_beside_it_and_then_serves(held: Shelf, tmp_path: Path, loads: Loads) -> None:
    tell(tmp_path, "a", "a", "b")
    held.refresh()
    assert (held.view.pick(None).content, held.view.pick("b").content) == ("a", "b")
    seen = held.view
    tell(tmp_path, "b", "b", "a")
    held.refresh()
    assert (held.view.pick(None).content, held.view.pick("a").content) == ("b", "a")
    assert seen.pick(None).content == "a", "a batch that has begun stays with what it saw"
    tell(tmp_path, "a", "a", "b")
    held.refresh()
    assert held.view.pick(None).content == "a"
    assert loads.loaded == ["a", "b"], "each once"
    (report,) = generations.read_reports(tmp_path / "generations.json", "m", 1)
    assert (report.serving, report.held, report.refused) == ("a", ["a", "b"], {})


def test_what_is_held_no_longer_is_let_go(held: Shelf, tmp_path: Path) -> None:
    tell(tmp_path, "a", "a", "b")
    held.refresh()
    tell(tmp_path, "b", "b", "c")
    held.refresh()
    assert sorted(held.view.held) == ["b", "c"]


def test_what_cannot_be_held_is_told_and_never_serves(held: Shelf, tmp_path: Path) -> None:
    tell(tmp_path, "a", "a", "bad")
    held.refresh()
    with pytest.raises(NotHeldError, match="it is bad"):
        held.view.pick("bad")
    tell(tmp_path, "bad", "bad", "a")
    held.refresh()
    assert held.view.pick(None).content == "a"
    (report,) = generations.read_reports(tmp_path / "generations.json", "m", 1)
    assert report.serving == "a"
    assert "it is bad" in report.refused["bad"]


def test_what_does_not_fit_is_refused(held: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def admit(folder: str, beside: list[str]) -> None:
        assert beside == [str(tmp_path / "a")]
        raise memory.NoRoomError(f"{folder} does not fit")

    monkeypatch.setattr(memory, "admit", admit)
    tell(tmp_path, "a", "a", "b")
    held.refresh()
    with pytest.raises(NotHeldError, match="does not fit"):
        held.view.pick("b")


def test_a_file_that_cannot_be_read_changes_nothing(held: Shelf, tmp_path: Path) -> None:
    (tmp_path / "generations.json").write_text("{")
    held.refresh()
    assert held.view.pick(None).content == "a"
    (tmp_path / "generations.json").unlink()
    held.refresh()
    assert held.view.pick(None).content == "a"


def test_the_file_is_watched(tmp_path: Path, loads: Loads) -> None:
    made = Shelf(tell(tmp_path, "a", "a"), "m_0", loads)
    try:
        tell(tmp_path, "b", "b", "a")
        while made.view.serving.content != "b":
            pass
    finally:
        made.close()


@pytest.mark.parametrize(("serving", "held_"), [("bad", ("bad",)), ("a", ("b",))], ids=["bad", "not held"])
def test_without_what_serves_a_model_does_not_begin(
    tmp_path: Path, loads: Loads, serving: str, held_: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=r"is bad|not held"):
        Shelf(tell(tmp_path, serving, *held_), "m", loads)


def test_a_version_holds_what_is_its_own(tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    """What serves is held by another version, whose processes go on; what is to follow answers here."""
    monkeypatch.setattr(shelf, "WATCH_SECONDS", 3600)
    path = tell(tmp_path, "a", "a", "b")
    before, after = generations.read(path).held
    first = Shelf(path, "m_0", loads)
    generations.write(path, Generations(serving="a", held=[before, after.model_copy(update={"triton": 2})]))
    second = Shelf(path, "m_0", loads, 2)
    first.refresh()
    assert (first.apart, second.apart) == (None, tmp_path / "b")
    assert (first.view.pick(None).content, second.view.pick(None).content) == ("a", "b")
    assert not generations.stands(path, "m", 1, "b", serving=True), "of the first version"
    assert generations.stands(path, "m", 1, "b", serving=True, triton=2)
    with pytest.raises(NotHeldError, match="a is not held"):
        second.view.pick("a")
    with pytest.raises(ValueError, match="nothing in version 3"):
        Shelf(path, "m_0", loads, 3)

    def full(folder: str, beside: list[str]) -> None:
        assert (folder, beside) == (str(tmp_path / "b"), [str(tmp_path / "a")])
        raise memory.NoRoomError("it needs 2 MiB")

    monkeypatch.setattr(memory, "admit", full)
    with pytest.raises(memory.NoRoomError):
        Shelf(path, "m_0", loads, 2)
    first.close()
    second.close()


def test_processes_take_turns_so_that_each_sees_what_the_others_have_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for two copies more, of three processes that begin together."""
    monkeypatch.setattr(shelf, "WATCH_SECONDS", 3600)
    taken: list[str] = []

    def admit(folder: str, beside: Sequence[str]) -> None:
        del folder, beside
        if len(taken) >= 2:
            raise memory.NoRoomError("it needs more")

    def load(folder: Path) -> str:
        if folder.name == "b":
            time.sleep(0.05)
            taken.append("b")
        return folder.name

    monkeypatch.setattr(memory, "admit", admit)
    shelves = [Shelf(tell(tmp_path, "a", "a"), f"m_{number}", load) for number in range(3)]
    try:
        tell(tmp_path, "a", "a", "b")
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(Shelf.refresh, shelves))
        assert sorted("b" in one.view.held for one in shelves) == [False, True, True]
    finally:
        for one in shelves:
            one.close()
