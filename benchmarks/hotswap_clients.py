"""Clients of bench-hotswap, in a process of their own: each asks again as soon as it has its answer, and checks it."""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc as triton

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

CLIENTS = 8


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

    def end(self) -> dict[str, Any]:
        """What became of the requests since the last end: count, failures, p50 and p99 in ms."""
        found: dict[str, Any] = self._say("end")
        return found

    def stop(self) -> None:
        self._say("stop")
        self._process.join()

    def _say(self, command: str, value: int = 0) -> Any:
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
        self._seconds: list[float] = []
        self._failed: list[str] = []

    def told(self, command: str, value: int) -> Any:
        if command == "go":
            self._port = value
            time.sleep(1)  # each client ends what it has begun
        elif command == "end":
            return self._ended()
        elif command == "stop":
            self.stopped = True
        return len(self._seconds), len(self._failed)

    def _ended(self) -> dict[str, Any]:
        with self._lock:
            took, problems = np.array(self._seconds), list(self._failed)
            self._seconds.clear()
            self._failed.clear()
        p50, p99 = np.percentile(1e3 * took, [50, 99]).tolist()
        worst = float(1e3 * took.max())
        return {
            "requests": len(took), "failed": len(problems), "first": problems[:3],
            "p50": p50, "p99": p99, "worst": worst,
        }  # fmt: skip

    def client(self, number: int) -> None:
        at, connection = 0, None
        while not self.stopped:
            if at != self._port:
                if connection:
                    connection.close()
                at = self._port
                connection = triton.InferenceServerClient(f"127.0.0.1:{at}")
            question = self._quiz.questions[(number * 7 + len(self._seconds)) % len(self._quiz.questions)]
            began = time.perf_counter()
            problem = one(connection, question, self._quiz)
            took = time.perf_counter() - began
            with self._lock:
                self._seconds.append(took)
                if problem:
                    self._failed.append(problem)


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
