"""What the transforms of augmentation do; which block has which one is data.dealing's subject.

All that is random is drawn from a generator that the caller seeds by job, data epoch and block, and a block is
transformed as a whole: whoever holds its lease makes the same samples.

Images by torchvision's transforms v2, on batches: samples that lie together are groups, each with its own parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import torch

import mms_workloads.vision  # noqa: F401 - before torchvision
from mms_workloads.data.dealing import IDENTITY

from torchvision import tv_tensors  # isort: skip
from torchvision.transforms import InterpolationMode  # isort: skip
from torchvision.transforms.v2 import functional  # isort: skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Generator, Tensor

IMAGE_TRANSFORMS = ("Identity", "Flip", "Crop", "Rotate", "Colour", "Noise", "Mixup")
AUDIO_TRANSFORMS = ("Identity", "Noise", "TimeMask", "FrequencyMask")
TEXT_TRANSFORMS = ("Identity", "WordDropout", "WordSwap")

GROUPS = 8  # of a batch, with parameters of their own: at least
CACHE_BYTES = 1 << 20  # that operations on a group should stay within
LEAST_SIDE = 0.75  # of a crop, as part of the image's
DEGREES = 15.0  # of rotation, to either side
COLOUR = 0.3  # by which brightness, contrast and saturation change at most, as parts of 1
NOISE = 0.05  # standard deviation at most, of values 0 to 1
MASKED = 0.2  # of the time, and of the frequencies, at most
SOUND_NOISE = 0.1  # of the sound's own standard deviation, at most
WORDS = 0.1  # of the words

Move = tuple["Callable[[Tensor], Tensor]", "Callable[[tv_tensors.BoundingBoxes], Tensor] | None"]


@overload
def apply_images(name: str, pixels: Tensor, generator: Generator, boxes: None = None) -> Tensor: ...
@overload
def apply_images(name: str, pixels: Tensor, generator: Generator, boxes: Tensor) -> tuple[Tensor, Tensor]: ...
def apply_images(
    name: str, pixels: Tensor, generator: Generator, boxes: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """The samples under one of IMAGE_TRANSFORMS but Mixup, which is of samples with their labels (`mixup`).

    pixels: uint8, or float of 0 to 1, [n, ..., C, H, W]; all frames of a sample move alike. boxes: float [n, q, 4],
    left, top, right, bottom as parts of width and height; they follow, and what is outside is cut off: a box of which
    nothing is left has no area, as those that fill up the q have none.
    """
    if name == IDENTITY:
        return pixels if boxes is None else (pixels, boxes)
    draw = {"Flip": _flip, "Crop": _crop, "Rotate": _rotate, "Colour": _colour, "Noise": _noise}[name]
    out = torch.empty_like(pixels)
    moved = None if boxes is None else boxes.clone()
    for rows in _groups(pixels):
        of_pixels, of_boxes = draw(generator, int(pixels.shape[-2]), int(pixels.shape[-1]))
        out[rows] = of_pixels(pixels[rows])
        if moved is not None and of_boxes is not None:
            moved[rows] = _followed(moved[rows], of_boxes, pixels)
    return out if moved is None else (out, moved)


def _groups(pixels: Tensor) -> Iterator[slice]:
    """Of samples that lie together, with parameters of their own: at least GROUPS, and none larger than the cache."""
    count = pixels.shape[0]
    if count:
        most = max(1, CACHE_BYTES // max(1, 4 * pixels[0].numel()))  # operations work in float32
        size = min(most, -(-count // GROUPS))
        yield from (slice(start, min(count, start + size)) for start in range(0, count, size))


def mixup(pixels: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(mixed float [n, ..., C, H, W], the partner of each sample int64 [n], the sample's own part float [n]).

    Zhang et al., 2018; the part is drawn uniformly, Beta(1, 1).
    """
    order = torch.randperm(pixels.shape[0], generator=generator)
    part = torch.rand(pixels.shape[0], generator=generator)
    own = part.view(-1, *([1] * (pixels.dim() - 1)))
    return own * pixels.float() + (1 - own) * pixels[order].float(), order, part


def apply_audio(name: str, audio: Tensor, lengths: Tensor, generator: Generator) -> Tensor:
    """audio: float [n, S], of which the first lengths int64 [n] are sound. One of AUDIO_TRANSFORMS.

    Masks of time and frequency: Park et al., 2019 (SpecAugment), here of the sound itself.
    """
    if name == IDENTITY or not audio.numel():
        return audio
    count, size = audio.shape
    inside = torch.arange(size) < lengths[:, None]
    if name == "Noise":
        level = SOUND_NOISE * torch.rand(count, 1, generator=generator) * _deviation(audio, inside)
        return torch.where(inside, audio + level * torch.randn(audio.shape, generator=generator), audio)
    width, place = torch.rand(2, count, generator=generator)
    if name == "TimeMask":
        masked = _span(size, lengths, width, place)
        return torch.where(masked, torch.zeros((), dtype=audio.dtype), audio)
    if name != "FrequencyMask":
        raise ValueError(f"{name} is no transform of sound: use one of {', '.join(AUDIO_TRANSFORMS)}")
    spectrum = torch.fft.rfft(audio)
    bands = torch.full((count,), spectrum.shape[1])
    spectrum = torch.where(_span(spectrum.shape[1], bands, width, place), torch.zeros(()), spectrum)
    return torch.where(inside, torch.fft.irfft(spectrum, n=size), audio)


