"""Collectives of a ring: the right sums, the same bits everywhere, and how they end when somebody is gone."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_operator.api.training_run import MOST_OF_A_RING
from mms_workloads.transport import native
from mms_workloads.transport.channel import Abort, Fence, Greeting, Listener, PeerLost, Refused, Security, connect
from mms_workloads.transport.ring import MAX_SIZE, RingTransport, Wire
from tests.unit.transport.peers import FENCE, GREETING, HOST, SECONDS, Beside, form, ring

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

WIRES: tuple[Wire, ...] = get_args(Wire)
# Where the ways to reduce begin and end: of relayed tensors, of chunks, of blocks, of int8's scales.
SIZES = [0, 1, 2, 3, 7, 255, 256, 257, 1000, 4095, 16384, 16385, 32769, 65536, 100_003, 262_144, 700_001]
KERNELS = [name for name in ("avx512", "avx2", "neon", "scalar") if native.lib.mms_kernels_choose(name.encode())]


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """Whatever a test chooses, the next has the best again."""
    native.lib.mms_kernels_choose(KERNELS[0].encode())
    yield
    native.lib.mms_kernels_choose(KERNELS[0].encode())


def gradients(size: int, members: int, seed: int = 0) -> list[Tensor]:
    """float32 [size] of each member, of magnitudes from 1e-6 to 1e3."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(members, size, generator=generator)
    return list(normal * 10 ** (torch.rand(members, size, generator=generator) * 9 - 6))


def reduced(parts: list[Tensor], wire: Wire, errors: list[Tensor] | None = None) -> list[Tensor]:
    def work(transport: RingTransport) -> Tensor:
        tensor = parts[transport.position].clone()
        transport.all_reduce(tensor, wire, errors[transport.position] if errors else None)
        return tensor

    return ring(len(parts), work)


def exact(parts: list[Tensor]) -> Tensor:
    return sum((part.double() for part in parts), torch.zeros(parts[0].shape, dtype=torch.float64))


def bound(parts: list[Tensor], wire: Wire) -> Tensor:
    """The most that a sum may be off: each of at most n values that are rounded, by half a step of the format."""
    n = len(parts)
    total = exact([part.abs() for part in parts])
    sums = n * 2.0**-23 * total + 1e-30
    if n == 1 or not total.numel():
        return sums
    # 8 bits of significand; or steps of 1/126 of the largest in the block, and there is none larger than the largest.
    rounding = {"None": 0 * total, "BF16": 2.0**-8 * total, "Int8": total.max() / 252 + 0 * total}[wire]
    return sums + 1.05 * n * rounding


def same_bits(tensors: list[Tensor]) -> bool:
    return all(torch.equal(tensors[0].view(torch.int32), tensor.view(torch.int32)) for tensor in tensors)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("members", [1, 2, 3, 4, 5])
def test_sums(members: int, wire: Wire) -> None:
    """Of all sizes, one after the other over one ring."""
    parts = [gradients(size, members, size) for size in SIZES]

    def work(transport: RingTransport) -> list[Tensor]:
        tensors = [part[transport.position].clone() for part in parts]
        for tensor in tensors:
            transport.all_reduce(tensor, wire)
        return tensors

    results = ring(members, work)
    for number, part in enumerate(parts):
        found = [result[number] for result in results]
        assert same_bits(found), SIZES[number]
        assert ((found[0].double() - exact(part)).abs() <= bound(part, wire)).all(), SIZES[number]


@settings(max_examples=40)
@given(st.integers(1, 7), st.integers(0, 50_000), st.sampled_from(WIRES), st.integers(0, 1000))
def test_sums_of_any_size(members: int, size: int, wire: Wire, seed: int) -> None:
    parts = gradients(size, members, seed)
    found = reduced(parts, wire)
    assert same_bits(found)
    assert ((found[0].double() - exact(parts)).abs() <= bound(parts, wire)).all()


@pytest.mark.parametrize("wire", WIRES)
def test_many_members(wire: Wire) -> None:
    for size in (10, 300_000):
        parts = gradients(size, 64)
        found = reduced(parts, wire)
        assert same_bits(found)
        assert ((found[0].double() - exact(parts)).abs() <= bound(parts, wire)).all()


