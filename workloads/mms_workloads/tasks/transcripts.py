"""What speechRecognition learns of a transcript, and whether it can be told in its sound. Pure."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mms_workloads.contract import SpeechRecognition

LETTERS = 400  # of a transcript, at most
STEP = 0.020  # seconds: two hops of the energies, and 320 samples of 16 kHz as wav2vec2 has it
LOST_STEPS = 3  # at the ends of a sound


def letters(alphabet: str) -> list[str]:
    """In lower case, as transcripts are; each once."""
    return list(dict.fromkeys(alphabet.lower()))


def written(label: str, alphabet: str) -> str:
    """The letters of a transcript that are known; words of which none is left are none."""
    known = frozenset(letters(alphabet))
    words = ("".join(letter for letter in word if letter in known) for word in label.lower().split())
    return (" " if " " in known else "").join(word for word in words if word)


def unfit(said: str, samples: int, spec: SpeechRecognition, stride: float) -> str:
    """Why nothing can be learnt of a sound of so many samples with the transcript that `written` gave; "" if it can.

    stride: samples of a step of the network; CTC needs one for each letter, and one between two that are the same.
    """
    seconds = samples / spec.sampleRate
    if not said:
        return "its transcript has none of the characters of task.speechRecognition.alphabet"
    if samples > round(spec.maxSeconds * spec.sampleRate):
        most = f"task.speechRecognition.maxSeconds is {spec.maxSeconds:g}"
        return f"it takes {seconds:.1f} s, and {most}: raise that, or cut the sound"
    needed = len(said) + sum(a == b for a, b in itertools.pairwise(said))
    if needed > LETTERS:
        return f"its transcript has {len(said)} letters, and {LETTERS} at most, fewer where letters are doubled: cut it"
    if needed > samples / stride - LOST_STEPS:
        return f"its transcript has {len(said)} letters, more than can be told in {seconds:.1f} s: correct it"
    return ""
