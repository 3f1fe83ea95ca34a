"""The job file: what the spec says, and what it leaves open."""

from __future__ import annotations

from typing import Any

import pytest

from mms_workloads.contract import EvaluationSpec, Gate, JobFile, LanguageModel
from tests.unit.plan.world import STORE, World, cr, spec


def world(**parts: object) -> World:
    return World(cr(**spec(**parts)))


def test_the_job_file_says_what_the_spec_says() -> None:
    found = world(optimizer={"epochs": 3, "learningRate": "0.05", "seed": 9}, checkpoint={"intervalSeconds": 7})
    found.step()
    job = JobFile.model_validate_json(found.others["ConfigMap/words-job-1-1"]["data"]["job.json"])
    assert (job.optimizer.epochs, job.optimizer.learningRate, job.optimizer.seed) == (3, 0.05, 9)
    assert job.task.wordEmbedding is not None
    assert (job.task.wordEmbedding.dimensions, job.workers, job.checkpoint.intervalSeconds) == (16, 2, 7)
    assert job.storage.uri == "s3://mms/d/words-uid-0123/runs/1"
    assert (job.storage.endpoint, job.storage.credentials) == (STORE.endpoint, "storage")
    assert (job.data.store.uri, job.data.store.credentials) == ("s3://corpora/text/*.txt", "data")


OPTIMIZERS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "word embedding": (
        {"wordEmbedding": {}}, {},
        {"name": "SGD", "learningRate": 0.025, "momentum": 0.0, "weightDecay": 0.0},
    ),
    "language model": (
        {"languageModel": {}}, {},
        {"name": "AdamW", "learningRate": 0.001, "globalBatchSize": 64, "whenWorkersChange": "KeepGlobalBatch"},
    ),
    "as the spec says": (
        {"languageModel": {}},
        {"name": "SGD", "learningRate": "0.1", "momentum": "0.9", "weightDecay": "0.01", "globalBatchSize": 256,
         "whenWorkersChange": "ScaleLearningRate", "precision": "BF16", "epochs": 2, "seed": 3},
        {"name": "SGD", "learningRate": 0.1, "momentum": 0.9, "weightDecay": 0.01, "globalBatchSize": 256,
         "whenWorkersChange": "ScaleLearningRate", "epochs": 2, "seed": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_what_the_spec_leaves_open_is_as_the_task_has_it(case: str) -> None:
    task, given, expected = OPTIMIZERS[case]
    optimizer = job_of(world(task=task, optimizer=given)).optimizer
    assert {field: getattr(optimizer, field) for field in expected} == expected


def job_of(found: World) -> JobFile:
    found.step()
    return JobFile.model_validate_json(found.others["ConfigMap/words-job-1-1"]["data"]["job.json"])


def test_the_job_file_of_a_language_model() -> None:
    job = job_of(
        world(
            task={"languageModel": {"dimensions": 96, "layers": 2, "heads": 3, "contextLength": 64}},
            evaluation={"split": "0.1", "gate": {"metric": "bitsPerByte", "atMost": "3.5"}},
            sync={"compression": "BF16", "transport": "Plain"},
            workers={"replicas": 3, "minReplicas": 2},
        )
    )
    assert job.task.wordEmbedding is None
    assert job.task.languageModel == LanguageModel(dimensions=96, layers=2, heads=3, contextLength=64)
    assert job.evaluation == EvaluationSpec(split=0.1, gate=Gate(metric="bitsPerByte", atMost=3.5))
    assert (job.syncMode, job.compression, job.transport, job.parameterServer) == ("Ring", "BF16", "Plain", None)
    assert (job.workers, job.minWorkers) == (3, 2)


def test_a_gate_of_zero_is_a_gate() -> None:
    job = job_of(world(evaluation={"gate": {"metric": "contextAUC", "atLeast": "0"}}))
    assert job.evaluation.gate == Gate(metric="contextAUC", atLeast=0.0)


def test_staleness_that_is_not_said_is_the_contracts() -> None:
    server = {"shards": 3, "replicas": 2, "consistency": "BoundedStaleness"}
    for said, expected in ({}, 4), ({"staleness": 0}, 0):
        job = job_of(world(sync={"mode": "ParameterServer", "parameterServer": {**server, **said}}))
        assert job.parameterServer is not None
        assert (job.parameterServer.consistency, job.parameterServer.staleness) == ("BoundedStaleness", expected)
        assert (job.parameterServer.shards, job.parameterServer.replicas) == (3, 2)


def test_runs_that_are_served_are_protected() -> None:
    found = world(runPolicy={"run": 12, "suspend": False, "backoffLimit": 3, "retainRuns": 1})
    folder = "s3://mms/d/words-uid-0123/runs"
    found.served = frozenset(
        {f"{folder}/3/artifact", f"{folder}/11/artifact", f"{folder}/1", "s3://mms/d/other/runs/7/a", f"{folder}/x/a"}
    )
    found.step()
    job = JobFile.model_validate_json(found.others["ConfigMap/words-job-12-1"]["data"]["job.json"])
    assert (job.retainRuns, job.protectedRuns) == (1, [1, 3, 11])
