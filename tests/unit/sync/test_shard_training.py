"""Training on shards: with synchrony as one process does it, within bounds without; dense models and embeddings."""

from __future__ import annotations

import itertools

import pytest
import torch

from mms_workloads.contract import Optimizer, ParameterServer
from mms_workloads.sync import compression
from mms_workloads.sync.layout import Table
from mms_workloads.sync.push import Delta, Push
from mms_workloads.train.merge import merge_scale
from tests.unit.sync.shards import Pods, Worker, together

FEATURES, SAMPLES, BATCH, STEPS = 40, 400, 24, 40
OPTIMIZERS = {
    "SGD": (Optimizer(name="SGD"), 0.05),
    "SGD, momentum, weight decay": (Optimizer(name="SGD", momentum=0.9, weightDecay=0.01), 0.01),
    "Adagrad": (Optimizer(name="Adagrad"), 0.3),
    "AdamW": (Optimizer(name="AdamW", weightDecay=0.01), 0.05),
}


class LeastSquares:
    """A convex problem: y = X w* exactly, so that the loss goes to zero."""

    def __init__(self):
        rng = torch.Generator().manual_seed(0)
        self.x = torch.randn(SAMPLES, FEATURES, generator=rng)
        self.goal = torch.randn(FEATURES, generator=rng)
        self.y = self.x @ self.goal

    def gradient(self, w, samples):
        """The sum over the samples."""
        x = self.x[samples]
        return x.T @ (x @ w - self.y[samples])

    def batch(self, number):
        return torch.randint(0, SAMPLES, (BATCH,), generator=torch.Generator().manual_seed(number))

    def distance(self, w):
        """From the goal, as a part of where it began (zero)."""
        return float((w - self.goal).norm() / self.goal.norm())


PROBLEM = LeastSquares()
TABLE = (Table("dense", FEATURES),)


def shards_for(shards, workers, optimizer, mode=ParameterServer()):  # noqa: B008 - it cannot change
    job = Pods(TABLE, shards, optimizer, mode)
    job.start(workers, {"dense": torch.zeros(FEATURES, 1)})
    return job


