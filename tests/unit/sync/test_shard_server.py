"""The server of a shard on loopback: fences, peers that die at any byte, replicas, moves to other shards, snapshots."""

from __future__ import annotations

import re
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import pytest
import torch
from tests.unit.sync.shards import HOST, SECONDS, Pods, Worker, die, together

from mms_workloads.contract import Optimizer, ParameterServer
from mms_workloads.sync import shard_server
from mms_workloads.sync.cursors import common, cursor, cut, end
from mms_workloads.sync.layout import Fetch, Table, replica_holder
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.sync.push import Delta, Push
from mms_workloads.sync.shard_client import ShardClient
from mms_workloads.sync.shard_messages import write_update
from mms_workloads.sync.shard_state import Update
from mms_workloads.transport.channel import Abort, Fence, Greeting, PeerLost, Refused, Security, connect

SIZE = 1000
DENSE = (Table("dense", SIZE),)
MIXED = (Table("dense", 300), Table("vectors", 50, 4, sparse=True))
ADAMW = Optimizer(name="AdamW", weightDecay=0.01)


def initial(tables=DENSE, seed=7):
    rng = torch.Generator().manual_seed(seed)
    return {t.name: torch.randn(t.rows, t.columns, generator=rng) for t in tables}


def gradient(step, rank, size=SIZE):
    return torch.randn(size, generator=torch.Generator().manual_seed(1000 * step + rank))


def mode(name="Synchronous", shards=1, replicas=1, staleness=4):
    return ParameterServer(shards=shards, replicas=replicas, consistency=name, staleness=staleness)


def pods(shards=1, workers=1, *, tables=DENSE, optimizer=ADAMW, start=True, how=None, **options):
    made = Pods(tables, shards, optimizer, how or mode(shards=shards), options=options)
    if start:
        made.start(workers, initial(tables))
    return made


def round_of(workers, step, **more):
    """A synchronous step: every worker brings its gradient of this step."""
    size = workers[0].pods.layout.table("dense").rows
    return together([lambda w=w: w.dense(gradient(step, w.rank, size), 2.0, 0.1, **more) for w in workers])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---------------------------------------------------------------------- who is let in


def test_only_members_of_the_epoch_push():
    with pods(2, workers=2) as job:
        before = job.contents()
        for rank, incarnation in ((2, 0), (0, 1)):
            stranger = Worker(job, rank, incarnation)
            with pytest.raises(Refused, match=f"worker {rank} of incarnation {incarnation} is no member of epoch 1"):
                stranger.dense(gradient(0, 0), 1.0, 0.1)
        assert same(job.contents(), before)
        assert job.steps() == [0, 0]


@pytest.mark.parametrize(
    "fence", [Fence("uid", 1, 1, 1), Fence("other", 1, 1, 2), Fence("uid", 2, 1, 2), Fence("uid", 1, 0, 9)]
)
def test_peers_of_other_epochs_are_refused(fence):
    with pods(workers=1) as job:
        job.change(1)
        with pytest.raises(Refused, match="of another epoch"):
            Worker(job, 0, fence=fence)
        Worker(job, 0).dense(gradient(0, 0), 1.0, 0.1)


def test_a_peer_that_has_heard_of_the_epoch_first_waits_for_the_shard():
    with pods(workers=1) as job, ThreadPoolExecutor(2) as pool:
        worker, early = Worker(job, 0), Fence("uid", 1, 1, 2)
        future = pool.submit(Worker, job, 0, 0, early)
        dead = pool.submit(Worker, job, 0, 0, Fence("uid", 1, 1, 3))
        while len(job.servers[0]._early) < 2:
            worker.dense(gradient(0, 0), 1.0, 0.1)  # the epoch goes on meanwhile
        assert not future.done()
        steps = job.steps()
        job.change(1)
        assert future.result(SECONDS).dense(gradient(0, 0), 1.0, 0.1)[1][0].step == steps[0] + 1
        job.servers[0].close()
        with pytest.raises((PeerLost, Refused)):
            dead.result(SECONDS)