def _deviation(audio: Tensor, inside: Tensor) -> Tensor:
    """Of what is inside, float [n, 1]."""
    count = inside.sum(dim=1, keepdim=True)
    mean = (audio * inside).sum(dim=1, keepdim=True) / count.clamp(min=1)
    squares = ((audio - mean).square() * inside).sum(dim=1, keepdim=True)
    return (squares / (count - 1).clamp(min=1)).sqrt()


def apply_text(
    name: str, tokens: Tensor, mask: Tensor, generator: Generator, *, unknown: int, tags: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """tokens, mask and tags int64 [n, L]: one of TEXT_TRANSFORMS. unknown: the token that a dropped one becomes.

    mask: 1 where a token is of the text, neither padding nor what stands around it.

    WordDropout: Iyyer et al., 2015. WordSwap: neighbours change places, and their tags with them (Wei and Zou, 2019).
    """
    if name == IDENTITY:
        return tokens, tags
    hit = (torch.rand(tokens.shape, generator=generator) < WORDS) & (mask > 0)
    if name == "WordDropout":
        return tokens.masked_fill(hit, unknown), tags
    if name != "WordSwap":
        raise ValueError(f"{name} is no transform of text: use one of {', '.join(TEXT_TRANSFORMS)}")
    order = _swapped(hit, mask)
    return tokens.gather(1, order), None if tags is None else tags.gather(1, order)


def _swapped(hit: Tensor, mask: Tensor) -> Tensor:
    """Where each place takes its word from: a hit one from behind it, and that one from before."""
    hit = hit.clone()
    hit[:, -1] = False
    hit[:, :-1] &= mask[:, 1:] > 0
    for place in range(1, hit.shape[1]):  # no word moves twice
        hit[:, place] &= ~hit[:, place - 1]
    order = torch.arange(hit.shape[1]).expand_as(hit).clone()
    order[hit] += 1
    order[torch.roll(hit, 1, dims=1)] -= 1
    return order


def _span(size: int, lengths: Tensor, width: Tensor, place: Tensor) -> Tensor:
    """Of bool [n, size]: a span of at most MASKED of each one's length, somewhere in it."""
    spans = (MASKED * width * lengths).floor()
    starts = (place * (lengths - spans)).floor()
    at = torch.arange(size)
    return (at >= starts[:, None]) & (at < (starts + spans)[:, None])


def _uniform(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _flip(_: Generator, __: int, ___: int) -> Move:
    return functional.horizontal_flip, functional.horizontal_flip


def _crop(generator: Generator, height: int, width: int) -> Move:
    """A part of the image, at its size."""
    high, wide = (max(1, round(side * _uniform(generator, LEAST_SIDE, 1.0))) for side in (height, width))
    top, left = round(_uniform(generator, 0, height - high)), round(_uniform(generator, 0, width - wide))

    def move(image: Tensor) -> Tensor:
        moved: Tensor = functional.resized_crop(image, top, left, high, wide, [height, width], antialias=False)
        return moved

    return move, move


def _rotate(generator: Generator, _: int, __: int) -> Move:
    angle = _uniform(generator, -DEGREES, DEGREES)
    return (
        lambda image: functional.rotate(image, angle, InterpolationMode.BILINEAR),
        lambda boxes: functional.rotate(boxes, angle),
    )


def _colour(generator: Generator, _: int, __: int) -> Move:
    brightness, contrast, saturation = (_uniform(generator, 1 - COLOUR, 1 + COLOUR) for _ in range(3))

    def change(image: Tensor) -> Tensor:
        image = functional.adjust_contrast(functional.adjust_brightness(image, brightness), contrast)
        changed: Tensor = functional.adjust_saturation(image, saturation)
        return changed

    return change, None


def _noise(generator: Generator, _: int, __: int) -> Move:
    """Own code, since torchvision's noise is drawn from the global generator."""
    level = _uniform(generator, 0, NOISE)

    def change(image: Tensor) -> Tensor:
        noise = torch.randn(image.shape, generator=generator)
        if image.dtype == torch.uint8:
            return noise.mul_(255 * level).add_(image).round_().clamp_(0, 255).to(torch.uint8)
        return noise.mul_(level).add_(image).clamp_(0, 1)

    return change, None


def _followed(boxes: Tensor, move: Callable[[tv_tensors.BoundingBoxes], Tensor], pixels: Tensor) -> Tensor:
    height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    scale = torch.tensor([width, height, width, height], dtype=boxes.dtype)
    flat = tv_tensors.BoundingBoxes(boxes.reshape(-1, 4) * scale, format="XYXY", canvas_size=(height, width))
    found = functional.clamp_bounding_boxes(tv_tensors.wrap(move(flat), like=flat)).as_subclass(torch.Tensor)
    found = (found / scale).reshape(boxes.shape)
    there = _area(boxes) & _area(found)
    return torch.where(there[..., None], found, torch.zeros((), dtype=boxes.dtype))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
