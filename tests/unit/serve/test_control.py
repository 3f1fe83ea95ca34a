"""The agent's dealings with Triton, on a stand-in for tritonclient."""
# ruff: noqa: ARG002 - the stand-in has the signatures of the real one

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.unit.serve import artifacts
from tritonclient.utils import InferenceServerException

from mms_workloads.contract import Counters, Golden
from mms_workloads.serve.control import Triton, TritonGoneError
from mms_workloads.serve.generations import PIN
from mms_workloads.serve.repository import MODELS
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.unit.serve.artifacts import Built


class Result:
    def __init__(self, outputs: dict[str, np.ndarray]) -> None:
        self.outputs = outputs

    def as_numpy(self, name: str) -> np.ndarray | None:
        return self.outputs.get(name)


class Client:
    """Answers the golden cases in turn."""

    def __init__(self, built: Built) -> None:
        self.digest = self.built_digest = built.digest
        self.live = True
        self.load_error: InferenceServerException | None = None
        self.infer_error: InferenceServerException | None = None
        self.cases = Golden.model_validate_json((built.folder / "golden.json").read_bytes())
        self.answers = [{name: np.array(values) for name, values in case.outputs.items()} for case in self.cases.cases]
        self.asked: list[tuple[str, str]] = []
        self.headers: dict[str, str] = {}

    async def is_server_live(self, **_: Any) -> bool:
        if not self.live:
            raise InferenceServerException("refused", "StatusCode.UNAVAILABLE")
        return True

    async def is_model_ready(self, model: str, **_: Any) -> bool:
        if not self.live:
            raise InferenceServerException("refused", "StatusCode.UNAVAILABLE")
        return model == "vectors"

    async def load_model(self, model: str, headers: dict[str, str], **_: Any) -> None:
        self.headers = headers
        if self.load_error:
            raise self.load_error

    async def infer(self, model: str, inputs: list[Any], parameters: dict[str, str], **_: Any) -> Result:
        if self.infer_error:
            raise self.infer_error
        key, _, digest = parameters[PIN].partition(" ")
        assert key == "secret"
        self.asked.append((model, digest))
        return Result({**self.answers[len(self.asked) - 1], "DIGEST": np.array([[self.digest.encode()]])})

    async def get_inference_statistics(self, model: str, **_: Any) -> dict[str, Any]:
        if not self.live:
            raise InferenceServerException("refused", "StatusCode.UNAVAILABLE")
        stats = {"success": {"count": "10", "ns": "1"}, "fail": {"count": "3"}, "queue": {"ns": "500000000"},
                 "compute_infer": {"ns": "1000000000"}}  # fmt: skip
        return {"model_stats": [{"name": model, "inference_stats": stats}]}

    async def close(self) -> None:
        pass


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return artifacts.build(tmp_path)


@pytest.fixture
def client(built: Built) -> Client:
    return Client(built)


@pytest.fixture
async def triton(client: Client) -> AsyncIterator[Triton]:
    triton = Triton("127.0.0.1:1", "secret")
    real, triton._client = triton._client, client
    yield triton
    await real.close()


async def test_load_and_verify(triton: Triton, client: Client, built: Built) -> None:
    await triton.load()
    assert client.headers == {"triton-grpc-protocol-mms-control-key": "secret"}
    assert await triton.verify(client.cases, client.built_digest) == 3
    assert client.asked == [(model, built.digest) for model in ("vectors", "neighbours", "neighbours")]
    assert await triton.ready() == {"vectors": True, "neighbours": False, "analogies": False, "similarity": False}


async def test_gone(triton: Triton, client: Client, built: Built) -> None:
    client.live = False
    client.load_error = client.infer_error = InferenceServerException("reset", "StatusCode.UNAVAILABLE")
    assert not await triton.live()
    assert await triton.ready() == dict.fromkeys(MODELS, False)
    with pytest.raises(TritonGoneError):
        await triton.load()
    with pytest.raises(TritonGoneError):
        await triton.verify(client.cases, client.built_digest)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"load_error": InferenceServerException("boom in initialize", "StatusCode.INTERNAL")}, "boom in initialize"),
        ({"load_error": InferenceServerException("late", "StatusCode.DEADLINE_EXCEEDED")}, "no answer within 300 s"),
    ],
    ids=["raises", "hangs"],
)
async def test_load_fails(triton: Triton, client: Client, change: dict[str, Any], says: str) -> None:
    for name, value in change.items():
        setattr(client, name, value)
    with pytest.raises(JobError) as error:
        await triton.load()
    assert error.value.reason == "ModelLoadFailed"
    assert says in error.value.message
    assert "vectors" in error.value.message


async def test_another_artifact_answers(triton: Triton, client: Client) -> None:
    client.digest = "sha256:other"
    with pytest.raises(JobError, match="artifact sha256:other answered") as error:
        await triton.verify(client.cases, client.built_digest)
    assert error.value.reason == "GoldenMismatch"


async def test_a_wrong_answer(triton: Triton, client: Client) -> None:
    client.answers[1]["SCORES"][3] += 0.01
    with pytest.raises(JobError) as error:
        await triton.verify(client.cases, client.built_digest)
    assert error.value.reason == "GoldenMismatch"
    assert (
        "golden case 1 (neighbours, WORDS ['word0', 'höhe', 'word7'], K [5]): SCORES[3]: expected"
        in error.value.message
    )


async def test_an_error_for_an_answer(triton: Triton, client: Client) -> None:
    client.infer_error = InferenceServerException("unknown word", "StatusCode.NOT_FOUND")
    with pytest.raises(JobError, match=r"GoldenMismatch.*case 0.*unknown word"):
        await triton.verify(client.cases, client.built_digest)


async def test_no_cases(triton: Triton) -> None:
    with pytest.raises(JobError, match="no golden case"):
        await triton.verify(Golden(cases=[]), 3)


async def test_what_is_asked_here_is_counted_apart(triton: Triton, client: Client) -> None:
    await triton.verify(client.cases, client.built_digest)
    client.infer_error = InferenceServerException("no", "StatusCode.INVALID_ARGUMENT")
    with pytest.raises(JobError):
        await triton.verify(client.cases, client.built_digest)
    total, own = await triton.counters()
    assert own == Counters(requests=4, failed=1, timed=3)
    assert total == Counters(requests=4 * 13, failed=4 * 3, timed=4 * 10, seconds=4 * 1.5)
    client.live = False
    assert await triton.counters() == (None, own)
