"""The work queue: nothing that is added is lost, and no key runs twice at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mms_operator.engine import queue as module
from mms_operator.engine.queue import BACKOFF_BASE, BACKOFF_LIMIT, WorkQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock, jitter=lambda: 0.0)


def drained(queue: WorkQueue[str]) -> list[str]:
    taken = []
    while (key := queue.take()) is not None:
        taken.append(key)
        queue.done(key)
    return taken


def test_a_key_is_held_once_and_in_the_order_of_arrival(queue: WorkQueue[str]) -> None:
    for key in "bacab":
        queue.add(key)
    assert queue.depth == 3
    assert drained(queue) == ["b", "a", "c"]


def test_a_key_that_is_added_while_it_runs_runs_once_more_afterwards(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert queue.take() == "a"
    queue.add("a")
    queue.add("a")
    assert queue.take() is None
    queue.done("a")
    assert drained(queue) == ["a"]


@pytest.mark.parametrize(
    ("delays", "due"),
    [
        pytest.param([5.0, 2.0, 9.0], 2.0, id="earliest in the middle"),
        pytest.param([1.0, 2.0], 1.0, id="earliest first"),
        pytest.param([-3.0], 0.0, id="in the past is now"),
    ],
)
def test_the_earliest_of_several_times_counts(
    queue: WorkQueue[str], clock: Clock, delays: list[float], due: float
) -> None:
    for delay in delays:
        queue.add_after("a", delay)
    assert queue.next_due() == due
    if due:
        clock.now += due - 0.01
        assert queue.take() is None
        clock.now += 0.01
    assert drained(queue) == ["a"]
    clock.now += 100.0
    assert drained(queue) == [], "the later times were for the same run"


def test_a_run_is_what_the_delay_was_for(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add_after("a", 5.0)
    queue.add("a")
    assert drained(queue) == ["a"]
    assert queue.next_due() is None
    clock.now += 10.0
    assert drained(queue) == []


def test_a_delay_that_ends_while_its_key_runs_is_not_lost(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a")
    queue.take()
    queue.add_after("a", 1.0)
    clock.now += 1.0
    assert queue.take() is None
    queue.done("a")
    assert drained(queue) == ["a"]


def test_backoff_doubles_up_to_its_limit_and_starts_again_when_forgotten(clock: Clock) -> None:
    queue: WorkQueue[str] = WorkQueue(clock, jitter=lambda: 1.0)
    delays = [queue.retry("a") for _ in range(40)]
    assert delays[:4] == [BACKOFF_BASE * 2**n for n in range(4)]
    assert delays[-1] == BACKOFF_LIMIT
    assert delays == sorted(delays)
    assert queue.retry("b") == BACKOFF_BASE, "each key has its own"
    queue.forget("a")
    assert queue.retry("a") == BACKOFF_BASE


@pytest.mark.parametrize(("jitter", "share"), [(0.0, 0.5), (0.5, 0.75), (0.999, 0.9995)])
def test_jitter_takes_up_to_half_of_a_delay(clock: Clock, jitter: float, share: float) -> None:
    queue: WorkQueue[str] = WorkQueue(clock, jitter=lambda: jitter)
    assert queue.retry("a") == pytest.approx(BACKOFF_BASE * share)


def test_oldest_is_the_wait_of_the_first_ready_key(queue: WorkQueue[str], clock: Clock) -> None:
    assert queue.oldest == 0.0
    queue.add("a")
    clock.now += 3.0
    queue.add("b")
    queue.add("a")
    clock.now += 1.0
    assert queue.oldest == 4.0
    queue.take()
    assert queue.oldest == 1.0


def test_keys_that_ask_again_and_again_for_a_look_in_a_month_do_not_pile_up(
    queue: WorkQueue[str], clock: Clock
) -> None:
    queue.add_after("b", 50.0)
    for _ in range(10_000):
        queue.add("a")
        queue.take()
        queue.add_after("a", 2_592_000.0)
        queue.done("a")
        clock.now += 0.001
    assert len(queue._heap) < 200
    clock.now += 50.0
    assert drained(queue) == ["b"]
    clock.now += 2_592_000.0
    assert drained(queue) == ["a"]


async def test_workers_work_side_by_side_and_never_on_the_same_key() -> None:
    queue: WorkQueue[str] = WorkQueue()
    running: Counter[str] = Counter()
    most, runs = 0, 0
    full, release, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(key: str) -> None:
        nonlocal most, runs
        running[key] += 1
        assert running[key] == 1
        most = max(most, running.total())
        if running.total() == 3:
            full.set()
        await release.wait()
        running[key] -= 1
        runs += 1
        if runs == 4:
            finished.set()

    async def scenario() -> None:
        for key in "abc":
            queue.add(key)
        await full.wait()
        queue.add("a")  # it runs: so later
        release.set()
        await finished.wait()

    await during(queue, work, scenario, workers=8)
    assert most == 3


async def test_a_delayed_key_wakes_an_idle_worker_in_time() -> None:
    queue: WorkQueue[str] = WorkQueue()
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def work(key: str) -> None:
        seen.put_nowait(key)

    async def scenario() -> None:
        queue.add_after("late", 60.0)
        queue.add_after("soon", 0.02)
        assert await seen.get() == "soon"
        queue.add("now")
        assert await seen.get() == "now"
        assert seen.empty()

    await during(queue, work, scenario, workers=1)


async def test_a_key_that_fails_comes_back_without_holding_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_BASE", 0.01)
    queue: WorkQueue[str] = WorkQueue()
    tries: Counter[str] = Counter()
    finished = asyncio.Event()

    async def work(key: str) -> None:
        tries[key] += 1
        if key == "bad" and tries[key] < 4:
            queue.retry(key)
        elif key == "bad":
            finished.set()

    async def scenario() -> None:
        queue.add("bad")
        queue.add("good")
        await finished.wait()

    await during(queue, work, scenario, workers=1)
    assert tries == {"bad": 4, "good": 1}


async def test_work_that_raises_ends_the_queue_loudly() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")

    async def work(key: str) -> None:
        raise ValueError(key)

    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(queue.run(work, 2), 5)
    assert caught.group_contains(ValueError)


async def during(
    queue: WorkQueue[str],
    work: Callable[[str], Awaitable[None]],
    scenario: Callable[[], Awaitable[None]],
    workers: int,
) -> None:
    running = asyncio.create_task(queue.run(work, workers))
    try:
        async with asyncio.timeout(10):
            await scenario()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


KEYS = st.sampled_from("abcde")


class Machine(RuleBasedStateMachine):
    """Random orders of events. `owed` holds the keys that must still run, `late` when a delay of theirs ends."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue: WorkQueue[str] = WorkQueue(self.clock, jitter=lambda: 0.5)
        self.running: list[str] = []
        self.owed: set[str] = set()
        self.late: dict[str, float] = {}

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.owed.add(key)

    @rule(key=KEYS, seconds=st.floats(0, 20))
    def add_after(self, key: str, seconds: float) -> None:
        self.queue.add_after(key, seconds)
        self.late[key] = min(self.late.get(key, float("inf")), self.clock.now + seconds)

    @rule(key=KEYS)
    def retry(self, key: str) -> None:
        due = self.clock.now + self.queue.retry(key)
        self.late[key] = min(self.late.get(key, float("inf")), due)

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        self.queue.forget(key)

    @rule(seconds=st.floats(0, 30))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def promote(self) -> None:
        self.queue.promote()
        self._promoted()

    @rule()
    def take(self) -> None:
        key = self.queue.take()
        self._promoted()
        if key is None:
            assert self.owed <= set(self.running), "a key that is owed a run was not given"
            return
        assert key not in self.running, "one key ran twice at once"
        assert key in self.owed, "a key ran that nobody had asked for"
        self.running.append(key)
        self.owed.discard(key)
        self.late.pop(key, None)

    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        if self.running:
            key = data.draw(st.sampled_from(self.running))
            self.running.remove(key)
            self.queue.done(key)

    @invariant()
    def next_due_is_the_earliest_delay(self) -> None:
        due = min(self.late.values(), default=None)
        expected = None if due is None else max(due - self.clock.now, 0.0)
        assert self.queue.next_due() == expected

    @invariant()
    def depth_counts_what_is_ready(self) -> None:
        assert self.queue.depth == len(self.owed - set(self.running))

    def teardown(self) -> None:
        """Time passes and all work ends: then everything that was owed has run."""
        for key in self.running:
            self.queue.done(key)
        self.clock.now += 2 * BACKOFF_LIMIT
        assert set(drained(self.queue)) == self.owed | set(self.late)

    def _promoted(self) -> None:
        for key in [key for key, due in self.late.items() if due <= self.clock.now]:
            del self.late[key]
            self.owed.add(key)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
