"""The conformance kit itself: a server that conforms passes, and each of many faults is found by the checks for it."""

from __future__ import annotations

import http.client
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from mms_cluster.images_wheels import ROOT
from tests.oip import (
    checks,
    client_kserve,
    client_triton,
    deviations,
    faults,
    faults_grpc,
    faults_http,
    faults_rest,
    kit,
    reference,
    reference_grpc,
    reference_rest,
    rest,
    rest_http,
    rpc,
)
from tests.oip.checks import Check, Deviation, judge
from tests.oip.model import BINARY, Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.oip.checks import Subject

RIGHT = faults.Fault("none", ())
RIGHT_GRPC = faults_grpc.Fault("none", ())
REST_FAULTS = {one.name: one for one in (*faults_rest.FAULTS, *faults_http.FAULTS)}
GRPC_FAULTS = {one.name: one for one in faults_grpc.FAULTS}
FOR_REST = ("requests", *rest_http.RAW, client_triton.HTTP)
FOR_GRPC = (*rpc.CLIENT, client_triton.GRPC)
CLIENTS = sorted({case.client for case in kit.cases()})
# Checks of gRPC that compare it with REST, and one that only curl can ask.
BESIDE = ("grpc.server-metadata", "grpc.infer.as-rest", "rest.path.percent-encoded")
KSERVE = {
    ("health has no body", "neither live nor ready"): {
        "kserve.rest.live", "kserve.rest.ready", "kserve.grpc.live", "kserve.grpc.ready", "kserve.grpc.model-ready",
    },
    ("any model is this one", "any model is this one"): {
        "kserve.rest.model-ready", "kserve.rest.errors", "kserve.rest.error-messages", "kserve.grpc.errors",
    },
    ("all rows are the first", "all rows are the first"): {
        "kserve.rest.infer.json", "kserve.rest.infer.binary", "kserve.rest.infer.dict", "kserve.grpc.infer.typed",
        "kserve.grpc.infer.raw",
    },
}  # fmt: skip


@contextmanager
def serving(fault: faults.Fault = RIGHT, over_grpc: faults_grpc.Fault = RIGHT_GRPC) -> Iterator[Target]:
    with (
        reference_rest.serving(fault.reply, fault.protocol, continues=fault.continues) as url,
        reference_grpc.serving(over_grpc.answer, over_grpc.parse, any_method=over_grpc.any_method) as address,
    ):
        yield Target(url, address, (reference.model(),), frozenset({BINARY}), ("gzip", "deflate"))


def found(target: Target, cases: list[kit.Case]) -> set[str]:
    return {case.check for case in cases if case.judged(target)}


