"""What a run starts from, as the planner of trainings sees it."""

from __future__ import annotations

from typing import Any

import pytest

from mms_operator.plan.training import planner
from mms_operator.plan.types import Object, ReferencedSecret
from mms_workloads.contract import JobFile
from tests.unit.plan.world import World, cr, spec

DIGEST = "sha256:" + "1" * 64
KEYS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})


def world(**pretrained: Any) -> World:
    return World(cr(**spec(task={"textClassification": {}}, pretrained=pretrained)))


def made(version: int = 1, **more: Any) -> Object:
    artifact = {"uri": f"s3://own/words/runs/{version}/artifact", "digest": DIGEST, "version": version, **more}
    return {**cr(name="vectors"), "status": {"artifact": {**artifact, "metrics": {"contextAUC": "0.9"}}}}


def job_file(found: World, attempt: int = 1) -> JobFile:
    return JobFile.model_validate_json(found.others[f"ConfigMap/words-job-1-{attempt}"]["data"]["job.json"])


def test_an_address_goes_into_the_job_file_with_its_keys() -> None:
    found = world(uri="s3://models/minilm", endpoint="https://s3.example.com", secretRef={"name": "hub"}, method="LoRA")
    found.secrets = {"hub": ReferencedSecret("hub", KEYS)}
    found.step()
    given = job_file(found).pretrained
    assert given is not None
    assert (given.store.uri, given.store.credentials, given.digest) == ("s3://models/minilm", "pretrained", None)
    assert (given.method, given.adapter.rank) == ("LoRA", 8)
    assert planner.references(found.cr) == {"hub"}
    assert job_file(found).optimizer.learningRate == 0.001
    whole = world(uri="file:///models/minilm")
    whole.step()
    assert job_file(whole).optimizer.learningRate == 0.0001


def test_a_secret_that_is_missing_is_waited_for() -> None:
    found = world(uri="s3://models/minilm", endpoint="https://s3.example.com", secretRef={"name": "hub"})
    found.secrets = {"hub": ReferencedSecret("hub", None)}
    plan = found.step()
    assert (found.status["phase"], found.condition("Ready")["reason"]) == ("Pending", "SecretNotFound")
    assert "spec.pretrained.secretRef names the Secret hub" in found.condition("Ready")["message"]
    assert plan.requeue_after is not None


def test_another_training_is_waited_for_and_then_kept() -> None:
    found = world(trainingRef={"name": "vectors"})
    found.step()
    assert (found.status["phase"], found.condition("Ready")["reason"]) == ("Pending", "TrainingNotFound")
    assert not found.pods
    found.pretrained = cr(name="vectors")
    found.step()
    assert found.condition("Ready")["reason"] == "TrainingNotComplete"
    assert not found.pods
    found.pretrained = made(endpoint="https://s3.example.com", secretRef={"name": "own"})
    found.secrets = {"own": ReferencedSecret("own", KEYS)}
    found.step()
    given = job_file(found).pretrained
    assert given is not None
    assert (given.store.uri, given.digest) == ("s3://own/words/runs/1/artifact", DIGEST)
    assert given.store.credentials == "pretrained"
    assert found.status["pretrained"]["digest"] == DIGEST
    assert planner.references({**found.cr, "status": found.status}) == {"own"}
    # A newer one is of the next run.
    found.training()
    found.pretrained = made(version=2)
    found.step()
    assert found.status["pretrained"]["version"] == 1
    again = job_file(found).pretrained
    assert again is not None
    assert again.store.uri == given.store.uri
    # Nor does its deletion matter.
    found.pretrained = None
    found.step()
    assert found.status["phase"] == "Running"


@pytest.mark.parametrize("task", ["textClassification", "tokenClassification", "textMatching"])
def test_word_vectors_of_a_training_are_the_input_of_text_tasks(task: str) -> None:
    found = World(cr(**spec(task={task: {}}, pretrained={"trainingRef": {"name": "vectors"}, "method": "Head"})))
    found.pretrained = made()
    found.step()
    job = job_file(found)
    assert job.task.kind == task
    assert job.pretrained is not None
    assert (job.pretrained.digest, job.pretrained.method) == (DIGEST, "Head")
    assert found.pods


def test_what_the_installations_store_holds_is_read_with_its_keys() -> None:
    found = world(trainingRef={"name": "vectors"})
    found.pretrained = made(installationStore=True)
    found.step()
    given = job_file(found).pretrained
    assert given is not None
    assert (given.store.credentials, given.store.endpoint) == ("pretrained", found.settings.default_store.endpoint)  # type: ignore[union-attr]
    sources = found.pods["words-worker-0-1"]["spec"]["volumes"][0]["projected"]["sources"]
    assert "words-store" in [one["secret"]["name"] for one in sources if "secret" in one]