def test_a_worker_may_push_before_the_shard_has_begun_the_epoch():
    job = pods(start=False)
    with job, ThreadPoolExecutor(1) as pool:
        job.fence = Fence("uid", 1, 1, 1)
        job.servers[0].expect(job.fence)
        job.servers[0].shard.prepare(job.layout, 0)
        worker = Worker(job, 0)
        worker.steps = [0]
        worker.clients[0].put("state", "dense", 0, {"parameters": torch.zeros(SIZE, 1)})
        future = pool.submit(worker.dense, gradient(0, 0), 1.0, 0.1)
        job._begin(1, step=0, progress=Progress.none(job.blocks))
        assert future.result(SECONDS)[1][0].step == 1


def test_roles():
    with pods() as job:
        for role, request in (("shard", Push(0)), ("master", Push(0))):
            greeting = Greeting(job.fence, role, 0, 0, "push")
            client = ShardClient(connect(HOST, job.servers[0].port, Security.plain(), greeting, Abort(), SECONDS))
            with pytest.raises(Refused, match=f"a {role} cannot push"):
                client.push(request)
        worker = Worker(job, 0)
        with pytest.raises(Refused, match="a worker cannot ask a shard for 'forward'"):
            worker.clients[0]._ask({"message": "forward"})


# ---------------------------------------------------------------------- the end of an epoch


def test_the_end_of_an_epoch_wakes_who_waits_and_drops_what_is_half():
    with pods(2, workers=2) as job, ThreadPoolExecutor(1) as pool:
        before, first, idle = job.contents(), Worker(job, 0), Worker(job, 1)
        future = pool.submit(first.dense, gradient(0, 0), 2.0, 0.1)
        for server in job.servers:
            with server.shard._changed:
                assert server.shard._changed.wait_for(lambda s=server: s.shard._epoch.mode.awaited() == [1], SECONDS)
            assert server.shard.standing().awaited == (1,)
        job.change(2)
        with pytest.raises(PeerLost):
            future.result(SECONDS)
        with pytest.raises(PeerLost):
            idle.dense(gradient(0, 1), 2.0, 0.1)
        assert same(job.contents(), before)
        workers = [Worker(job, rank) for rank in range(2)]
        results = round_of(workers, 0)
        assert job.steps() == [1, 1]
    with pods(2, workers=2) as undisturbed:
        expected = round_of([Worker(undisturbed, rank) for rank in range(2)], 0)
    assert torch.equal(results[0][0], expected[0][0])


def test_the_word_that_the_epoch_is_over():
    with pods(1, workers=2) as job, ThreadPoolExecutor(1) as pool:
        future, server = pool.submit(Worker(job, 0).dense, gradient(0, 0), 2.0, 0.1), job.servers[0]
        with server.shard._changed:
            assert server.shard._changed.wait_for(lambda: server.shard._epoch.mode.awaited() == [1], SECONDS)
        server.end_epoch("worker 1 was lost")
        with pytest.raises(PeerLost, match="the epoch is over: worker 1 was lost"):
            future.result(SECONDS)


def test_a_push_that_is_sent_again_over_another_connection():
    with pods(1, workers=2) as job, ThreadPoolExecutor(2) as pool:
        server, first = job.servers[0], Worker(job, 0)
        future = pool.submit(first.dense, gradient(0, 0), 2.0, 0.1)
        with server.shard._changed:
            assert server.shard._changed.wait_for(lambda: server.shard._epoch.mode.awaited() == [1], SECONDS)
        first.close()
        with pytest.raises(PeerLost):
            future.result(SECONDS)
        again = pool.submit(Worker(job, 0).dense, gradient(0, 0), 2.0, 0.1)
        other = Worker(job, 1).dense(gradient(0, 1), 2.0, 0.1)
        assert torch.equal(again.result(SECONDS)[0], other[0])
        late = Worker(job, 0)
        late.steps = [0]  # its answer was lost
        assert torch.equal(late.dense(gradient(0, 0), 2.0, 0.1)[0], other[0])
        assert job.steps() == [1]


# ---------------------------------------------------------------------- peers that die at any byte


def bytes_of(client, push):
    """What a push looks like on the wire."""
    data, send = bytearray(), client.channel.send
    client.channel.send = lambda *buffers: [
        data.extend(b.contiguous().numpy().tobytes() if isinstance(b, torch.Tensor) else b) for b in buffers
    ]
    client.send_push(push)
    client.channel.send = send
    return bytes(data)


