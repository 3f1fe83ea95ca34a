"""Wrong servers, of which some checks must find each, and no other checks: what they are made of.

A wrong server in REST is the conforming one with a change to what it understands (`asked`), to what it says
(`answered`), to what the model computes, or to how it takes connections.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.oip import model as tensors
from tests.oip import reference, reference_rest, rest
from tests.oip.reference_rest import LENGTH, Got, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.oip.model import Tensor

    Compute = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]
    Ask = Callable[[Got], Got]
    Answer = Callable[[Got, Reply], Reply]
    When = Callable[[Got, Reply], bool]


class Impatient(web.RequestHandler):
    """Takes the first piece that arrives for the whole header."""

    def data_received(self, data: bytes) -> None:
        if b"\r\n\r\n" not in data and data.startswith((b"POST", b"GET")) and self.transport is not None:
            self.transport.write(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()
        else:
            super().data_received(data)


@dataclass(frozen=True)
class Fault:
    """`catches`: the names of the checks that find it, or patterns of them; those after "!" are none."""

    name: str
    catches: tuple[str, ...]
    answered: Answer = lambda _, reply: reply
    asked: Ask = lambda got: got
    compute: Compute = reference.infer
    protocol: type[web.RequestHandler] = field(default=web.RequestHandler)
    continues: bool = True
    waits: bool = False  # some checks wait for what it never does

    def reply(self, got: Got) -> Reply:
        return self.answered(got, reference_rest.reply_to(self.asked(got), self.compute))


def caught(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """Of the names those that match a pattern, and none after "!"."""
    kept, left = [one for one in patterns if one[0] != "!"], [one[1:] for one in patterns if one[0] == "!"]
    return {
        name
        for name in names
        if any(fnmatch(name, one) for one in kept) and not any(fnmatch(name, one) for one in left)
    }


def infers(got: Got) -> bool:
    return got.path.endswith("/infer") and got.method == "POST"


def answers(got: Got, reply: Reply) -> bool:
    return infers(got) and reply.status == 200


def fails(number: int) -> When:
    return lambda got, reply: infers(got) and reply.status == number


def error(_: Got, reply: Reply) -> bool:
    return reply.status >= 400


def at(path: str) -> When:
    return lambda got, reply: got.path == path and reply.status == 200


def asks(when: Callable[[dict[str, Any]], bool]) -> When:
    """An inference whose JSON is such. Compressed ones are not looked at."""

    def found(got: Got, reply: Reply) -> bool:
        document = read(got)
        return answers(got, reply) and bool(document) and when(document)

    return found


def inputs(when: Callable[[dict[str, Any]], bool]) -> When:
    """An inference of which an input is such."""
    return asks(lambda asked: any(when(one) for one in asked["inputs"]))


def where(when: When, then: Answer) -> Answer:
    return lambda got, reply: then(got, reply) if when(got, reply) else reply


def refuse(number: int = 400) -> Answer:
    return lambda *_: Reply(number, {"error": "not with me"})


def says(document: Any) -> Answer:
    return lambda *_: Reply(200, document)


def good(*_: Any) -> Reply:
    """The answer to the model's example."""
    body = rest.to_bytes(rest.request(reference.model().example))
    return reference_rest.reply_to(Got("POST", f"/v2/models/{reference.NAME}/infer", {}, body))


def with_(**values: Any) -> Answer:
    return lambda _, reply: replace(reply, document={**reply.document, **values})


def without(key: str) -> Answer:
    return lambda _, reply: replace(reply, document={name: v for name, v in reply.document.items() if name != key})


def headers(**values: str) -> Answer:
    added = {name.replace("_", "-"): value for name, value in values.items()}
    return lambda _, reply: replace(reply, headers={**reply.headers, **added})


def read(got: Got) -> dict[str, Any]:
    """The JSON of a request; empty where it is none, or not plain."""
    try:
        found = json.loads(got.body[: int(got.headers.get(LENGTH, len(got.body)))])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def never_binary(_: Got, reply: Reply) -> Reply:
    """The same answer in JSON alone."""
    entries, after = [], reply.after
    for one in reply.document["outputs"]:
        entry = {key: one[key] for key in ("name", "datatype", "shape")}
        if "data" in one:
            entry["data"] = one["data"]
        else:
            size = one["parameters"]["binary_data_size"]
            tensor = tensors.from_raw(one["name"], one["datatype"], one["shape"], after[:size])
            entry["data"], after = tensors.json_data(tensor), after[size:]
        entries.append(entry)
    return replace(reply, document={**reply.document, "outputs": entries}, after=b"")


def in_latin(_: Got, reply: Reply) -> Reply:
    """Strings in JSON with each byte of UTF-8 taken for a character."""

    def text(item: Any) -> Any:
        return item.encode().decode("latin-1") if isinstance(item, str) else item

    outputs = [
        {**one, "data": [text(item) for item in one["data"]]} if "data" in one else one
        for one in reply.document["outputs"]
    ]
    return replace(reply, document={**reply.document, "outputs": outputs})


def by_place(got: Got) -> Got:
    """Takes inputs for the model's in their order, whatever they are called."""
    asked = read(got)
    names = [one.name for one in reference.INPUTS]
    if not infers(got) or not isinstance(asked.get("inputs"), list) or len(asked["inputs"]) != len(names):
        return got
    if LENGTH in got.headers:
        return got
    renamed = [{**one, "name": name} for one, name in zip(asked["inputs"], names, strict=True)]
    return replace(got, body=rest.to_bytes({**asked, "inputs": renamed}))


def of_any_version(got: Got) -> Got:
    head, found, end = got.path.partition("/versions/")
    return replace(got, path=head + ("/" if "/" in end else "") + end.partition("/")[2]) if found else got


def only_the_first_row(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensors.rows(tensors.rows(one, 1), one.shape[0]) for one in reference.infer(given))


def as_doubles(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Integers of 64 bits lose their last bits on the way out."""
    return tuple(
        replace(one, data=tuple(int(float(item)) for item in one.data)) if one.datatype == "INT64" else one
        for one in reference.infer(given)
    )


def slightly_off(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    total, *others = reference.infer(given)
    return (replace(total, data=tuple(item * (1 + 1e-6) for item in total.data)), *others)
