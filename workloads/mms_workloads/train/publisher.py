"""A training's parameters for serving pods that follow it: HTTPS, asked by whoever wants them.

Of a ring each worker has all of them. Of a parameter server each shard has a range of the rows, and workers the rest.

    GET /v1/vocabulary   vocabulary.txt, as an artifact has it
    GET /v1/task         model.json
    GET /v1/sample       int32 [n, 3]: comparisons of text that is not trained on (embedding/evaluation.py)
    GET /v1/parameters   bfloat16 [n, d], words' vectors from row MMS-First on; 304 where they are those of
                         If-None-Match

Each answer names the attempt, the membership epoch and the plan. A worker's vectors are copied from where they are
trained while they are (Niu et al., 2011): a row is as it was before, after or within one update, and no two rows need
be of the same moment; all are of the milliseconds that the copy takes, and nobody who trains waits for it. A shard's
are of one step.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

import structlog
import torch

from mms_workloads.contract import OU_READER
from mms_workloads.embedding import evaluation
from mms_workloads.store import JobError
from mms_workloads.sync import tls
from mms_workloads.train.secured import SecuredServer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from mms_workloads.contract import JobFile
    from mms_workloads.embedding.learner import EmbeddingLearner
    from mms_workloads.pod import Pod

# Of a processor's time: what copying and sending take beyond it is paid by those who ask, who wait.
SHARE = 0.04
SHARED_SECONDS = 0.1  # who asks so soon after another gets the same copy
SAMPLE = 4096  # comparisons: the standard error of a quality is below 0.008

log = structlog.get_logger()


def publishes(job: JobFile) -> bool:
    """Whether a job's parameters can be had. Word vectors with n-grams are made of many rows each."""
    task = job.task.wordEmbedding
    return task is not None and task.subwords is None


@dataclass(frozen=True, slots=True)
class Held:
    """What the pod has now.

    vectors: words' vectors [n, d] from row `first` on, in memory that may change meanwhile; None where there are none.
    """

    learner: EmbeddingLearner
    epoch: int
    plan: str  # digest
    vectors: Callable[[], torch.Tensor | None]
    step: int = 0
    first: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """The vectors at one moment."""

    rows: torch.Tensor  # bfloat16 [n, d]
    first: int
    step: int
    number: int  # another one whenever they are others
    plan: str
    taken: float  # monotonic seconds when it was begun


@dataclass(slots=True)
class Copies:
    """Safe for threads."""

    _last: Copy | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _samples: dict[str, NDArray[np.int32]] = field(default_factory=dict)  # by plan

    def latest(self, held: Held) -> Copy | None:
        """One that is at most SHARED_SECONDS old; None where the pod has no vectors."""
        with self._lock:
            last, now = self._last, time.monotonic()
            like = last is not None and (last.plan, last.first) == (held.plan, held.first)
            if last is not None and like and now - last.taken < SHARED_SECONDS:
                return last
            vectors = held.vectors()
            if vectors is None:
                return None
            rows = torch.empty(vectors.shape, dtype=torch.bfloat16).copy_(vectors)
            same = last is not None and like and torch.equal(last.rows, rows)
            number = 0 if last is None else last.number + (not same)
            self._last = Copy(rows, held.first, held.step, number, held.plan, now)
            return self._last

    def sample(self, held: Held) -> NDArray[np.int32]:
        """Raises JobError."""
        with self._lock:
            if held.plan not in self._samples:
                learner = held.learner
                block = (learner.held_out or learner.trained_on)[0]
                drawn = evaluation.sample(
                    learner.corpus.tokens(block), learner.words, learner.task.window, learner.job.optimizer.seed, SAMPLE
                )
                self._samples = {held.plan: drawn}
            return self._samples[held.plan]


@dataclass(slots=True)
class Budget:
    """Lets so much be done that it takes `share` of a processor. Safe for threads."""

    share: float
    _free: float = 0.0  # monotonic seconds from when all is paid for
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self) -> None:
        """Until what was done before is paid for."""
        time.sleep(max(0.0, self._free - time.monotonic()))

    def spend(self, seconds: float) -> None:
        with self._lock:
            self._free = max(self._free, time.monotonic()) + seconds / self.share