def test_more_than_the_most() -> None:
    assert MOST_OF_A_RING == MAX_SIZE, "no training is accepted whose workers would not meet"
    with pytest.raises(ValueError, match="64 are the most"):
        RingTransport.form(
            0, [(HOST, 1)] * 65, None, Security.plain(), FENCE, rank=0, incarnation=0, abort=Abort(), timeout=1  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("members", [2, 3])
def test_all_processors_give_the_same_bits(members: int, wire: Wire) -> None:
    for size in (777, 200_001):
        parts = gradients(size, members)
        results = []
        for name in KERNELS:
            assert native.lib.mms_kernels_choose(name.encode())
            errors = [torch.zeros(size) for _ in parts]
            results.append((*reduced(parts, wire, errors), *errors))
        for result in results[1:]:
            assert all(same_bits([one, other]) for one, other in zip(results[0], result, strict=True))


def test_unknown_kernels() -> None:
    assert not native.lib.mms_kernels_choose(b"sse9")
    assert native.lib.mms_kernels().decode() == KERNELS[0]


def test_bf16_is_rounded_to_nearest_even() -> None:
    """As torch rounds it, which is IEEE 754's way."""
    bits = torch.randint(-(2**31), 2**31 - 1, (100_000,), generator=torch.Generator().manual_seed(1)).to(torch.int32)
    ties = torch.tensor([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7FFFFF, 0x00008000, 0x80018000 - 2**32])
    values = torch.cat((bits, ties.to(torch.int32))).view(torch.float32)
    values = values[~values.isnan()]
    found = reduced([values, torch.zeros_like(values)], "BF16")[0]
    assert torch.equal(found, values.bfloat16().float() + 0.0)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("members", [2, 3])
def test_what_is_not_finite_stays_so(members: int, wire: Wire, name: str) -> None:
    """Where it is and nowhere else; a guard looks for it. What was lost by rounding stays finite."""
    native.lib.mms_kernels_choose(name.encode())
    for size in (1000, 300_000):
        parts = gradients(size, members)
        parts[0][3], parts[0][5], parts[0][7], parts[0][9] = torch.inf, -torch.inf, torch.nan, torch.inf
        parts[1][9], parts[1][11], parts[1][-1] = -torch.inf, -torch.nan, torch.nan
        errors = [torch.zeros(size) for _ in parts]
        found = reduced(parts, wire, errors)
        assert same_bits(found)
        assert found[0][3] == torch.inf
        assert found[0][5] == -torch.inf
        assert found[0][[7, 9, 11, -1]].isnan().all()
        assert found[0].isfinite().sum() == size - 6
        assert all(error.isfinite().all() for error in errors)
        assert errors[0][3] == errors[0][7] == 0


def test_small_and_large_values_in_int8() -> None:
    """A block of zeros, of numbers without a reciprocal, and of the largest there are."""
    parts = [torch.zeros(4 * 256), torch.zeros(4 * 256)]
    parts[0][256:512] = 1e-39
    parts[0][512:768] = torch.finfo(torch.float32).max
    parts[0][768:] = torch.linspace(-126, 126, 256).round()
    found = reduced(parts, "Int8")
    assert same_bits(found)
    assert (found[0][:512] == 0).all()
    assert torch.allclose(found[0][512:768], parts[0][512:768])
    assert torch.equal(found[0][768:], parts[0][768:])


# ---- error feedback


@pytest.mark.parametrize("wire", ["BF16", "Int8"])
@pytest.mark.parametrize("members", [2, 3, 4])
@pytest.mark.parametrize("size", [500, 60_000], ids=["relayed", "in parts"])
def test_the_mean_of_many_rounds_is_exact(members: int, size: int, wire: Wire) -> None:
    """What one round loses the next brings. Without, every round is off by as much."""
    parts = gradients(size, members)
    rounds = 40
    errors = [torch.zeros(size) for _ in parts]

    def work(transport: RingTransport) -> Tensor:
        total = torch.zeros(size, dtype=torch.float64)
        for _ in range(rounds):
            tensor = parts[transport.position].clone()
            transport.all_reduce(tensor, wire, errors[transport.position])
            total += tensor
        return total / rounds

    means = ring(members, work)
    assert all(torch.equal(means[0], mean) for mean in means)
    off = (means[0] - exact(parts)).abs()
    assert (off <= 3 * bound(parts, wire) / rounds + 1e-5 * exact([part.abs() for part in parts])).all()
    without = (reduced(parts, wire)[0].double() - exact(parts)).abs()
    assert off.mean() < without.mean() / 8


@pytest.mark.parametrize("wire", ["BF16", "Int8"])
@pytest.mark.parametrize("members", [2, 3, 5])
def test_nothing_is_lost_but_kept(members: int, wire: Wire) -> None:
    """The sum and what the members keep are the exact sum."""
    for size in (100, 90_000):
        parts = gradients(size, members)
        errors = [
            0.01 * torch.randn(size, generator=torch.Generator().manual_seed(member)) for member in range(members)
        ]
        before = exact(parts) + exact(errors)
        found = reduced(parts, wire, errors)
        scale = exact([part.abs() for part in parts]).max() if wire == "Int8" else exact([p.abs() for p in parts]) + 1
        assert ((found[0].double() + exact(errors) - before).abs() <= 1e-6 * members * scale).all()


def test_without_a_format_nothing_is_kept() -> None:
    parts = gradients(1000, 2)
    errors = [torch.ones(1000), torch.ones(1000)]
    assert torch.allclose(reduced(parts, "None", errors)[0].double(), exact(parts))
    assert all((error == 1).all() for error in errors)


@pytest.mark.parametrize(
    ("tensor", "error", "says"),
    [
        (torch.zeros(3, dtype=torch.float64), None, "float64"),
        (torch.zeros(4, 4).T, None, "contiguous"),
        (torch.zeros(4), torch.zeros(5), "5 values of error for 4"),
        (torch.zeros(4), torch.zeros(4, dtype=torch.bfloat16), "its error"),
    ],
    ids=["dtype", "layout", "size of the error", "dtype of the error"],
)
def test_tensors_that_cannot_be_reduced(tensor: Tensor, error: Tensor | None, says: str) -> None:
    transport = RingTransport(0, 1, FENCE, None)
    with pytest.raises(ValueError, match=says):
        transport.all_reduce(tensor, "BF16", error)


# ---- the other collectives


@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_all_gather(members: int) -> None:
    shapes = [(0,), (), (3, 5), (300_001,)]

    def work(transport: RingTransport) -> list[list[Tensor]]:
        return [transport.all_gather(torch.full(shape, transport.position, dtype=torch.float64)) for shape in shapes]

    for results in ring(members, work):
        for shape, gathered in zip(shapes, results, strict=True):
            assert [tensor.shape for tensor in gathered] == [torch.Size(shape)] * members
            assert all((tensor == position).all() for position, tensor in enumerate(gathered))


def test_tensors_that_cannot_be_gathered() -> None:
    with pytest.raises(ValueError, match="on the CPU"):
        RingTransport(0, 1, FENCE, None).all_gather(torch.empty(1, device="meta"))


@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_broadcast_from_each(members: int) -> None:
    sources = [torch.randint(256, (size,), dtype=torch.uint8) for size in (0, 1, 1000, 3_000_001)]

    def work(transport: RingTransport) -> bool:
        good = True
        for source in range(members):
            for tensor in sources:
                mine = tensor.clone() if transport.position == source else torch.zeros_like(tensor)
                transport.broadcast(mine, source)
                good &= torch.equal(mine, tensor)
        return good

    assert all(ring(members, work))


@pytest.mark.parametrize("members", [2, 3])
def test_what_follows_a_broadcast_is_not_taken_for_a_part_of_it(members: int) -> None:
    """Its last member is done before the source has heard of it, and begins the next collective."""

    def work(transport: RingTransport) -> bool:
        good = True
        for turn in range(2000):
            source = turn % members
            mine = torch.full((1000,), 1.0 if transport.position == source else 0.0)
            transport.broadcast(mine, source)
            gathered = transport.all_gather(torch.full((80,), float(transport.position)))
            good &= bool((mine == 1.0).all())
            good &= all(bool((tensor == position).all()) for position, tensor in enumerate(gathered))
        return good

    assert all(ring(members, work))


OPERATIONS = st.tuples(
    st.sampled_from(["all_reduce", "all_gather", "broadcast"]),
    st.one_of(st.integers(0, 100), st.integers(0, 60_000)),
    st.sampled_from(WIRES),
)


@settings(max_examples=30)
@given(st.integers(2, 4), st.lists(OPERATIONS, min_size=2, max_size=25))
def test_collectives_follow_each_other(members: int, operations: list[tuple[str, int, Wire]]) -> None:
    """Whoever is done with one begins the next while others are still in it."""

    def work(transport: RingTransport) -> bool:
        good = True
        for number, (kind, size, wire) in enumerate(operations):
            mine = torch.full((size,), float(transport.position))
            source = number % members
            if kind == "all_reduce":
                transport.all_reduce(mine, wire)
                good &= torch.allclose(mine, torch.full((size,), sum(range(members)) * 1.0), rtol=0.01)
            elif kind == "broadcast":
                transport.broadcast(mine, source)
                good &= bool((mine == source).all())
            else:
                gathered = transport.all_gather(mine)
                good &= all(bool((tensor == position).all()) for position, tensor in enumerate(gathered))
        return good

    assert all(ring(members, work))


def test_broadcast_from_nobody() -> None:
    transport = RingTransport(0, 1, FENCE, None)
    with pytest.raises(ValueError, match="position 1 of a ring of 1"):
        transport.broadcast(torch.zeros(1), 1)


def test_mutual_tls(job: dict[str, Path]) -> None:
    parts = gradients(400_000, 3)

    def work(transport: RingTransport) -> list[Tensor]:
        tensors = [parts[transport.position].clone() for _ in WIRES]
        for wire, tensor in zip(WIRES, tensors, strict=True):
            transport.all_reduce(tensor, wire)
        return [*tensors, *transport.all_gather(parts[transport.position])]

    results = ring(3, work, Security.mutual(job["worker"]))
    for wire, *found in zip(WIRES, *results, strict=False):
        assert same_bits(found)
        assert ((found[0].double() - exact(parts)).abs() <= bound(parts, wire)).all()
    assert all(torch.equal(result[3 + position], parts[position]) for result in results for position in range(3))


# ---- members that do not agree


def outcomes(size: int, work: dict[int, object], fences: dict[int, Fence] | None = None) -> list[Exception | None]:
    """What each member raised; a member that fails leaves, as a worker does."""

    def member(transport: RingTransport) -> Exception | None:
        try:
            work[transport.position](transport)  # type: ignore[operator]
        except (PeerLost, Refused) as error:
            return error
        finally:
            transport.close()
        return None

    return ring(size, member, None, fences)


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (lambda t: t.all_reduce(torch.zeros(101)), "all-reduce/0 of 101"),
        (lambda t: t.all_reduce(torch.zeros(100_000)), "all-reduce/0 of 100000"),
        (lambda t: t.all_reduce(torch.zeros(100), "BF16"), "all-reduce/1 of 100"),
        (lambda t: t.all_gather(torch.zeros(25)), "all-gather/0 of 100"),
        (lambda t: t.broadcast(torch.zeros(25), 1), "broadcast/1 of 100"),
    ],
    ids=["length", "way", "format", "kind", "broadcast"],
)
def test_different_collectives_are_refused(members: int, odd: object, says: str) -> None:
    work = dict.fromkeys(range(members), lambda t: t.all_reduce(torch.zeros(100)))
    raised = outcomes(members, work | {0: odd})
    assert all(isinstance(error, (Refused, PeerLost)) for error in raised)
    refused = [str(error) for error in raised if isinstance(error, Refused)]
    assert refused
    assert any(says in words for words in refused)