def by_torch(optimizer, rate):
    w = torch.nn.Parameter(torch.zeros(FEATURES))
    match optimizer.name:
        case "SGD":
            theirs = torch.optim.SGD([w], rate, momentum=optimizer.momentum, weight_decay=optimizer.weightDecay)
        case "Adagrad":
            theirs = torch.optim.Adagrad([w], rate, weight_decay=optimizer.weightDecay)
        case "AdamW":
            theirs = torch.optim.AdamW([w], rate, weight_decay=optimizer.weightDecay)
    for step in range(STEPS):
        w.grad = PROBLEM.gradient(w.detach(), PROBLEM.batch(step)) / BATCH
        theirs.step()
    return w.detach()


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize(("optimizer", "rate"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_synchronous_is_what_one_process_does(optimizer, rate, workers):
    shards = 1 + workers % 3

    def work(worker):
        w = torch.zeros(FEATURES)
        for step in range(STEPS):
            # Uneven parts; with four workers one of them has nothing in each third step.
            parts = PROBLEM.batch(step).split([24, 0, 0, 0] if step % 3 == 0 and workers == 4 else _uneven(workers))
            mine = parts[worker.rank]
            w, _ = worker.dense(PROBLEM.gradient(w, mine), float(len(mine)), rate)
        return w

    with shards_for(shards, workers, optimizer) as job:
        everyone = [Worker(job, rank) for rank in range(workers)]
        results = together([lambda w=w: work(w) for w in everyone])
        assert all(torch.equal(results[0], result) for result in results)
        assert torch.equal(results[0], job.parameters())
    torch.testing.assert_close(results[0], by_torch(optimizer, rate), rtol=1e-4, atol=1e-5)


def _uneven(workers):
    sizes = [BATCH // workers + 2 * i for i in range(workers)]
    return [*sizes[:-1], BATCH - sum(sizes[:-1])]


@pytest.mark.parametrize("wire", ["BF16", "Int8"])
def test_compressed_gradients_with_error_feedback_reach_the_goal(wire):
    def work(worker):
        w = torch.zeros(FEATURES)
        errors = [torch.zeros(stop - start) for start, stop in map(worker.pods.layout.bounds, ["dense"] * 2, range(2))]
        for step in range(200):
            mine = PROBLEM.batch(step).chunk(2)[worker.rank]
            w, _ = worker.dense(
                PROBLEM.gradient(w, mine),
                float(len(mine)),
                0.1,
                encode=lambda shard, part: compression.encode(part, wire, errors[shard]),
            )
        return w

    with shards_for(2, 2, Optimizer(name="SGD")) as job:
        everyone = [Worker(job, rank) for rank in range(2)]
        results = together([lambda w=w: work(w) for w in everyone])
    assert torch.equal(results[0], results[1])
    assert PROBLEM.distance(results[0]) < 1e-3


COSTS = (1, 4, 15)  # how often each worker computes its gradient: their speeds differ as much
MODES = {
    "staleness 0": ParameterServer(consistency="BoundedStaleness", staleness=0),
    "staleness 2": ParameterServer(consistency="BoundedStaleness", staleness=2),
    "Asynchronous": ParameterServer(consistency="Asynchronous"),
}
GOALS = {"SGD": (Optimizer(name="SGD"), 0.04, 1e-3), "AdamW": (Optimizer(name="AdamW"), 0.02, 0.05)}


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("goal", GOALS.values(), ids=GOALS.keys())
def test_workers_of_different_speeds_reach_the_goal(mode, shards, goal):
    pushes, (optimizer, rate, bound) = 250, goal

    def ahead(shard, position):
        pushed = shard._epoch.mode._pushed
        with shard._lock:
            return pushed[position] - min(pushed)

    def work(worker):
        w, most = torch.zeros(FEATURES), 0
        for number in range(pushes):
            samples = PROBLEM.batch(number * 10 + worker.rank)
            for _ in range(COSTS[worker.rank]):
                total = PROBLEM.gradient(w, samples)
            w, _ = worker.dense(total, float(BATCH), rate)
            most = max(most, *(ahead(server.shard, worker.rank) for server in worker.pods.servers))
        return most

    with shards_for(shards, 3, optimizer, mode) as job:
        everyone = [Worker(job, rank) for rank in range(3)]
        most = together([lambda w=w: work(w) for w in everyone])
        found, steps = job.parameters(), job.steps()
    assert steps == [3 * pushes] * shards
    assert PROBLEM.distance(found) < bound
    if mode.consistency == "BoundedStaleness":
        assert max(most) <= mode.staleness


# ---------------------------------------------------------------------- embeddings

ROWS, COLUMNS = 60, 5
EMBEDDING = (Table("vectors", ROWS, COLUMNS, sparse=True), Table("contexts", ROWS, COLUMNS, sparse=True))


def of_block(number, vectors, contexts):
    """What training on a block changes: some rows, the frequent ones often. It depends on the parameters."""
    rng = torch.Generator().manual_seed(number)
    found = {}
    for name, table in (("vectors", vectors), ("contexts", contexts)):
        rows = torch.rand(ROWS, generator=rng).argsort()[:25].sort().values
        touches = (2000.0 / (1 + rows.float())).ceil()
        pull = torch.randn(ROWS, COLUMNS, generator=rng)[rows] - table[rows]
        found[name] = Delta(rows, pull * (1 - torch.exp(-touches * 0.0025))[:, None], touches)
    return found


def on_the_ring(start, workers, rounds, rate):
    """As train.ring averages."""
    tables = {name: tensor.clone() for name, tensor in start.items()}
    for number in range(rounds):
        blocks = [of_block(10 * number + rank, **tables) for rank in range(workers)]
        for name, table in tables.items():
            touches, ranks, delta = torch.zeros(ROWS), torch.zeros(ROWS), torch.zeros(ROWS, COLUMNS)
            for block in blocks:
                touches[block[name].rows] += block[name].touches
                ranks[block[name].rows] += 1
                delta[block[name].rows] += block[name].values
            table.add_(delta * merge_scale(touches, ranks, rate)[:, None])
    return tables


def on_shards(worker, rounds, rate):
    layout, everything = worker.pods.layout, torch.arange(ROWS)
    for number in range(rounds):
        tables = {}
        for name in ("vectors", "contexts"):
            for client, part in zip(worker.clients, layout.split(name, everything), strict=True):
                client.send_pull(name, everything[part])
            tables[name] = torch.cat([client.receive_rows()[1] for client in worker.clients])
        block = of_block(10 * number + worker.rank, **tables)
        pushes = []
        for shard in range(layout.shards):
            parts = {name: layout.split(name, delta.rows)[shard] for name, delta in block.items()}
            deltas = {n: Delta(d.rows[parts[n]], d.values[parts[n]], d.touches[parts[n]]) for n, d in block.items()}
            pushes.append(Push(number, rate, deltas=deltas))
        assert [(answer.step, tensors) for answer, tensors in worker.exchange(pushes.__getitem__)] == [
            (number + 1, {})
        ] * layout.shards


@pytest.mark.parametrize(("workers", "shards"), list(itertools.product([1, 2, 3], [1, 2, 3])))
def test_embeddings_are_merged_as_on_the_ring(workers, shards):
    start = {
        t.name: torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(i)) for i, t in enumerate(EMBEDDING)
    }
    rounds, rate = 6, 0.01
    expected = on_the_ring(start, workers, rounds, rate)
    with Pods(EMBEDDING, shards, Optimizer(), ParameterServer(shards=shards)) as job:
        job.start(workers, start)
        everyone = [Worker(job, rank) for rank in range(workers)]
        together([lambda w=w: on_shards(w, rounds, rate) for w in everyone])
        for name, table in expected.items():
            torch.testing.assert_close(job.contents()[f"{name}.parameters"], table, rtol=1e-4, atol=1e-5)
