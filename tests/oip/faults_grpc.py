"""Wrong servers in gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.oip import faults as f
from tests.oip import reference, reference_grpc, rpc
from tests.oip.reference import RefusedError
from tests.oip.rest_metadata import NO_MODEL
from tests.oip.rpc import messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.oip.faults import Compute


@dataclass(frozen=True)
class Fault:
    """`refused` makes another error of an error, or an answer."""

    name: str
    catches: tuple[str, ...]
    answered: Callable[[str, Any, Any], Any] = lambda _method, _message, answer: answer
    asked: Callable[[str, Any], Any] = lambda _method, message: message
    refused: Callable[[str, Any, RefusedError], Any] | None = None
    compute: Compute = reference.infer
    parse: Callable[[type[Any], bytes], Any] = lambda kind, data: kind.FromString(data)
    any_method: bool = False

    def answer(self, method: str, message: Any) -> Any:
        try:
            answer = reference_grpc.answer_to(method, self.asked(method, message), self.compute)
        except RefusedError as error:
            if self.refused is None:
                raise
            return self.refused(method, message, error)
        return self.answered(method, message, answer)


def changed(method: str, change: Callable[[Any, Any], Any]) -> Callable[[str, Any, Any], Any]:
    """What `change` makes of an answer's message, in its place, given the request's."""

    def answered(of: str, message: Any, answer: Any) -> Any:
        if of == method:
            change(message, answer)
        return answer

    return answered


def asked(method: str, change: Callable[[Any], Any]) -> Callable[[str, Any], Any]:
    def understood(of: str, message: Any) -> Any:
        if of == method:
            change(message)
        return message

    return understood


def refusing(when: Callable[[Any], bool]) -> Callable[[str, Any, Any], Any]:
    def answered(method: str, message: Any, answer: Any) -> Any:
        if method == "ModelInfer" and when(message):
            raise reference.bad("not with me")
        return answer

    return answered


def good(method: str, *_: Any) -> Any:
    """The answer to the model's example, or to another request that is right."""
    if method == "ModelMetadata":
        return reference_grpc.answer_to(method, messages.ModelMetadataRequest(name=reference.NAME))
    return reference_grpc.answer_to("ModelInfer", good_request())


def good_request() -> Any:
    message = messages.ModelInferRequest(model_name=reference.NAME)
    for one in reference.model().example.inputs:
        added = message.inputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
        getattr(added.contents, rpc.CONTENTS[one.datatype]).extend(one.data)
    return message


def always(code: str, message: str = "") -> Callable[[str, Any, RefusedError], Any]:
    def refused(_method: str, _message: Any, error: RefusedError) -> Any:
        raise RefusedError(0, code or error.code, message or error.message)

    return refused


def wordless(_method: str, _message: Any, error: RefusedError) -> Any:
    raise RefusedError(0, error.code, "")


def lenient(kind: type[Any], data: bytes) -> Any:
    """Bytes that are no message ask for the model's example."""
    return kind.FromString(data) if data[:1] != b"\xff" else good_request()


def is_set(key: str, value: Any) -> Callable[[Any, Any], None]:
    return lambda _, answer: setattr(answer, key, value)


def raw_too(answer: Any) -> None:
    """Both forms of contents."""
    for one in answer.outputs:
        one.contents.bytes_contents.append(b"")


def only_for_inputs(message: Any) -> None:
    del message.raw_input_contents[len(message.inputs) :]


def one_raw_less(_: Any, answer: Any) -> None:
    del answer.raw_output_contents[-1:]


def all_typed_short(answer: Any) -> None:
    for one in answer.outputs:
        for field in rpc.CONTENTS.values():
            del getattr(one.contents, field)[1:]


ANSWERS = ("grpc.infer.typed*", "grpc.infer.raw*", "grpc.infer.version", "grpc.infer.parameters", "grpc.compression",
           "grpc.error.no-message", "grpc.connection.kept")  # fmt: skip
