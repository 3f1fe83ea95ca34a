"""The ways to push gradients to a server and pull parameters from it that sync_ps.py compares.

Each is a pair of functions. `serve` runs in the server's process: it says once on which port it listens, then answers
each worker in a thread of its own. `worker` runs in a worker's process and gives what pushes and pulls once. Both keep
gradients and parameters in tensors that are there from the start, as a training does: what a library hands over in
memory of its own is copied into them.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import zmq
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from torch import distributed
from torch.distributed import TCPStore, rpc

from mms_workloads.transport.channel import Abort, Fence, Greeting, Listener, Security, connect

if TYPE_CHECKING:
    from collections.abc import Callable

    Say = Callable[[int], None]
    Exchange = Callable[[], Any]

warnings.filterwarnings("ignore", message="You are using a Backend")  # torch's own use of gloo, and a group like that
HOST = "127.0.0.1"
LIMIT = timedelta(minutes=5)


@dataclass(frozen=True)
class Scenario:
    """What one exchange moves: tensors up, tensors down."""

    name: str
    up: tuple[tuple[torch.dtype, tuple[int, ...]], ...]
    down: tuple[tuple[torch.dtype, tuple[int, ...]], ...]
    workers: int = 1
    certificates: Path = field(default_factory=Path)

    def tensors(self, specs: Any) -> list[torch.Tensor]:
        return [torch.ones(shape, dtype=dtype) for dtype, shape in specs]

    @property
    def bytes_up(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors(self.up))

    @property
    def bytes_down(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors(self.down))


def in_threads(scenario: Scenario, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(scenario.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---- ours


def ours_serve(scenario: Scenario, repeats: int, say: Say, *, tls: bool = False) -> None:
    listener, abort = Listener(HOST, _security(scenario, tls=tls)), Abort()
    say(listener.port)
    channels = [listener.accept(abort, LIMIT.total_seconds())[0].admit() for _ in range(scenario.workers)]

    def answer(worker: int) -> None:
        gradients, parameters = scenario.tensors(scenario.up), scenario.tensors(scenario.down)
        for _ in range(repeats):
            channels[worker].receive_message(lambda _header, _specs: gradients)
            channels[worker].send_message({"kind": "parameters"}, *parameters)

    in_threads(scenario, answer)


def ours_worker(scenario: Scenario, port: int, worker: int, *, tls: bool = False) -> Exchange:
    greeting = Greeting(Fence("bench", 1, 1, 1), "worker", worker, 0, "push")
    channel = connect(HOST, port, _security(scenario, tls=tls), greeting, Abort(), LIMIT.total_seconds())
    gradients, parameters = scenario.tensors(scenario.up), scenario.tensors(scenario.down)

    def exchange() -> None:
        channel.send_message({"kind": "push"}, *gradients)
        channel.receive_message(lambda _header, _specs: parameters)

    return exchange


def _security(scenario: Scenario, *, tls: bool) -> Any:
    return Security.mutual(scenario.certificates) if tls else Security.plain()


def tls_serve(scenario: Scenario, repeats: int, say: Say) -> None:
    ours_serve(scenario, repeats, say, tls=True)


def tls_worker(scenario: Scenario, port: int, worker: int) -> Exchange:
    return ours_worker(scenario, port, worker, tls=True)


# ---- gRPC: two calls, messages with a field of bytes for each tensor, as generated from a .proto


def _messages() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench")
    tensors = file.message_type.add(name="Tensors")
    tensors.field.add(
        name="data",
        number=1,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bench.Tensors"))


GRPC_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def grpc_serve(scenario: Scenario, repeats: int, say: Say) -> None:
    import grpc  # noqa: PLC0415 - in the process that uses it: its threads are not for a fork

    message = _messages()
    left = threading.Semaphore(0)
    gradients = [scenario.tensors(scenario.up) for _ in range(scenario.workers)]
    parameters = scenario.tensors(scenario.down)

    def push(request: Any, context: Any) -> Any:
        _fill(gradients[int(dict(context.invocation_metadata())["worker"])], request.data)
        return message()

    def pull(_request: Any, context: Any) -> Any:
        if not context.add_callback(left.release):  # when it has been answered
            left.release()
        return message(data=[_bytes(tensor) for tensor in parameters])

    calls = {
        name: grpc.unary_unary_rpc_method_handler(call, message.FromString, message.SerializeToString)
        for name, call in (("Push", push), ("Pull", pull))
    }
    server = grpc.server(ThreadPoolExecutor(scenario.workers), options=GRPC_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Server", calls),))
    say(server.add_insecure_port(f"{HOST}:0"))
    server.start()
    for _ in range(repeats * scenario.workers):
        left.acquire()
    server.stop(10).wait()


def grpc_worker(scenario: Scenario, port: int, worker: int) -> Exchange:
    import grpc  # noqa: PLC0415 - in the process that uses it: its threads are not for a fork

    message = _messages()
    channel = grpc.insecure_channel(f"{HOST}:{port}", GRPC_OPTIONS)
    push = channel.unary_unary("/bench.Server/Push", message.SerializeToString, message.FromString)
    pull = channel.unary_unary("/bench.Server/Pull", message.SerializeToString, message.FromString)
    gradients, parameters = scenario.tensors(scenario.up), scenario.tensors(scenario.down)
    metadata = [("worker", str(worker))]

    def exchange() -> None:
        push(message(data=[_bytes(tensor) for tensor in gradients]), metadata=metadata)
        _fill(parameters, pull(message(), metadata=metadata).data)

    return exchange


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


def _fill(tensors: list[torch.Tensor], parts: Any) -> None:
    for tensor, part in zip(tensors, parts, strict=True):
        memoryview(tensor.numpy().data).cast("B")[:] = part


# ---- ZeroMQ: a request and a reply of a frame for each tensor, sent without a copy


def zeromq_serve(scenario: Scenario, repeats: int, say: Say) -> None:
    context = zmq.Context()
    sockets = [context.socket(zmq.REP) for _ in range(scenario.workers)]
    ports = [socket.bind_to_random_port(f"tcp://{HOST}") for socket in sockets]
    numbers = context.socket(zmq.REP)  # which port is whose
    say(numbers.bind_to_random_port(f"tcp://{HOST}"))
    for _ in range(scenario.workers):
        worker: Any = numbers.recv_json()
        numbers.send_json(ports[worker])

    def answer(worker: int) -> None:
        gradients, parameters = scenario.tensors(scenario.up), scenario.tensors(scenario.down)
        for _ in range(repeats):
            _fill(gradients, [frame.buffer for frame in sockets[worker].recv_multipart(copy=False)])
            sockets[worker].send_multipart([tensor.numpy().data for tensor in parameters], copy=False)

    in_threads(scenario, answer)
    context.destroy(linger=10_000)


def zeromq_worker(scenario: Scenario, port: int, worker: int) -> Exchange:
    context = zmq.Context()
    numbers = context.socket(zmq.REQ)
    numbers.connect(f"tcp://{HOST}:{port}")
    numbers.send_json(worker)
    socket = context.socket(zmq.REQ)
    socket.connect(f"tcp://{HOST}:{numbers.recv_json()}")
    gradients, parameters = scenario.tensors(scenario.up), scenario.tensors(scenario.down)

    def exchange() -> None:
        socket.send_multipart([tensor.numpy().data for tensor in gradients], copy=False)
        _fill(parameters, [frame.buffer for frame in socket.recv_multipart(copy=False)])

    return exchange


# ---- gloo's send and recv: a process group of the server and one worker for each worker


def gloo_serve(scenario: Scenario, repeats: int, say: Say) -> None:
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=LIMIT)
    say(store.port)
    groups = [_gloo(store, worker, 0) for worker in range(scenario.workers)]

    def answer(worker: int) -> None:
        gradients, parameters = scenario.tensors(scenario.up), scenario.tensors(scenario.down)
        for _ in range(repeats):
            for tensor in gradients:
                groups[worker].recv([tensor], 1, 0).wait()
            for tensor in parameters:
                groups[worker].send([tensor], 1, 0).wait()

    in_threads(scenario, answer)
    store.wait([f"done-{worker}" for worker in range(scenario.workers)], LIMIT)


def gloo_worker(scenario: Scenario, port: int, worker: int) -> Exchange:
    store = TCPStore(HOST, port, is_master=False, timeout=LIMIT)
    group = _gloo(store, worker, 1)
    gradients, parameters = scenario.tensors(scenario.up), scenario.tensors(scenario.down)

    def exchange() -> None:
        for tensor in gradients:
            group.send([tensor], 0, 0).wait()
        for tensor in parameters:
            group.recv([tensor], 0, 0).wait()

    exchange.close = lambda: store.set(f"done-{worker}", "")  # type: ignore[attr-defined]
    return exchange


def _gloo(store: Any, worker: int, rank: int) -> Any:
    return distributed.ProcessGroupGloo(distributed.PrefixStore(str(worker), store), rank, 2, LIMIT)


# ---- torch.distributed.rpc: TensorPipe

_held: dict[str, Any] = {}


def rpc_serve(scenario: Scenario, _repeats: int, say: Say) -> None:
    port = TCPStore(HOST, 0, is_master=True, wait_for_workers=False).port  # a free one; closed at once
    _held["gradients"] = [scenario.tensors(scenario.up) for _ in range(scenario.workers)]
    _held["parameters"] = scenario.tensors(scenario.down)
    say(port)
    rpc.init_rpc("server", rank=0, world_size=scenario.workers + 1, rpc_backend_options=_rpc_options(port))
    rpc.shutdown()


def rpc_worker(scenario: Scenario, port: int, worker: int) -> Exchange:
    options = _rpc_options(port)
    rpc.init_rpc(f"worker{worker}", rank=worker + 1, world_size=scenario.workers + 1, rpc_backend_options=options)
    gradients, parameters = scenario.tensors(scenario.up), scenario.tensors(scenario.down)

    def exchange() -> None:
        rpc.rpc_sync("server", _push, args=(worker, gradients))
        for tensor, pulled in zip(parameters, rpc.rpc_sync("server", _pull), strict=True):
            tensor.copy_(pulled)

    def close() -> None:
        # The server, which has the store, may be gone before a worker has read there that all have left.
        with contextlib.suppress(distributed.DistNetworkError):
            rpc.shutdown()

    exchange.close = close  # type: ignore[attr-defined]
    return exchange


def _push(worker: int, gradients: list[torch.Tensor]) -> None:
    for tensor, pushed in zip(_held["gradients"][worker], gradients, strict=True):
        tensor.copy_(pushed)


def _pull() -> list[torch.Tensor]:
    parameters: list[torch.Tensor] = _held["parameters"]
    return parameters


def _rpc_options(port: int) -> Any:
    os.environ.setdefault("TP_SOCKET_IFNAME", "lo")
    seconds = LIMIT.total_seconds()
    # Over TCP, as between pods: its shared memory is for processes of one machine.
    return rpc.TensorPipeRpcBackendOptions(
        init_method=f"tcp://{HOST}:{port}", rpc_timeout=seconds, _transports=["uv"], _channels=["basic"]
    )


SERVE: dict[str, Callable[[Scenario, int, Say], None]] = {
    "ours": ours_serve,
    "ours TLS": tls_serve,
    "gloo": gloo_serve,
    "torch RPC": rpc_serve,
    "ZeroMQ": zeromq_serve,
    "gRPC": grpc_serve,
}
WORKER: dict[str, Callable[[Scenario, int, int], Exchange]] = {
    "ours": ours_worker,
    "ours TLS": tls_worker,
    "gloo": gloo_worker,
    "torch RPC": rpc_worker,
    "ZeroMQ": zeromq_worker,
    "gRPC": grpc_worker,
}