def plain(method: str, url: str, body: bytes | None, headers: dict[str, str]) -> rest.Reply:
    """requests takes five times as long, and the other clients longer."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.netloc, timeout=rest.TIMEOUT_SECONDS)
    try:
        connection.request(method, where.path, body, headers)
        reply = connection.getresponse()
        found = {name.lower(): value for name, value in reply.getheaders()}
        return rest.Reply(reply.status, found, rest.decoded(reply.read(), found.get("content-encoding", "")))
    finally:
        connection.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rest.CLIENTS, "requests", plain)
    monkeypatch.setattr(rest_http, "PIECES_PAUSES", (0.02,))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_conforms_passes(client: str) -> None:
    with serving() as target:
        for case in kit.cases():
            if case.client == client:
                assert case.judged(target) == ""


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", REST_FAULTS)
def test_a_fault_in_rest_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case for case in kit.cases() if case.check in BESIDE or case.client in FOR_REST]
    fault = REST_FAULTS[name]
    if fault.waits:
        monkeypatch.setattr(rest, "TIMEOUT_SECONDS", 1)
    with serving(fault) as target:
        assert found(target, cases) == faults.caught(fault.catches, {case.check for case in cases})


@pytest.mark.parametrize("name", GRPC_FAULTS)
def test_a_fault_in_grpc_is_found(name: str) -> None:
    cases = [case for case in kit.cases() if case.client in FOR_GRPC]
    fault = GRPC_FAULTS[name]
    with serving(over_grpc=fault) as target:
        assert found(target, cases) == faults.caught(fault.catches, {case.check for case in cases})


@pytest.mark.parametrize(("rest_fault", "grpc_fault"), KSERVE)
def test_a_fault_is_found_by_kserve(rest_fault: str, grpc_fault: str) -> None:
    client_kserve.results.cache_clear()  # another server may have had the port
    cases = [case for case in kit.cases() if case.client in client_kserve.NAMES]
    with serving(REST_FAULTS[rest_fault], GRPC_FAULTS[grpc_fault]) as target:
        assert found(target, cases) == KSERVE[rest_fault, grpc_fault]


def test_no_check_is_without_a_fault() -> None:
    names = set(checks.CHECKS)
    patterns = [one.catches for one in REST_FAULTS.values()] + [one.catches for one in GRPC_FAULTS.values()]
    covered = set.union(*(faults.caught(one, names) for one in patterns), *KSERVE.values())
    assert names - covered == set()


def test_the_deviations_are_of_checks_that_there_are() -> None:
    for one in deviations.TRITON:
        assert set(one.checks) <= checks.CHECKS.keys()


def test_the_documented_table_is_that_of_the_deviations() -> None:
    text = (ROOT / "docs" / "serving-protocol.md").read_text(encoding="utf-8")
    assert deviations.table() in text, "run python -m tests.oip.deviations"
    assert deviations.counted() in text, "run python -m tests.oip.deviations"


@pytest.mark.parametrize(("server", "told", "right"), [([], [], True), ([BINARY], [], False), ([], [BINARY], False)])
def test_an_extension_that_is_not_there_is_not_asked_for(server: list[str], told: list[str], right: bool) -> None:
    """But it must be told: a server that gained it, or lost it, is seen."""
    without = faults.Fault("other extensions", (), faults.where(faults.at("/v2"), faults.with_(extensions=server)))
    names = [name for name in checks.CHECKS if name.startswith(("rest.binary", "rest.server-metadata"))]
    with serving(without) as target:
        told_so = replace(target, extensions=frozenset(told))
        assert all(kit.Case(name, "requests").judged(told_so) == "" for name in names) == right


def says(*problems: str) -> Check:
    def ask(_: Subject) -> Iterator[str]:
        yield from problems

    return Check("one", "a source", "a requirement", ("me",), ask, once=False, applies=checks.always)


@pytest.mark.parametrize(
    ("problems", "seen", "models", "judged"),
    [
        ((), (), None, ""),
        (("bad\nbody",), (), None, "sums: bad\nbody"),
        (("bad\nbody",), ("bad",), None, ""),
        (("bad", "worse"), ("bad",), None, "sums: worse"),
        (("bad", "worse"), ("bad", "worse"), None, ""),
        (("otherwise",), ("bad",), None, "sums: a deviation is known: bad"),
        ((), ("bad",), None, "sums: conforms"),
        (("bad",), ("bad",), ("other",), "sums: bad"),
        ((), ("bad",), ("other",), ""),
    ],
)
def test_a_deviation_is_told_apart(
    problems: tuple[str, ...], seen: tuple[str, ...], models: tuple[str, ...] | None, judged: str
) -> None:
    known = [Deviation(("one",), "", "", one, models) for one in seen]
    target = Target("http://x", "x", (reference.model(),))
    text = judge(says(*problems), target, "me", known)
    assert (judged in text) if judged else (text == "")


def test_what_a_check_raises_is_a_problem() -> None:
    def ask(_: Subject) -> Iterator[str]:
        yield "first"
        raise ConnectionResetError("gone")

    check = Check("one", "a source", "a requirement", ("me",), ask, once=False, applies=checks.always)
    text = judge(check, Target("http://x", "x", (reference.model(),)), "me")
    assert "sums: first" in text
    assert "sums: ConnectionResetError" in text


def test_a_check_without_anything_to_ask_about_is_no_pass() -> None:
    check = Check("one", "", "", ("me",), says().ask, once=False, applies=lambda _: False)
    with pytest.raises(ValueError, match="no model of the target"):
        judge(check, Target("http://x", "x", (reference.model(),)), "me")
