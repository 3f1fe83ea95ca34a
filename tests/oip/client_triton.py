"""What users of tritonclient do, over HTTP and gRPC."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from tritonclient import grpc as over_grpc
from tritonclient import http as over_http
from tritonclient.utils import InferenceServerException

from tests.oip import model as tensors
from tests.oip.checks import ProblemError, check
from tests.oip.rest_infer import has_refusals
from tests.oip.rest_metadata import NO_MODEL, NO_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.oip.checks import Subject
    from tests.oip.model import Example, Tensor

HTTP, GRPC = "tritonclient.http", "tritonclient.grpc"
NAMES = (HTTP, GRPC)
SOURCE = "tritonclient"
TIMEOUT_SECONDS = 30.0


@contextmanager
def client(subject: Subject) -> Iterator[tuple[Any, Any]]:
    """The client and its module."""
    if subject.client == HTTP:
        address = subject.target.rest.partition("://")[2]
        made: Any = over_http.InferenceServerClient(
            address, connection_timeout=TIMEOUT_SECONDS, network_timeout=TIMEOUT_SECONDS
        )
        module: Any = over_http
    else:
        made, module = over_grpc.InferenceServerClient(subject.target.grpc), over_grpc
    try:
        yield made, module
    finally:
        made.close()


def asked(
    subject: Subject,
    example: Example,
    *,
    binary: bool = True,
    outputs: Sequence[Tensor] | None = None,
    model: str | None = None,
    **options: Any,
) -> Any:
    """The result. `binary`: of HTTP, else JSON. Raises InferenceServerException."""
    http = {"binary_data": binary} if subject.client == HTTP else {}
    with client(subject) as (opened, module):
        inputs = []
        for one in example.inputs:
            made = module.InferInput(one.name, list(one.shape), one.datatype)
            made.set_data_from_numpy(tensors.array(one), **http)
            inputs.append(made)
        wanted = [module.InferRequestedOutput(one.name, **http) for one in outputs or example.outputs]
        return opened.infer(model or subject.model.name, inputs, outputs=wanted, **options)


def right(subject: Subject, example: Example, **options: Any) -> Iterator[str]:
    wanted = options.get("outputs") or example.outputs
    try:
        result = asked(subject, example, **options)
    except InferenceServerException as error:
        raise ProblemError(f"an error: {error.status()}\n{error.message()}") from None
    arrays = [(one, result.as_numpy(one.name)) for one in wanted]
    if missing := [one.name for one, found in arrays if found is None]:
        raise ProblemError(f"no output {missing}")
    got = [tensors.from_array(one.name, one.datatype, found) for one, found in arrays]
    yield from tensors.differences(wanted, got, subject.model.tolerance)
    document = result.get_response()
    field: Callable[[str], Any] = document.get if isinstance(document, dict) else partial(getattr, document)
    if field("model_version") != subject.model.version:
        yield f"model_version {field('model_version')!r}"
    if options.get("request_id", "") != (field("id") or ""):
        yield "not the id that was sent"


def refused(call: Callable[[], Any], status: str, says: str = "") -> Iterator[str]:
    try:
        call()
    except InferenceServerException as error:
        if error.status() != status:
            yield f"{error.status()}, not {status}\n{error.message()}"
        if says not in error.message() or not error.message():
            yield f"the error does not say {says!r}\n{error.message()}"
    else:
        yield f"no error, not {status}"


@check("tritonclient.health", SOURCE, "is_server_live, is_server_ready, is_model_ready", clients=NAMES)
def health(subject: Subject) -> Iterator[str]:
    model = subject.model
    with client(subject) as (opened, _):
        if not opened.is_server_live():
            yield "is_server_live is false"
        if not opened.is_server_ready():
            yield "is_server_ready is false"
        for version in ("", model.version):
            if not opened.is_model_ready(model.name, version):
                yield f"is_model_ready is false\nversion {version!r}"
        for name, version in ((NO_MODEL, ""), (model.name, NO_VERSION)):
            if opened.is_model_ready(name, version):
                yield f"is_model_ready is true\n{name} {version!r}"


@check("tritonclient.metadata", SOURCE, "get_server_metadata, get_model_metadata", clients=NAMES)
def metadata(subject: Subject) -> Iterator[str]:
    model = subject.model
    with client(subject) as (opened, _):
        server = opened.get_server_metadata()
        field: Callable[[Any, str], Any] = (lambda one, key: one[key]) if isinstance(server, dict) else getattr
        if missing := subject.target.extensions - set(field(server, "extensions")):
            yield f"extensions without {sorted(missing)}"
        for version in ("", model.version):
            found = opened.get_model_metadata(model.name, version)
            for key, specs in (("inputs", model.inputs), ("outputs", model.outputs)):
                listed = [
                    tuple(tuple(field(one, part)) if part == "shape" else field(one, part) for part in _PARTS)
                    for one in field(found, key)
                ]
                if listed != [(one.name, one.datatype, one.shape) for one in specs]:
                    yield f"{key} are not the model's\n{listed}"


_PARTS = ("name", "datatype", "shape")


@check("tritonclient.infer", SOURCE, "infer, tensors as binary data", clients=NAMES)
def infer(subject: Subject) -> Iterator[str]:
    for example in subject.model.examples:
        yield from right(subject, example)
        yield from right(subject, tensors.batch(example, subject.model.max_batch))


@check("tritonclient.infer.json", SOURCE, "infer, tensors in JSON", clients=(HTTP,))
def infer_json(subject: Subject) -> Iterator[str]:
    for example in subject.model.examples:
        yield from right(subject, example, binary=False)


@check("tritonclient.infer.options", SOURCE, "infer by version, with an id, one output, a parameter", clients=NAMES)
def infer_options(subject: Subject) -> Iterator[str]:
    example = subject.model.example
    yield from right(subject, example, model_version=subject.model.version)
    yield from right(subject, example, request_id="42")
    yield from right(subject, example, parameters={"mine": "höhe", "whole": 7, "yes": True})
    for one in example.outputs:
        yield from right(subject, example, outputs=[one])


@check("tritonclient.infer.compression", SOURCE, "infer with compressed bodies", clients=NAMES)
def infer_compression(subject: Subject) -> Iterator[str]:
    whole = tensors.batch(subject.model.example, subject.model.max_batch)
    for how in ("gzip", "deflate"):
        if subject.client == GRPC:
            yield from right(subject, whole, compression_algorithm=how)
            continue
        if how in subject.target.encodings:
            yield from right(subject, whole, request_compression_algorithm=how)
            yield from right(subject, whole, response_compression_algorithm=how)


@check("tritonclient.errors", SOURCE, "errors are told by status and message", clients=NAMES)
def errors(subject: Subject) -> Iterator[str]:
    example = subject.model.example
    missing, bad = ("404", "400") if subject.client == HTTP else ("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT")
    yield from refused(lambda: asked(subject, example, model=NO_MODEL), missing, NO_MODEL)
    yield from refused(lambda: asked(subject, example, model_version=NO_VERSION), missing)
    more = tensors.batch(example, subject.model.max_batch + 1)
    yield from refused(lambda: asked(subject, more), bad, str(subject.model.max_batch))


@check("tritonclient.refused", SOURCE, "what the model refuses is told in its words", clients=NAMES,
       applies=has_refusals)  # fmt: skip
def model_refuses(subject: Subject) -> Iterator[str]:
    for refusal in subject.model.refusals:
        status = str(refusal.status) if subject.client == HTTP else f"StatusCode.{refusal.code}"
        example = tensors.Example(refusal.inputs, subject.model.example.outputs)
        yield from refused(partial(asked, subject, example), status, refusal.says)
