"""Each rule (CEL) of the two kinds refuses what it should, and nothing else, in a real API server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.api import service_rules, training_rules
from tests.api.crds import CRDS, Kind, Object, good, merged, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.cases import Case

pytestmark = pytest.mark.api

CASES = [*training_rules.CASES, *service_rules.CASES]


def rules(schema: Object) -> Iterator[str]:
    """The messages of a schema's rules."""
    yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
    for field in schema.get("properties", {}).values():
        yield from rules(field)
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from rules(schema[key])


@pytest.mark.parametrize("plural", CRDS)
def test_each_rule_has_cases(plural: str) -> None:
    messages = list(rules(CRDS[plural]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]))
    assert len(messages) == len(set(messages)) > 1
    cases = [case for case in CASES if case.plural == plural]
    for message in messages:
        outcomes = {case.refused for case in cases if message.startswith(case.rule)}
        assert outcomes == {True, False}, f"no refused and no accepted case of: {message}"
    for case in cases:
        assert sum(message.startswith(case.rule) for message in messages) == 1, case.name


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{'refused' if case.refused else 'accepted'}")
def test_rule(kinds: dict[str, Kind], case: Case) -> None:
    kind = kinds[case.plural]
    if case.status is None:
        answer = kind.create(case.change)
    else:
        kind.with_status(case.status, case.before)
        answer = kind.change(case.change)
    if case.refused:
        assert case.rule in refusal(answer)[1]
    else:
        changed = good(answer)
        assert merged(changed, case.change) == changed
