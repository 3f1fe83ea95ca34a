"""Pages that workers lend to each other: to workers of the job, and to nobody else."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from mms_workloads.train.lender import Lender
from tests.unit.transport.peers import folders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mms_workloads.contract import JobIdentity
    from mms_workloads.pod import Pod

PAGES = {"page": b"as it is stored"}


@pytest.fixture
def lender(pod: Pod) -> Iterator[Callable[..., Lender]]:
    made: list[Lender] = []

    def start(certificates: Path | None = None, job: JobIdentity | None = None) -> Lender:
        file = pod.job.model_copy(update={"job": job}) if job else pod.job
        own = dataclasses.replace(pod, job=file, tls_dir=certificates or pod.tls_dir)
        made.append(Lender(own, PAGES.get, plain=certificates is None))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return folders(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("plain", [True, False], ids=["Plain", "MutualTLS"])
def test_a_worker_lends_what_it_has(lender: Callable[..., Lender], certificates: dict[str, Path], plain: bool) -> None:
    one, other = (lender(None if plain else certificates["worker"]) for _ in range(2))
    assert other.ask(one.address, "page") == PAGES["page"]
    assert other.ask(one.address, "gone") is None


def test_a_peer_that_is_gone_lends_nothing(lender: Callable[..., Lender]) -> None:
    one, other = lender(), lender()
    address = one.address
    one.close()
    assert other.ask(address, "page") is None


def test_another_role_gets_nothing_and_is_not_asked(
    lender: Callable[..., Lender], certificates: dict[str, Path]
) -> None:
    worker, shard = lender(certificates["worker"]), lender(certificates["shard"])
    assert shard.ask(worker.address, "page") is None
    assert worker.ask(shard.address, "page") is None


def test_another_job_gets_nothing(lender: Callable[..., Lender], certificates: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    theirs = lender(folders(tmp_path / "theirs")["worker"])
    assert theirs.ask(lender(certificates["worker"]).address, "page") is None


def test_another_run_of_the_job_gets_nothing(lender: Callable[..., Lender], pod: Pod) -> None:
    other = lender(job=pod.job.job.model_copy(update={"run": pod.job.job.run + 1}))
    assert other.ask(lender().address, "page") is None
