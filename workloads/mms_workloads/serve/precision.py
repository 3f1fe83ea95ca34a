"""A network with fewer bits: made in the pod, measured on the artifact's own questions, taken if it is worth it.

What is lost is counted as answers that are others than at FP32, which is at least what accuracy can fall by. What is
gained is measured on this processor, one request at a time on one core. INT8: ONNX Runtime's quantisation, static where
the network has convolutions, whose inputs are calibrated on every second question, and which the others judge; else
dynamic. BF16: PyTorch's networks.
"""

from __future__ import annotations

import base64
import struct
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.contract import LEAST_QUESTIONS, Golden, PrecisionReport, Reason
from mms_workloads.serve import pipelines
from mms_workloads.serve.pipelines.served import VARIANT, Variant
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import GoldenCase, GoldenTensor, Pipeline, PrecisionOrder
    from mms_workloads.serve.pipelines import Served

    Inputs = dict[str, NDArray[Any]]

INT8 = "model.int8.onnx"
WORTH = 1.1  # times as fast, for Auto to take it
NEAR = 0.99  # cosine of vectors that count as the same
FAR = 0.01  # part of their size by which numbers may be others, of answers that are of numbers alone
ROUNDS = 3  # of all questions, of which the quickest counts

LOSES, NO_FASTER = "loses more than is allowed", "is hardly faster here"  # why it is FP32

_TYPES = {"FP32": np.float32, "INT64": np.int64, "INT32": np.int32}


def apply(folder: Path, order: PrecisionOrder, *, trusted: bool) -> PrecisionReport:
    """Makes the artifact's folder be served as asked. Raises JobError: that cannot be had, or loses too much."""
    (folder / VARIANT).unlink(missing_ok=True)
    golden = Golden.model_validate_json((folder / "golden.json").read_bytes())
    questions = asked(golden)
    plain = pipelines.open(folder, anomalies="Off", trusted=trusted)
    wanted = _possible(plain)
    if order.wanted not in {"Auto", wanted}:
        raise JobError(
            Reason.MODEL_LOAD_FAILED,
            f"server.precision {order.wanted} is not for {plain.pipeline.runtime} networks: "
            f"set {wanted or 'FP32'} or Auto",
        )
    if wanted is None:
        return PrecisionReport(chosen="FP32", message=f"there is no other for {plain.pipeline.runtime} networks")
    # What it is fitted to says little of what it loses on others. Of a single question there is no half.
    fitted = _is_calibrated(folder, plain.pipeline)
    calibrating, judging = (questions[1::2] or questions, questions[::2]) if fitted else ([], questions)
    if order.wanted == "Auto" and len(judging) < LEAST_QUESTIONS:
        there, needed = f"the artifact has {len(questions)} questions", questions_needed(folder, plain.pipeline)
        return PrecisionReport(
            chosen="FP32", message=f"{there}, and {needed} are needed to tell what another would lose"
        )
    try:
        variant = _make(folder, plain, calibrating, wanted)
        found = compare(plain, variant, judging)
    except OSError:
        raise
    except Exception as error:  # what a quantiser cannot do it says in many ways
        _withdraw(folder)
        why = f"{wanted} cannot be made of this network ({type(error).__name__}: {error})"
        if order.wanted == "Auto":
            return PrecisionReport(chosen="FP32", message=why)
        remedy = "set server.precision to Auto or FP32"
        raise JobError(Reason.MODEL_LOAD_FAILED, f"{why}: {remedy}") from error
    if found.loss > order.maxLoss and order.wanted != "Auto":
        raise JobError(
            Reason.MODEL_LOAD_FAILED,
            f"{wanted} answers {found.loss:.2%} of {found.questions} questions otherwise, and server.maxAccuracyLoss "
            f"is {order.maxLoss:.2%}: allow more, or set server.precision to Auto or FP32",
        )
    if found.loss > order.maxLoss or (order.wanted == "Auto" and found.speedUp < WORTH):
        _withdraw(folder)
        why = LOSES if found.loss > order.maxLoss else NO_FASTER
        return found.model_copy(update={"chosen": "FP32", "message": f"{wanted} {why}"})
    # The answers that prove it from now on are its own: those from the training were compared above.
    cases = [pipelines.golden_case(variant, inputs_of(case)) for case in golden.cases]
    (folder / "golden.json").write_text(golden.model_copy(update={"cases": cases}).model_dump_json())
    return found.model_copy(update={"chosen": wanted})


def _withdraw(folder: Path) -> None:
    (folder / VARIANT).unlink(missing_ok=True)
    (folder / INT8).unlink(missing_ok=True)


def asked(golden: Golden) -> list[Inputs]:
    """What its cases, comparisons and questions ask, each once."""
    given = [*(case.tensors for case in (*golden.cases, *golden.comparisons)), *golden.questions]
    return [_arrays(one) for one in {str(tensors): tensors for tensors in given if tensors}.values()]


def questions_needed(folder: Path, pipeline: Pipeline) -> int:
    """Of a golden set, for Auto: LEAST_QUESTIONS judge, and another network may be calibrated on as many."""
    return (2 if _is_calibrated(folder, pipeline) else 1) * LEAST_QUESTIONS


def _is_calibrated(folder: Path, pipeline: Pipeline) -> bool:
    """Whether a network of fewer bits is fitted to questions: an ONNX one with convolutions."""
    return pipeline.runtime == "ONNX" and _has_convolutions(folder / pipeline.network)


