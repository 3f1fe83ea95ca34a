"""What the evaluation of each task measures, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SPOILS = ("Noise", "Occlusion", "Resize")  # of images, in the evaluation
METRICS: Mapping[str, tuple[str, ...]] = {
    "wordEmbedding": ("contextAUC", "relatedAUC"),
    "languageModel": ("bitsPerByte", "lossPerByte", "bitsPerCharacter"),
    "imageClassification": ("accuracy", "macroF1", *(f"accuracy{how}" for how in SPOILS)),
    "objectDetection": ("meanAveragePrecision", *(f"meanAveragePrecision{how}" for how in SPOILS)),
    "imageGeneration": ("flowLoss",),
    "videoUnderstanding": ("accuracy", "macroF1"),
    "textClassification": ("accuracy", "macroF1"),
    "tokenClassification": ("entityF1", "tokenAccuracy"),
    "textMatching": ("accuracy", "macroF1", "spearman", "recallAt1"),
    "speechRecognition": ("characterErrorRate", "wordErrorRate"),
}


def metrics_of(kind: str) -> tuple[str, ...]:
    """What the evaluation of a task may measure: where no block is held out, on what was trained on."""
    return (*METRICS[kind], *(f"training{name[0].upper()}{name[1:]}" for name in METRICS[kind]))