@pytest.mark.parametrize("how", ["Synchronous", "Asynchronous"])
def test_a_half_received_push_changes_nothing(how):
    with pods(1, workers=2, how=mode(how)) as job:
        push = Push(0, 0.1, 2.0, (Slice(0, 0, 0, 2, 4),), {"rank": 0}, {"dense": [gradient(0, 0)]})
        whole = bytes_of(Worker(job, 0).clients[0], push)
        before = job.contents()
        for stop in [*range(40), *range(40, len(whole), 211), len(whole) - 1]:
            worker = Worker(job, 0)
            worker.clients[0].channel.send(whole[:stop])
            worker.close()
        assert same(job.contents(), before)
        assert job.servers[0].shard.cursors([0]) == [(0, 0)]
        results = round_of([Worker(job, rank) for rank in range(2)], 0)
        assert max(answer.step for _, answers in results for answer in answers) == (1 if how == "Synchronous" else 2)


def test_nonsense_ends_the_connection_only():
    with pods(1, workers=1) as job:
        for header, tensors, why in (
            ({"message": "push"}, [], "a push that cannot be read"),
            (
                {"message": "push", "step": 0, "rate": 1, "samples": 1, "slices": [[1]], "contribution": {}},
                [],
                "cannot be read",
            ),
            ({"message": "dance"}, [torch.zeros(3)], "cannot ask a shard for 'dance'"),
            (
                {"message": "get", "part": "replica", "table": "dense", "start": 0, "stop": 1, "slots": None},
                [],
                "holds no replica",
            ),
            (
                {"message": "get", "part": "state", "table": "dense", "start": 0, "stop": 1001, "slots": None},
                [],
                "0 to 1000",
            ),
            (
                {"message": "get", "part": "state", "table": "x", "start": 0, "stop": 1, "slots": None},
                [],
                "no table 'x'",
            ),
            (
                {"message": "put", "part": "state", "table": "dense", "start": 0, "stop": 1},
                [torch.zeros(1, 1)],
                "prepare it first",
            ),
            ({"message": "cursors", "blocks": [100]}, [], "index out of range"),
            ({"message": "pull", "table": "dense"}, [torch.zeros(1, dtype=torch.int64)], "no sparse table 'dense'"),
            ({"message": "pull", "table": "dense"}, [], "index out of range"),
            ([], [], "has no attribute"),
        ):
            client = Worker(job, 0).clients[0]
            if header == []:
                client.channel.send_message(header)
                with pytest.raises(PeerLost):
                    client._receive(None, "")
                continue
            with pytest.raises(Refused, match=why):
                client._ask(header, *tensors)
            with pytest.raises(PeerLost):
                client.standing()
        assert Worker(job, 0).dense(gradient(0, 0), 2.0, 0.1)[1][0].step == 1


def test_rows_that_were_half_put_are_put_again():
    job = pods(start=False)
    with job:
        job.fence = Fence("uid", 1, 1, 1)
        job.servers[0].expect(job.fence)
        shard = job.servers[0].shard
        shard.prepare(job.layout, 0)
        rows = initial()["dense"]
        loader = Worker(job, 0)
        header = {"message": "put", "part": "state", "table": "dense", "start": 0, "stop": 600, "slots": ["parameters"]}
        loader.clients[0].channel.send_message(header | {"stop": 400}, rows[:400])
        loader.clients[0]._receive(None, "")
        data = bytearray()
        loader.clients[0].channel.send = lambda *buffers, send=loader.clients[0].channel.send: (
            data.extend(buffers[0]),
            send(buffers[0]),
            send(rows[:300].contiguous()),
        )
        loader.clients[0].channel.send_message(header | {"start": 400, "stop": 1000}, rows[400:])
        loader.close()
        with pytest.raises(ValueError, match="the state lacks dense 400-1000"):
            shard.begin_epoch(job.fence, [(0, 0)], step=3, progress=Progress.none(5))
        again = Worker(job, 0)
        with pytest.raises(Refused, match=re.escape("are [(torch.float32, (600, 1)")):
            again.clients[0]._ask(header | {"start": 400, "stop": 1000}, rows)
        with pytest.raises(Refused, match="sum"):
            Worker(job, 0).clients[0].put("state", "dense", 0, {"sum": rows})
        slots = {"parameters": rows[400:], "exp_avg": torch.ones(600, 1)}
        Worker(job, 0).clients[0].put("state", "dense", 400, slots)
        with pytest.raises(ValueError, match="give step and progress"):
            shard.begin_epoch(job.fence, [(0, 0)], step=3)
        shard.begin_epoch(job.fence, [(0, 0)], step=3, progress=Progress.none(5))
        assert torch.equal(job.contents()["dense.parameters"], rows)
        assert job.contents()["dense.exp_avg"].sum() == 600
        assert shard.standing().step == 3


