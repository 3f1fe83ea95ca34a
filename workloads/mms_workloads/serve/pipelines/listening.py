"""Speech to text, and where in a sound somebody speaks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.media import audio
from mms_workloads.media.images import MediaError
from mms_workloads.serve.pipelines import ctc
from mms_workloads.serve.pipelines.tensors import (
    Prepared,
    RequestError,
    Signature,
    files,
    not_finite,
    one_of,
    strings,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import AudioInput, Pipeline
    from mms_workloads.serve.pipelines.tensors import Arrays

AUDIO, SAMPLES, LENGTHS = "AUDIO", "SAMPLES", "LENGTHS"
INPUTS = (
    Signature(AUDIO, "BYTES", (1,), optional=True),
    Signature(SAMPLES, "FP32", (-1,), optional=True),
    Signature(LENGTHS, "INT64", (1,), optional=True),
)
LOUDEST = 1.0

# Where speech begins and ends, as silero-vad's get_speech_timestamps has it by default.
SPEECH, QUIET = 0.5, 0.35
LEAST_SPEECH, LEAST_SILENCE, MARGIN = 0.25, 0.1, 0.03  # seconds


def audio_of(pipeline: Pipeline) -> AudioInput:
    if pipeline.audio is None:
        raise ValueError(f"pipeline.json: task {pipeline.task} needs audio: its sampleRate")
    return pipeline.audio


def prepare_sound(inputs: Arrays, given: AudioInput) -> Prepared:
    """AUDIO, or SAMPLES of -1 to 1 at the network's rate -> audio float32 [n, S], lengths int64 [n]; about: lengths.

    Raises RequestError.
    """
    if one_of(inputs, (AUDIO, SAMPLES)) == SAMPLES:
        rows, odd = _rows(inputs)
    else:
        if LENGTHS in inputs:
            raise RequestError(f"{LENGTHS}: it goes with {SAMPLES}, and {AUDIO} is given")
        rows, odd = [], {}
        for row, data in files(inputs[AUDIO], AUDIO):
            try:
                rows.append(audio.decode(data, given.sampleRate, given.maxSeconds))
            except MediaError as error:
                raise RequestError(f"{AUDIO}[{row}]: {error}") from error
    longest = max(len(one) for one in rows)
    if longest > given.maxSeconds * given.sampleRate:
        raise RequestError(
            f"{longest / given.sampleRate:.1f} s of sound, and the model takes {given.maxSeconds:g} s at most: cut it"
        )
    found = np.zeros((len(rows), longest), np.float32)
    for row, one in enumerate(rows):
        found[row, : len(one)] = audio.normalised(one) if given.normalise else one
    lengths = np.array([len(one) for one in rows], np.int64)
    return Prepared({"audio": found, "lengths": lengths}, lengths, odd)


def _rows(inputs: Arrays) -> tuple[list[NDArray[np.float32]], dict[int, str]]:
    values = inputs[SAMPLES]
    lengths = inputs[LENGTHS][:, 0] if LENGTHS in inputs else np.full(len(values), values.shape[1])
    if not values.shape[1] or lengths.min() < 1 or lengths.max() > values.shape[1]:
        raise RequestError(f"{LENGTHS}: from 1 to the {values.shape[1]} samples that a row has")
    odd = {
        int(row): "samples beyond -1 to 1: divide whole numbers by the largest that they can be"
        for row in np.flatnonzero((np.abs(values) > LOUDEST).any(axis=1))
    }
    odd |= not_finite(values)
    return [row[:length] for row, length in zip(values, lengths, strict=True)], odd


class Transcribe:
    """AUDIO, or SAMPLES and LENGTHS -> TEXT string [n, 1]."""

    model = "transcribe"
    inputs = INPUTS
    outputs = (Signature("TEXT", "BYTES", (1,)),)
    feeds = ("audio", "lengths")
    rows = 4

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        del folder
        self.pipeline, self.sound = pipeline, audio_of(pipeline)
        self.padded: Mapping[str, int] = {"audio": 0}
        self.results = ("logits",) if pipeline.labels else ("text",)  # such as Whisper's, which writes it itself

    def prepare(self, inputs: Arrays) -> Prepared:
        return prepare_sound(inputs, self.sound)

    def finish(self, results: Arrays, asked: Prepared) -> dict[str, NDArray[Any]]:
        if "text" in results:
            return {"TEXT": results["text"].reshape(-1, 1)}
        logits = results["logits"]
        if "steps" in results:
            steps = results["steps"].tolist()
        else:  # what the batch was filled up with is no sound
            steps = [math.ceil(logits.shape[1] * int(one) / asked.longest) for one in asked.about]
        texts, _ = ctc.read(logits, steps, self.pipeline)
        return {"TEXT": strings([[one] for one in texts])}


class Activity:
    """AUDIO, or SAMPLES and LENGTHS -> PROBABILITY float32 [n, t], of each `chunk` of samples that somebody speaks;
    SEGMENTS float32 [n, m, 2], the seconds where speech begins and ends; COUNT int32 [n, 1], how many there are.
    """

    model = "activity"
    inputs = INPUTS
    outputs = (
        Signature("PROBABILITY", "FP32", (-1,)),
        Signature("SEGMENTS", "FP32", (-1, 2)),
        Signature("COUNT", "INT32", (1,)),
    )
    feeds = ("audio",)
    results = ("probability",)
    rows = 4

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        del folder
        self.sound = audio_of(pipeline)
        if self.sound.chunk is None:
            raise ValueError("pipeline.json: task voiceActivity needs audio.chunk")
        self.chunk = self.sound.chunk
        self.padded: Mapping[str, int] = {"audio": 0}

    def prepare(self, inputs: Arrays) -> Prepared:
        found = prepare_sound(inputs, self.sound)
        rest = -found.feeds["audio"].shape[1] % self.chunk
        whole = np.pad(found.feeds["audio"], [(0, 0), (0, rest)])
        return Prepared({"audio": whole}, found.about, found.odd)

    def finish(self, results: Arrays, asked: Prepared) -> dict[str, NDArray[Any]]:
        chunks = [math.ceil(int(one) / self.chunk) for one in asked.about]
        probability = np.array(results["probability"][:, : max(chunks)], np.float32)
        found = []
        for row, count in enumerate(chunks):
            probability[row, count:] = 0
            seconds = int(asked.about[row]) / self.sound.sampleRate
            found.append(segments(probability[row, :count].tolist(), self.chunk / self.sound.sampleRate, seconds))
        places = np.zeros((len(found), max(map(len, found)), 2), np.float32)
        for row, one in enumerate(found):
            places[row, : len(one)] = np.array(one, np.float32).reshape(-1, 2)
        counts = np.array([[len(one)] for one in found], np.int32)
        return {"PROBABILITY": probability, "SEGMENTS": places, "COUNT": counts}


def segments(probability: list[float], step: float, seconds: float) -> list[tuple[float, float]]:
    """Where speech begins and ends. step: seconds of each number; seconds: of the sound."""
    found: list[tuple[float, float]] = []
    begin: float | None = None
    quiet: float | None = None
    for place, one in enumerate(probability):
        now = place * step
        if one >= SPEECH:
            begin, quiet = now if begin is None else begin, None
        elif begin is not None and one < QUIET:
            quiet = now if quiet is None else quiet
            if now - quiet >= LEAST_SILENCE:
                if quiet - begin > LEAST_SPEECH:
                    found.append((begin, quiet))
                begin = quiet = None
    if begin is not None and seconds - begin > LEAST_SPEECH:
        found.append((begin, seconds))
    return _with_margins(found, seconds)


def _with_margins(found: list[tuple[float, float]], seconds: float) -> list[tuple[float, float]]:
    """A margin on both sides; of a pause that has no room for two each side has a half."""
    out = []
    for place, (begin, end) in enumerate(found):
        before = begin - found[place - 1][1] if place else 2 * begin
        after = found[place + 1][0] - end if place + 1 < len(found) else 2 * (seconds - end)
        out.append((begin - min(MARGIN, before / 2), end + min(MARGIN, after / 2)))
    return out
