"""Replicas of shards that die at every point, and rows that move to other numbers of shards, on loopback."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import pytest
import torch

from mms_workloads.contract import Optimizer
from mms_workloads.sync import shard_server
from mms_workloads.sync.cursors import common, cursor, cut, end
from mms_workloads.sync.layout import Fetch, Layout, Table, replica_holder
from mms_workloads.sync.leases import Slice
from mms_workloads.sync.push import Push
from mms_workloads.sync.shard_client import ShardClient
from mms_workloads.sync.shard_messages import write_update
from mms_workloads.sync.shard_state import Update
from mms_workloads.transport.channel import Abort, Fence, PeerLost
from tests.unit.sync.shards import MIXED, SECONDS, Pods, Worker, die, gradient, mode, pods, round_of, same

# ---------------------------------------------------------------------- replicas


class Dying:
    """The way to the replica, on which the primary dies with a certain update."""

    def __init__(self, server, forward, step, point):
        self.server, self.forward, self.step, self.point = server, forward, step, point

    def send(self, update):
        if update.step != self.step:
            return self.forward.send(update)
        if self.point == "cut":
            client = self.forward.client or ShardClient(self.server.connect(self.forward.address, "forward", Abort()))
            header, tensors = write_update(update)
            send, half = client.channel.send, tensors[0][: tensors[0].numel() // 2]
            client.channel.send = lambda words, _: send(words, half)
            client.channel.send_message(header, *tensors)
            client.channel.close()
        if self.point == "forwarded":
            self.forward.send(update)
        die(self.server)
        self.forward.close()
        raise PeerLost("this process has ended")

    def close(self):
        self.forward.close()


def interrupted(job, tasks):
    """Runs them until one fails; then the master hears of it and ends the epoch."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        futures = [pool.submit(task) for task in tasks]
        wait(futures, SECONDS, FIRST_EXCEPTION)
        for server in job.servers:
            server.end_epoch("a shard was lost")
        errors = [future.exception(SECONDS) for future in futures]
    assert any(errors)
    assert all(error is None or isinstance(error, PeerLost) for error in errors)


STEPS = 6


@pytest.fixture(scope="module")
def undisturbed():
    results = {}
    for shards in (2, 3):
        with pods(shards, workers=2, how=mode(shards=shards, replicas=2)) as job:
            workers = [Worker(job, rank) for rank in range(2)]
            for step in range(STEPS):
                round_of(workers, step)
            results[shards] = job.contents()
            assert same(job.contents("replica"), results[shards])
    return results


@pytest.mark.parametrize("point", ["taken", "applied", "cut", "forwarded", "settled", "answered"])
@pytest.mark.parametrize(("shards", "victim", "at"), [(2, 0, 1), (2, 1, 3), (3, 1, 2), (3, 2, 5)])
def test_a_primary_dies_at_every_point(point, shards, victim, at, undisturbed):
    """Its replica takes over; no step that a worker has heard of is lost, and the end is the same to the bit."""
    with pods(shards, workers=2, how=mode(shards=shards, replicas=2)) as job:
        workers, server = [Worker(job, rank) for rank in range(2)], job.servers[victim]
        shard, take = server.shard, server.shard._take
        if point == "taken":

            def dies(epoch, position, push):
                if push.step == at - 1 and position == 1:
                    die(server)
                    raise PeerLost("this process has ended")
                return take(epoch, position, push)

            shard._take = dies
        elif point == "settled":
            shard._snapshot_at = lambda answer: answer.step == at and (die(server) or False)
        elif point != "answered":
            shard._epoch.forward = Dying(server, shard._epoch.forward, at, point)
        for step in range(at - 1):
            round_of(workers, step)
        if point == "answered":
            round_of(workers, at - 1)
            die(server)
        else:
            interrupted(job, [lambda w=w: w.dense(gradient(at - 1, w.rank), 2.0, 0.1) for w in workers])
        heard = at if point == "answered" else at - 1
        job.replace(victim)
        job.change(2)
        assert heard <= job.steps()[0] <= at
        assert same(job.contents("replica"), job.contents())
        workers = [Worker(job, rank) for rank in range(2)]
        for step in range(job.steps()[0], STEPS):
            results = round_of(workers, step)
            assert torch.equal(results[0][0], results[1][0])
            assert same(job.contents("replica"), job.contents())
        assert same(job.contents(), undisturbed[shards])


