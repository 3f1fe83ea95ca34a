"""REST: inference requests that are the client's fault. Each must be refused as such, with an error object.

"A failed inference request must be indicated by an HTTP error status (typically 400)": of the statuses, those that say
whose fault it is (RFC 9110, 15.5 and 15.6).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.oip import model as tensors
from tests.oip import rest
from tests.oip.checks import BINARY_MD, REST_MD, always, check
from tests.oip.rest_metadata import NO_MODEL, NO_NUMBER, NO_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.oip.checks import Subject
    from tests.oip.model import Example, Model

    Document = dict[str, Any]

CLIENT_ERROR = range(400, 500)
BAD_REQUEST = (400, 422)
NOT_FOUND = (404,)


@dataclass(frozen=True)
class Bad:
    """`make` returns the body (JSON or bytes) of a bad request, from a good one that it may change."""

    name: str
    says: str
    make: Callable[[Document, Model], Any]
    statuses: Sequence[int] = CLIENT_ERROR
    path: Callable[[Model], str] | None = None
    applies: Callable[[Model], bool] = always
    source: str = REST_MD


def register(bad: Bad) -> None:
    @check(f"rest.error.{bad.name}", bad.source, bad.says, clients=rest.NAMES, applies=bad.applies)
    def refused(subject: Subject) -> Iterator[str]:
        body = bad.make(rest.request(subject.model.example), subject.model)
        reply = rest.infer(subject, body, None if bad.path is None else bad.path(subject.model))
        yield from rest.refused(reply, bad.statuses)


def with_input(datatype: str) -> Callable[[Model], bool]:
    return lambda model: place_of(model, datatype) is not None


def place_of(model: Model, datatype: str) -> tuple[Example, int] | None:
    """An example, and the place in it of an input of that type."""
    for example in model.examples:
        for place, one in enumerate(example.inputs):
            if one.datatype == datatype:
                return example, place
    return None


def changed(**values: Any) -> Callable[[Document, Model], Document]:
    """The good request with other values in its first input; without those that are None."""

    def make(document: Document, _: Model) -> Document:
        document["inputs"][0].update(values)
        for key in [key for key, value in values.items() if value is None]:
            del document["inputs"][0][key]
        return document

    return make


def same(document: Document, _: Model) -> Document:
    return document


def without_the_first(document: Document, _: Model) -> Document:
    del document["inputs"][0]
    return document


def twice(document: Document, _: Model) -> Document:
    document["inputs"].append(document["inputs"][0])
    return document


def unknown_input(document: Document, _: Model) -> Document:
    document["inputs"][0]["name"] = "NO_SUCH_INPUT"
    return document


def other_datatype(document: Document, model: Model) -> Document:
    """Its data fit: only the model's type is another."""
    if model.example.inputs[0].datatype == "BYTES":
        count = len(model.example.inputs[0].data)
        return changed(datatype="INT64", data=[0] * count)(document, model)
    return changed(datatype="FP64")(document, model)


def shaped(count: int) -> Callable[[Document, Model], Document]:
    """The good request with that many rows in the shape of its first input; no data where there are none."""

    def make(document: Document, _: Model) -> Document:
        document["inputs"][0]["shape"][0] = count
        if count == 0:
            document["inputs"][0]["data"] = []
        return document

    return make


def in_lower_case(document: Document, _: Model) -> Document:
    document["inputs"][0]["datatype"] = document["inputs"][0]["datatype"].lower()
    return document


def wider(document: Document, _: Model) -> Document:
    one = document["inputs"][0]
    one["data"] += one["data"][: one["shape"][0]]
    one["shape"][1] += 1
    return document


def otherwise_nested(document: Document, _: Model) -> Document:
    """All elements in one row."""
    for one in document["inputs"]:
        one["data"] = [one["data"]]
    return document


def over_the_batch(document: Document, model: Model) -> Document:
    return rest.request(tensors.batch(model.example, model.max_batch + 1))


def text(change: Callable[[str], str | bytes]) -> Callable[[Document, Model], bytes]:
    def make(document: Document, _: Model) -> bytes:
        made = change(json.dumps(document))
        return made if isinstance(made, bytes) else made.encode()

    return make


def binary_size(size: int) -> Callable[[Document, Model], Document]:
    def make(document: Document, _: Model) -> Document:
        del document["inputs"][0]["data"]
        document["inputs"][0]["parameters"] = {"binary_data_size": size}
        return document

    return make


