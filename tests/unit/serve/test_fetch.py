"""What the fetch container lets through, and what it says about the rest."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mms_workloads.contract import Outcome
from mms_workloads.serve import fetch
from mms_workloads.serve.repository import MODELS
from tests.unit.serve import artifacts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.serve.artifacts import Built


class Pod:
    """A pod's volume and files around one artifact; `run` is the container's process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.built: Built = artifacts.build(root / "store")
        self.digest = self.built.digest
        self.uri: Path = self.built.folder

    def run(self, **more: Any) -> tuple[int, Outcome | None]:
        """more: fields of the pod's file."""
        file = artifacts.serve_file(self.root / "serve.json", self.uri, self.digest)
        file.write_text(json.dumps({**json.loads(file.read_text()), **more}))
        log = self.root / "termination-log"
        log.unlink(missing_ok=True)
        environment = {
            "MMS_SERVE_FILE": str(file),
            "MMS_MODELS_DIR": str(self.root / "models"),
            "MMS_TERMINATION_LOG": str(log),
        }
        code = fetch.main(environment)
        return code, Outcome.model_validate_json(log.read_bytes()) if log.exists() else None

    @property
    def folder(self) -> Path:
        return self.root / "models" / f"artifact-{self.digest[7:19]}"

    def manifest(self, **changes: Any) -> None:
        manifest = json.loads((self.uri / "manifest.json").read_text())
        self.digest = artifacts.write_manifest(self.uri, {**manifest, **changes})

    def rename(self, name: str, to: str) -> None:
        files = json.loads((self.uri / "manifest.json").read_text())["files"]
        files[to] = files.pop(name)
        self.manifest(files=files)

    def rewrite(self, name: str, data: bytes) -> None:
        """A file that is wrong although it is what was published."""
        (self.uri / name).write_bytes(data)
        self.digest = artifacts.seal(self.uri)

    def weights(self, matrix: np.ndarray, name: str = "vectors") -> None:
        save_file({name: matrix}, self.uri / "model.safetensors")
        self.digest = artifacts.seal(self.uri)


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def flip(pod: Pod) -> None:
    path = pod.uri / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def resize(name: str, change: int) -> Callable[[Pod], None]:
    def do(pod: Pod) -> None:
        data = (pod.uri / name).read_bytes()
        (pod.uri / name).write_bytes(data + b"x" * change if change > 0 else data[:change])

    return do


def with_nan(pod: Pod) -> None:
    vectors = pod.built.vectors.copy()
    vectors[17, 0] = np.nan
    pod.weights(vectors)


def test_good(pod: Pod) -> None:
    assert pod.run() == (0, None)
    for name in (*artifacts.FILES, "manifest.json"):
        assert (pod.folder / name).read_bytes() == (pod.uri / name).read_bytes()
    unit = np.load(pod.folder / "unit_vectors.npy")
    np.testing.assert_allclose(
        unit, pod.built.vectors / np.linalg.norm(pod.built.vectors, axis=1, keepdims=True), rtol=1e-6
    )
    repository = pod.root / "models" / "repository"
    found = sorted(str(path.relative_to(repository)) for path in repository.rglob("*.p*") if path.is_file())
    assert [name for name in found if not name.endswith(".pyc")] == [
        f"{model}/{name}" for model in sorted(MODELS) for name in ("1/model.py", "config.pbtxt")
    ]
    key = pod.root / "models" / "control-key"
    assert len(key.read_text()) == 64
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert not list((pod.root / "models").rglob("*.part"))


def test_again_in_the_same_pod(pod: Pod) -> None:
    pod.run()
    key = (pod.root / "models" / "control-key").read_text()
    kept = (pod.folder / "vocabulary.txt").stat().st_ino
    (pod.folder / "model.safetensors").write_bytes(b"half a fi")  # what a killed first run could have left
    assert pod.run() == (0, None)
    assert (pod.folder / "model.safetensors").read_bytes() == (pod.uri / "model.safetensors").read_bytes()
    assert (pod.folder / "vocabulary.txt").stat().st_ino == kept
    assert (pod.root / "models" / "control-key").read_text() == key


