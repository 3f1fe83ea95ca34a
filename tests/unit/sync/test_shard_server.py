"""The server of a shard on loopback: who is let in, the end of epochs, peers that die at any byte, snapshots."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mms_workloads.sync.cursors import cursor
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.sync.push import Delta, Push
from mms_workloads.sync.shard_client import ShardClient
from mms_workloads.transport.channel import Abort, Fence, Greeting, PeerLost, Refused, Security, connect
from tests.unit.sync.shards import (
    HOST,
    MIXED,
    SECONDS,
    SIZE,
    Worker,
    gradient,
    initial,
    mode,
    pods,
    round_of,
    same,
    together,
)

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


def test_who_is_ahead_of_a_worker_that_leaves_is_answered():
    with pods(workers=2, how=mode("BoundedStaleness", staleness=0)) as job, ThreadPoolExecutor(1) as pool:
        first, second = Worker(job, 0), Worker(job, 1)
        future = pool.submit(first.dense, gradient(0, 0), 1.0, 0.1)
        shard = job.servers[0].shard
        with shard._changed:
            assert shard._changed.wait_for(lambda: shard._epoch.mode.awaited() == [1], SECONDS)
        second.close()
        assert future.result(SECONDS)[1][0].step == 1


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
        assert server.shard.updates == 1


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


def test_a_step_that_cannot_be_decided_ends_the_epoch_for_all():
    def judge(contributions):
        return [contribution["finite"] for contribution in contributions]

    with pods(1, workers=2, judge=judge) as job, ThreadPoolExecutor(1) as pool:
        first = pool.submit(Worker(job, 0).dense, gradient(0, 0), 2.0, 0.1)
        with job.servers[0].shard._changed:
            waits = lambda: job.servers[0].shard._epoch.mode.awaited() == [1]  # noqa: E731
            assert job.servers[0].shard._changed.wait_for(waits, SECONDS)
        with pytest.raises(Refused, match="finite"):
            Worker(job, 1).dense(gradient(0, 1), 2.0, 0.1)
        with pytest.raises(PeerLost, match="could not be applied: KeyError"):
            first.result(SECONDS)
        assert "could not be applied" in job.lost[0][0]
        job.change(2)
        assert job.steps() == [0]


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