def _has_convolutions(network: Path) -> bool:
    import onnx  # noqa: PLC0415 - of this alone

    return any(node.op_type == "Conv" for node in onnx.load(network, load_external_data=False).graph.node)


def _possible(served: Served) -> Any:
    return {"ONNX": "INT8", "Transformers": "BF16"}.get(served.pipeline.runtime)


def _make(folder: Path, plain: Served, questions: Sequence[Inputs], wanted: str) -> Served:
    if wanted == "INT8":
        quantise(folder / plain.pipeline.network, folder / INT8, list(_feeds(plain, questions)))
        variant = Variant(precision="INT8", network=INT8)
    else:
        variant = Variant(precision="BF16")
    (folder / VARIANT).write_text(variant.model_dump_json())
    return pipelines.open(folder, anomalies="Off", trusted=plain.trusted)


def quantise(source: Path, target: Path, feeds: Sequence[Inputs]) -> None:
    """An ONNX network with weights of 8 bits. feeds: by the network's names, to calibrate what convolutions get."""
    import logging  # noqa: PLC0415

    from onnxruntime import quantization  # noqa: PLC0415

    logging.getLogger().setLevel(max(logging.WARNING, logging.getLogger().level))
    if not _has_convolutions(source):
        quantization.quantize_dynamic(source, target, weight_type=quantization.QuantType.QInt8, per_channel=True)
        return

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        left = iter(feeds)

        def get_next(self) -> Inputs | None:
            return next(self.left, None)

    quantization.quantize_static(
        source, target, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip


def _feeds(served: Served, questions: Sequence[Inputs]) -> Iterator[Inputs]:
    """What the session is given, by the network's names, where the network says so."""
    given = getattr(served.network, "given", lambda _: ())
    for question in questions:
        yield from given(served.steps.prepare(question).feeds)


def compare(plain: Served, variant: Served, questions: Sequence[Inputs]) -> PrecisionReport:
    """How often they answer otherwise, and how much faster the second one is."""
    if not questions:
        return PrecisionReport(chosen="FP32")
    own = plain.pipeline.task == "tensors"  # of which nobody knows what they are
    numbers = [one.name for one in plain.steps.outputs if own and one.datatype == "FP32"]
    answers, others = ([served.answer(one) for one in questions] for served in (plain, variant))
    sizes = _sizes(answers)
    apart = sum(
        _differs(one, other, numbers) or _numbers_differ(asked, one, other, sizes)
        for asked, one, other in zip(questions, answers, others, strict=True)
    )
    before, after = (min(_seconds(served, questions) for _ in range(ROUNDS)) for served in (plain, variant))
    return PrecisionReport(
        chosen="FP32", loss=apart / len(questions), speedUp=before / max(after, 1e-9), questions=len(questions)
    )


def _seconds(served: Served, questions: Sequence[Inputs]) -> float:
    began = time.perf_counter()
    for one in questions:
        served.answer(one)
    return time.perf_counter() - began


def _differs(one: Inputs, other: Inputs, numbers: Sequence[str]) -> bool:
    """Strings and whole numbers must be the same; vectors must have the same direction, and `numbers` must be near;
    scores beside a label may be others.
    """
    if "VECTORS" in one:
        cosine = (one["VECTORS"] * other["VECTORS"]).sum() / (
            np.linalg.norm(one["VECTORS"]) * np.linalg.norm(other["VECTORS"]) + 1e-12
        )
        return bool(cosine < NEAR)
    if any(np.linalg.norm(other[name] - one[name]) > FAR * np.linalg.norm(one[name]) for name in numbers):
        return True
    return any(one[name].tolist() != other[name].tolist() for name in _whole(one))


def _whole(answer: Inputs) -> list[str]:
    return [name for name, value in answer.items() if value.dtype.kind in "Oiu" and name not in {"IMAGE", "SEED"}]


def _numbers_differ(asked: Inputs, one: Inputs, other: Inputs, sizes: Mapping[str, float]) -> bool:
    """Of an answer that says nothing but numbers, such as an image or a score: whether they are others by more than FAR
    of what is their size in all answers. What is empty, or was asked, says nothing.
    """
    given = [value.tolist() for value in asked.values()]
    said = [one[name] for name in _whole(one)]
    if "VECTORS" in one or any(
        value.dtype.kind != "O" or (any(value.flat) and value.tolist() not in given) for value in said
    ):
        return False
    return not all(_root(other[name] - one[name]) <= FAR * size for name, size in sizes.items())


def _sizes(answers: Sequence[Inputs]) -> dict[str, float]:
    """The root mean square of each output of numbers."""
    names = [name for name, value in answers[0].items() if value.dtype.kind == "f"]
    return {name: _root(np.concatenate([answer[name].ravel() for answer in answers])) for name in names}


def _root(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0


def inputs_of(case: GoldenCase) -> Inputs:
    """What a golden case asks."""
    return _arrays(case.tensors)


def _arrays(tensors: Mapping[str, GoldenTensor]) -> Inputs:
    found: Inputs = {}
    for name, tensor in tensors.items():
        raw = base64.b64decode(tensor.raw)
        if tensor.datatype == "BYTES":
            items, place = [], 0
            while place < len(raw):
                (length,) = struct.unpack_from("<I", raw, place)
                items.append(raw[place + 4 : place + 4 + length])
                place += 4 + length
            values = np.empty(len(items), np.object_)
            values[:] = items
        else:
            values = np.frombuffer(raw, _TYPES[tensor.datatype])
        found[name] = values.reshape(tensor.shape)
    return found
