"""gRPC: inference requests that are the client's fault. Each must be refused with the status that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]

from tests.oip import model as tensors
from tests.oip import rpc
from tests.oip.checks import GRPC_MD, always, check
from tests.oip.rest_errors import place_of, with_input
from tests.oip.rest_metadata import NO_MODEL, NO_NUMBER, NO_VERSION
from tests.oip.rpc_checks import UNKNOWN_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.oip.checks import Subject
    from tests.oip.model import Model

INVALID = ("INVALID_ARGUMENT",)


@dataclass(frozen=True)
class Bad:
    """`change` makes a bad request of a good one, in its place."""

    name: str
    says: str
    change: Callable[[Any, Model], Any]
    codes: tuple[str, ...] = INVALID
    raw: bool = False  # the good one
    applies: Callable[[Model], bool] = always


def register(bad: Bad) -> None:
    @check(f"grpc.error.{bad.name}", GRPC_MD, bad.says, clients=rpc.CLIENT, applies=bad.applies)
    def refused(subject: Subject) -> Iterator[str]:
        message = rpc.request(subject, subject.model.example, raw=bad.raw)
        bad.change(message, subject.model)
        yield from rpc.refused(subject, "ModelInfer", message, bad.codes)


def input_set(**values: Any) -> Callable[[Any, Model], None]:
    def change(message: Any, _: Model) -> None:
        for key, value in values.items():
            setattr(message.inputs[0], key, value)

    return change


def field_set(name: str, value: Any) -> Callable[[Any, Model], None]:
    return lambda message, _: setattr(message, name, value)


def shape_set(*shape: int) -> Callable[[Any, Model], None]:
    def change(message: Any, _: Model) -> None:
        message.inputs[0].shape[:] = shape

    return change


def contents(message: Any, place: int = 0) -> Any:
    one = message.inputs[place]
    return getattr(one.contents, rpc.CONTENTS[one.datatype])


def without_the_first(message: Any, _: Model) -> None:
    del message.inputs[0]


def no_inputs(message: Any, _: Model) -> None:
    del message.inputs[:]


def twice(message: Any, _: Model) -> None:
    message.inputs.append(message.inputs[0])


def other_datatype(message: Any, model: Model) -> None:
    count = len(model.example.inputs[0].data)
    message.inputs[0].ClearField("contents")
    if model.example.inputs[0].datatype == "BYTES":
        message.inputs[0].datatype = "INT64"
        message.inputs[0].contents.int64_contents.extend([0] * count)
    else:
        message.inputs[0].datatype = "BYTES"
        message.inputs[0].contents.bytes_contents.extend([b"0"] * count)


def wider(message: Any, _: Model) -> None:
    rows = message.inputs[0].shape[0]
    message.inputs[0].shape[1] += 1
    contents(message).extend(list(contents(message))[:rows])


def of_other_rank(message: Any, _: Model) -> None:
    del message.inputs[0].shape[1:]


def negative(message: Any, _: Model) -> None:
    message.inputs[0].shape[0] = -1


def of_no_rows(message: Any, _: Model) -> None:
    message.inputs[0].shape[0] = 0
    del contents(message)[:]


def over_the_batch(message: Any, model: Model) -> None:
    more = tensors.batch(model.example, model.max_batch + 1)
    for place, one in enumerate(more.inputs):
        message.inputs[place].shape[:] = one.shape
        contents(message, place)[:] = one.data


def raw_too(message: Any, model: Model) -> None:
    message.raw_input_contents.extend(tensors.raw(one) for one in model.example.inputs)


def of_one_too_few(message: Any, _: Model) -> None:
    del message.raw_input_contents[-1:]


def of_one_too_many(message: Any, _: Model) -> None:
    message.raw_input_contents.append(b"more")


TABLE = (
    Bad("unknown-model", "a model that is not there", field_set("model_name", NO_MODEL), ("NOT_FOUND",)),
    Bad("unknown-version", "a version that is not there", field_set("model_version", NO_VERSION), ("NOT_FOUND",)),
    Bad("version-in-words", "a version that is not there, and no number", field_set("model_version", NO_NUMBER),
        UNKNOWN_VERSION),
    Bad("no-inputs", "no inputs", no_inputs),
    Bad("missing-input", "an input that the model requires is not there", without_the_first),
    Bad("unknown-input", "an input that the model does not have", input_set(name="NO_SUCH_INPUT")),
    Bad("input-twice", "the same input two times", twice),
    Bad("unknown-output", "an output that the model does not have",
        lambda message, _: message.outputs.add(name="NO_SUCH_OUTPUT")),
    Bad("other-datatype", "a datatype that is not the input's", other_datatype),
    Bad("unknown-datatype", "a datatype that the protocol does not have", input_set(datatype="INT65")),
    Bad("no-datatype", "no datatype", input_set(datatype="")),
    Bad("shape-wider", "a dimension that is not the model's", wider),
    Bad("shape-of-other-rank", "fewer dimensions than the model's", of_other_rank),
    Bad("shape-negative", "a negative dimension", negative),
    Bad("shape-of-no-rows", "a batch of no rows", of_no_rows),
    Bad("no-shape", "no shape", shape_set()),
    Bad("batch-too-large", "more rows than the model takes", over_the_batch),
    Bad("typed-none", "no contents at all", lambda message, _: message.inputs[0].ClearField("contents")),
    Bad("raw-and-typed", "raw contents beside typed ones", raw_too),
    Bad("raw-of-one-too-few", "raw contents for fewer tensors than there are", of_one_too_few, raw=True),
    Bad("raw-of-one-too-many", "raw contents for more tensors than there are", of_one_too_many, raw=True),
)  # fmt: skip

for each in TABLE:
    register(each)


@dataclass(frozen=True)
class BadData:
    """`change` makes bad contents of the good ones of an input, by its place and type."""

    name: str
    says: str
    change: Callable[[Any, int, str], Any]
    raw: bool = False
    datatypes: tuple[str, ...] = ("BYTES", "INT32", "INT64")


def register_data(bad: BadData, datatype: str) -> None:
    @check(
        f"grpc.error.{bad.name}.{datatype}", GRPC_MD, bad.says, clients=rpc.CLIENT, applies=with_input(datatype)
    )  # fmt: skip
    def refused(subject: Subject) -> Iterator[str]:
        found = place_of(subject.model, datatype)
        assert found is not None
        example, place = found
        message = rpc.request(subject, example, raw=bad.raw)
        bad.change(message, place, datatype)
        yield from rpc.refused(subject, "ModelInfer", message, INVALID)


def too_few(message: Any, place: int, _: str) -> None:
    del contents(message, place)[-1:]


def too_many(message: Any, place: int, _: str) -> None:
    contents(message, place).append(contents(message, place)[0])


def in_another_field(message: Any, place: int, datatype: str) -> None:
    one = message.inputs[place]
    count = len(contents(message, place))
    one.ClearField("contents")
    if datatype == "INT64":
        one.contents.int_contents.extend([0] * count)
    else:
        one.contents.int64_contents.extend([0] * count)


def shorter(message: Any, place: int, _: str) -> None:
    message.raw_input_contents[place] = message.raw_input_contents[place][:-1]


def longer(message: Any, place: int, _: str) -> None:
    message.raw_input_contents[place] += b"\0"


def past_the_end(message: Any, place: int, _: str) -> None:
    """An element's length that is more than there are bytes."""
    message.raw_input_contents[place] = b"\xff\xff\xff\x7f" + message.raw_input_contents[place][4:]


DATA = (
    BadData("typed-too-few", "fewer elements than the shape has", too_few),
    BadData("typed-too-many", "more elements than the shape has", too_many),
    BadData("typed-in-another-field", "elements in the field of another type", in_another_field),
    BadData("raw-too-short", "raw contents that end before the tensor does", shorter, raw=True),
    BadData("raw-too-long", "raw contents that go on after the tensor", longer, raw=True),
    BadData("raw-length", "an element that is longer than its contents", past_the_end, raw=True, datatypes=("BYTES",)),
)

for one in DATA:
    for kind in one.datatypes:
        register_data(one, kind)


@check("grpc.error.no-message", "gRPC: statuscodes.md", "bytes that are no message are an error; the server goes on",
       clients=rpc.CLIENT)  # fmt: skip
def no_message(subject: Subject) -> Iterator[str]:
    with rpc.channel(subject.target) as opened:
        try:
            opened.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff" * 9, timeout=rpc.TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            if rpc.code(error) not in {"INTERNAL", "INVALID_ARGUMENT"}:
                yield f"{rpc.code(error)}\n{error.details()}"
        else:
            yield "OK for what is no message"
    example = subject.model.example
    yield from rpc.right(rpc.infer(subject, example, raw=True), subject, example.outputs)
