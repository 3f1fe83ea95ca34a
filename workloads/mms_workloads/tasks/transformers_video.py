"""Networks of Transformers that tell what a video shows: VideoMAE, TimeSformer, ViViT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mms_workloads.tasks import starting, transformers_library

if TYPE_CHECKING:
    from mms_workloads.contract import VideoUnderstanding
    from mms_workloads.tasks.starting import Start

KIND = "videoUnderstanding"
KNOWN = ("videomae", "timesformer", "vivit")


def build(spec: VideoUnderstanding, labels: int, start: Start, seed: int) -> Frames:
    """Raises JobError: the network is of another kind, or its frames are of another number or size than the spec's."""
    config = starting.config(start)
    if config.get("model_type") not in KNOWN:
        raise start.refuse(
            f"its network is of kind {config.get('model_type')}, and {KIND} starts from folders of {', '.join(KNOWN)}, "
            f"or from an artifact of {KIND}"
        )
    from mms_workloads import vision  # noqa: F401, PLC0415 - before transformers, which looks for torchvision

    # isort: split
    from transformers import AutoModelForVideoClassification  # noqa: PLC0415

    network: Any
    network, unset = transformers_library.make(AutoModelForVideoClassification, start, seed, num_labels=labels)
    of = network.config
    wanted = {"frames": of.num_frames, "height": of.image_size, "width": of.image_size, "channels": of.num_channels}
    wrong = {name: number for name, number in wanted.items() if getattr(spec, name) != number}
    if wrong:
        said = ", ".join(f"{name}: {number}" for name, number in wrong.items())
        raise start.refuse(f"its videos are others than task.{KIND} says: set {said} there")
    made = Frames(network)
    if start.kind is not None:
        starting.load(made, start, network.classifier)
    starting.trained_parts(made, network.classifier, start, seed, unset=unset)
    return made


class Frames(nn.Module):
    """frames [n, T, C, H, W] -> logits [n, labels]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=frames).logits
        return logits
