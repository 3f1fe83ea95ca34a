"""REST: inference requests that must be answered, and answered rightly."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.oip import model as tensors
from tests.oip import rest
from tests.oip.checks import REST_MD, check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.oip.checks import Subject
    from tests.oip.model import Model

ID = 'request 42 "höhe" \\ \t☃'


def has_bytes(model: Model) -> bool:
    return any(one.datatype == "BYTES" for one in model.example.inputs)


def has_refusals(model: Model) -> bool:
    return bool(model.refusals)


@check("rest.infer", REST_MD, "flattened data are answered with all outputs of the model", clients=rest.NAMES)
def infer(subject: Subject) -> Iterator[str]:
    for example in subject.model.examples:
        yield from rest.right(rest.infer(subject, rest.request(example)), subject, example.outputs)


@check("rest.infer.nested", REST_MD, "data may have the tensor's shape instead", clients=rest.NAMES)
def infer_nested(subject: Subject) -> Iterator[str]:
    for example in subject.model.examples:
        document = rest.request(example)
        for one in document["inputs"]:
            one["data"] = tensors.nested(one["data"], one["shape"])
        yield from rest.right(rest.infer(subject, document), subject, example.outputs)


@check("rest.infer.version", REST_MD, "a version can be asked for, and is in the answer", clients=rest.NAMES)
def infer_version(subject: Subject) -> Iterator[str]:
    model = subject.model
    path = f"{rest.model_path(model, model.version)}/infer"
    reply = rest.infer(subject, rest.request(model.example), path)
    yield from rest.right(reply, subject, model.example.outputs)


@check("rest.infer.id", REST_MD, "an id comes back as it was", clients=rest.NAMES)
def infer_id(subject: Subject) -> Iterator[str]:
    for identifier in ("42", ID):
        found = _answer(subject, id=identifier).get("id")
        if found != identifier:
            yield f"not the id that was sent\n{found!r}, not {identifier!r}"


@check("rest.infer.id.absent", REST_MD, "no id comes back where none was sent", clients=rest.NAMES)
def infer_no_id(subject: Subject) -> Iterator[str]:
    if _answer(subject).get("id", "") != "":
        yield "an id that was not sent"


@check("rest.infer.id.empty", REST_MD, "an id that is an empty string comes back, too", clients=rest.NAMES)
def infer_empty_id(subject: Subject) -> Iterator[str]:
    if _answer(subject, id="").get("id") != "":
        yield "the answer has no id"


@check(
    "rest.infer.parameters", REST_MD, "parameters that the server does not know, strings, numbers or booleans, of the "
    "request, an input or an output change nothing", clients=rest.NAMES,
)  # fmt: skip
def infer_parameters(subject: Subject) -> Iterator[str]:
    model = subject.model
    parameters = {"text": "höhe", "whole": -(2**40), "part": 1.5, "yes": True, "no": False}
    for place in ("request", "input", "output"):
        document = rest.request(model.example, outputs=[{"name": one.name} for one in model.outputs])
        where = {"request": document, "input": document["inputs"][0], "output": document["outputs"][0]}[place]
        where["parameters"] = parameters
        yield from rest.right(rest.infer(subject, document), subject, model.example.outputs)


@check("rest.infer.outputs", REST_MD, "the outputs that are asked for come back, and no others", clients=rest.NAMES)
def infer_outputs(subject: Subject) -> Iterator[str]:
    outputs = subject.model.example.outputs
    for asked in [*((one,) for one in outputs), outputs[::-1]]:
        document = rest.request(subject.model.example, outputs=[{"name": one.name} for one in asked])
        yield from rest.right(rest.infer(subject, document), subject, asked)


@check("rest.infer.inputs-in-any-order", REST_MD, "inputs are told by their names", clients=rest.NAMES)
def infer_reversed(subject: Subject) -> Iterator[str]:
    for example in subject.model.examples:
        document = rest.request(example)
        document["inputs"].reverse()
        yield from rest.right(rest.infer(subject, document), subject, example.outputs)


@check("rest.infer.batch", REST_MD, "the largest batch is answered, row by row", clients=rest.NAMES)
def infer_batch(subject: Subject) -> Iterator[str]:
    whole = tensors.batch(subject.model.example, subject.model.max_batch)
    yield from rest.right(rest.infer(subject, rest.request(whole)), subject, whole.outputs)


@check(
    "rest.infer.large", "docs/serving-protocol.md", "a body of 8 MiB is no other than a small one", clients=rest.NAMES,
    once=True,
)  # fmt: skip
def infer_large(subject: Subject) -> Iterator[str]:
    """The request of an example after much white space, which JSON allows."""
    example = subject.model.example
    body = b" " * (8 << 20) + rest.to_bytes(rest.request(example))
    yield from rest.right(rest.infer(subject, body), subject, example.outputs)


@check("rest.infer.batch.one", REST_MD, "one row is answered", clients=rest.NAMES)
def infer_row(subject: Subject) -> Iterator[str]:
    row = tensors.batch(subject.model.example, 1)
    yield from rest.right(rest.infer(subject, rest.request(row)), subject, row.outputs)


@check(
    "rest.infer.unicode", "RFC 8259", "strings are the same in UTF-8 and with \\u escapes", clients=rest.NAMES,
    applies=has_bytes,
)  # fmt: skip
def infer_unicode(subject: Subject) -> Iterator[str]:
    for example in subject.model.examples:
        for ascii_only in (True, False):
            body = json.dumps(rest.request(example), ensure_ascii=ascii_only, indent=1).encode()
            yield from rest.right(rest.infer(subject, body), subject, example.outputs)


@check(
    "rest.infer.refused", "docs/serving-protocol.md", "what the model itself refuses is an error of the class and "
    "with the words that are documented", clients=rest.NAMES, applies=has_refusals,
)  # fmt: skip
def infer_refused(subject: Subject) -> Iterator[str]:
    for refusal in subject.model.refusals:
        document = {"inputs": rest.request(tensors.Example(refusal.inputs, ()))["inputs"]}
        reply = rest.infer(subject, document)
        yield from rest.refused(reply, (refusal.status,))
        if refusal.says not in rest.said(reply):
            yield f"the error does not say {refusal.says!r}\n{rest.said(reply)}"


def _answer(subject: Subject, **more: Any) -> dict[str, Any]:
    return rest.answered(rest.infer(subject, rest.request(subject.model.example, **more))).document
