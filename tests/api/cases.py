"""What a rule is tried on: a change of an object, which it refuses or lets pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api.names import TRAININGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.crds import Object

SECRET = {"secretRef": {"name": "secret"}}


@dataclass(frozen=True)
class Case:
    """A change that a rule refuses or lets pass: of a new object, or of one that has a status."""

    name: str
    rule: str  # how its message begins
    refused: bool
    change: Object
    status: Object | None = None  # None: the object is new
    plural: str = TRAININGS
    before: Object | None = None  # what it differs in, before the change, from the object that is made otherwise


def created(name: str, rule: str, *, good: Object, bad: Object, plural: str = TRAININGS) -> Iterator[Case]:
    for refused, changes in ((False, good), (True, bad)):
        for which, change in changes.items():
            yield Case(f"{name}-{which}", rule, refused, change, plural=plural)


def names_of(plural: str) -> Iterator[Case]:
    good = {"short": "a", "longest": "a" * 45, "dashed": "a-1"}
    bad = {"too-long": "a" * 46, "digit-first": "1a", "dotted": "a.b"}
    yield from created(
        f"name-of-{plural}",
        "metadata.name must be at most 45",
        good={key: {"metadata": {"name": name}} for key, name in good.items()},
        bad={key: {"metadata": {"name": name}} for key, name in bad.items()},
        plural=plural,
    )
