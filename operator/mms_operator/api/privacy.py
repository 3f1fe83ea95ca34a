"""spec.privacy: differential privacy of the records that are trained on."""

from __future__ import annotations

from pydantic import ConfigDict

from mms_operator.api.types import FRACTION_PATTERN, Model, decimal, rules

TASKS = ("imageClassification", "textClassification", "tokenClassification")


class Differential(Model):
    """DP-SGD (Abadi et al., 2016): single records' gradients are clipped, and noise is added to their sum.

    The parameters of the model and its checkpoints, and all that is made of them, are (epsilon, delta)-differentially
    private. Loss, metrics, labels and the number of records are told as they are; checkpoints also have names and sizes
    of the data set's files and the places of its bad records.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("double(self.epsilon) > 0.0", "privacy.differential.epsilon must be above 0"),
            ("double(self.delta) > 0.0", "privacy.differential.delta must be above 0: take less than 1 / records"),
            ("double(self.maxGradientNorm) > 0.0", "privacy.differential.maxGradientNorm must be above 0"),
        )
    )
    epsilon: str = decimal(
        "The budget, spent when the last data epoch is over. Smaller is more private, and takes more noise."
    )
    delta: str = decimal("The chance that the promise fails: less than 1 over the number of records.", FRACTION_PATTERN)
    maxGradientNorm: str = decimal("To which the gradient of a record is clipped.", default="1")


class Privacy(Model):
    """What a model may tell of its data."""

    differential: Differential


def privacy_fits() -> list[tuple[str, str]]:
    """Rules (CEL) of a training's spec: what could tell more than the budget allows is refused."""
    task = " || ".join(f"has(self.task.{name})" for name in TASKS)
    guarded = (
        "self.guard.lossSpike != 'Rollback' && self.guard.gradientOutlier != 'Drop' && self.guard.deadData == 'Off'"
    )
    text = "has(self.task.textClassification) || has(self.task.tokenClassification)"
    apart = "self.data.augmentation.transforms.all(t, t != 'Mixup')"
    found = {
        task: f"privacy is of task {', '.join(TASKS[:-1])} and {TASKS[-1]}, whose gradients of single records are "
        "known: leave it out",
        f"!({text}) || has(self.pretrained)": "privacy with a task of text needs pretrained: the words that a model "
        "from scratch knows are of its records",
        "(self.sync.mode == 'Ring' && self.sync.compression == 'None')": "privacy needs sync.mode Ring and "
        "sync.compression None, with which the sum has all of the noise",
        f"({guarded})": "privacy needs guard {lossSpike: Report, gradientOutlier: Report, deadData: 'Off'}: what is "
        "dropped or read again by the look of it tells of it",
        f"!has(self.data) || !has(self.data.augmentation) || {apart}": "data.augmentation must not have Mixup with "
        "privacy: it makes one record of two",
    }
    found["(!has(self.optimizer.precision) || self.optimizer.precision != 'BF16')"] = (
        "optimizer.precision must not be BF16 with privacy, whose gradients of single records are computed in float32: "
        "leave it out"
    )
    found["!has(self.workers.image)"] = (
        "privacy needs the workers' own image: one of another release may not know of it, and would train without: "
        "leave workers.image out"
    )
    return [(f"!has(self.privacy) || {rule}", said) for rule, said in found.items()]