def test_epochs_follow_one_another():
    with pods(1, workers=1) as job:
        shard = job.servers[0].shard
        with pytest.raises(ValueError, match="epoch 1 is going on: end it first"):
            shard.begin_epoch(Fence("uid", 1, 1, 2), [(0, 0)])
        with pytest.raises(ValueError, match="end it first"):
            shard.settle(0)
        shard.end_epoch("")
        with pytest.raises(ValueError, match="the shard is at step 0, the epoch begins at 4"):
            shard.begin_epoch(Fence("uid", 1, 1, 2), [(0, 0)], step=4)
        shard.begin_epoch(Fence("uid", 1, 1, 2), [(0, 0)])
    with pods(1, start=False) as job, pytest.raises(ValueError, match="holds no state"):
        job.servers[0].shard.begin_epoch(Fence("uid", 1, 1, 2), [(0, 0)])


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
        assert "the replica's holder did not take an update" in job.lost[0]
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

    def send(self, update):
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
        holder = job.servers[1].shard
        with holder._lock:  # it hears, and does not answer
            future = pool.submit(Worker(job, 0).dense, gradient(0, 0), 2.0, 0.1)
            while not job.servers[0].shard.standing().step:
                pass
            assert pool.submit(job.servers[0].end_epoch, "it hangs").result(SECONDS).step == 1
        with pytest.raises(PeerLost):
            future.result(SECONDS)


class Broken:
    """The connection to the replica's holder is gone, and both live."""

    def send(self, update):
        raise PeerLost("the connection broke")

    def close(self):
        pass


def test_a_replica_that_fell_behind_is_made_anew():
    with pods(2, workers=1, how=mode(shards=2, replicas=2)) as job:
        worker = Worker(job, 0)
        worker.dense(gradient(0, 0), 2.0, 0.1)
        job.servers[0].shard._epoch.forward = Broken()
        for rank, client in enumerate(worker.clients):
            part = gradient(1, 0)[slice(*job.layout.bounds("dense", rank))]
            client.send_push(Push(1, 0.1, 2.0, gradients={"dense": [part]}))
        assert worker.clients[1].receive_answer()[0].step == 2
        with pytest.raises(PeerLost, match="the connection broke"):
            worker.clients[0].receive_answer()
        assert [server.shard.standing().replica_step for server in job.servers] == [2, 1]
        job.change(1)
        assert job.steps() == [2, 2]
        assert same(job.contents("replica"), job.contents())


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
            target.fetch("state", [Fetch(0, False, "dense", 0, 500)], job.addresses)


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


# ---------------------------------------------------------------------- snapshots


