"""Data that is encrypted, damaged, augmented or private: the manifests of examples/data on real pods, all at once."""

from __future__ import annotations

import contextlib
import json
import secrets
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from typer.testing import CliRunner

from mms_cluster import install
from mms_operator.cli import app
from mms_operator.cli.forward import port_forward
from mms_workloads.contract import DATA_KEY_FILE
from tests.e2e.conftest import namespace
from tests.e2e.kube import condition, installation_keys, installation_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mms_cluster import provider
    from tests.e2e.kube import Kube, Object

pytestmark = pytest.mark.e2e

EXAMPLES = install.CHART.parents[1] / "examples" / "data"
SECONDS = 300.0  # for all of them at once, on two processors
PNG = b"\x89PNG\r\n\x1a\n"  # how each of the images begins
BAD = {"3/cut.png": PNG + b"\x00\x00\x00\rIHDR", "5/text.png": b"this is no image", "7/empty.png": PNG}

# Of a pod's volumes: bytes that are kept, files in which an image begins anywhere, and whether the data key is there.
LOOK = f"""
import pathlib
files = [p for f in ("/scratch", "/tmp") for p in pathlib.Path(f).rglob("*") if p.is_file()]
data = [p.read_bytes() for p in files]
print(sum(map(len, data)), sum({PNG!r} in one for one in data), pathlib.Path("{DATA_KEY_FILE}").exists())
"""


def example(name: str, called: str | None = None, **data: Any) -> Object:
    made: Object = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    made["metadata"]["name"] = called or made["metadata"]["name"]
    made["spec"]["data"].update(data)
    return made


def longer(training: Object) -> Object:
    """There is time to look at its pods."""
    training["spec"]["optimizer"]["epochs"] = 15
    return training


def alone(training: Object) -> Object:
    """With one worker: it will not train."""
    training["spec"]["workers"]["replicas"] = 1
    return training


def secret(name: str, key: bytes) -> Object:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"key": key.hex()}}


@pytest.fixture(scope="module")
def sealed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The digits and three files that are no images, encrypted into the installation's store; the data key."""
    folder = tmp_path_factory.mktemp("sealed")
    key = secrets.token_bytes(32)
    (folder / "key").write_text(key.hex())
    (folder / "digits").symlink_to(digits)
    made = [digits / name for name in BAD]
    for file, content in zip(made, BAD.values(), strict=True):
        file.write_bytes(content)
    with installation_store() as store, contextlib.suppress(FileNotFoundError):
        store.rm("corpora/sealed-digits", recursive=True)  # of another key
    with port_forward(install.NAMESPACE, "svc/mms-store", 8333) as address:
        command = [
            "data", "encrypt", f"{folder}/digits/*/*.png", "s3://corpora/sealed-digits",
            f"--key-file={folder}/key", "--block-size=8Ki", f"--target-endpoint=http://{address}",
        ]  # fmt: skip
        answer = CliRunner().invoke(app, command, env=installation_keys())
    for file in made:
        file.unlink()
    assert answer.exit_code == 0, answer.output
    return key


@pytest.fixture(scope="module")
def kube(installed: provider.Provider, sealed: bytes) -> Iterator[Kube]:
    """A namespace where all of them train."""
    with namespace("data") as found:
        other = {"keySecretRef": {"name": "other-key"}}
        found.apply(
            secret("digits-key", sealed),
            secret("other-key", bytes(32)),
            longer(example("encrypted")),
            alone(example("encrypted", "too-bad", quality={"maxBadRecords": 2})),
            alone(example("encrypted", "wrong-key", encryption=other)),
            example("augmented"),
            example("private"),
        )
        yield found


def test_encrypted(kube: Kube) -> None:
    """Blocks come from the other worker, and neither has anything on its disk that is not ciphertext."""
    found = kube.wait("modeltraining", "sealed-digits", lambda t: trains(t) and lent(t), SECONDS, "lending blocks")
    workers = [f"sealed-digits-worker-{rank}-1" for rank in (0, 1)]
    for worker in workers:
        kept, images, key = kube.run("exec", worker, "--", "python", "-c", LOOK).split()
        assert int(kept) > 100_000
        assert (images, key) == ("0", "False")
    done = kube.wait_phase("sealed-digits", "Complete", SECONDS)
    assert done["status"]["data"]["peerBytes"] >= found["status"]["data"]["peerBytes"] > 0
    blocks = set(range(len(stored_blocks())))
    lines = [json.loads(line) for line in kube.run("logs", "sealed-digits-master-0-1").splitlines() if "{" in line]
    given = [line for line in lines if line["event"] == "block key given"]
    leased = {line["block"] for line in given if line["why"].startswith("lease")}
    held_out = {line["block"] for line in given if line["why"] == "evaluation"}
    assert {line["block"] for line in given if line["why"] == "counting"} == leased | held_out == blocks
    assert not leased & held_out
    assert {line["rank"] for line in given} == {0, 1}
    assert done["status"]["data"]["keysGiven"] == len(given)


def test_bad_records(kube: Kube) -> None:
    done = kube.wait_phase("sealed-digits", "Complete", SECONDS)
    data = done["status"]["data"]
    assert (data["records"], data["badRecords"]) == (1797, len(BAD))
    assert len(data["bad"]) == len(BAD)
    reasons = {one["reason"] for one in data["bad"]}
    assert any("bytes that are no image of a kind that is known" in one for one in reasons), reasons
    # Of encrypted data no particulars of a record are told, such as its length.
    assert not any(letter.isdigit() for one in reasons for letter in one), reasons
    assert all(one["offset"] >= 0 and one["uri"] for one in data["bad"])
    assert sum(one["count"] for one in data["badKinds"]) == len(BAD), data["badKinds"]
    failed = condition(kube.wait_phase("too-bad", "Failed", SECONDS), "Failed")
    assert failed["reason"] == "DataInvalid"
    assert "data.quality.maxBadRecords" in failed["message"]


def test_wrong_key(kube: Kube) -> None:
    failed = condition(kube.wait_phase("wrong-key", "Failed", SECONDS), "Failed")
    assert failed["reason"] == "CredentialsInvalid"
    assert "another data key" in failed["message"]
    assert "data.encryption.keySecretRef" in failed["message"]


def test_augmented(kube: Kube) -> None:
    metrics = kube.wait_phase("augmented-digits", "Complete", SECONDS)["status"]["artifact"]["metrics"]
    assert float(metrics["accuracy"]) > 0.9
    # A tenth by chance; how much less than of images as they are is what is measured.
    assert all(0.3 < float(metrics[f"accuracy{how}"]) <= 1 for how in ("Noise", "Occlusion", "Resize")), metrics


def test_private(kube: Kube) -> None:
    status = kube.wait_phase("private-digits", "Complete", SECONDS)["status"]
    assert 7.5 < float(status["privacy"]["epsilonSpent"]) <= 8
    assert float(status["privacy"]["noiseMultiplier"]) > 0
    assert float(status["artifact"]["metrics"]["epsilonSpent"]) <= 8
    assert float(status["artifact"]["metrics"]["accuracy"]) > 0.6  # 0.97 without noise


def trains(found: Object) -> bool:
    return found.get("status", {}).get("progress", {}).get("activity") == "Training"


def lent(found: Object) -> bool:
    return found["status"].get("data", {}).get("peerBytes", 0) > 0


def stored_blocks() -> list[str]:
    with installation_store() as store:
        return store.ls("corpora/sealed-digits/blocks", detail=False)
