"""Models that were not trained here: one version, one set of files."""

from __future__ import annotations

from typing import Any

import pytest

from mms_operator.api.service import PretrainedModel
from mms_operator.plan.service import pretrained
from mms_workloads.contract import PrecisionReport
from tests.unit.plan.serving_world import ServingWorld, digest, file_in

FILES = digest("f")


def world(replicas: int = 3, **fields: Any) -> ServingWorld:
    return ServingWorld({"replicas": replicas, "model": {"pretrained": {"uri": "s3://models/vad/", **fields}}})


def replicas(made: ServingWorld) -> list[int]:
    return [one["spec"]["replicas"] for one in made.deployments.values()]


def told(made: ServingWorld) -> list[str | None]:
    """The digest of files that each version's pods are told."""
    files = [one for key, one in made.objects.items() if key.startswith("ConfigMap/")]
    found = [file_in(one["data"]["serve.json"]).pretrained for one in files]
    return [one.digest if one else None for one in found]


def test_a_field_that_another_operator_knows_beside_makes_no_version() -> None:
    class Later(PretrainedModel):
        more: int = 7

    asked = {"uri": "s3://models/vad/", "trusted": True}
    versions = [pretrained.version_of(kind.model_validate(asked), None) for kind in (PretrainedModel, Later)]
    assert versions[0].digest == versions[1].digest


def test_the_first_pod_says_which_files_all_others_serve() -> None:
    made = world()
    made.look()
    assert replicas(made) == [1]
    assert told(made) == [None]
    made.deploy()
    made.look()
    assert made.plan is not None
    assert made.plan.agents is not None, "it is asked what it has found"
    made.files = FILES
    made.start()
    made.look()
    assert replicas(made) == [3]
    assert told(made) == [FILES]
    made.files = digest("0")  # what somebody has put in their place meanwhile
    made.deploy()
    made.start()
    made.look()
    assert told(made) == [FILES]
    assert made.cr["status"]["versions"]["stable"]["pretrained"]["files"] == FILES
    assert made.cr["status"]["versions"]["stable"]["uri"] == "s3://models/vad"


def test_a_digest_of_the_spec_needs_no_first_pod() -> None:
    made = world(digest=FILES)
    made.look()
    assert replicas(made) == [3]
    assert told(made) == [FILES]


@pytest.mark.parametrize(
    "changed",
    [{"uri": "s3://models/other"}, {"digest": FILES}, {"pipeline": {"task": "voiceActivity"}}, {"trusted": True}],
    ids=lambda fields: next(iter(fields)),
)
def test_another_address_or_setting_is_another_version(changed: dict[str, Any]) -> None:
    before, after = world(), world(**changed)
    before.look()
    after.look()
    assert set(before.deployments).isdisjoint(after.deployments)


def test_the_same_model_is_the_same_version() -> None:
    made = world(replicas=1)
    made.look()
    made.deploy()
    made.files = FILES
    made.start()
    made.look()
    before = set(made.deployments)
    made.look()
    assert set(made.deployments) == before
    assert made.cr["status"]["versions"].get("next") is None


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ({"task": "weather"}, "spec.model.pretrained.pipeline.task: Input should be"),
        ({"image": {"height": 0, "width": 4}}, "spec.model.pretrained.pipeline.image.height"),
        ({"lables": ["a"]}, "spec.model.pretrained.pipeline.lables: there is no such field"),
        ({"labels": ["a" * 97] * 656}, "put it as pipeline.json beside the model's files"),
    ],
)
def test_what_is_no_pipeline_is_refused_with_its_field(pipeline: dict[str, Any], message: str) -> None:
    made = world(pipeline=pipeline)
    made.look()
    accepted = next(one for one in made.cr["status"]["conditions"] if one["type"] == "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert message in accepted["message"]
    assert not made.objects


def test_anomalies_make_other_pods() -> None:
    made = world(digest=FILES)
    made.cr["spec"]["server"] = {"anomalies": "Count"}
    made.look()
    (deployment,) = made.deployments.values()
    assert deployment["spec"]["template"]["metadata"]["annotations"]["mms.dev/anomalies"] == "Count"
    (file,) = [one for key, one in made.objects.items() if key.startswith("ConfigMap/")]
    assert file_in(file["data"]["serve.json"]).anomalies == "Count"


def test_pods_hear_of_the_precision_and_the_status_says_what_they_took() -> None:
    made = world(replicas=1, digest=FILES)
    made.cr["spec"]["server"] = {"precision": "Auto", "maxAccuracyLoss": "0.02"}
    made.look()
    (file,) = [one for key, one in made.objects.items() if key.startswith("ConfigMap/")]
    assert file_in(file["data"]["serve.json"]).precision.model_dump() == {"wanted": "Auto", "maxLoss": 0.02}
    made.deploy()
    made.look()
    assert made.plan is not None
    assert made.plan.agents is not None
    made.precision = PrecisionReport(chosen="INT8", speedUp=2.5, loss=0.01, questions=200)
    made.start()
    made.look()
    made.look()
    said = made.cr["status"]["versions"]["stable"]["precision"]
    assert said == {"chosen": "INT8", "speedUp": "2.50", "loss": "0.0100", "questions": 200, "message": ""}
    assert made.plan is not None
    assert made.plan.agents is None, "there is nothing more to ask"
