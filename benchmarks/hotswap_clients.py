"""Clients of bench-hotswap, in a process of their own: each asks again as soon as it has its answer, and checks it."""

from __future__ import annotations

import bisect
import multiprocessing
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc as triton

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

CLIENTS = 8

Span = tuple[float, float]  # from when to when, seconds of the monotonic clock, which processes of a machine share


@dataclass(frozen=True)
class Quiz:
    """What is asked of a model, and what each artifact has to answer: by digest and question, a tensor's strings."""

    model: str
    tensor: str
    answer: str
    questions: list[bytes]
    expected: dict[str, dict[bytes, list[str]]]


class Clients:
    def __init__(self, port: int, quiz: Quiz) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=ask, args=(theirs, port, quiz))
        self._process.start()

    def go(self, port: int) -> None:
        """To another address."""
        self._say("go", port)

    def count(self) -> tuple[int, int]:
        """Requests since the last end, and how many of them failed."""
        requests, failed = self._say("count")
        return requests, failed

    def end(self, swaps: Sequence[Span] = ()) -> dict[str, Any]:
        """What became of the requests since the last end: count, failures, times in ms; and apart, as `overlapping`,
        of those that were in flight during a swap. swaps: from when to when, one after the other, by the monotonic
        clock.
        """
        found: dict[str, Any] = self._say("end", list(swaps))
        return found

    def stop(self) -> None:
        self._say("stop")
        self._process.join()

    def _say(self, command: str, value: Any = 0) -> Any:
        self._pipe.send((command, value))
        return self._pipe.recv()


def ask(pipe: Connection, port: int, quiz: Quiz) -> None:
    """The clients' process."""
    asking = Asking(port, quiz)
    threads = [threading.Thread(target=asking.client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    while not asking.stopped:
        command, value = pipe.recv()
        pipe.send(asking.told(command, value))


class Asking:
    def __init__(self, port: int, quiz: Quiz) -> None:
        self.stopped = False
        self._port, self._quiz = port, quiz
        self._lock = threading.Lock()
        self._spans: list[Span] = []  # of requests
        self._failed: list[str] = []

    def told(self, command: str, value: Any) -> Any:
        if command == "go":
            self._port = value
            time.sleep(1)  # each client ends what it has begun
        elif command == "end":
            return self._ended(value)
        elif command == "stop":
            self.stopped = True
        return len(self._spans), len(self._failed)

    def _ended(self, swaps: Sequence[Span]) -> dict[str, Any]:
        with self._lock:
            spans, problems = list(self._spans), list(self._failed)
            self._spans.clear()
            self._failed.clear()
        found = {**times(spans), "failed": len(problems), "first": problems[:3]}
        return {**found, "overlapping": times(overlapping(spans, swaps))} if swaps else found

    def client(self, number: int) -> None:
        at, connection = 0, None
        while not self.stopped:
            if at != self._port:
                if connection:
                    connection.close()
                at = self._port
                connection = triton.InferenceServerClient(f"127.0.0.1:{at}")
            question = self._quiz.questions[(number * 7 + len(self._spans)) % len(self._quiz.questions)]
            began = time.monotonic()
            problem = one(connection, question, self._quiz)
            ended = time.monotonic()
            with self._lock:
                self._spans.append((began, ended))
                if problem:
                    self._failed.append(problem)


def times(spans: Sequence[Span]) -> dict[str, Any]:
    """How many there are, and in ms how long they took."""
    took = [1e3 * (ended - began) for began, ended in spans]
    if not took:
        return {"requests": 0, "p50": 0.0, "p99": 0.0, "p999": 0.0, "worst": 0.0}
    p50, p99, p999 = np.percentile(took, [50, 99, 99.9]).tolist()
    return {"requests": len(took), "p50": p50, "p99": p99, "p999": p999, "worst": max(took)}


def overlapping(spans: Sequence[Span], swaps: Sequence[Span]) -> list[Span]:
    """Those that were in flight during a swap: the first one that ends after the request began had begun before it
    ended. Swaps are in order, one after the other.
    """
    ends = [ended for _, ended in swaps]
    found = []
    for began, ended in spans:
        place = bisect.bisect_right(ends, began)
        if place < len(swaps) and swaps[place][0] < ended:
            found.append((began, ended))
    return found


def one(client: triton.InferenceServerClient, question: bytes, quiz: Quiz) -> str | None:
    """What is wrong with an answer; None: nothing."""
    asked = triton.InferInput(quiz.tensor, [1, 1], "BYTES")
    asked.set_data_from_numpy(np.array([[question]], dtype=object))
    try:
        answer = client.infer(quiz.model, [asked], client_timeout=30)
    except Exception as error:  # noqa: BLE001 - whatever a client sees counts
        return f"{type(error).__name__}: {error}"
    digest = answer.as_numpy("DIGEST").flat[0].decode()
    found = [other.decode() for other in answer.as_numpy(quiz.answer).ravel()]
    return None if quiz.expected.get(digest, {}).get(question) == found else f"{found}: not the answer of {digest}"