TABLE = (
    Bad("unknown-model", "a model that is not there", same, NOT_FOUND, lambda _: f"v2/models/{NO_MODEL}/infer"),
    Bad("unknown-version", "a version that is not there", same, NOT_FOUND,
        lambda model: f"{rest.model_path(model, NO_VERSION)}/infer"),
    Bad("version-in-words", "a version that is not there, and no number", same, NOT_FOUND,
        lambda model: f"{rest.model_path(model, NO_NUMBER)}/infer"),
    Bad("no-inputs", "an empty list of inputs", lambda document, _: {**document, "inputs": []}, BAD_REQUEST),
    Bad("missing-input", "an input that the model requires is not there", without_the_first, BAD_REQUEST),
    Bad("unknown-input", "an input that the model does not have", unknown_input, BAD_REQUEST),
    Bad("input-twice", "the same input two times", twice, BAD_REQUEST),
    Bad("unknown-output", "an output that the model does not have",
        lambda document, _: {**document, "outputs": [{"name": "NO_SUCH_OUTPUT"}]}, BAD_REQUEST),
    Bad("other-datatype", "a datatype that is not the input's", other_datatype, BAD_REQUEST),
    Bad("unknown-datatype", "a datatype that the protocol does not have", changed(datatype="INT65"), BAD_REQUEST),
    Bad("datatype-in-lower-case", "a datatype's name is in capitals", in_lower_case, BAD_REQUEST),
    Bad("shape-wider", "a dimension that is not the model's", wider, BAD_REQUEST),
    Bad("shape-of-other-rank", "fewer dimensions than the model's",
        lambda document, model: changed(shape=[model.example.inputs[0].shape[0]])(document, model), BAD_REQUEST),
    Bad("shape-of-no-rows", "a batch of no rows", shaped(0), BAD_REQUEST),
    Bad("batch-too-large", "more rows than the model takes", over_the_batch, BAD_REQUEST,
        source="docs/serving-protocol.md"),
    Bad("shape-negative", "a dimension is an unsigned number", shaped(-1)),
    Bad("data-otherwise-nested", "data are flat or in the tensor's shape, in no other", otherwise_nested),
    Bad("data-no-list", "data are a list", changed(data=7)),
    Bad("no-body", "no body at all", lambda *_: b""),
    Bad("malformed-json", "a body that is no JSON", text(lambda body: "{" + body)),
    Bad("truncated-json", "JSON without its end", text(lambda body: body[:-2])),
    Bad("trailing-text", "something after the JSON", text(lambda body: body + "x")),
    Bad("json-list", "a list", lambda *_: []),
    Bad("json-null", "null", lambda *_: None),
    Bad("not-utf8", "JSON is UTF-8", text(lambda body: body.encode("utf-16")), source="RFC 8259"),
    Bad("without-inputs", "inputs are required", lambda *_: {"id": "1"}),
    Bad("inputs-no-list", "inputs are a list", lambda *_: {"inputs": {}}),
    Bad("input-without-name", "an input has a name", changed(name=None)),
    Bad("input-without-datatype", "an input has a datatype", changed(datatype=None)),
    Bad("input-without-shape", "an input has a shape", changed(shape=None)),
    Bad("input-without-data", "an input has data", changed(data=None)),
    Bad("output-without-name", "an output has a name", lambda document, _: {**document, "outputs": [{}]}),
    Bad("id-no-string", "an id is a string", lambda document, _: {**document, "id": 42}),
    Bad("parameter-no-scalar", "a parameter is a string, a number or a boolean",
        lambda document, _: {**document, "parameters": {"mine": {"deep": 1}}}),
    Bad("binary-without-bytes", "binary data that are not in the body", binary_size(8), source=BINARY_MD),
)  # fmt: skip

for one in TABLE:
    register(one)


@dataclass(frozen=True)
class BadData:
    """`change` returns the `data` of a bad request, from those of a good one."""

    name: str
    says: str
    change: Callable[[list[Any], str], Any]
    datatypes: tuple[str, ...] = ("BYTES", "INT32", "INT64")
    source: str = REST_MD
    coerced: bool = False  # a server may take it for a value of the type


def register_data(bad: BadData, datatype: str) -> None:
    @check(
        f"rest.error.{bad.name}.{datatype}", bad.source, bad.says, clients=rest.NAMES, applies=with_input(datatype)
    )  # fmt: skip
    def refused(subject: Subject) -> Iterator[str]:
        found = place_of(subject.model, datatype)
        assert found is not None
        example, place = found
        document = rest.request(example)
        document["inputs"][place]["data"] = bad.change(document["inputs"][place]["data"], datatype)
        reply = rest.infer(subject, document)
        if not (bad.coerced and reply.status == 200):
            yield from rest.refused(reply)


def past_the_end(data: list[Any], datatype: str) -> list[Any]:
    """A server that took them modulo 2^n would answer another question."""
    return [item + 2 ** np.iinfo(tensors.DTYPES[datatype]).bits for item in data]


INTEGERS = ("INT32", "INT64")
DATA = (
    BadData("too-few", "fewer elements than the shape has", lambda data, _: data[:-1]),
    BadData("too-many", "more elements than the shape has", lambda data, _: data * 2),
    BadData("null", "null for an element", lambda data, _: [None] * len(data)),
    BadData("object", "an object for an element", lambda data, _: [{}, *data[1:]]),
    BadData("number-for-text", "a number for a string is taken for one, or an error", lambda data, _: [5, *data[1:]],
            ("BYTES",), coerced=True),
    BadData("lone-surrogate", "a string that is no Unicode", lambda data, _: ["\ud800", *data[1:]], ("BYTES",),
            "RFC 8259"),
    BadData("text-for-number", "a string for a number", lambda data, _: ["five", *data[1:]], INTEGERS),
    BadData("fraction", "a number with a fraction for an integer is taken for one, or an error",
            lambda data, _: [0.5, *data[1:]], INTEGERS, coerced=True),
    BadData("past-the-end", "an integer that its type cannot hold is not taken for another", past_the_end, INTEGERS),
)  # fmt: skip

for each in DATA:
    for kind in each.datatypes:
        register_data(each, kind)
