"""What the tasks that look at images share: how records become pixels, where weights come from, how robust they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from mms_workloads.contract import ImageInput, Picture, Reason
from mms_workloads.media import images
from mms_workloads.media.images import MediaError
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from mms_workloads.tasks.task import Batch

NOISE = 0.1  # standard deviation, of values 0 to 1
OCCLUDED = 0.5  # of each side: a quarter of the image
SHRUNK = 0.5  # the size that an image loses half of its detail at


def image_input(spec: Picture, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)) -> ImageInput:
    return ImageInput(
        channels=spec.channels,
        height=spec.height,
        width=spec.width,
        resize=spec.resize,
        mean=list(mean),
        std=list(std),
    )


def decoded(record: Mapping[str, Any], channels: int) -> NDArray[np.uint8]:
    """A record's image, uint8 [H, W, C]. Raises JobError."""
    found = record["input"]
    try:
        if isinstance(found, np.ndarray):
            return _with_channels(found, channels)
        return images.decode(found, channels)
    except MediaError as error:
        raise JobError(Reason.DATA_UNREADABLE, f"{record.get('source', 'a record')}: {error}") from error


def _with_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """As images.decode makes them of the file that a client sends."""
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels  # noqa: PLR2004 - height and width
    if pixels.shape[2] == channels:
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    found = np.asarray(images.eight_bits(image, channels), dtype=np.uint8)
    return found.reshape(*pixels.shape[:2], channels)


def stacked(records: Sequence[Mapping[str, Any]], given: ImageInput) -> Tensor:
    """uint8 [n, C, H, W]."""
    pixels = [images.resized(decoded(record, given.channels), given) for record in records]
    if not pixels:
        return torch.empty(0, given.channels, given.height, given.width, dtype=torch.uint8)
    return torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2).copy())


def normalised(pixels: Tensor, given: ImageInput) -> Tensor:
    """uint8 or float 0 to 255 [..., C, H, W] -> float32, on the same device."""
    mean = torch.tensor(given.mean, device=pixels.device).view(-1, 1, 1)
    std = torch.tensor(given.std, device=pixels.device).view(-1, 1, 1)
    return (pixels.float() / 255 - mean) / std


def spoilt(batches: Iterable[Batch], how: str) -> Iterator[Batch]:
    """The batches with pixels that are noisy, covered in the middle, or of half the detail; the same at each call."""
    generator = torch.Generator().manual_seed(0)
    for batch in batches:
        pixels = batch["pixels"].float()
        height, width = pixels.shape[-2:]
        if how == "Noise":
            pixels = (pixels + 255 * NOISE * torch.randn(pixels.shape, generator=generator)).clamp(0, 255)
        elif how == "Occlusion":
            high, wide = int(height * OCCLUDED), int(width * OCCLUDED)
            top = int(torch.randint(0, height - high + 1, (), generator=generator))
            left = int(torch.randint(0, width - wide + 1, (), generator=generator))
            pixels = pixels.clone()
            pixels[..., top : top + high, left : left + wide] = images.GREY
        else:
            small = torch.nn.functional.interpolate(pixels, scale_factor=SHRUNK, mode="bilinear", antialias=True)
            pixels = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")
        yield {**batch, "pixels": pixels}


def statistics(pixels: Iterable[Tensor]) -> dict[str, list[float]] | None:
    """contract.Statistics of images uint8 [n, C, H, W]. None of none."""
    means, deviations = [], []
    for one in pixels:
        scaled = one.float() / 255
        means.append(scaled.mean(dim=(2, 3)))
        deviations.append(scaled.std(dim=(2, 3), unbiased=False))
    if not means:
        return None
    mean, deviation = torch.cat(means), torch.cat(deviations)
    within = (deviation.square() + mean.square()).mean(dim=0) - mean.mean(dim=0).square()
    return {
        "mean": mean.mean(dim=0).tolist(),
        "std": within.clamp(min=0).sqrt().tolist(),
        "imageMean": mean.mean(dim=0).tolist(),
        "imageMeanStd": mean.std(dim=0, unbiased=False).tolist(),
        "imageStd": deviation.mean(dim=0).tolist(),
        "imageStdStd": deviation.std(dim=0, unbiased=False).tolist(),
    }


def questions(records: Sequence[Mapping[str, Any]]) -> list[dict[str, NDArray[np.generic]]]:
    """An image file for each record: IMAGE [1, 1]."""
    found: list[dict[str, NDArray[np.generic]]] = []
    for record in records:
        data = record["input"]
        data = images.encode(_with_channels(data, 3)) if isinstance(data, np.ndarray) else data
        found.append({"IMAGE": np.array([[data]], dtype=np.object_)})
    return found


def augmented(batch: Batch, transform: str, generator: torch.Generator) -> Batch:
    """The batch's pixels under a transform of data/augmentation.py; Mixup mixes labels, too."""
    from mms_workloads.data import augmentation  # noqa: PLC0415 - torchvision takes a second to import

    pixels = batch["pixels"]
    if transform == "Mixup":
        mixed, order, part = augmentation.mixup(pixels, generator)
        return {**batch, "pixels": mixed, "other": batch["label"][order], "part": part}
    if "boxes" not in batch:
        return {**batch, "pixels": augmentation.apply_images(transform, pixels, generator)}
    pixels, boxes = augmentation.apply_images(transform, pixels, generator, boxes=batch["boxes"])
    there = ((boxes[..., 2:] - boxes[..., :2]).amin(dim=-1) > 0) & (batch["objects"] >= 0)
    return {**batch, "pixels": pixels, "boxes": boxes, "objects": torch.where(there, batch["objects"], -1)}
