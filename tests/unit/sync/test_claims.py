"""A master that was replaced and still runs, or comes back: it changes nothing in the storage."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads import store as stores
from mms_workloads.contract import Reason, Store
from mms_workloads.pod import Stopped
from mms_workloads.store import JobError
from mms_workloads.sync import checkpoints, claims, master, startup, wire
from mms_workloads.sync.claims import Claim, Replaced, claim
from mms_workloads.train import checkpoint
from tests.unit.sync.masters import Clock, Master, checkpointed, settled
from tests.unit.sync.test_checkpoints import job

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def storage(tmp_path: Path) -> Store:
    return Store(uri=f"file://{tmp_path}/run")


def save(mine: Claim, step: int, lineage: str = "lineage") -> str:
    """A checkpoint that the master of the claim makes valid, whoever has claimed the storage since."""
    name = checkpoints.folder(step, lineage)
    of = checkpointed(step)
    contents = {"progress.json": checkpoint.progress_file(step, of.progress), "plan.bin": of.plan}
    for file, content in contents.items():
        stores.write_bytes(stores.child(mine.storage, f"checkpoints/{name}/{file}"), content)
    entries = {file: checkpoints.digest(content) for file, content in contents.items()}
    checkpoints.commit(mine.storage, name, entries, step, mine.name)
    return name


def step_of(mine: Claim) -> int | None:
    found = startup.last_checkpoint(mine)
    return found.ref.step if found else None


def test_a_later_master_goes_on_from_what_there_is(storage: Store) -> None:
    first = claim(job(storage), 1, 0)
    save(first, 10)
    first.check()
    second = claim(job(storage), 1, 1)
    assert step_of(second) == 10
    save(second, 20)
    assert step_of(second) == step_of(claim(job(storage), 2, 0)) == 20


def test_what_a_replaced_master_saves_counts_for_nobody(storage: Store) -> None:
    first = claim(job(storage), 1, 0)
    save(first, 10)
    second = claim(job(storage), 1, 1)
    save(first, 1000)
    with pytest.raises(Replaced, match="claimed by master 00000001-00000001-mine"):
        first.check()
    assert step_of(second) == 10
    third = claim(job(storage), 1, 2)
    save(first, 2000)
    assert step_of(third) == 10
    save(third, 30)
    fourth = claim(job(storage), 1, 3)
    assert step_of(fourth) == 30
    for one in (first, second, third):
        with pytest.raises(Replaced):
            one.check()
    fourth.check()


def test_of_attempts_the_later_one_has_the_storage(storage: Store) -> None:
    """Its masters may be numbered anew."""
    before, now = claim(job(storage), 1, 9), claim(job(storage), 2, 0)
    now.check()
    with pytest.raises(Replaced):
        before.check()


def test_a_master_that_starts_after_its_successor(storage: Store) -> None:
    """Its node was slow."""
    second = claim(job(storage), 1, 1)
    with pytest.raises(JobError, match=r"00000001-00000001-mine has claimed .*00000001-00000000-mine") as raised:
        claim(job(storage), 1, 0)
    assert raised.value.reason == Reason.STALE_PEER
    second.check()


def test_a_master_that_ended_before_it_had_begun(storage: Store) -> None:
    """It had found nothing yet: what counted for the one before it, counts."""
    first = claim(job(storage), 1, 0)
    save(first, 10)
    stores.write_bytes(stores.child(storage, f"{claims.FOLDER}/00000001-00000001-mine.json"), b"{}")
    with pytest.raises(Replaced):
        first.check()
    assert step_of(claim(job(storage), 1, 2)) == 10


def test_the_same_master_again(storage: Store) -> None:
    first = claim(job(storage), 1, 0)
    save(first, 10)
    assert step_of(claim(job(storage), 1, 0)) == 10
    assert step_of(claim(job(storage), 1, 1)) == 10


ACCESSES = 10  # of a save: three files written, one read back, a look for claims, and pruning


@pytest.mark.parametrize("at", range(ACCESSES + 1))
def test_a_successor_that_claims_at_any_time(storage: Store, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Between any two accesses to the store: what the older master tells of, the successor goes on from."""
    first = claim(job(storage), 1, 0)
    save(first, 10)
    calls, successors = 0, list[Claim]()

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at + 1:
                successors.append(claim(job(storage), 1, 1))
            return original(*arguments)

        return call

    told = False
    with monkeypatch.context() as patched:
        for name in ("write_bytes", "read_bytes", "list_folder", "remove_folder"):
            patched.setattr(stores, name, counted(getattr(stores, name)))
        try:
            save(first, 20)
            first.check()
            told = True
            newest = checkpoints.latest(storage)
            assert newest is not None
            checkpoints.prune(storage, 1, newest, first.check)
        except Replaced:
            assert successors
        assert at < ACCESSES or calls == ACCESSES
    found = step_of(successors[0] if successors else claim(job(storage), 1, 1))
    assert found == 20 or (found == 10 and not told)


