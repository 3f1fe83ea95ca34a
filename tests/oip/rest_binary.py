"""REST: tensors as binary data after the JSON, for servers that name the extension in their metadata."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.oip import model as tensors
from tests.oip import rest
from tests.oip.checks import BINARY_MD, check
from tests.oip.model import BINARY

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from tests.oip.checks import Subject
    from tests.oip.model import Example, Model, Tensor

    Ask = Callable[[Subject], Iterator[str]]

OCTETS = {"Content-Type": "application/octet-stream"}


def body(example: Example, binary: Container[str], **more: Any) -> tuple[dict[str, str], bytes]:
    """Headers and body of a request with those inputs as binary data."""
    document = rest.request(example, **more)
    after = []
    for entry, tensor in zip(document["inputs"], example.inputs, strict=True):
        if tensor.name in binary:
            after.append(tensors.raw(tensor))
            del entry["data"]
            entry["parameters"] = {"binary_data_size": len(after[-1])}
    return joined(document, b"".join(after))


def joined(document: dict[str, Any], after: bytes) -> tuple[dict[str, str], bytes]:
    head = json.dumps(document).encode()
    return {**OCTETS, rest.HEADER_LENGTH: str(len(head))}, head + after


def names(some: tuple[Tensor, ...]) -> frozenset[str]:
    return frozenset(one.name for one in some)


def send(subject: Subject, headers: dict[str, str], content: bytes) -> rest.Reply:
    return rest.ask(subject, "POST", f"{rest.model_path(subject.model)}/infer", content, headers)


def binary(name: str, says: str) -> Callable[[Ask], Ask]:
    """Registers a check for servers with the extension. Others must not name it."""

    def register(ask: Ask) -> Ask:
        @check(name, BINARY_MD, says, clients=rest.NAMES)
        def asked(subject: Subject) -> Iterator[str]:
            if BINARY in subject.target.extensions:
                yield from ask(subject)
            elif BINARY in rest.json_object(rest.ask(subject, "GET", "v2").body).get("extensions", ()):
                yield f"it has {BINARY}, and the target is not told to"

        return ask

    return register


@binary("rest.binary.inputs", "all inputs as binary data")
def inputs(subject: Subject) -> Iterator[str]:
    for example in subject.model.examples:
        reply = send(subject, *body(example, names(example.inputs)))
        yield from rest.right(reply, subject, example.outputs)


@binary("rest.binary.some-inputs", "one input as binary data, the others in JSON")
def some_inputs(subject: Subject) -> Iterator[str]:
    for example in subject.model.examples:
        for one in example.inputs:
            yield from rest.right(send(subject, *body(example, {one.name})), subject, example.outputs)


@binary(
    "rest.binary.outputs", "outputs with binary_data come after the JSON, the others in it; the headers say "
    "it")  # fmt: skip
def outputs(subject: Subject) -> Iterator[str]:
    example = subject.model.example
    everything = names(example.outputs)
    for wanted in (everything, *({name} for name in everything)):
        asked = [{"name": one.name, "parameters": {"binary_data": one.name in wanted}} for one in example.outputs]
        reply = send(subject, *body(example, (), outputs=asked))
        yield from _came(reply, frozenset(wanted))
        yield from rest.right(reply, subject, example.outputs)


@binary("rest.binary.all-outputs", "binary_data_output: all outputs, none named")
def all_outputs(subject: Subject) -> Iterator[str]:
    example = subject.model.example
    reply = send(subject, *body(example, names(example.inputs), parameters={"binary_data_output": True}))
    yield from _came(reply, names(example.outputs))
    yield from rest.right(reply, subject, example.outputs)


@binary("rest.binary.all-named-outputs", "binary_data_output: all outputs that are named")
def all_named(subject: Subject) -> Iterator[str]:
    example = subject.model.example
    asked = [{"name": one.name} for one in example.outputs]
    reply = send(subject, *body(example, (), outputs=asked, parameters={"binary_data_output": True}))
    yield from _came(reply, names(example.outputs))


@binary("rest.binary.override", "binary_data of an output comes before binary_data_output")
def override(subject: Subject) -> Iterator[str]:
    example = subject.model.example
    asked = [{"name": one.name, "parameters": {"binary_data": False}} for one in example.outputs]
    reply = send(subject, *body(example, (), outputs=asked, parameters={"binary_data_output": True}))
    yield from _came(reply, frozenset())
    yield from rest.right(reply, subject, example.outputs)


@binary("rest.binary.json", "without any of it the answer is JSON alone")
def plain(subject: Subject) -> Iterator[str]:
    example = subject.model.example
    yield from _came(send(subject, *body(example, names(example.inputs))), frozenset())


def refused(name: str, says: str) -> Callable[[Callable[[Example, Model], tuple[dict[str, str], bytes]]], None]:
    """Registers a bad request that the function makes of a good one."""

    def register(make: Callable[[Example, Model], tuple[dict[str, str], bytes]]) -> None:
        @binary(f"rest.binary.error.{name}", says)
        def ask(subject: Subject) -> Iterator[str]:
            yield from rest.refused(send(subject, *make(subject.model.example, subject.model)))

    return register


@refused("too-short", "fewer bytes than binary_data_size")
def _too_short(example: Example, _: Model) -> tuple[dict[str, str], bytes]:
    headers, content = body(example, names(example.inputs))
    return headers, content[:-1]


@refused("too-long", "bytes after the last tensor")
def _too_long(example: Example, _: Model) -> tuple[dict[str, str], bytes]:
    headers, content = body(example, names(example.inputs))
    return headers, content + b"more"


@refused("other-size", "a binary_data_size that does not fit the shape")
def _other_size(example: Example, _: Model) -> tuple[dict[str, str], bytes]:
    document = rest.request(example)
    entry = document["inputs"][0]
    del entry["data"]
    entry["parameters"] = {"binary_data_size": 3}
    return joined(document, b"\x01\x02\x03")


@refused("negative-size", "a negative binary_data_size")
def _negative(example: Example, _: Model) -> tuple[dict[str, str], bytes]:
    document = rest.request(example)
    entry = document["inputs"][0]
    del entry["data"]
    entry["parameters"] = {"binary_data_size": -8}
    return joined(document, b"\0" * 8)


@refused("data-too", "an input with both data and binary data")
def _both(example: Example, _: Model) -> tuple[dict[str, str], bytes]:
    document = rest.request(example)
    after = tensors.raw(example.inputs[0])
    document["inputs"][0]["parameters"] = {"binary_data_size": len(after)}
    return joined(document, after)


@refused("header-past-the-end", "a length of the JSON that is larger than the body")
def _past_the_end(example: Example, _: Model) -> tuple[dict[str, str], bytes]:
    headers, content = body(example, names(example.inputs))
    return {**headers, rest.HEADER_LENGTH: str(len(content) + 1)}, content


@refused("header-no-number", "a length of the JSON that is no number")
def _no_number(example: Example, _: Model) -> tuple[dict[str, str], bytes]:
    headers, content = body(example, names(example.inputs))
    return {**headers, rest.HEADER_LENGTH: "all"}, content


@refused("header-too-short", "a length of the JSON that cuts it")
def _cuts(example: Example, _: Model) -> tuple[dict[str, str], bytes]:
    headers, content = body(example, names(example.inputs))
    return {**headers, rest.HEADER_LENGTH: str(int(headers[rest.HEADER_LENGTH]) - 1)}, content


@refused("no-header", "binary data without the length of the JSON")
def _no_header(example: Example, _: Model) -> tuple[dict[str, str], bytes]:
    # A text of ten letters begins with a line feed and NUL, which some parsers take for the end of the JSON.
    first, *others = example.inputs
    short = replace(first, data=(b"a",) * len(first.data)) if first.datatype == "BYTES" else first
    headers, content = body(replace(example, inputs=(short, *others)), names(example.inputs))
    return {name: value for name, value in headers.items() if name != rest.HEADER_LENGTH}, content


def _came(reply: rest.Reply, binary: frozenset[str]) -> Iterator[str]:
    """Whether just those outputs are binary data, and the headers as they must be."""
    answer = rest.answered(reply)
    if answer.binary != binary:
        yield f"binary data of other outputs than asked for\n{sorted(answer.binary)}, not {sorted(binary)}"
        return
    kind = reply.headers.get("content-type", "")
    wanted = "application/octet-stream" if binary else "application/json"
    if kind.partition(";")[0] != wanted:
        yield f"Content-Type {kind!r}, not {wanted!r}"
    if binary and rest.HEADER_LENGTH.lower() not in reply.headers:
        yield f"no {rest.HEADER_LENGTH}"
