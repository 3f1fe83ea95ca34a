"""gRPC: health, metadata, and inference requests that must be answered rightly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]

from tests.oip import model as tensors
from tests.oip import rest, rpc
from tests.oip.checks import GRPC_MD, check
from tests.oip.rest_infer import has_refusals
from tests.oip.rest_metadata import NO_MODEL, NO_NUMBER, NO_VERSION
from tests.oip.rpc import messages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.oip.checks import Subject
    from tests.oip.model import Spec

FORMS = {"typed": False, "raw": True}
UNKNOWN_VERSION = ("NOT_FOUND", "INVALID_ARGUMENT")  # the latter where a version is a number


@check("grpc.live", GRPC_MD, "ServerLive answers live", clients=rpc.CLIENT, once=True)
def live(subject: Subject) -> Iterator[str]:
    if not rpc.answer(subject, "ServerLive", messages.ServerLiveRequest()).live:
        yield "not live"


@check("grpc.ready", GRPC_MD, "ServerReady answers ready", clients=rpc.CLIENT, once=True)
def ready(subject: Subject) -> Iterator[str]:
    if not rpc.answer(subject, "ServerReady", messages.ServerReadyRequest()).ready:
        yield "not ready"


@check("grpc.model-ready", GRPC_MD, "ModelReady answers ready, with and without a version", clients=rpc.CLIENT)
def model_ready(subject: Subject) -> Iterator[str]:
    for version in ("", subject.model.version):
        message = messages.ModelReadyRequest(name=subject.model.name, version=version)
        if not rpc.answer(subject, "ModelReady", message).ready:
            yield f"not ready\nversion {version!r}"


@check("grpc.model-ready.unknown", GRPC_MD, "what is not there is not ready", clients=rpc.CLIENT)
def model_ready_unknown(subject: Subject) -> Iterator[str]:
    """Not ready, or an error that it is not there: both say so."""
    for name, version in ((NO_MODEL, ""), (subject.model.name, NO_VERSION), (subject.model.name, NO_NUMBER)):
        try:
            found = rpc.call(subject, "ModelReady", messages.ModelReadyRequest(name=name, version=version))
        except grpc.RpcError as error:
            if rpc.code(error) not in UNKNOWN_VERSION:
                yield f"{rpc.code(error)}\n{name} {version!r}"
            continue
        if found.ready:
            yield f"ready\n{name} {version!r}"


@check("grpc.server-metadata", GRPC_MD, "ServerMetadata answers as REST does", clients=rpc.CLIENT, once=True)
def server_metadata(subject: Subject) -> Iterator[str]:
    found = rpc.answer(subject, "ServerMetadata", messages.ServerMetadataRequest())
    document = rest.json_object(rest.CLIENTS["requests"]("GET", f"{subject.target.rest}/v2", None, {}).body)
    for key in ("name", "version"):
        if not getattr(found, key) or getattr(found, key) != document.get(key):
            yield f"{key} is another\n{getattr(found, key)!r}, in REST {document.get(key)!r}"
    if sorted(found.extensions) != sorted(document.get("extensions", ())):
        yield f"extensions are others\n{sorted(found.extensions)}"
    if missing := subject.target.extensions - set(found.extensions):
        yield f"extensions without {sorted(missing)}"


@check("grpc.model-metadata", GRPC_MD, "ModelMetadata answers what the model is", clients=rpc.CLIENT)
def model_metadata(subject: Subject) -> Iterator[str]:
    model = subject.model
    for version in ("", model.version):
        found = rpc.answer(subject, "ModelMetadata", messages.ModelMetadataRequest(name=model.name, version=version))
        if found.name != model.name:
            yield f"name {found.name!r}"
        if model.version not in found.versions:
            yield f"versions {list(found.versions)} without {model.version!r}"
        if not found.platform:
            yield "no platform"
        for key, specs in (("inputs", model.inputs), ("outputs", model.outputs)):
            if [(one.name, one.datatype, tuple(one.shape)) for one in getattr(found, key)] != [*map(_parts, specs)]:
                yield f"{key} are not the model's\n{getattr(found, key)}"


@check("grpc.model-metadata.unknown", GRPC_MD, "metadata of what is not there are an error", clients=rpc.CLIENT)
def model_metadata_unknown(subject: Subject) -> Iterator[str]:
    name = subject.model.name
    for message, codes in (
        (messages.ModelMetadataRequest(name=NO_MODEL), ("NOT_FOUND",)),
        (messages.ModelMetadataRequest(name=name, version=NO_VERSION), ("NOT_FOUND",)),
        (messages.ModelMetadataRequest(name=name, version=NO_NUMBER), UNKNOWN_VERSION),
    ):
        yield from rpc.refused(subject, "ModelMetadata", message, codes)


def infer(form: str) -> None:
    raw = FORMS[form]

    @check(f"grpc.infer.{form}", GRPC_MD, f"{form} contents are answered with all outputs", clients=rpc.CLIENT)
    def alone(subject: Subject) -> Iterator[str]:
        for example in subject.model.examples:
            yield from rpc.right(rpc.infer(subject, example, raw=raw), subject, example.outputs)

    @check(f"grpc.infer.{form}.batch", GRPC_MD, "the largest batch is answered, row by row", clients=rpc.CLIENT)
    def batch(subject: Subject) -> Iterator[str]:
        for count in (1, subject.model.max_batch):
            asked = tensors.batch(subject.model.example, count)
            yield from rpc.right(rpc.infer(subject, asked, raw=raw), subject, asked.outputs)

    @check(f"grpc.infer.{form}.outputs", GRPC_MD, "the outputs that are asked for, and no others", clients=rpc.CLIENT)
    def outputs(subject: Subject) -> Iterator[str]:
        example = subject.model.example
        for wanted in [*((one,) for one in example.outputs), example.outputs[::-1]]:
            message = rpc.request(subject, example, raw=raw)
            for one in wanted:
                message.outputs.add(name=one.name)
            yield from rpc.right(rpc.answer(subject, "ModelInfer", message), subject, wanted)


for each in FORMS:
    infer(each)


@check(
    "grpc.infer.form", "docs/serving-protocol.md", "typed contents are answered in the documented form; both are right",
    clients=rpc.CLIENT,
)  # fmt: skip
def infer_form(subject: Subject) -> Iterator[str]:
    message = rpc.infer(subject, subject.model.example, raw=False)
    if bool(message.raw_output_contents) != subject.target.raw_answers:
        yield "contents in another form"


@check("grpc.infer.version", GRPC_MD, "a version can be asked for, and is in the answer", clients=rpc.CLIENT)
def infer_version(subject: Subject) -> Iterator[str]:
    model = subject.model
    message = rpc.request(subject, model.example, raw=False, model_version=model.version)
    yield from rpc.right(rpc.answer(subject, "ModelInfer", message), subject, model.example.outputs)


@check("grpc.infer.id", GRPC_MD, "an id comes back as it was, and none where none was sent", clients=rpc.CLIENT)
def infer_id(subject: Subject) -> Iterator[str]:
    for identifier in ("", "42", 'request 42 "höhe" \\ \t☃'):
        message = rpc.request(subject, subject.model.example, raw=False, id=identifier)
        found = rpc.answer(subject, "ModelInfer", message).id
        if found != identifier:
            yield f"not the id that was sent\n{found!r}, not {identifier!r}"


@check(
    "grpc.infer.parameters", GRPC_MD, "parameters that the server does not know, of the request, an input or an "
    "output, change nothing", clients=rpc.CLIENT,
)  # fmt: skip
def infer_parameters(subject: Subject) -> Iterator[str]:
    example = subject.model.example
    for place in ("request", "input", "output"):
        message = rpc.request(subject, example, raw=False)
        for one in example.outputs:
            message.outputs.add(name=one.name)
        where: Any = {"request": message, "input": message.inputs[0], "output": message.outputs[0]}[place].parameters
        where["text"].string_param = "höhe"
        where["whole"].int64_param = -(2**40)
        where["yes"].bool_param = True
        yield from rpc.right(rpc.answer(subject, "ModelInfer", message), subject, example.outputs)


@check("grpc.infer.as-rest", GRPC_MD, "the same answer as by REST, to the bit", clients=rpc.CLIENT)
def infer_as_rest(subject: Subject) -> Iterator[str]:
    """One row: rows of a batch may be summed in another order. JSON must carry each float exactly."""
    asked = tensors.batch(subject.model.example, 1)
    document = rest.request(asked)
    path = f"{subject.target.rest}/{rest.model_path(subject.model)}/infer"
    reply = rest.CLIENTS["requests"]("POST", path, rest.to_bytes(document), rest.JSON)
    by_rest = {one.name: tensors.raw(one) for one in rest.answered(reply).outputs}
    by_grpc = {one.name: tensors.raw(one) for one in rpc.outputs(rpc.infer(subject, asked, raw=True))}
    if by_rest != by_grpc:
        yield f"other bytes\n{by_grpc!r}, by REST {by_rest!r}"


@check("grpc.connection.kept", GRPC_MD, "one connection takes calls one after another, errors among them",
       clients=rpc.CLIENT)  # fmt: skip
def kept(subject: Subject) -> Iterator[str]:
    example = subject.model.example
    with rpc.channel(subject.target) as opened:
        stub: Any = rpc.stub(opened)
        for _ in range(3):
            message = stub.ModelInfer(rpc.request(subject, example, raw=True), timeout=rpc.TIMEOUT_SECONDS)
            yield from rpc.right(message, subject, example.outputs)
            try:
                stub.ModelInfer(messages.ModelInferRequest(model_name=NO_MODEL), timeout=rpc.TIMEOUT_SECONDS)
            except grpc.RpcError:
                continue
            yield "OK for a model that is not there"


@check("grpc.infer.large", GRPC_MD, "an id of 5 MiB, more than gRPC takes by default, comes back", clients=rpc.CLIENT,
       once=True)  # fmt: skip
def infer_large(subject: Subject) -> Iterator[str]:
    identifier = "x" * (5 << 20)
    message = rpc.request(subject, subject.model.example, raw=True, id=identifier)
    if rpc.answer(subject, "ModelInfer", message).id != identifier:
        yield "not the id that was sent"


@check("grpc.compression", "gRPC: compression.md", "requests in gzip or deflate are answered", clients=rpc.CLIENT)
def compression(subject: Subject) -> Iterator[str]:
    asked = tensors.batch(subject.model.example, subject.model.max_batch)
    for how in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        message = rpc.answer(subject, "ModelInfer", rpc.request(subject, asked, raw=True), compression=how)
        yield from rpc.right(message, subject, asked.outputs)


@check(
    "grpc.infer.refused", "docs/serving-protocol.md", "what the model itself refuses is an error of the class and with "
    "the words that are documented", clients=rpc.CLIENT, applies=has_refusals,
)  # fmt: skip
def infer_refused(subject: Subject) -> Iterator[str]:
    for refusal in subject.model.refusals:
        for raw in FORMS.values():
            message = rpc.request(subject, tensors.Example(refusal.inputs, ()), raw=raw)
            try:
                rpc.call(subject, "ModelInfer", message)
            except grpc.RpcError as error:
                if rpc.code(error) != refusal.code:
                    yield f"{rpc.code(error)}, not {refusal.code}\n{error.details()}"
                if refusal.says not in (error.details() or ""):
                    yield f"the error does not say {refusal.says!r}\n{error.details()}"
            else:
                yield f"OK, not {refusal.code}\n{refusal.says}"


@check("grpc.method.unknown", "gRPC: statuscodes.md", "a method that is not there is UNIMPLEMENTED", clients=rpc.CLIENT,
       once=True)  # fmt: skip
def unknown_method(subject: Subject) -> Iterator[str]:
    with rpc.channel(subject.target) as opened:
        try:
            opened.unary_unary("/inference.GRPCInferenceService/NoSuchMethod")(b"", timeout=rpc.TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            if rpc.code(error) != "UNIMPLEMENTED":
                yield f"{rpc.code(error)}, not UNIMPLEMENTED"
        else:
            yield "OK, not UNIMPLEMENTED"


def _parts(spec: Spec) -> tuple[str, str, tuple[int, ...]]:
    return spec.name, spec.datatype, spec.shape
