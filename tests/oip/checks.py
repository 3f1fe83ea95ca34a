"""The checks by name, and the judgement of a server: what it does beside what the protocol says.

A check asks a server and says what is wrong, in lines; no line means that the requirement holds. The first line of a
problem is the same whenever the server does the same, the others are details. A Deviation names checks that a server is
known not to pass and the problems they then find: `judge` fails when a check finds others, and when it finds none.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.oip.model import Model, Target

REST_MD = "inference_rest.md"
REST_YAML = "open_inference_rest.yaml"
GRPC_MD = "inference_grpc.md"
BINARY_MD = "extension_binary_data.md"
HTTP = "RFC 9110"


class ProblemError(Exception):
    """A problem that ends a check: what it would ask next makes no sense."""


@dataclass(frozen=True)
class Subject:
    """What a check is about: one model of a server, asked by one client."""

    target: Target
    model: Model
    client: str


@dataclass(frozen=True)
class Check:
    name: str
    source: str  # of the requirement
    says: str  # the requirement
    clients: tuple[str, ...]
    ask: Callable[[Subject], Iterator[str]]
    once: bool  # for the server, not for each model
    applies: Callable[[Model], bool]


@dataclass(frozen=True)
class Deviation:
    checks: tuple[str, ...]
    says: str  # what the source asks for
    does: str  # what the server does
    seen: str  # the problem that each of the checks finds
    models: tuple[str, ...] | None = None  # None: with all; of a check that is made once it does not matter


CHECKS: dict[str, Check] = {}


def always(_: Model) -> bool:
    return True


def check(
    name: str,
    source: str,
    says: str,
    *,
    clients: tuple[str, ...],
    once: bool = False,
    applies: Callable[[Model], bool] = always,
) -> Callable[[Callable[[Subject], Iterator[str]]], Callable[[Subject], Iterator[str]]]:
    def register(ask: Callable[[Subject], Iterator[str]]) -> Callable[[Subject], Iterator[str]]:
        if name in CHECKS:
            raise ValueError(f"two checks are called {name}")
        CHECKS[name] = Check(name, source, says, clients, ask, once, applies)
        return ask

    return register


def problems(one: Check, target: Target, client: str) -> dict[str, list[str]]:
    """By the model's name. Of a check that is made once, under the first model's."""
    models = [model for model in target.models if one.applies(model)]
    if not models:
        raise ValueError(f"{one.name}: no model of the target has what it asks about: give one that has")
    return {model.name: _found(one, Subject(target, model, client)) for model in models[: 1 if one.once else None]}


def judge(one: Check, target: Target, client: str, deviations: Sequence[Deviation] = ()) -> str:
    """Why the check fails; empty when the server does as the requirement or, exactly, as the deviation says."""
    known = [deviation for deviation in deviations if one.name in deviation.checks]
    wrong = []
    for model, found in problems(one, target, client).items():
        expected = sorted(d.seen for d in known if one.once or d.models is None or model in d.models)
        if sorted(text.partition("\n")[0] for text in found) != expected:
            wrong += [f"{model}: {text}" for text in found] or [f"{model}: conforms"]
            wrong += [f"{model}: a deviation is known: {text}" for text in expected]
    return "\n".join([f"{one.name} by {client}: {one.source}: {one.says}", *wrong]) if wrong else ""


def _found(one: Check, subject: Subject) -> list[str]:
    found = []
    try:
        for problem in one.ask(subject):
            found.append(problem)  # noqa: PERF402 - those before an exception are kept
    except ProblemError as error:
        found.append(str(error))
    except Exception as error:  # noqa: BLE001 - what a client raises is what its user sees
        found.append(f"{type(error).__name__}\n{''.join(traceback.format_exception(error))}")
    return found
