"""What the agent does with its Triton: loads the models, makes sure that they are the right ones, asks golden cases.

All through tritonclient over gRPC on the pod's loopback.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from mms_workloads.contract import Comparison, Counters, Golden, GoldenCase, Reason
from mms_workloads.serve import comparing, golden
from mms_workloads.serve.generations import PIN
from mms_workloads.serve.layout import CONTROL_HEADER
from mms_workloads.serve.repository import MODELS
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from mms_workloads.serve.artifact import Artifact

PROBE_SECONDS = 1.0
LOAD_SECONDS = 300.0  # a model that ends its process while loading hangs the load: Triton itself has no limit
INFER_SECONDS = 60.0

_TIMES = ("queue", "compute_input", "compute_infer", "compute_output")
_CHANNEL = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # A server that comes back is found at once; the default waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class TritonGoneError(Exception):
    """Triton does not answer: it is starting, restarting or ending."""


class Triton:
    """A connection to the pod's Triton; `key` unlocks its model control."""

    def __init__(self, address: str, key: str) -> None:
        self._client = triton.InferenceServerClient(address, channel_args=_CHANNEL)
        self._headers = {f"triton-grpc-protocol-{CONTROL_HEADER}": key}
        self._key = key
        self._own = Counters()
        self._asking = (
            asyncio.Lock()
        )  # between a question of our own and its being counted nobody looks at the counters

    async def close(self) -> None:
        await self._client.close()

    async def live(self) -> bool:
        try:
            return bool(await self._client.is_server_live(client_timeout=PROBE_SECONDS))
        except InferenceServerException:
            return False

    async def ready(self) -> dict[str, bool]:
        """Which of the models answer."""
        return {model: await self._model_ready(model) for model in MODELS}

    async def load(self) -> None:
        """Loads the models. That they serve the artifact only their answers prove: `verify`.

        Raises JobError ModelLoadFailed, TritonGoneError.
        """
        for model in MODELS:
            try:
                await self._client.load_model(model, headers=self._headers, client_timeout=LOAD_SECONDS)
            except InferenceServerException as error:
                raise await self._failure(model, error) from error

    async def verify(self, cases: Golden, digest: str) -> int:
        """Asks all golden cases of an artifact that the models hold, whichever serves; how many were right: all.

        Raises JobError GoldenMismatch, TritonGoneError.
        """
        if not cases.cases:
            raise JobError(Reason.GOLDEN_MISMATCH, "the artifact has no golden case: train again")
        for number, case in enumerate(cases.cases):
            label = f"golden case {number} ({case.model}, {_inputs(case)})"
            try:
                found = await self.ask(case, digest)
                wrong = _other_artifact(found, digest) or golden.difference(case, found, cases.absoluteTolerance)
            except golden.GoldenError as error:
                wrong = str(error)
            except InferenceServerException as error:
                if not await self.live():
                    raise TritonGoneError(str(error)) from error
                wrong = f"Triton answered with an error: {error.message()}"
            if wrong is not None:
                raise JobError(
                    Reason.GOLDEN_MISMATCH,
                    f"{label}: {wrong}: the model does not answer as where it was trained: serve another version, or "
                    "train again",
                )
        return len(cases.cases)

    async def counters(self) -> tuple[Counters | None, Counters]:
        """What Triton has counted of the models (None where it does not answer), and what of it was asked here."""
        async with self._asking:
            own = self._own
            try:
                said = await asyncio.gather(
                    *(
                        self._client.get_inference_statistics(model, as_json=True, client_timeout=PROBE_SECONDS)
                        for model in MODELS
                    )
                )
            except InferenceServerException:
                return None, own
        stats = [one["inference_stats"] for answer in said for one in answer.get("model_stats", ())]
        good, bad = (sum(_count(one, kind) for one in stats) for kind in ("success", "fail"))
        times = sum(int(one.get(kind, {}).get("ns", 0)) for one in stats for kind in _TIMES)
        return Counters(requests=good + bad, failed=bad, timed=good, seconds=times / 1e9), own

    def asked(self, requests: int) -> None:
        """Counts questions of our own that were asked past this connection, and answered."""
        known = self._own
        self._own = Counters(requests=known.requests + requests, failed=known.failed, timed=known.timed + requests)

    async def compare(self, artifact: Artifact, reference: Artifact) -> Comparison:
        """How often the artifact's answers to the reference's comparisons differ. Raises TritonGoneError."""
        compared = differing = 0
        for case in reference.golden.comparisons:
            try:
                differs = comparing.differs(case, await self.ask(case, artifact.digest))
            except InferenceServerException as error:
                if not await self.live():
                    raise TritonGoneError(str(error)) from error
                differs = True  # a question that the reference answers
            compared += differs is not None
            differing += bool(differs)
        return Comparison(reference=reference.digest, compared=compared, differing=differing)

    async def ask(self, case: GoldenCase, digest: str) -> dict[str, Any]:
        """The outputs of a case, and DIGEST, as an artifact that is held answers. Raises InferenceServerException."""
        tensors = []
        for name, (datatype, array) in golden.inputs(case).items():
            tensor = triton.InferInput(name, list(array.shape), datatype)
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        async with self._asking:
            failed = 1
            try:
                result = await self._client.infer(
                    case.model, tensors, parameters={PIN: f"{self._key} {digest}"}, client_timeout=INFER_SECONDS
                )
                failed = 0
            finally:
                known = self._own
                self._own = Counters(
                    requests=known.requests + 1, failed=known.failed + failed, timed=known.timed + 1 - failed
                )
        return {name: result.as_numpy(name) for name in (*case.outputs, "DIGEST")}

    async def _model_ready(self, model: str) -> bool:
        try:
            return bool(await self._client.is_model_ready(model, client_timeout=PROBE_SECONDS))
        except InferenceServerException:
            return False

    async def _failure(self, model: str, error: InferenceServerException) -> Exception:
        if error.status() == "StatusCode.DEADLINE_EXCEEDED":
            return _load_failed(model, f"no answer within {LOAD_SECONDS:.0f} s")
        if not await self.live():
            return TritonGoneError(error.message())
        return _load_failed(model, error.message())


def _count(stats: dict[str, Any], kind: str) -> int:
    return int(stats.get(kind, {}).get("count", 0))


def _other_artifact(outputs: dict[str, Any], digest: str) -> str | None:
    found = outputs["DIGEST"].flat[0].decode()
    return None if found == digest else f"artifact {found} answered, not {digest}"


def _load_failed(model: str, why: str) -> JobError:
    return JobError(Reason.MODEL_LOAD_FAILED, f"Triton cannot load model {model}: {why}")


def _inputs(case: GoldenCase) -> str:
    return ", ".join(f"{name} {str(values)[:60]}" for name, values in case.inputs.items())
