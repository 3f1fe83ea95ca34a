"""Images as cameras, scanners and printers write them: the survey measures what a task and a service decode."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from mms_workloads.data.inspection import note
from mms_workloads.data.items import Item
from mms_workloads.data.schema import Survey
from mms_workloads.media import images
from tests.unit.data.counted import corpus, described

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

ORIENTATION = 0x0112  # EXIF tag
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (16, 3), np.uint8)
PLACES = RNG.integers(0, 16, (6, 9), np.uint8)
GREY = RNG.integers(0, 256, (6, 9), np.uint8)
WIDE = RNG.integers(0, 65_536, (6, 9), np.uint16)
SMOOTH = np.stack([np.add.outer(np.arange(48), np.arange(64)) + 40 * c for c in range(3)], axis=-1).astype(np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def palette(kind: str = "PNG", **options: Any) -> bytes:
    image = Image.fromarray(PLACES, "L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(COLOURS.tobytes())
    return saved(image, kind, **options)


def turned(pixels: NDArray[np.uint8], orientation: int, kind: str = "PNG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(Image.fromarray(pixels), kind, exif=exif, **options)


@dataclass(frozen=True)
class Case:
    """error: of a value, by which a lossy format may miss it on average."""

    data: bytes
    pixels: NDArray[Any]  # [H, W, C], as they are to be seen
    error: float = 0


CASES: dict[str, Callable[[], Case]] = {
    "palette": lambda: Case(palette(), COLOURS[PLACES]),
    "palette of a GIF": lambda: Case(palette("GIF"), COLOURS[PLACES]),
    "palette with a transparent colour": lambda: Case(palette(transparency=3), COLOURS[PLACES]),
    "two colours": lambda: Case(saved(Image.fromarray(GREY > 127)), 255 * (GREY > 127)[:, :, None]),
    "CMYK": lambda: Case(saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95), SMOOTH, 3),
    "YCbCr": lambda: Case(saved(Image.fromarray(SMOOTH), "JPEG", quality=95), SMOOTH, 3),
    "grey of 16 bits": lambda: Case(saved(Image.fromarray(WIDE)), np.rint(WIDE / 257)[:, :, None]),
    "grey with transparency": lambda: Case(
        saved(Image.fromarray(np.stack([GREY, GREY[::-1]], axis=-1), "LA")), GREY[:, :, None]
    ),
    "colour with transparency": lambda: Case(
        saved(Image.fromarray(np.dstack([SMOOTH, SMOOTH[:, :, 0]]), "RGBA")), SMOOTH
    ),
    "turned to the right": lambda: Case(turned(SMOOTH, 6), np.rot90(SMOOTH, -1)),
    "turned to the left": lambda: Case(turned(SMOOTH, 8), np.rot90(SMOOTH)),
    "on its head": lambda: Case(turned(SMOOTH, 3), SMOOTH[::-1, ::-1]),
    "mirrored": lambda: Case(turned(SMOOTH, 2), SMOOTH[:, ::-1]),
    "mirrored and turned": lambda: Case(turned(SMOOTH, 5), SMOOTH.transpose(1, 0, 2)),
    "turned JPEG": lambda: Case(turned(SMOOTH, 6, "JPEG", quality=95), np.rot90(SMOOTH, -1), 3),
    "turned grey of 16 bits": lambda: Case(turned(WIDE, 6), np.rint(np.rot90(WIDE, -1) / 257)[:, :, None]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_survey_measures_what_is_decoded(name: str) -> None:
    case = CASES[name]()
    channels = case.pixels.shape[2]
    decoded = images.decode(case.data, channels)
    assert decoded.shape == case.pixels.shape
    assert np.abs(decoded.astype(float) - case.pixels).mean() <= case.error
    survey = Survey(0)
    note(survey, Item(0, 0, {"input": case.data, "label": None}))
    seen = survey.pixels
    assert (seen.channels, *seen.heights, *seen.widths) == (channels, *case.pixels.shape[:2])
    means = np.broadcast_to((decoded / 255).mean(axis=(0, 1)), 3)
    assert seen.means == pytest.approx(means.tolist())


@pytest.mark.parametrize("name", CASES)
def test_boxes_are_of_the_image_as_it_is_seen(name: str) -> None:
    case = CASES[name]()
    height, width = case.pixels.shape[:2]
    survey = Survey(10)
    for box in ([0, 0, width, height], [0, 0, width + 2, height], [0, 0, width, height + 2]):
        note(survey, Item(0, 0, {"input": case.data, "label": [{"label": "a", "box": box}]}))
    assert (survey.kinds.total(), survey.bad_count) == (1, 2)


def test_a_folder_of_all_of_them(tmp_path: Path) -> None:
    (folder := tmp_path / "data" / "a").mkdir(parents=True)
    made = [CASES[name]() for name in CASES]
    for number, case in enumerate(made):
        (folder / f"{number:02}.png").write_bytes(case.data)
    found = corpus(described(tmp_path / "data"), tmp_path / "scratch").schema
    assert (found.records, found.bad) == (len(CASES), ())
    assert found.images
    assert found.images.channels == 3
    assert found.images.height.most == max(case.pixels.shape[0] for case in made)
    assert found.images.width.most == max(case.pixels.shape[1] for case in made)