def test_storage_of_another_training_that_was_given_up(storage: Store) -> None:
    """Its checkpoints are gone on from, as they are found; and what it writes yet changes nothing."""
    theirs = claim(job(storage, "theirs"), 7, 3)
    save(theirs, 10)
    mine = claim(job(storage), 1, 0)
    mine.check()
    assert step_of(mine) == 10
    with pytest.raises(Replaced):
        theirs.check()
    save(theirs, 1000)
    assert step_of(mine) == step_of(claim(job(storage), 1, 1)) == 10


def test_checkpoints_of_before_there_were_claims(storage: Store) -> None:
    save(Claim(storage, ""), 10)
    mine = claim(job(storage), 1, 0)
    save(Claim(storage, ""), 20)
    assert step_of(mine) == 10


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"checkpoints": 1}', b"\xff"])
def test_a_claim_that_cannot_be_read_says_nothing(storage: Store, content: bytes) -> None:
    first = claim(job(storage), 1, 0)
    save(first, 10)
    stores.write_bytes(stores.child(storage, f"{claims.FOLDER}/00000001-00000001-mine.json"), content)
    assert step_of(claim(job(storage), 1, 2)) == 10


# What the master does then


@pytest.fixture
def old(tmp_path: Path, clock: Clock) -> Master:
    """With the checkpoints of three steps, and a successor that goes on from them."""
    training = job(Store(uri=f"file://{tmp_path}"), "u")
    mine = claim(training, 1, 4)
    for step in (1, 2, 3):
        save(mine, step)
    made = Master(tmp_path, clock, claim=mine, checkpoint=startup.last_checkpoint(mine))
    claim(training, 1, 5)
    return made


def kept(old: Master) -> list[int]:
    """The steps that a master which starts now finds."""
    found = claim(old.it.job, 1, 6)
    return sorted(int(name.split("-")[1]) for name in found.found)


async def test_a_replaced_master_saves(old: Master) -> None:
    """It neither tells of the checkpoint nor deletes older ones, and ends without an outcome."""
    peers = old.running()
    for part, peer in enumerate(peers):
        peer.saved(1000, 1, 1, 1, 1, part=part)
    await settled(old)
    status = old.it.status()
    assert (old.it.replaced, status.outcome, old.it.ended.is_set()) == (True, None, True)
    assert status.checkpoint is not None
    assert status.checkpoint.step == 3
    assert [peer.count(wire.BYE) for peer in peers] == [0, 0], "they look for the master that is"
    with pytest.raises(Stopped):
        await master._tick_until_ended(old.it, asyncio.Event())
    assert kept(old) == [1, 2, 3]


async def test_a_replaced_master_goes_back(old: Master) -> None:
    """What it gives up, its successor has gone on from."""
    with pytest.raises(Replaced):
        await old.it.checkpoints.discard(2)
    assert kept(old) == [1, 2, 3]


async def test_a_replaced_master_prunes(old: Master) -> None:
    reference = old.it.checkpoints.reference
    assert reference is not None
    with pytest.raises(Replaced):
        await old.it.checkpoints.prune(reference)
    assert kept(old) == [1, 2, 3]


async def test_a_replaced_master_hears_of_an_artifact(old: Master) -> None:
    peers = old.running()
    peers[0].say(wire.EXPORTED, artifact={"uri": "file:///a", "digest": "sha256:1", "version": 1, "metrics": {}})
    await settled(old)
    assert (old.it.replaced, old.it.outcome) == (True, None)


def test_workers_of_a_replaced_master_write_no_artifact(storage: Store) -> None:
    training = job(storage)
    names = [claims.name_of(training, 1, incarnation) for incarnation in (0, 1)]
    claim(training, 1, 0)
    assert [claims.newer(storage, name) for name in names] == [False, False]
    claim(training, 1, 1)
    assert [claims.newer(storage, name) for name in names] == [True, False]
    document = json.loads(Path(f"{storage.uri.removeprefix('file://')}/masters/{names[1]}.json").read_text())
    assert document == {"checkpoints": []}