def test_a_snapshot_while_pushes_go_on():
    with pods(1, workers=1, tables=MIXED, how=mode("Asynchronous")) as job:
        worker, shard, stop = Worker(job, 0), job.servers[0].shard, threading.Event()

        def pushed(number, slices=()):
            rows = torch.arange(0, 50, 1 + number % 3)
            delta = Delta(rows, torch.ones(len(rows), 4), torch.ones(len(rows)))
            return Push(number, 0.1, 1.0, slices, {}, {"dense": [gradient(number, 0, 300)]}, {"vectors": delta})

        def push_on():
            number = 0
            while not stop.is_set():
                s = Slice(number // 10, 0, number % 10, number % 10 + 1, 10)
                push = pushed(number, (s,))
                worker.exchange(lambda _, push=push: push)
                number += 1
            return number

        def at(number):
            """The state after so many pushes."""
            with pods(1, workers=1, tables=MIXED, how=mode("Asynchronous")) as other:
                lone = Worker(other, 0)
                for p in range(number):
                    lone.exchange(lambda _, p=p: pushed(p))
                return other.contents()

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(push_on)
            try:
                for _ in range(5):
                    snapshot = shard.begin_snapshot()
                    shard.complete(snapshot)
                    assert cursor(snapshot.progress, 0) == divmod(snapshot.step, 10)
                    tables = snapshot.tables()
                    found = {f"{n}.{s}": t.clone() for n, slots in tables.items() for s, t in slots.items()}
                    shard.drop(snapshot)
                    assert same(found, at(snapshot.step))
            finally:
                stop.set()
            assert future.result(SECONDS) == job.steps()[0]


def test_all_shards_take_the_snapshot_of_the_same_step():
    with pods(3, workers=2, snapshot_at=lambda answer: any(c.get("save") for c in answer.contributions)) as job:
        workers = [Worker(job, rank) for rank in range(2)]
        for step in range(5):
            about = [{"save": step == 2 and w.rank == 1} for w in workers]
            gradients = [gradient(step, w.rank) for w in workers]
            together(
                [
                    lambda w=w, a=a, g=g: w.dense(g, 2.0, 0.1, contribution=a)
                    for w, a, g in zip(workers, about, gradients, strict=True)
                ]
            )
            if step == 2:
                expected = job.contents()
        parts = [server.shard.snapshots.get(timeout=SECONDS) for server in job.servers]
        assert [part.step for part in parts] == [3, 3, 3]
        for server, part in zip(job.servers, parts, strict=True):
            server.shard.complete(part)
        for slot in ("parameters", "exp_avg", "exp_avg_sq"):
            whole = torch.cat([part.tables()["dense"][slot] for part in parts])
            assert torch.equal(whole, expected[f"dense.{slot}"])
        assert all(server.shard.snapshots.empty() for server in job.servers)


# ---------------------------------------------------------------------- reading


def test_what_a_shard_says_of_itself():
    with pods(2, workers=2, tables=MIXED, how=mode(shards=2, replicas=2)) as job:
        workers = [Worker(job, rank) for rank in range(2)]
        round_of(workers, 0)
        push = Push(1, 0.1, 1.0, (Slice(0, 3, 0, 2, 4), Slice(0, 3, 2, 4, 4), Slice(0, 4, 0, 1, 4)))
        together([lambda: workers[0].exchange(lambda _: push), lambda: workers[1].exchange(lambda _: Push(1, 0.1))])
        client = workers[0].clients[0]
        assert client.cursors([0, 3, 4]) == {0: (0, 0), 3: (1, 0), 4: (0, 1)}
        standing = client.standing()
        assert standing == job.servers[0].shard.standing()
        assert (standing.epoch, standing.step, standing.replica_step, standing.can_go_back) == (1, 2, 2, True)
        assert standing.progress == standing.replica_progress
        step, rows = client.pull("vectors", torch.tensor([0, 3, 24]))
        expected = initial(MIXED)["vectors"]
        assert step == 2
        assert torch.equal(rows, expected[[0, 3, 24]])
        into = torch.empty(2, 4)
        assert workers[0].clients[1].pull("vectors", torch.tensor([25, 49]), into)[1] is into
        assert torch.equal(into, expected[[25, 49]])
        with pytest.raises(Refused, match="not ascending within the shard's rows 0 to 25"):
            client.pull("vectors", torch.tensor([0, 25]))
        _, slots = workers[1].clients[1].get("replica", "vectors", 3, 9)
        assert torch.equal(slots["parameters"], expected[3:9])
        place = torch.empty(150)
        answer, tensors = (
            workers[1].clients[1].get("state", "dense", 150, 300, slots=["parameters"], into={"parameters": place})
        )
        assert answer == 2
        assert tensors["parameters"] is place
        assert torch.equal(place, job.parameters()[150:])


def test_answers_that_were_sent_hold_no_memory():
    with pods(1, workers=1, how=mode("Asynchronous")) as job:
        worker, table = Worker(job, 0), job.servers[0].shard._parts["state"].dense["dense"]
        for step in range(5):
            worker.dense(gradient(step, 0), 2.0, 0.1)
        worker.close()
        job.servers[0].end_epoch("")
        for connection in list(job.servers[0]._connections):
            connection.join()
        assert not table._holds


def test_many_epochs_leave_nothing_behind():
    with pods(2, workers=1, how=mode(shards=2, replicas=2)) as job:
        threads = set()
        for step in range(30):
            worker = Worker(job, 0)
            worker.dense(gradient(step, 0), 2.0, 0.1)
            job.change(1)
            for server in job.servers:
                assert len(server._connections) <= 6
                assert not server._early
            threads.add(threading.active_count())
        assert max(threads) < 20
