"""One rank of checkpoint.py, started by torchrun: it trains, saves and restores one state; rank 0 writes the times.

Saving and restoring are a worker's own: Checkpointer and checkpoint.load. What the master would hear and do
is done here, between the ranks: the parts' entries go to rank 0, which writes the manifest.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
import torch.distributed.checkpoint as peer
from torch import distributed
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

from benchmarks.others import at_rest, enough
from mms_workloads.contract import (
    SECRET_ACCESS_KEY,
    SECRET_ACCESS_KEY_ID,
    CheckpointFile,
    CheckpointRef,
    JobFile,
    LanguageModel,
    Optimizer,
    Store,
)
from mms_workloads.language.learner import cross_entropy
from mms_workloads.language.transformer import SYMBOLS, Transformer
from mms_workloads.sync import checkpoints
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.train import checkpoint
from mms_workloads.train.checkpoints import Checkpointer
from mms_workloads.train.communicator import Contribution, Stats
from mms_workloads.train.flat import FlatState
from mms_workloads.train.learner import Place
from mms_workloads.train.ring import Ring
from mms_workloads.train.state import agree
from mms_workloads.transport.channel import Abort, Fence, Listener, Security
from mms_workloads.transport.ring import RingTransport

if TYPE_CHECKING:
    from collections.abc import Iterator


HOST = "127.0.0.1"
LIMIT = timedelta(minutes=10)
OPTIMIZER = Optimizer(name="AdamW", learningRate=1e-4)
# By MB of float32 parameters, about; with the optimizer's slots a state has thrice as many.
MODELS = {
    64: LanguageModel(dimensions=512, layers=5, heads=8, contextLength=128),
    256: LanguageModel(dimensions=1024, layers=5, heads=8, contextLength=128),
}
ENDLESS = 1 << 40  # samples of the one block that a rank goes through
WAYS = ("ours", "undigested", "peer")
PEER_URI = "s3://bench/peer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, choices=MODELS, required=True)
    parser.add_argument("--storage", required=True, help="the store as JSON")
    parser.add_argument("--folder", type=Path, required=True, help="scratch, and where the peer saves")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--window-steps", type=int, default=0, help="0: no stalls are measured")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=LIMIT)
    with contextlib.ExitStack() as stack:
        bench = Bench(arguments, stack)
        samples: dict[str, Any] = {
            "parameters_bytes": bench.state.parameters.nbytes,
            "state_bytes": sum(t.nbytes for slots in bench.state.tables().values() for t in slots.values()),
        }
        steps = arguments.window_steps
        samples["rounds"] = bench.stalls(arguments.rounds, steps) if steps else bench.saves(arguments.rounds)
        if bench.place.position == 0:
            arguments.out.write_text(json.dumps(samples))
        distributed.barrier()
    distributed.destroy_process_group()


class Bench:
    def __init__(self, arguments: argparse.Namespace, stack: contextlib.ExitStack) -> None:
        self.place = Place(distributed.get_rank(), distributed.get_world_size())
        self.storage = Store.model_validate_json(arguments.storage)
        self.scratch = arguments.folder / f"scratch-{self.place.position}"
        self.scratch.mkdir()
        self.local = self.storage.uri.startswith("file://")
        self.beside = arguments.folder / "peer"
        self.state = FlatState(Transformer(MODELS[arguments.megabytes], 1), OPTIMIZER)
        agree(self.state, 0, "benchmark", Progress.none(self.place.members))
        self.ring = Ring(_transport(stack))
        self.ring.attach(self.state)
        stack.callback(self.ring.close)
        self.told = Told()
        self.saver = Checkpointer(self._job(), self.told, self.scratch)  # type: ignore[arg-type]
        self.window = torch.randint(SYMBOLS, (1, MODELS[arguments.megabytes].contextLength + 1))
        for _ in range(2):
            self.step()

    def step(self) -> None:
        """One of training, with a sample for each rank."""
        loss = cross_entropy(self.state.module, self.window)
        loss.backward()
        done, rank = self.state.agreement.step, self.place.position
        mine = Contribution((Slice(0, rank, done, done + 1, ENDLESS),), Stats(1, 1.0, loss.item()))
        self.ring.exchange(self.state, mine, OPTIMIZER.learningRate, lambda: None)

    # Stalls

    def stalls(self, rounds: int, steps: int) -> list[dict[str, float]]:
        """Seconds of as many steps without a save and with one, which is over within them; and of `save` alone."""
        found: list[dict[str, float]] = []
        self._window(steps, save=True)  # warms up
        while not enough(found, rounds):
            one = {"others": at_rest()}
            for save in (False, True) if len(found) % 2 else (True, False):
                whole, blocked, written = self._window(steps, save=save)
                one |= {"with": whole, "blocked": blocked, "written": written} if save else {"without": whole}
            one["others"] = max(one["others"], at_rest())
            found.append(one)
        return found

    def _window(self, steps: int, *, save: bool) -> tuple[float, float, float]:
        """Seconds: of the window; blocked in `save`; till the last rank's part was durable."""
        distributed.barrier()
        began, self.told.at = time.perf_counter(), 0.0
        if save:
            self.saver.save(self.state, self.place)
        blocked = time.perf_counter() - began
        for _ in range(steps):
            self.step()
        distributed.barrier()
        whole = time.perf_counter() - began
        if save:
            late = self.saver._thread  # noqa: SLF001 - what is saved must be durable within the window
            assert late is not None
            assert not late.is_alive(), "a save outlasts its window: give it more steps"
            self._commit()
            self._forget(keep=1)
        return whole, _slowest(blocked), _slowest(self.told.at - began if save else 0.0)

    # Saving and restoring

    def saves(self, rounds: int) -> list[dict[str, float]]:
        """Of each round the seconds that each way takes to save and to restore."""
        theirs = self._theirs()
        before = {slot: tensor.clone() for slot, tensor in self.state.tables()["dense"].items()}
        found: list[dict[str, float]] = []
        for number in itertools.count():
            one = {"others": at_rest()}
            for i in range(len(WAYS)):
                way = WAYS[(i + number) % len(WAYS)]
                with _undigested() if way == "undigested" else contextlib.nullcontext():
                    saved, restored = self._peer(theirs) if way == "peer" else self._ours(before)
                one |= {f"{way}-save": saved, f"{way}-restore": restored}
            one["others"] = max(one["others"], at_rest())
            if number:  # the first warms up
                found.append(one)
            if enough(found, rounds):
                break
        return found

    def _ours(self, before: dict[str, torch.Tensor]) -> tuple[float, float]:
        """Seconds to save, and to restore into all ranks."""
        self.state.agreement.step += 1  # another name
        distributed.barrier()
        began = time.perf_counter()
        assert self.saver.save_last(self.state, self.place, lambda: True)
        reference = self._commit()
        distributed.barrier()
        saved = time.perf_counter() - began
        _blank(self.state.tables()["dense"])
        if self.local:
            self._uncached(Path(self.storage.uri.removeprefix("file://")))
        distributed.barrier()
        began = time.perf_counter()
        self.state.adopt(checkpoint.load(self.storage, reference, self.scratch, into=self.state.tables()))
        distributed.barrier()
        restored = time.perf_counter() - began
        _check(self.state.tables()["dense"], before)
        self._forget(keep=1)
        return saved, restored

    def _peer(self, theirs: dict[str, torch.Tensor]) -> tuple[float, float]:
        expected = {name: tensor.clone() for name, tensor in theirs.items()}
        shutil.rmtree(self.beside, ignore_errors=True)
        distributed.barrier()
        began = time.perf_counter()
        peer.save(theirs, storage_writer=self._writer())
        distributed.barrier()
        saved = time.perf_counter() - began
        _blank(theirs)
        if self.local:
            self._uncached(self.beside)
        distributed.barrier()
        began = time.perf_counter()
        peer.load(theirs, storage_reader=self._reader())
        distributed.barrier()
        restored = time.perf_counter() - began
        _check(theirs, expected)
        return saved, restored

    def _writer(self) -> Any:
        if self.local:
            return peer.FileSystemWriter(self.beside, thread_count=1, sync_files=True)
        return FsspecWriter(PEER_URI, thread_count=1, sync_files=False, **self._s3())

    def _reader(self) -> Any:
        return peer.FileSystemReader(self.beside) if self.local else FsspecReader(PEER_URI, **self._s3())

    def _s3(self) -> dict[str, Any]:
        secret = Path(os.environ["MMS_CREDENTIALS_DIR"]) / (self.storage.credentials or "")
        return {
            "key": (secret / SECRET_ACCESS_KEY_ID).read_text(),
            "secret": (secret / SECRET_ACCESS_KEY).read_text(),
            "client_kwargs": {"endpoint_url": self.storage.endpoint, "region_name": "us-east-1"},
        }

    def _theirs(self) -> dict[str, torch.Tensor]:
        """The same bytes as tensors of their own, each parameter's and slot's by name, as state_dict has them."""
        found, start = {}, 0
        for name, parameter in self.state.module.named_parameters():
            window = slice(start, start + parameter.numel())
            for slot, tensor in self.state.tables()["dense"].items():
                found[f"{slot}.{name}"] = tensor.view(-1)[window].view_as(parameter).clone()
            start = window.stop
        return found

    def _commit(self) -> Any:
        """What the master does with the parts of all ranks. A CheckpointRef, on every rank."""
        parts: list[Any] = [None] * self.place.members
        distributed.all_gather_object(parts, self.told.fields)
        reference: list[CheckpointRef | None] = [None]
        if self.place.position == 0:
            entries = {name: CheckpointFile(**entry) for one in parts for name, entry in one["files"].items()}
            reference = [checkpoints.commit(self.storage, parts[0]["folder"], entries, parts[0]["step"])]
        distributed.broadcast_object_list(reference)
        self.newest = reference[0]
        return reference[0]

    def _forget(self, keep: int) -> None:
        if self.place.position == 0 and self.newest:
            checkpoints.prune(self.storage, keep, self.newest)
        distributed.barrier()

    def _uncached(self, folder: Path) -> None:
        """Drops what the kernel keeps of the files, which are durable: a restore is elsewhere, or much later."""
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _job(self) -> JobFile:
        fields = {
            "job": {"namespace": "bench", "name": "bench", "uid": "bench", "run": 1},
            "task": {"languageModel": {}},
            "data": {"store": {"uri": "file:///nowhere"}},
            "workers": self.place.members,
            "storage": self.storage.model_dump(),
            "masterHost": HOST,
        }
        return JobFile.model_validate(fields)


