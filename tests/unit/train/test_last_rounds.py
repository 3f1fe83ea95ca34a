"""Members' rounds up to the last one, as their master deals the blocks: nobody makes the last ones by itself."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads.contract import JobFile
from mms_workloads.sync import wire
from mms_workloads.sync.leases import Leases, Progress
from mms_workloads.sync.wire import Message
from mms_workloads.train.leasing import Leaser
from mms_workloads.train.state import Agreement
from tests.unit.test_contract import JOB_FILE
from tests.unit.train.deaf import Deaf

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_workloads.pod import Pod


class AtOnce(Executor):
    def submit(self, act: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(act(*given, **named))
        return done


class Blocks:
    """A learner whose blocks have so many samples."""

    job = JobFile.model_validate(JOB_FILE)

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def size(self, _: int) -> int:
        return self.samples

    def ready(self, block: int, data_epoch: int) -> None:
        pass

    def dead(self, _: int) -> None:
        pass


@dataclass(frozen=True)
class Case:
    """samples: of a block; batch: of a member's round."""

    members: int
    blocks: int
    samples: int
    batch: int
    mixed: int = 16
    epochs: int = 1


class Member(Deaf):
    """Its connection to the master; all of them have the same one, which answers at once."""

    def __init__(self, pod: Pod, rank: int, leases: Leases, case: Case) -> None:
        super().__init__(pod)
        self.rank, self.leases, self.members, self.asked = rank, leases, case.members, 0
        agreement, learner = Agreement(5, progress=Progress([])), Blocks(case.samples)
        self.leaser = Leaser(self, 1, learner, agreement, AtOnce(), mixed=case.mixed, members=case.members)  # type: ignore[arg-type]

    def send(self, kind: str, data: bytes = b"", **fields: Any) -> None:
        del data, fields
        if kind != wire.LEASE:
            return
        self.asked += 1
        answer: dict[str, Any] = {"epoch": 1, "block": None, "fraction": 0.0}
        if lease := self.leases.take(self.rank, self.members):
            answer |= {"data_epoch": lease.data_epoch, "block": lease.block, "start": lease.start}
        self._take(Message(wire.LEASED, answer))


@pytest.mark.parametrize(
    "case", [Case(2, 70, 300, 16), Case(3, 100, 50, 16, epochs=2), Case(4, 400, 100, 32), Case(2, 9, 100, 16, 2, 2)]
)
def test_members_have_samples_till_the_last_round(pod: Pod, case: Case) -> None:
    """Where each takes what it can get, one is six blocks behind the other in the first of these cases."""
    leases = Leases("Random", 1, case.epochs, range(case.blocks), Progress.none(case.blocks))
    ranks = [Member(pod, rank, leases, case) for rank in range(case.members)]
    had, rounds, idle = [0] * case.members, 0, 0
    while not leases.done():
        taken = [one.leaser.take(case.batch) for one in ranks]
        leases.commit(s for each in taken for s in each)
        counts = [sum(s.stop - s.start for s in each) for each in taken]
        had = [a + b for a, b in zip(had, counts, strict=True)]
        rounds, idle = rounds + 1, idle + (min(counts) == 0)
    assert sum(had) == case.blocks * case.samples * case.epochs
    assert max(had) - min(had) <= case.samples, "one block at most"
    of_one = -(-case.samples // case.batch)
    assert idle <= of_one
    assert rounds <= -(-sum(had) // (case.members * case.batch)) + of_one
    for one in ranks:
        assert one.asked <= case.blocks * case.epochs + rounds, "one a round where there are none"
