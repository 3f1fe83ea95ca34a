"""What is wrong is said, with what to do about it: in a refusal or in a condition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.kube import Kube, RefusedError, condition, own_storage, service, training

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Corpora

pytestmark = pytest.mark.e2e

BAD_DATA = {
    "empty": (b"", "DataEmpty", "empty"),
    "one-word": (b"word " * 5000, "VocabularyTooSmall", "minCount"),
    "not-utf8": (b"good words here\n" * 200 + b"caf\xe9 au lait\n", "DataUnreadable", "UTF-8"),
    "broken-gz": (b"\x1f\x8b\x08 this is no gzip", "DataUnreadable", "gz"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(kube: Kube, corpora: Corpora, tmp_path: Path, case: str) -> None:
    content, reason, word = BAD_DATA[case]
    name = "corpus.txt.gz" if case == "broken-gz" else "corpus.txt"
    uri = corpora.put(name, content, tmp_path / f"bad-{case}")
    kube.apply(training("words", uri))
    kube.wait_phase("words", "Failed", 90)
    failed = kube.wait_condition("modeltraining", "words", "Failed", "True", reason)
    assert word in failed["message"]
    assert uri.rsplit("/", 1)[-1] in failed["message"] or case == "one-word"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [("s3://corpora/nowhere/*.txt", "DataNotFound"), ("s3://no-such-bucket/x.txt", "DataNotFound")],
    ids=["no-file", "no-bucket"],
)
def test_wrong_uri(kube: Kube, corpora: Corpora, uri: str, reason: str) -> None:
    kube.apply(training("words", uri))
    failed = kube.wait_condition("modeltraining", "words", "Failed", "True", reason)
    assert uri in failed["message"]


def test_refused_at_admission(kube: Kube) -> None:
    for spec, words in (
        ({"data": {}}, "uri"),
        ({"data": {"uri": "corpus.txt"}}, "uri"),
        ({"task": {}}, "exactly one task"),
        ({"trainer": 1}, 'unknown field "spec.trainer"'),
    ):
        with pytest.raises(RefusedError, match=words):
            kube.apply(training("words", "s3://corpora/x.txt", **spec))
    with pytest.raises(RefusedError, match="exactly one of trainingRef, artifact and pretrained"):
        kube.apply({**service("words"), "spec": {"model": {}}})


def test_missing_secret_then_wrong_then_right(kube: Kube, corpora: Corpora) -> None:
    """Nothing is lost while a Secret is missing: the training starts once it is there."""
    data = {"uri": corpora.small, "endpoint": "http://mms-store.mms-system:8333", "secretRef": {"name": "mine"}}
    kube.apply(training("words", corpora.small, data=data))
    seen = kube.wait_condition("modeltraining", "words", "Ready", "False", "SecretNotFound")
    assert "mine" in seen["message"]
    assert "AWS_ACCESS_KEY_ID" in seen["message"]
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine"}, "stringData": {"accesskey": "x"}}
    kube.apply(secret)
    kube.wait_condition("modeltraining", "words", "Ready", "False", "SecretKeyMissing")
    keys = Kube("mms-system").get("secret", "mms-store")["data"]
    kube.apply(
        {**secret, "stringData": {}, "data": {k: keys[k] for k in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}}
    )
    kube.wait_phase("words", "Complete")


def test_wrong_keys(kube: Kube, corpora: Corpora) -> None:
    data = {"uri": corpora.small, "endpoint": "http://mms-store.mms-system:8333", "secretRef": {"name": "mine"}}
    wrong = {"AWS_ACCESS_KEY_ID": "who", "AWS_SECRET_ACCESS_KEY": "knows"}
    kube.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine"}, "stringData": wrong},
        training("words", corpora.small, data=data),
    )
    failed = kube.wait_condition("modeltraining", "words", "Failed", "True", "CredentialsInvalid")
    assert "spec.data.secretRef" in failed["message"]


def test_image_missing(kube: Kube, corpora: Corpora) -> None:
    kube.apply(training("words", corpora.small, workers={"replicas": 1, "image": "localhost/no-such-image:1"}))
    seen = kube.wait_condition("modeltraining", "words", "Ready", "False", "ImagePullFailed")
    assert "localhost/no-such-image:1" in seen["message"]


def test_too_big_for_any_node(kube: Kube, corpora: Corpora) -> None:
    workers = {"replicas": 1, "resources": {"requests": {"cpu": "4000"}}}
    kube.apply(training("words", corpora.small, workers=workers))
    seen = kube.wait_condition("modeltraining", "words", "Ready", "False", "Unschedulable")
    assert "Insufficient cpu" in seen["message"]
    assert kube.get("modeltraining", "words")["status"]["phase"] == "Pending"


def test_two_trainings_one_storage(kube: Kube, corpora: Corpora) -> None:
    storage = own_storage(kube)
    kube.apply(training("first", corpora.small, storage=storage))
    kube.wait("modeltraining", "first", lambda t: t.get("status", {}).get("startTime"), 60, "started")
    kube.apply(training("second", corpora.small, storage=storage))
    seen = kube.wait_condition("modeltraining", "second", "Accepted", "False", "StorageConflict")
    assert "first" in seen["message"]
    assert kube.list("pods", "mms.dev/training=second") == []
    kube.wait_phase("first", "Complete")


def test_forbidden_pod_template(kube: Kube, corpora: Corpora) -> None:
    template = {"spec": {"hostNetwork": True}}
    kube.apply(training("words", corpora.small, workers={"replicas": 1, "podTemplate": template}))
    seen = kube.wait_condition("modeltraining", "words", "Accepted", "False", "PodTemplateForbidden")
    assert "hostNetwork" in seen["message"]
    assert condition(kube.get("modeltraining", "words"), "Stalled")["status"] == "True"