class Told:
    """In place of the connection to the master: keeps what the checkpointer says."""

    def __init__(self) -> None:
        self.inbox = SimpleNamespace(plan=b"")
        self.fields: dict[str, Any] = {}
        self.at = 0.0

    def send(self, _: str, **fields: Any) -> None:
        assert "files" in fields, fields
        self.fields, self.at = fields, time.perf_counter()


def _transport(stack: contextlib.ExitStack) -> RingTransport:
    rank, size = distributed.get_rank(), distributed.get_world_size()
    listener = Listener(HOST, Security.plain())
    stack.callback(listener.close)
    ports: list[int] = [0] * size
    distributed.all_gather_object(ports, listener.port)
    addresses = [(HOST, port) for port in ports]
    fence, limit = Fence("bench", 1, 1, 1), LIMIT.total_seconds()
    return RingTransport.form(
        rank, addresses, listener, Security.plain(), fence, rank=rank, incarnation=0, abort=Abort(), timeout=limit
    )


def _slowest(seconds: float) -> float:
    slowest = torch.tensor(seconds, dtype=torch.float64)
    distributed.all_reduce(slowest, distributed.ReduceOp.MAX)
    return float(slowest)


def _blank(tensors: dict[str, torch.Tensor]) -> None:
    for tensor in tensors.values():
        tensor.zero_()


def _check(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items()), "it was not restored"


@contextlib.contextmanager
def _undigested() -> Iterator[None]:
    """What saving and restoring cost without digests and without reading back: the price of both is the difference."""
    with (
        mock.patch.object(checkpoints.Digest, "update"),
        mock.patch.object(checkpoints, "verify"),
    ):
        yield


if __name__ == "__main__":
    main()