@pytest.mark.parametrize("point", ["applied", "forwarded", "settled"])
@pytest.mark.parametrize("victim", [0, 1])
def test_without_synchrony_a_dying_primary_neither_loses_nor_repeats_a_slice(point, victim):
    """Each sample's gradient is -1 in an element of its own: the parameters count how often it was applied."""
    size, table = 40, (Table("dense", 80),)
    job = Pods(table, 2, Optimizer(), mode("Asynchronous", 2, 2), blocks=1, options={})
    with job:
        job.start(1, {"dense": torch.zeros(80, 1)})
        deaths = {7: victim, 9: 1 - victim}
        while (progress := common([s.shard.standing().progress for s in job.servers])).applied[0] == 0:
            worker, at = Worker(job, 0), cursor(progress, 0)
            cursors = [client.cursors([0])[0] for client in worker.clients]
            for number in range(1, 100):
                stop = cut(at[0], at[1], min(size, at[1] + 3), cursors)
                s = Slice(0, 0, at[1], stop, size)
                counts = torch.zeros(size)
                counts[s.start : s.stop] = -1.0
                if number in deaths:
                    server = job.servers[deaths.pop(number)]
                    if point == "settled":
                        server.shard._snapshot_at = lambda _, server=server: die(server) or False
                    else:
                        epoch = server.shard._epoch
                        step = server.shard.standing().step + 1
                        epoch.forward = Dying(server, epoch.forward, step, point)
                    dying = server
                try:
                    answers = worker.exchange(
                        lambda _, s=s, counts=counts, number=number: Push(
                            number - 1, 1.0, 1.0, (s,), gradients={"dense": [counts.clone()]}
                        )
                    )
                except PeerLost:
                    job.replace(job.servers.index(dying))
                    job.change(1)
                    break
                assert all(answer.contributions == ({},) for answer, _ in answers)
                at = end(s)
                if at == (1, 0):
                    break
        assert not deaths or min(deaths) == 9
        found = job.contents()["dense.parameters"]
        assert torch.equal(found, torch.ones_like(found))
        assert same(job.contents("replica"), job.contents())


def test_a_replica_s_holder_dies():
    with pods(2, workers=1, how=mode(shards=2, replicas=2)) as job:
        worker = Worker(job, 0)
        worker.dense(gradient(0, 0), 2.0, 0.1)
        die(job.servers[1])
        with pytest.raises(PeerLost):
            worker.dense(gradient(1, 0), 2.0, 0.1)
        job.servers[0].shard.end_epoch("shard 1 was lost")  # waits for what is under way
        assert "the replica's holder did not take an update" in job.lost[0][0]
        job.replace(1)
        job.change(1)
        assert same(job.contents("replica"), job.contents())
        worker = Worker(job, 0)
        for step in range(job.steps()[0], 3):
            worker.dense(gradient(step, 0), 2.0, 0.1)
        assert same(job.contents("replica"), job.contents())
        found = job.contents()
    with pods(2, workers=1) as job:
        worker = Worker(job, 0)
        for step in range(3):
            worker.dense(gradient(step, 0), 2.0, 0.1)
        assert same(job.contents(), found)


class Forwarding:
    """Stands for the way to the replica. `close` wakes a `send`, which needs a little more then."""

    def __init__(self):
        self.closed, self.sending, self.returned = threading.Event(), threading.Event(), threading.Event()
        self.was_waited_for = None

    def send(self, _):
        self.sending.set()
        assert self.closed.wait(SECONDS)
        self.was_waited_for = not self.returned.wait(0.2)

    def close(self):
        self.closed.set()


def test_the_end_of_an_epoch_waits_for_an_update_under_way():
    with pods(1, workers=1) as job, ThreadPoolExecutor(1) as pool:
        shard, forward = job.servers[0].shard, Forwarding()
        shard._epoch.forward = forward
        future = pool.submit(Worker(job, 0).dense, gradient(0, 0), 2.0, 0.1)
        assert forward.sending.wait(SECONDS)
        assert shard.end_epoch("a worker was lost").step == 1
        forward.returned.set()
        assert forward.was_waited_for
        with pytest.raises(PeerLost):
            future.result(SECONDS)


