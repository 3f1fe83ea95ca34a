"""The clients of overhead.py, run in a pod: as cheap as can be, so that what is measured is the servers.

    python overhead_client.py ROUNDS SECONDS NAME=HOST...

Each of CLIENTS threads has a connection of its own and asks as soon as it has its answer: over HTTP with bytes that
were made once, over gRPC with a message that was. The servers take turns, SECONDS each, over each protocol; a line of
JSON has the seconds of each request by name and protocol.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
from tritonclient.grpc import service_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

CLIENTS = 8
WORD, K = b"congress", 10
MODEL = "neighbours"


def http_request(host: str) -> bytes:
    inputs = [
        {"name": "WORDS", "datatype": "BYTES", "shape": [1, 1], "data": [WORD.decode()]},
        {"name": "K", "datatype": "INT32", "shape": [1, 1], "data": [K]},
    ]
    body = json.dumps({"inputs": inputs}).encode()
    head = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def grpc_request() -> bytes:
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    for name, datatype in (("WORDS", "BYTES"), ("K", "INT32")):
        request.inputs.add(name=name, datatype=datatype, shape=[1, 1])
    request.raw_input_contents.append(len(WORD).to_bytes(4, "little") + WORD)
    request.raw_input_contents.append(K.to_bytes(4, "little"))
    return bytes(request.SerializeToString())


def over_http(host: str, port: int) -> Callable[[], None]:
    asked = http_request(host)
    state: dict[str, Any] = {"connection": socket.create_connection((host, port))}
    state["connection"].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask() -> None:
        connection = state["connection"]
        connection.sendall(asked)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += _received(connection)
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{host}: {answer!r}")
        fields = head.lower()
        length = int(fields.split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += _received(connection)
        if b"connection: close" in fields:
            connection.close()
            state["connection"] = socket.create_connection((host, port))

    return ask


def _received(connection: socket.socket) -> bytes:
    if not (found := connection.recv(65536)):
        raise RuntimeError("the connection was closed")
    return found


def over_grpc(host: str, port: int) -> Callable[[], None]:
    asked = grpc_request()
    channel = grpc.insecure_channel(f"{host}:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    return lambda: infer(asked, timeout=20)


WAYS = {"http": (over_http, 8000), "grpc": (over_grpc, 8001)}


def turn(host: str, way: str, seconds: float) -> list[float]:
    """Seconds of each request of all clients."""
    connect, port = WAYS[way]
    asks = [connect(host, port) for _ in range(CLIENTS)]
    for ask in asks:
        ask()
    took: list[list[float]] = [[] for _ in asks]
    until = time.perf_counter() + seconds

    def client(ask: Callable[[], None], mine: list[float]) -> None:
        now = time.perf_counter()
        while now < until:
            began = now
            ask()
            now = time.perf_counter()
            mine.append(now - began)

    threads = [threading.Thread(target=client, args=pair) for pair in zip(asks, took, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(took):
        raise RuntimeError(f"{host}: a client has no answer over {way}")
    return [second for mine in took for second in mine]


def main(rounds: int, seconds: float, hosts: dict[str, str]) -> None:
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for way in WAYS:
            for name, host in hosts.items():
                took = turn(host, way, seconds if number else 2)
                if number:  # the first one warms up
                    found.setdefault(f"{name} {way}", []).extend(took)
    print(json.dumps({name: [round(second, 6) for second in took] for name, took in found.items()}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), dict(one.split("=", 1) for one in sys.argv[3:]))