TRITON = "tritonclient.infer*"
BAD = ("grpc.error.*", "grpc.infer.refused", "grpc.model-metadata.unknown", "!grpc.error.no-message")
REFUSED = ("tritonclient.errors", "tritonclient.refused")
FAULTS = (
    Fault("not live", ("grpc.live", "tritonclient.health"), changed("ServerLive", is_set("live", False))),
    Fault("not ready", ("grpc.ready", "tritonclient.health"), changed("ServerReady", is_set("ready", False))),
    Fault("the model is not ready", ("grpc.model-ready", "tritonclient.health"),
          changed("ModelReady", is_set("ready", False))),
    Fault("neither live nor ready", ("grpc.live", "grpc.ready", "grpc.model-ready", "tritonclient.health"),
          lambda method, _, answer: type(answer)() if method.endswith(("Live", "Ready")) else answer),
    Fault("everything is ready", ("grpc.model-ready.unknown", "tritonclient.health"),
          changed("ModelReady", is_set("ready", True))),
    Fault("another version of the server", ("grpc.server-metadata",),
          changed("ServerMetadata", is_set("version", "9"))),
    Fault("no extensions", ("grpc.server-metadata", "tritonclient.metadata"),
          changed("ServerMetadata", lambda _, answer: answer.ClearField("extensions"))),
    Fault("no platform", ("grpc.model-metadata",), changed("ModelMetadata", is_set("platform", ""))),
    Fault("another model's metadata", ("grpc.model-metadata",), changed("ModelMetadata", is_set("name", "x"))),
    Fault("shapes without the batch", ("grpc.model-metadata", "tritonclient.metadata"),
          changed("ModelMetadata", lambda _, answer: answer.inputs[0].shape.pop(0))),
    Fault("another model's name", ANSWERS, changed("ModelInfer", is_set("model_name", "x"))),
    Fault("no model_version", (*ANSWERS, TRITON), changed("ModelInfer", is_set("model_version", ""))),
    Fault("the id is lost", ("grpc.infer.id", "grpc.infer.large", "tritonclient.infer.options"),
          changed("ModelInfer", is_set("id", ""))),
    Fault("an id is made up", ("grpc.infer.id", "grpc.infer.large", TRITON), changed("ModelInfer", is_set("id", "1"))),
    Fault("all rows are the first", (*ANSWERS, TRITON), compute=f.only_the_first_row),
    Fault("integers are doubles", (*ANSWERS, TRITON, "grpc.infer.as-rest"), compute=f.as_doubles),
    Fault("floats are rounded", (*ANSWERS, TRITON, "grpc.infer.as-rest"), compute=f.slightly_off),
    Fault("both forms of contents", ("grpc.infer.raw*", "grpc.infer.as-rest", "grpc.compression",
          "grpc.connection.kept", "grpc.error.no-message"),
          changed("ModelInfer", lambda message, answer: raw_too(answer) if message.raw_input_contents else None)),
    Fault("raw contents are too few", ("grpc.infer.raw*", "grpc.infer.as-rest", "grpc.compression",
          "grpc.connection.kept", "grpc.error.no-message", TRITON), changed("ModelInfer", one_raw_less)),
    Fault("typed contents are too short", ("grpc.infer.typed*", "grpc.infer.version", "grpc.infer.parameters"),
          changed("ModelInfer", lambda message, answer: None if message.raw_input_contents else
                  all_typed_short(answer))),
    Fault("no typed contents", ("grpc.infer.typed*", "grpc.infer.version", "grpc.infer.id", "grpc.infer.form",
          "grpc.infer.parameters"),
          refusing(lambda message: not message.raw_input_contents)),
    Fault("no raw contents", ("grpc.infer.raw*", "grpc.infer.as-rest", "grpc.compression", "grpc.error.no-message",
          "grpc.connection.kept", "grpc.infer.large", TRITON),
          refusing(lambda message: bool(message.raw_input_contents))),
    Fault("versions are refused", ("grpc.infer.version", "tritonclient.infer.options"),
          refusing(lambda message: bool(message.model_version))),
    Fault("parameters are refused", ("grpc.infer.parameters", "tritonclient.infer.options"),
          refusing(lambda message: bool(message.parameters))),
    Fault("parameters of an output are refused", ("grpc.infer.parameters",),
          refusing(lambda message: any(one.parameters for one in message.outputs))),
    Fault("small batches only", ("grpc.infer.*.batch", "grpc.compression", "tritonclient.infer",
          "tritonclient.infer.compression"), refusing(lambda message: message.inputs[0].shape[0] > 8)),
    Fault("large messages are refused", ("grpc.infer.large",), refusing(lambda message: message.ByteSize() > 1 << 22)),
    Fault("all outputs, always", ("grpc.infer.*.outputs", "grpc.error.unknown-output"),
          asked=asked("ModelInfer", lambda message: message.ClearField("outputs"))),
    Fault("any version is this one", ("grpc.error.unknown-version", "grpc.error.version-in-words",
          "tritonclient.errors"), asked=asked("ModelInfer", lambda message: message.ClearField("model_version"))),
    Fault("any model is this one", ("grpc.error.unknown-model", "tritonclient.errors"),
          asked=asked("ModelInfer", lambda message: setattr(
              message, "model_name", message.model_name.replace(NO_MODEL, reference.NAME)))),
    Fault("bad requests are answered", (*BAD, "grpc.connection.kept", *REFUSED), refused=good),
    Fault("errors are its own", (*BAD, *REFUSED), refused=always("INTERNAL")),
    Fault("all errors are INVALID_ARGUMENT", ("grpc.infer.refused", "grpc.model-metadata.unknown",
          "grpc.error.unknown-*n", "grpc.error.unknown-model", *REFUSED), refused=always("INVALID_ARGUMENT")),
    Fault("errors without words", (*BAD, *REFUSED), refused=wordless),
    Fault("errors in other words", ("grpc.infer.refused", *REFUSED), refused=always("", "no")),
    Fault("what is no message is one", ("grpc.error.no-message",), parse=lenient),
    Fault("any method is one", ("grpc.method.unknown",), any_method=True),
    Fault("raw contents beyond the inputs", ("grpc.error.raw-of-one-too-many",),
          asked=asked("ModelInfer", only_for_inputs)),
)  # fmt: skip