class Publisher:
    """`address` is where it can be asked, host:port; it is there as long as the process.

    holds: None while there is nothing to be had; called in any thread.
    """

    @classmethod
    def of(cls, pod: Pod, holds: Callable[[], Held | None], *, plain: bool) -> Publisher | None:
        """None where nobody can follow the training; so it is where the port is taken, and the training goes on."""
        if not publishes(pod.job):
            return None
        try:
            return cls(pod, holds, plain=plain)
        except OSError as error:
            log.warning("nobody can follow this pod", port=pod.parameters_port, error=str(error))
            return None

    def __init__(self, pod: Pod, holds: Callable[[], Held | None], *, plain: bool) -> None:
        """Raises OSError where the port is taken."""
        context = None if plain else tls.server_context(pod.tls_dir)
        self._server = _Server((pod.ip, pod.parameters_port), context, pod, holds)
        self.address = f"{pod.ip}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="publisher", daemon=True).start()


class _Server(SecuredServer):
    def __init__(
        self, place: tuple[str, int], context: ssl.SSLContext | None, pod: Pod, holds: Callable[[], Held | None]
    ) -> None:
        self.pod, self.holds, self.copies = pod, holds, Copies()
        self.budget = Budget(SHARE)
        super().__init__(place, context, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        server = self.server
        if server.context is not None:
            units = tls.organisational_units(self.connection.getpeercert())
            if OU_READER not in units:
                self._say(HTTPStatus.FORBIDDEN, f"this needs a certificate with OU={OU_READER}\n")
                return
        job = server.pod.job.job
        if self.headers.get("MMS-Job") != f"{job.uid}/{job.run}":
            self._say(HTTPStatus.CONFLICT, f"this is run {job.run} of job {job.uid}\n")
            return
        server.budget.wait()
        began = time.thread_time()
        try:
            self._answer()
        except JobError as error:
            self._say(HTTPStatus.SERVICE_UNAVAILABLE, error.message)
        finally:
            server.budget.spend(time.thread_time() - began)

    def _answer(self) -> None:
        held = self.server.holds()
        if held is None:
            self._say(HTTPStatus.SERVICE_UNAVAILABLE, "there are no parameters yet, or this pod joins the training\n")
            return
        match self.path:
            case "/v1/vocabulary":
                self._send(held, held.learner.vocabulary.text().encode())
            case "/v1/task":
                self._send(held, held.learner.task.model_dump_json(indent=1).encode())
            case "/v1/sample":
                self._send(held, self.server.copies.sample(held).tobytes())
            case "/v1/parameters" if copy := self.server.copies.latest(held):
                self._send_copy(held, copy)
            case _:
                self._say(HTTPStatus.NOT_FOUND, "ask for vocabulary, task or sample, or for parameters elsewhere\n")

    def _send_copy(self, held: Held, copy: Copy) -> None:
        tag = f'"{self.server.pod.incarnation}-{copy.number}"'
        same = self.headers.get("If-None-Match") == tag
        facts = {
            "ETag": tag,
            "MMS-Step": copy.step,
            "MMS-First": copy.first,
            "MMS-Rows": copy.rows.shape[0],
            "MMS-Columns": copy.rows.shape[1],
            "MMS-Age": f"{time.monotonic() - copy.taken:.6f}",  # seconds
        }
        self._send(held, None if same else copy.rows.view(torch.uint8).numpy().data.cast("B"), facts)

    def _send(self, held: Held, body: bytes | memoryview | None, headers: Mapping[str, object] | None = None) -> None:
        """body: None for 304."""
        self.send_response(HTTPStatus.OK if body is not None else HTTPStatus.NOT_MODIFIED)
        facts = {"MMS-Attempt": self.server.pod.attempt, "MMS-Epoch": held.epoch, "MMS-Plan": held.plan}
        length = {"Content-Length": 0 if body is None else len(body)}
        for name, value in {**facts, **length, **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body is not None:
            self.wfile.write(body)

    def _say(self, status: HTTPStatus, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
        """Requests are no news."""