@pytest.mark.parametrize(
    ("spoil", "reason", "says"),
    [
        (lambda p: setattr(p, "digest", "sha256:" + "0" * 64), "ArtifactCorrupt", ["0" * 64, "found sha256:"]),
        (flip, "ArtifactCorrupt", ["model.safetensors", "expected sha256:", "found sha256:", "train again"]),
        (resize("vocabulary.txt", -3), "ArtifactCorrupt", ["vocabulary.txt", "bytes, found"]),
        (resize("vocabulary.txt", 5_000_000), "ArtifactCorrupt", ["vocabulary.txt", "found more"]),
        (lambda p: (p.uri / "golden.json").unlink(), "ArtifactCorrupt", ["golden.json", "missing"]),
        (lambda p: (p.uri / "manifest.json").unlink(), "ArtifactNotFound", ["manifest.json", "check the"]),
        (lambda p: setattr(p, "uri", p.root / "nothing"), "ArtifactNotFound", ["nothing"]),
        (lambda p: p.rename("evaluation.json", "../evil"), "ArtifactCorrupt", ["'../evil' is refused"]),
        (lambda p: p.rename("evaluation.json", "/etc/evil"), "ArtifactCorrupt", ["'/etc/evil' is refused"]),
        (lambda p: p.rename("evaluation.json", "a/b"), "ArtifactCorrupt", ["'a/b' is refused"]),
        (lambda p: p.rename("evaluation.json", ".."), "ArtifactCorrupt", ["'..' is refused"]),
        (lambda p: p.rename("evaluation.json", "unit_vectors.npy"), "ArtifactCorrupt", ["is refused"]),
        (lambda p: p.rename("evaluation.json", "word_index.npy"), "ArtifactCorrupt", ["is refused"]),
        (lambda p: p.rename("golden.json", "other.json"), "ArtifactCorrupt", ["names no golden.json"]),
        (lambda p: p.manifest(contractVersion=2), "ModelLoadFailed", ["contract version 2 is newer than 1", "upgrade"]),
        (lambda p: p.manifest(kind="poem"), "ArtifactCorrupt", ["not an artifact's manifest", "kind"]),
        (lambda p: p.rewrite("vocabulary.txt", b"a\t1\nb\t1\n"), "ArtifactCorrupt", ["2 words", "200 vectors"]),
        (lambda p: p.rewrite("vocabulary.txt", b"a 1\n"), "ArtifactCorrupt", ["line 1"]),
        (lambda p: p.rewrite("vocabulary.txt", b"a\t1\n" * 200), "ArtifactCorrupt", ['"a" twice']),
        (lambda p: p.rewrite("golden.json", b"{}"), "ArtifactCorrupt", ["cases"]),
        (lambda p: p.rewrite("model.safetensors", b"abc"), "ArtifactCorrupt", ["model.safetensors"]),
        (lambda p: p.rewrite("model.safetensors", b"\xff" * 64), "ArtifactCorrupt", ["header is longer"]),
        (lambda p: p.weights(p.built.vectors.astype(np.float64)), "ArtifactCorrupt", ["F64", "not float32"]),
        (lambda p: p.weights(p.built.vectors, "embeddings"), "ArtifactCorrupt", ["'vectors'"]),
        (with_nan, "ArtifactCorrupt", ["vector 17 is not finite"]),
    ],
    ids=[
        "wrong manifest digest", "flipped bit", "truncated", "longer", "file missing", "manifest missing",
        "folder missing",
        "name up", "name absolute", "name in folder", "name dots", "name of ours", "our other name",
        "no golden", "newer contract",
        "unknown kind", "vocabulary too short", "vocabulary without tab", "word twice", "golden invalid",
        "weights too short", "weights header", "weights float64", "weights other tensor", "weights nan",
    ],
)  # fmt: skip
def test_refused(pod: Pod, spoil: Callable[[Pod], Any], reason: str, says: list[str]) -> None:
    spoil(pod)
    code, outcome = pod.run()
    assert code == 1
    assert outcome is not None
    assert (outcome.result, outcome.reason, outcome.retryable) == ("Failed", reason, False)
    for text in says:
        assert text in outcome.message
    assert not (pod.root / "models" / "repository").exists()
    assert not (pod.root / "evil").exists()
    if pod.folder.exists():
        assert not list(pod.folder.glob(".*.json.part"))


def test_a_store_that_is_away_can_be_tried_again(pod: Pod) -> None:
    (pod.uri / "vocabulary.txt").unlink()
    (pod.uri / "vocabulary.txt").mkdir()  # reading it is an I/O error, not an absence
    code, outcome = pod.run()
    assert outcome is not None
    assert (code, outcome.reason, outcome.retryable) == (75, "StorageUnreachable", True)


def test_a_volume_without_room_is_not_the_stores_fault(pod: Pod) -> None:
    (pod.root / "models").write_text("no folder can be made here")
    code, outcome = pod.run()
    assert outcome is not None
    assert (code, outcome.reason) == (75, "InternalError")
    assert "its volume needs" in outcome.message


@pytest.mark.parametrize("wanted", ["Auto", "FP32"])
def test_word_vectors_have_one_precision(pod: Pod, wanted: str) -> None:
    assert pod.run(precision={"wanted": wanted}) == (0, None)


@pytest.mark.parametrize("wanted", ["INT8", "BF16"])
@pytest.mark.parametrize("more", [{}, {"live": {"masterHost": "m", "uid": "u", "run": 1}}], ids=["artifact", "live"])
def test_word_vectors_in_another_precision(pod: Pod, wanted: str, more: dict[str, Any]) -> None:
    """Also those of a training that is followed."""
    code, outcome = pod.run(precision={"wanted": wanted}, **more)
    assert outcome is not None
    assert (code, outcome.reason) == (1, "ModelLoadFailed")
    assert outcome.message == f"server.precision {wanted} is not for wordEmbedding: set FP32 or Auto, or leave it out"


def test_no_service_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert fetch.main({"MMS_SERVE_FILE": str(tmp_path / "no.json"), "MMS_TERMINATION_LOG": str(log)}) == 1
    assert Outcome.model_validate_json(log.read_bytes()).reason == "JobFileInvalid"
