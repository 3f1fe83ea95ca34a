"""What the agent does with its Triton: loads the models, makes sure that they are the right ones, asks golden cases.

All over HTTP on the pod's loopback.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mms_workloads.contract import Comparison, Counters, Golden, GoldenCase, Measured, Reason
from mms_workloads.serve import asking, comparing, golden, measuring
from mms_workloads.serve.asking import AnswerError, Http
from mms_workloads.serve.generations import PIN
from mms_workloads.serve.layout import CONTROL_HEADER
from mms_workloads.serve.repository import MODELS
from mms_workloads.serve.totals import Totals
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mms_workloads.serve.artifact import Artifact
    from mms_workloads.serve.golden import Tensor

PROBE_SECONDS = 1.0
LOAD_SECONDS = 300.0  # a model that ends its process while loading hangs the load: Triton itself has no limit
INFER_SECONDS = 60.0

_TIMES = ("queue", "compute_input", "compute_infer", "compute_output")


class TritonGoneError(Exception):
    """Triton does not answer: it is starting, restarting or ending."""


class Triton:
    """A connection to the pod's Triton; `key` unlocks its model control. models: those that it is to run.

    failures: requests at which models have failed, beside those that Triton counts.
    """

    def __init__(
        self, url: str, key: str, models: Sequence[str] = MODELS, failures: Callable[[], int] = lambda: 0
    ) -> None:
        self.models = tuple(models)
        self._failures = failures
        self._http = Http(url, {CONTROL_HEADER: key}, keep=False)
        self._key = key
        self._own = Counters()
        self._totals = Totals()
        self._counted: tuple[Counters | None, Counters] = (None, self._own)
        # Between a question of our own and its being counted nobody looks at the counters.
        self._asking = asyncio.Lock()

    async def close(self) -> None:
        await self._http.close()

    async def live(self) -> bool:
        return await self._is("/v2/health/live")

    async def ready(self) -> dict[str, bool]:
        """Which of the models answer."""
        try:
            index = asking.parsed(await self._http.post("/v2/repository/index", b"{}", PROBE_SECONDS))
        except AnswerError:
            return dict.fromkeys(self.models, False)
        there = {one.get("name") for one in index if one.get("state") == "READY"}
        return {model: model in there for model in self.models}

    async def load(self) -> None:
        """Loads the models, all at a time. That they serve the artifact only their answers prove: `verify`.

        Raises JobError ModelLoadFailed, TritonGoneError.
        """
        loads = [self._http.post(f"/v2/repository/models/{model}/load", b"{}", LOAD_SECONDS) for model in self.models]
        for model, answer in zip(self.models, await asyncio.gather(*loads, return_exceptions=True), strict=True):
            if isinstance(answer, AnswerError):
                raise await self._failure(model, answer) from answer
            if isinstance(answer, BaseException):
                raise answer

    async def verify(self, cases: Golden, digest: str, version: int | None = None) -> int:
        """Asks all golden cases of an artifact that the models hold, whichever serves; how many were right: all.

        version: of the models in Triton; None: the one that answers clients. Raises JobError GoldenMismatch,
        TritonGoneError.
        """
        if cases.asItIs:
            return 0
        if not cases.cases:
            raise JobError(Reason.GOLDEN_MISMATCH, "the artifact has no golden case: train again")
        for number, case in enumerate(cases.cases):
            label = f"golden case {number} ({case.model}, {_inputs(case)})"
            try:
                found = await self.ask(case, digest, version)
                wrong = _other_artifact(found, digest) or golden.difference(case, found, cases.absoluteTolerance)
            except golden.GoldenError as error:
                wrong = str(error)
            except AnswerError as error:
                if not await self.live():
                    raise TritonGoneError(str(error)) from error
                wrong = f"Triton answered with an error: {error.message}"
            if wrong is not None:
                raise JobError(
                    Reason.GOLDEN_MISMATCH,
                    f"{label}: {wrong}: the model does not answer as where it was trained: serve another version, or "
                    "train again",
                )
        return len(cases.cases)

    async def counters(self) -> tuple[Counters | None, Counters]:
        """What Triton has counted of the models (None where it does not answer), and what of it was asked here.

        What versions have counted that are no longer there is in it. While a question of our own takes long: as both
        were before it.
        """
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._asking.acquire()
        except TimeoutError:
            return self._counted
        try:
            self._counted = await self._count_now()
        finally:
            self._asking.release()
        return self._counted

    async def _count_now(self) -> tuple[Counters | None, Counters]:
        own = self._own
        try:
            said = asking.parsed(await self._http.get("/v2/models/stats", PROBE_SECONDS)).get("model_stats", ())
        except AnswerError:
            return None, own
        mine = [one for one in said if one["name"] in self.models]
        if {one["name"] for one in mine} != set(self.models):  # one is gone: what it has counted would be, too
            return None, own
        counts: dict[tuple[str, str, str], int] = {}
        for one in mine:
            model, stats = (one["name"], str(one.get("version", ""))), one["inference_stats"]
            counts |= {(*model, kind): _count(stats, kind) for kind in ("success", "fail")}
            counts[*model, "ns"] = sum(int(stats.get(kind, {}).get("ns", 0)) for kind in _TIMES)
        found = self._totals.take(counts)
        good, bad, times = (sum(n for key, n in found.items() if key[2] == kind) for kind in ("success", "fail", "ns"))
        failed = bad + self._failures()
        starts = self._totals.starts
        return Counters(requests=good + bad, failed=failed, timed=good, seconds=times / 1e9, starts=starts), own

    async def measure(self, cases: Golden, limit_seconds: float, within: float | None = None) -> Measured:
        """What the pod can do: its golden questions, so many at a time, as fast as they are answered.

        within: seconds that 99 of 100 answers may take; None: nobody said.
        """
        if not cases.cases:
            return Measured(seconds=0.0, error="its model has no golden question to be measured by")
        questions = [(_path(case), asking.question(golden.inputs(case), list(case.outputs))) for case in cases.cases]
        asked = 0

        async def ask(number: int) -> None:
            nonlocal asked
            path, question = questions[number % len(questions)]
            asked += 1
            await self._http.ask(path, question, INFER_SECONDS)

        try:
            return await measuring.measure(ask, limit_seconds, within=within)
        finally:
            known = self._own
            self._own = known.model_copy(update={"requests": known.requests + asked, "timed": known.timed + asked})

    async def compare(self, artifact: Artifact, reference: Artifact) -> Comparison:
        """How often the artifact's answers to the reference's comparisons differ. Raises TritonGoneError."""
        compared = differing = 0
        for case in reference.golden.comparisons:
            try:
                differs = comparing.differs(case, await self.ask(case, artifact.digest))
            except AnswerError as error:
                if not await self.live():
                    raise TritonGoneError(str(error)) from error
                differs = True  # a question that the reference answers
            compared += differs is not None
            differing += bool(differs)
        return Comparison(reference=reference.digest, compared=compared, differing=differing)

    async def ask(self, case: GoldenCase, digest: str, version: int | None = None) -> dict[str, Tensor]:
        """The outputs of a case, and DIGEST, as an artifact that is held answers. Raises AnswerError, GoldenError."""
        pin = {PIN: f"{self._key} {digest}"}
        question = asking.question(golden.inputs(case), [*case.outputs, "DIGEST"], pin)
        async with self._asking:
            failed = 1
            try:
                answer = await self._http.ask(_path(case, version), question, INFER_SECONDS)
                failed = 0
            finally:
                known = self._own
                self._own = Counters(
                    requests=known.requests + 1, failed=known.failed + failed, timed=known.timed + 1 - failed
                )
        return asking.outputs_of(answer)

    async def _is(self, path: str) -> bool:
        try:
            await self._http.get(path, PROBE_SECONDS)
        except AnswerError:
            return False
        return True

    async def _failure(self, model: str, error: AnswerError) -> Exception:
        if error.late:
            return _load_failed(model, error.message)
        if not await self.live():
            return TritonGoneError(error.message)
        return _load_failed(model, error.message)


def _count(stats: dict[str, Any], kind: str) -> int:
    return int(stats.get(kind, {}).get("count", 0))


def _path(case: GoldenCase, version: int | None = None) -> str:
    of = "" if version is None else f"/versions/{version}"
    return f"/v2/models/{case.model}{of}/infer"


def _other_artifact(outputs: dict[str, Tensor], digest: str) -> str | None:
    found = outputs["DIGEST"]["data"][0]
    return None if found == digest else f"artifact {found} answered, not {digest}"


def _load_failed(model: str, why: str) -> JobError:
    return JobError(Reason.MODEL_LOAD_FAILED, f"Triton cannot load model {model}: {why}")


def _inputs(case: GoldenCase) -> str:
    given = [f"{name} {str(values)[:60]}" for name, values in case.inputs.items()]
    return ", ".join([*given, *(f"{name} {one.datatype} {one.shape}" for name, one in case.tensors.items())])
