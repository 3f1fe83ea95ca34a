"""A language model: how likely a text is, and how it may go on. Over bytes with numpy only, or over the tokens of
continuing.py.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.serve.pipelines.tensors import Prepared, RequestError, Signature, softmax, texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import Pipeline, TextInput
    from mms_workloads.serve.pipelines.networks import Network
    from mms_workloads.serve.pipelines.tensors import Arrays

TEXT, LENGTH, SEED = "TEXT", "LENGTH", "SEED"
LONGEST = 65_536  # bytes of a text
MOST = 4096  # bytes that are told
LIKELIEST = -1  # in place of a seed


class Complete:
    """TEXT -> BITS_PER_BYTE float32 [n, 1], of its bytes after the first; 0 of a text that has none.

    With LENGTH int32 [n, 1] also COMPLETION string [n, 1]: so many bytes that follow, drawn as the model has them
    likely, the same for the same SEED int64 [n, 1]; -1, or none: the likeliest at each place.
    """

    model = "complete"
    inputs = (
        Signature(TEXT, "BYTES", (1,)),
        Signature(LENGTH, "INT32", (1,), optional=True),
        Signature(SEED, "INT64", (1,), optional=True),
    )
    outputs = (Signature("BITS_PER_BYTE", "FP32", (1,)), Signature("COMPLETION", "BYTES", (1,)))
    feeds = ("tokens",)
    results = ("logits",)
    padded: Mapping[str, int] = {"tokens": 0}
    rows = 16

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        del folder
        if pipeline.text is None:
            raise ValueError("pipeline.json: task languageModel needs text.maxLength: how far the network looks back")

    def prepare(self, inputs: Arrays) -> Prepared:
        given = [one.encode() for one in texts(inputs[TEXT], TEXT)]
        for row, one in enumerate(given):
            if not one or len(one) > LONGEST:
                raise RequestError(f"{TEXT}[{row}]: {len(one)} bytes: it must have 1 to {LONGEST}")
        wanted = inputs.get(LENGTH, np.zeros((len(given), 1), np.int32))[:, 0].astype(np.int64)
        if wanted.min() < 0 or wanted.max() > MOST:
            raise RequestError(f"{LENGTH}: {int(wanted.min())} to {int(wanted.max())}: it must be 0 to {MOST}")
        seeds = inputs.get(SEED, np.full((len(given), 1), LIKELIEST, np.int64))[:, 0]
        if seeds.min() < LIKELIEST:
            raise RequestError(f"{SEED}: {int(seeds.min())}: it must be 0 or more, or {LIKELIEST} for the likeliest")
        tokens = np.zeros((len(given), max(map(len, given))), np.int64)
        for row, one in enumerate(given):
            tokens[row, : len(one)] = np.frombuffer(one, np.uint8)
        lengths = np.array([len(one) for one in given], np.int64)
        return Prepared({"tokens": tokens, "lengths": lengths, "wanted": wanted, "seeds": seeds})

    def finish(self, results: Arrays, asked: Prepared) -> dict[str, NDArray[Any]]:
        del asked
        told = np.empty((len(results["bits"]), 1), np.object_)
        told[:, 0] = [bytes(one).decode(errors="ignore").encode() for one in results["told"]]
        return {"BITS_PER_BYTE": results["bits"][:, None], "COMPLETION": told}


def model(network: Network, text: TextInput, folder: Path) -> Network:
    """Over the tokens of the folder's tokenizer; over bytes where there is none."""
    if (folder / text.tokenizer).exists():
        from mms_workloads.serve.pipelines.continuing import TokenModel  # noqa: PLC0415 - of those that have tokens

        return TokenModel.of(network, text.maxLength, folder / text.tokenizer)
    return ByteModel(network, text.maxLength)


def drawing(seed: int) -> np.random.Generator:
    """Of a seed its own; else another one each time."""
    return np.random.Generator(np.random.Philox(seed if seed >= 0 else secrets.randbits(62)))


def drawn(logits: NDArray[Any], seed: int, draws: np.random.Generator) -> int:
    """What comes next, of logits [V]: the likeliest, or as likely as they say."""
    last = logits.astype(np.float64)
    if seed == LIKELIEST:
        return int(last.argmax())
    likely = np.exp(last - last.max())
    return int(draws.choice(len(likely), p=likely / likely.sum()))


def bits_of(logits: NDArray[Any], told: NDArray[np.int64]) -> float:
    """How many bits told [L] are, of logits [L, V]."""
    likely = softmax(logits.astype(np.float64))
    return -float(np.log2(likely[np.arange(len(told)), told].clip(1e-12)).sum())


@dataclass(frozen=True, slots=True)
class ByteModel:
    """tokens [n, L], lengths, wanted, seeds int64 [n] -> bits float32 [n], told object [n]: bytes. context: how many
    bytes the network looks at.
    """

    network: Network
    context: int

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        rows = [
            bytes(row[:length].astype(np.uint8)) for row, length in zip(feeds["tokens"], feeds["lengths"], strict=True)
        ]
        told = np.empty(len(rows), np.object_)
        told[:] = self._continued(rows, feeds["wanted"].tolist(), feeds["seeds"].tolist())
        return {"bits": np.array([self._bits(row) for row in rows], np.float32), "told": told}

    def _bits(self, row: bytes) -> float:
        """Window by window, as it was trained: each byte but a window's first after those before it there."""
        total, count = 0.0, 0
        for start in range(0, len(row) - 1, self.context):
            window = np.frombuffer(row[start : start + self.context + 1], np.uint8).astype(np.int64)
            total += bits_of(self._logits(window[None, :-1])[0], window[1:])
            count += len(window) - 1
        return total / count if count else 0.0

    def _continued(self, rows: Sequence[bytes], wanted: Sequence[int], seeds: Sequence[int]) -> list[bytes]:
        told = [bytearray() for _ in rows]
        draws = [drawing(seed) for seed in seeds]
        for step in range(max(wanted)):
            going = [row for row in range(len(rows)) if step < wanted[row]]
            windows = [(rows[row] + bytes(told[row]))[-self.context :] for row in going]
            tokens = np.zeros((len(going), max(map(len, windows))), np.int64)
            for place, window in enumerate(windows):
                tokens[place, : len(window)] = np.frombuffer(window, np.uint8)
            logits = self._logits(tokens)
            for place, row in enumerate(going):
                told[row].append(drawn(logits[place, len(windows[place]) - 1], seeds[row], draws[row]))
        return [bytes(one) for one in told]

    def _logits(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        return self.network.run({"tokens": tokens})["logits"]