def test_a_replica_s_holder_that_hangs_is_left_when_the_epoch_ends():
    with pods(2, workers=1, how=mode(shards=2, replicas=2)) as job, ThreadPoolExecutor(2) as pool:
        worker, holder = Worker(job, 0), job.servers[1].shard
        with holder._lock:  # it hears, and does not answer
            future = pool.submit(worker.dense, gradient(0, 0), 2.0, 0.1)
            while not job.servers[0].shard.standing().step:
                pass
            assert pool.submit(job.servers[0].end_epoch, "it hangs").result(SECONDS).step == 1
        with pytest.raises(PeerLost):
            future.result(SECONDS)


class Broken:
    """The connection to the replica's holder is gone, and both live."""

    def send(self, _):
        raise PeerLost("the connection broke")

    def close(self):
        pass


def test_a_replica_that_fell_behind_is_made_anew():
    with pods(2, workers=1, how=mode(shards=2, replicas=2)) as job:
        worker = Worker(job, 0)
        worker.dense(gradient(0, 0), 2.0, 0.1)
        job.servers[0].shard._epoch.forward = Broken()
        parts = [gradient(1, 0)[slice(*job.layout.bounds("dense", rank))] for rank in range(2)]
        assert worker.clients[1].push(Push(1, 0.1, 2.0, gradients={"dense": [parts[1]]}))[0].step == 2
        with pytest.raises(PeerLost, match="the connection broke"):
            worker.clients[0].push(Push(1, 0.1, 2.0, gradients={"dense": [parts[0]]}))
        assert [server.shard.standing().replica_step for server in job.servers] == [2, 1]
        job.change(1)
        assert job.steps() == [2, 2]
        assert same(job.contents("replica"), job.contents())


def test_a_replica_goes_back_with_its_primary():
    with pods(2, workers=1, how=mode(shards=2, replicas=2)) as job:
        worker, before = Worker(job, 0), job.contents()
        worker.clients[0].push(Push(0, 0.1, 2.0, gradients={"dense": [gradient(0, 0)[:500]]}))
        shards = [server.shard for server in job.servers]
        assert [(s.end_epoch("").step, s.standing().replica_step) for s in shards] == [(1, 0), (0, 1)]
        for shard in shards:
            shard.settle(0)
        assert [(s.standing().step, s.standing().replica_step) for s in shards] == [(0, 0), (0, 0)]
        assert same(job.contents(), before)
        assert same(job.contents("replica"), before)


def test_updates_of_another_epoch_or_without_a_replica():
    with pods(2, workers=1, how=mode(shards=2, replicas=2)) as job:
        shard, update = job.servers[1].shard, Update(1, 0.1, (), {"dense": torch.ones(500)})
        assert "epoch 1 has begun" in shard.apply_forwarded(Fence("uid", 1, 1, 0), update).why
        assert (
            "no dense table 'other'"
            in shard.apply_forwarded(job.fence, Update(1, 0, (), {"other": torch.ones(1)})).message
        )
        assert "not 500 float32" in shard.apply_forwarded(job.fence, Update(1, 0, (), {"dense": torch.ones(1)})).message
        assert "update 3 does not follow step 0" in shard.apply_forwarded(job.fence, Update(3, 0.1)).message
        shard.end_epoch("over")
        assert shard.apply_forwarded(job.fence, update).why == "over"
        assert shard.standing().replica_step == 0
        job.change(1)
        shard.drop_replica()
        assert "no replica is held here" in shard.apply_forwarded(job.fence, update).message


def test_connections_of_an_epoch_before_are_closed():
    with pods(1, workers=1) as job:
        worker = Worker(job, 0)
        worker.dense(gradient(0, 0), 2.0, 0.1)
        job.servers[0].expect(Fence("uid", 1, 1, 2))
        with pytest.raises(PeerLost):
            worker.dense(gradient(1, 0), 2.0, 0.1)


def test_a_shard_that_goes_on_while_it_is_fetched_from(monkeypatch):
    monkeypatch.setattr(shard_server, "FETCH_BYTES", 3000)
    with pods(2, workers=1, how=mode("Asynchronous", 2)) as job:
        worker, target = Worker(job, 0), job.servers[1]
        filled = target.shard.filled

        def push_between(*arguments):
            filled(*arguments)
            worker.dense(gradient(0, 0), 2.0, 0.1)

        monkeypatch.setattr(target.shard, "filled", push_between)
        target.shard.prepare(job.layout, 0)
        with pytest.raises(ValueError, match="shard 0 went on from step 0 to 1: end its epoch first"):
            target.fetch("state", [Fetch(0, False, "dense", 0, 500)], job.addresses, Abort())