def test_one_collective_behind_is_refused() -> None:
    def ahead(transport: RingTransport) -> None:
        transport._handle = native.lib.mms_ring_new(  # a ring that has run none yet, where the other has
            *(stream._handle for stream in transport._streams or ()), 0, 2, FENCE.digest
        )
        transport.all_reduce(torch.zeros(8))

    def both(transport: RingTransport) -> None:
        transport.all_reduce(torch.zeros(8))
        if transport.position == 0:
            ahead(transport)
        else:
            transport.all_reduce(torch.zeros(8))

    raised = outcomes(2, dict.fromkeys(range(2), both))
    assert any(isinstance(error, Refused) and "collective 1," in str(error) for error in raised)


# ---- members that are lost


def forever(transport: RingTransport) -> None:
    tensor = torch.zeros(1_000_000)
    while True:
        transport.all_reduce(tensor)


@pytest.mark.parametrize("members", [2, 3, 4])
def test_abort_in_a_collective(members: int, security: Security) -> None:
    """One member's Abort ends it here, and its leaving ends it for all."""
    listeners = [Listener(HOST, security) for _ in range(members)]
    abort = Abort()

    def member(position: int) -> None:
        transport = form(position, listeners, security, abort=abort if position == 0 else None)
        try:
            forever(transport)
        finally:
            transport.close()

    threads = [Beside(lambda position=position: member(position)) for position in range(members)]
    time.sleep(0.3)
    assert all(thread.runs() for thread in threads)
    abort.set()
    with pytest.raises(PeerLost, match="aborted"):
        threads[0].result()
    for thread in threads[1:]:
        with pytest.raises(PeerLost):
            thread.result()
    for listener in listeners:
        listener.close()


