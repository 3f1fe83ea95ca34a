"""The rounds of a membership epoch: what ranks do at the same boundary, whoever of them was told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads.contract import Guard
from mms_workloads.embedding.parameters import initial_parameters
from mms_workloads.embedding.state import EmbeddingState
from mms_workloads.sync import wire
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.train.communicator import Contribution, Stats
from mms_workloads.train.guarding import PartedError
from mms_workloads.train.learner import Place
from mms_workloads.train.loop import Left, run_rounds
from mms_workloads.train.pulse import Pulse
from mms_workloads.train.state import agree, checksum
from tests.unit.train.deaf import Deaf
from tests.unit.train.table import Table, at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mms_workloads.pod import Pod

ROUNDS = 6  # that there are samples for
ROUND = 3  # in which something happens


class Rank:
    """A member that learns nothing; `happens` is called in the computation of ROUND."""

    trained_on = (0,)

    def __init__(self, pod: Pod, happens: Callable[[Rank], None] = lambda _: None) -> None:
        optimizer = pod.job.optimizer.model_copy(update={"epochs": 1})
        self.job = pod.job.model_copy(update={"optimizer": optimizer})
        self.happens, self.control = happens, Deaf(pod)
        self.state = EmbeddingState.start(initial_parameters(10, 4, 1))
        agree(self.state, 0, "l", Progress.none(1))
        self.rounds: list[int] = []  # samples of each
        self.saved: list[tuple[int, int]] = []  # step and checksum

    # Of a Learner

    def rows(self, _: object) -> dict[str, Any]:
        return {}

    def batch(self, _: Place) -> int:
        return 1

    def rate(self, *_: object) -> float:
        return 0.1

    def precision(self, _: object) -> None:
        pass

    def compute(self, _: EmbeddingState, slices: Sequence[Slice], __: Place) -> Stats:
        self.rounds.append(len(slices))
        if len(self.rounds) == ROUND:
            self.happens(self)
        return Stats(len(slices), float(len(slices)), 1.0)

    # Of a Leaser

    def take(self, _: int) -> tuple[Slice, ...]:
        made = sum(self.rounds)
        return (Slice(0, 0, made, made + 1, ROUNDS),) if made < ROUNDS else ()

    def live(self, slices: tuple[Slice, ...]) -> tuple[Slice, ...]:
        return slices

    def made(self, *, finite: bool) -> None:
        assert finite

    # Of a Checkpointer

    def save(self, state: EmbeddingState, _: Place) -> None:
        self.saved.append((state.agreement.step, checksum(state)))

    def run(self, communicator: Any, place: Place, **changes: Any) -> Left:
        parts: dict[str, Any] = dict.fromkeys(("leaser", "saver"), self)
        parts |= {"communicator": communicator, "control": self.control, "pulse": Pulse(), "leads": True}
        return run_rounds(self, self.state, place, epoch=1, guard=Guard(), **{**parts, **changes})  # type: ignore[arg-type]


class Idle(Rank):
    """It has no samples: the other one has all."""

    def take(self, _: int) -> tuple[Slice, ...]:
        return ()


def ring(first: Rank, second: Rank) -> list[Any]:
    one, two = Table(2).rings()
    return at_once(lambda: first.run(one, Place(0, 2)), lambda: second.run(two, Place(1, 2)))


def asked_to_save(rank: Rank) -> None:
    rank.control.inbox.checkpoint = True


def asked_to_suspend(rank: Rank) -> None:
    rank.control.inbox.suspend = True


def flipped(rank: Rank) -> None:
    rank.state.base.vectors[0, 0] += 1.0


@pytest.mark.parametrize("asked", [asked_to_save, asked_to_suspend])
def test_nothing_is_saved_that_bits_were_flipped_in(pod: Pod, asked: Callable[[Rank], None]) -> None:
    """The comparison before is some rounds ago."""
    first, second = Rank(pod, asked), Idle(pod, flipped)
    found = ring(first, second)
    assert [type(one) for one in found] == [PartedError, PartedError]
    assert (first.saved, second.saved) == ([], [])


def test_a_checkpoint_is_of_what_was_compared(pod: Pod) -> None:
    first, second = Rank(pod, asked_to_save), Idle(pod)
    assert ring(first, second) == [Left.FINISHED, Left.FINISHED]
    assert first.saved == second.saved == [(ROUND, checksum(Rank(pod).state))]
    assert first.rounds == [1] * ROUNDS, "a comparison is no round"


def test_all_that_were_told_to_end_stop_after_a_comparison(pod: Pod) -> None:
    def stop(rank: Rank) -> None:
        rank.control.inbox.stopping = True

    first, second = Rank(pod, stop), Idle(pod, stop)
    assert ring(first, second) == [Left.ALL_STOP, Left.ALL_STOP]
    assert first.rounds == [1, 1, 1]


def test_who_was_told_to_end_knows_that_others_have_what_it_holds(pod: Pod) -> None:
    def stop(rank: Rank) -> None:
        rank.control.inbox.stopping = True

    assert ring(Rank(pod, stop), Idle(pod)) == [Left.LEAVING, Left.NEWER_EPOCH]


class Alone:
    """Shards without synchrony: it pushes by itself, and the master says when all is done."""

    def __init__(self) -> None:
        self.pushes: list[int] = []

    def prepare(self, *_: object) -> None:
        pass

    def exchange(self, state: EmbeddingState, mine: Contribution, *_: object) -> list[Contribution]:
        self.pushes.append(len(mine.slices))
        state.agreement.told = float(len(self.pushes) > ROUNDS + 1)
        return [mine]


def test_pushes_of_nothing_are_no_steps(pod: Pod) -> None:
    """Without synchrony a worker that has no block makes them while others finish theirs."""
    rank, shards = Rank(pod), Alone()
    rank.state.agreement.told = 0.0
    assert rank.run(shards, Place(0, 2)) is Left.FINISHED
    assert shards.pushes == [1] * ROUNDS + [0, 0]
    assert [message.kind for message in rank.control.sent] == [wire.PROGRESS] * ROUNDS