def test_rows_of_an_epoch_that_never_began_are_forgotten():
    """It would have had another layout; the next one has the old one again."""
    with pods(2, workers=1) as job:
        worker = Worker(job, 0)
        worker.dense(gradient(0, 0), 2.0, 0.1)
        held = job.parameters().clone()
        worker.close()
        for server in job.servers:
            server.end_epoch("a shard comes")
            server.shard.prepare(Layout(job.tables, 3), 0)
        job.change(workers=1)
        assert torch.equal(job.parameters(), held)


def test_a_shard_that_is_cut_off_while_it_is_fetched_from():
    """It says nothing any more; what ends the wait is another epoch."""
    with pods(2, workers=1) as job, ThreadPoolExecutor(1) as pool, socket.create_server(("127.0.0.1", 0)) as mute:
        target, abort = job.servers[1], Abort()
        target.shard.prepare(job.layout, 0)
        plan = [Fetch(0, False, "dense", 0, 500)]
        fetching = pool.submit(target.fetch, "state", plan, {0: mute.getsockname()[:2]}, abort)
        with mute.accept()[0]:
            abort.set()
            with pytest.raises(PeerLost):
                fetching.result(SECONDS / 2)


def test_checksums_tell_damaged_memory():
    with pods(2, workers=1, tables=MIXED, how=mode(shards=2, replicas=2)) as job:
        worker = Worker(job, 0)
        worker.dense(gradient(0, 0, 300), 2.0, 0.1)
        for rank, server in enumerate(job.servers):
            holder = job.servers[replica_holder(rank, 2)]
            assert server.shard.checksums("state") == holder.shard.checksums("replica")
        job.servers[1].shard._parts["replica"].dense["dense"].current["exp_avg"].view(torch.int32)[7] ^= 1
        mine, theirs = job.servers[0].shard.checksums("state"), job.servers[1].shard.checksums("replica")
        assert {key for key in mine[1] if mine[1][key] != theirs[1][key]} == {"dense.exp_avg"}


# ---------------------------------------------------------------------- other numbers of shards


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("how", ["Synchronous", "Asynchronous"])
def test_two_three_one_shards_keep_every_bit(monkeypatch, replicas, how):
    monkeypatch.setattr(shard_server, "FETCH_BYTES", 3000)  # many messages
    with pods(2, workers=1, tables=MIXED, how=mode(how, 2, replicas)) as job:
        step = 0
        for shards in (3, 1, 2, 2):
            worker = Worker(job, 0)
            for _ in range(3):
                worker.dense(gradient(step, 0, 300), 2.0, 0.1)
                step += 1
            before, progress = job.contents(), job.servers[0].shard.standing().progress
            job.change(1, shards)
            assert same(job.contents(), before)
            assert job.steps() == [step] * shards
            assert job.servers[-1].shard.standing().progress == progress
            if replicas == 2 and shards > 1:
                assert same(job.contents("replica"), before)


def test_rows_of_shards_that_have_different_samples_do_not_make_a_shard():
    with pods(2, workers=1, how=mode("Asynchronous", 2)) as job:
        push = Push(0, 0.1, 1.0, (Slice(0, 0, 0, 1, 4),), {}, {"dense": [torch.ones(500)]})
        Worker(job, 0).clients[0].push(push)
        with pytest.raises(ValueError, match="fetched from shards that have applied different samples"):
            job.change(1, 1)


def test_a_holder_of_a_replica_that_is_not_reached_is_named(monkeypatch):
    monkeypatch.setattr(shard_server, "CONNECT_SECONDS", 0.2)
    with pods(2, workers=1, how=mode(shards=2, replicas=2)) as job:
        forward = job.servers[0].shard._epoch.forward
        with socket.socket() as silent:  # bound, and nobody listens
            silent.bind(("127.0.0.1", 0))
            forward.address = silent.getsockname()
            with pytest.raises(PeerLost):
                Worker(job, 0).dense(gradient(0, 0), 2.0, 0.1)
        ((why, unreached),) = job.lost
        assert "the replica's holder did not take an update" in why
        assert unreached == (1,)