def test_close_from_another_thread() -> None:
    def work(transport: RingTransport) -> None:
        closer = Beside(lambda: (time.sleep(0.1), transport.close())) if transport.position == 0 else None
        with pytest.raises(PeerLost):
            forever(transport)
        if closer:
            closer.result()
        with pytest.raises(PeerLost):
            transport.all_reduce(torch.zeros(1))

    ring(3, work)


def test_idle_member_is_given_up() -> None:
    leave = threading.Event()

    def work(transport: RingTransport) -> None:
        if transport.position == 0:
            leave.wait(SECONDS)
            return
        transport.timeout = 0.1
        with pytest.raises(PeerLost, match="nothing moved"):
            transport.all_reduce(torch.zeros(100))
        leave.set()

    ring(2, work)


@pytest.mark.parametrize("size", [100, 2_000_000])
def test_member_that_is_killed(size: int, tmp_path: Path) -> None:
    """Its neighbours notice at once; those further away when the neighbours leave."""
    command = [sys.executable, str(Path(__file__).with_name("member.py")), str(tmp_path), "4", str(size)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as members:
        try:
            deadline = time.monotonic() + SECONDS
            while len(list(tmp_path.glob("running-*"))) < 4:
                assert time.monotonic() < deadline, "the ring was not formed"
                time.sleep(0.01)
            os.kill(int((tmp_path / "process-1").read_text()), signal.SIGKILL)
            assert members.wait(SECONDS) == 0
        finally:
            for file in tmp_path.glob("process-*"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(file.read_text()), signal.SIGKILL)
            members.kill()
    said = {file.name: file.read_text() for file in tmp_path.glob("ended-*")}
    assert said.keys() == {"ended-0", "ended-2", "ended-3"}
    assert all("closed" in words for words in said.values()), said


def test_signals_while_a_collective_waits() -> None:
    """The main thread's collective goes on after each."""
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
    listeners = [Listener(HOST, Security.plain()) for _ in range(2)]
    sizes = [10, 100_000, 400_000] * 8

    def member(position: int) -> list[Tensor]:
        transport = form(position, listeners, Security.plain())
        results = []
        for number, size in enumerate(sizes):
            if position == 1:
                time.sleep(0.005)
            tensor = torch.full((size,), float(number + position))
            transport.all_reduce(tensor, WIRES[number % 3])
            results.append(tensor)
        results += transport.all_gather(torch.full((50_000,), position))
        transport.close()
        return results

    other = Beside(lambda: member(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        mine = member(0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    theirs = other.result()
    assert heard
    assert all(torch.equal(one, two) for one, two in zip(mine, theirs, strict=True))
    for number, (result, size) in enumerate(zip(mine, sizes, strict=False)):
        assert torch.allclose(result, torch.full((size,), 2.0 * number + 1), rtol=0.02)
    for listener in listeners:
        listener.close()


# ---- forming


def test_older_epoch_is_refused_and_newer_one_waits() -> None:
    """Member 1 is still in epoch 7 when member 0 forms epoch 8; once it is there too they meet."""
    security = Security.plain()
    listeners = [Listener(HOST, security) for _ in range(2)]
    newer = Fence("uid", 1, 1, 8)
    early = Beside(lambda: form(0, listeners, security, newer))
    # Member 1 dials with the old epoch: member 0 says which one it is in.
    with pytest.raises(Refused, match="epoch 7 instead of 8"):
        form(1, listeners, security, FENCE)
    late = Beside(lambda: form(1, listeners, security, newer))
    for transport in (early.result(), late.result()):
        transport.close()
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize(
    ("greeting", "says"),
    [
        (Greeting(Fence("uid", 1, 1, 6), "worker", 1, 0, "ring 1>0 of 2"), "epoch 6 instead of 7"),
        (Greeting(Fence("uid", 1, 0, 7), "worker", 1, 0, "ring 1>0 of 2"), "attempt 0 instead of 1"),
        (Greeting(Fence("other", 1, 1, 7), "worker", 1, 0, "ring 1>0 of 2"), "uid other instead of uid"),
        (GREETING, "test instead of ring 1>0 of 2"),
        (Greeting(FENCE, "worker", 1, 0, "ring 1>0 of 3"), "ring 1>0 of 3 instead of ring 1>0 of 2"),
    ],
    ids=["epoch", "attempt", "job", "purpose", "size"],
)
def test_strangers_are_refused_and_the_ring_is_formed(greeting: Greeting, says: str) -> None:
    security = Security.plain()
    listeners = [Listener(HOST, security) for _ in range(2)]
    first = Beside(lambda: form(0, listeners, security))
    with pytest.raises(Refused, match=says):
        connect(HOST, listeners[0].port, security, greeting, Abort(), SECONDS)
    second = Beside(lambda: form(1, listeners, security))
    for transport in (first.result(), second.result()):
        transport.close()
    for listener in listeners:
        listener.close()


def test_member_that_does_not_come() -> None:
    listeners = [Listener(HOST, Security.plain()) for _ in range(2)]
    with pytest.raises(PeerLost, match="in time") as lost:
        RingTransport.form(
            0, [(HOST, listener.port) for listener in listeners], listeners[0], Security.plain(), FENCE,
            rank=0, incarnation=0, abort=Abort(), timeout=0.1,
        )  # fmt: skip
    assert lost.value.places == (1,)
    listeners[1].close()
    with pytest.raises(PeerLost, match="Connection refused") as lost:
        form(0, listeners, Security.plain())
    assert lost.value.places == (1,)
    listeners[0].close()


def test_who_was_not_reached() -> None:
    """The next member takes nothing, the one before does not come: another one is where nobody can tell."""
    listeners = [Listener(HOST, Security.plain()) for _ in range(4)]
    addresses = [(HOST, listener.port) for listener in listeners]
    with pytest.raises(PeerLost) as lost:
        RingTransport.form(
            0, addresses, listeners[0], Security.plain(), FENCE, rank=0, incarnation=0, abort=Abort(), timeout=0.1
        )
    assert lost.value.places == (1, 3)
    listeners[1].close()
    with pytest.raises(PeerLost, match="Connection refused") as lost:
        RingTransport.form(
            0, addresses, listeners[0], Security.plain(), FENCE, rank=0, incarnation=0, abort=Abort(), timeout=30
        )
    assert lost.value.places == (1,), "there was time left for the one before"
    for listener in (listeners[0], *listeners[2:]):
        listener.close()


def test_abort_while_the_ring_is_formed(security: Security) -> None:
    listeners = [Listener(HOST, security) for _ in range(3)]
    abort = Abort()
    forming = Beside(lambda: form(0, listeners, security, abort=abort))
    time.sleep(0.05)
    assert forming.runs()
    abort.set()
    with pytest.raises(PeerLost, match="aborted") as lost:
        forming.result()
    assert lost.value.places == (), "whoever aborts it knows why"
    for listener in listeners:
        listener.close()


def test_nothing_is_left_of_two_hundred_epochs(job: dict[str, Path]) -> None:
    """Descriptors, threads and memory, whether an epoch ended well or in the middle of a collective."""
    security = Security.mutual(job["worker"])
    listeners = [Listener(HOST, security) for _ in range(2)]

    def member(position: int, epoch: int) -> None:
        abort = Abort()
        transport = form(position, listeners, security, Fence("uid", 1, 1, epoch), abort)
        transport.all_reduce(torch.zeros(200_000), "BF16")
        if position == 0 and epoch % 2:
            abort.set()
        try:
            transport.all_reduce(torch.zeros(200_000))
        except PeerLost:
            assert epoch % 2
        transport.close()
        abort.close()

    def epochs(first: int, last: int) -> tuple[int, int, int]:
        for epoch in range(first, last):
            threads = [Beside(lambda position=position, epoch=epoch: member(position, epoch)) for position in range(2)]
            for thread in threads:
                thread.result()
        gc.collect()
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        return descriptors, threading.active_count(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = epochs(0, 30)
    after = epochs(30, 230)
    assert after[0] <= before[0]
    assert after[1] <= before[1]
    assert after[2] - before[2] < 20_000  # KiB
    for listener in listeners:
        listener.close()
