"""The page: what it shows, that it is well-formed, and that words cannot break it."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import numpy as np
import pytest

from mms_workloads.contract import WordEmbedding
from mms_workloads.data.vocabulary import Vocabulary
from mms_workloads.embedding import report

NASTY = "<script>alert('&')</script>"


def page(size: int, dimensions: int = 8, losses: list[tuple[int, float]] | None = None) -> ET.Element:
    words = tuple(NASTY if i == 1 else f"w{i}" for i in range(size))
    vectors = np.random.default_rng(1).standard_normal((size, dimensions)).astype(np.float32)
    vocabulary = Vocabulary(words, tuple(range(size, 0, -1)))
    metrics = {"contextAUC": 0.81, "relatedAUC": 0.93}
    text = report.page(vocabulary, vectors, metrics, losses or [], WordEmbedding(dimensions=dimensions))
    body = text[text.index("<body>") : text.index("</html>")]
    return ET.fromstring(body.replace("&#x27;", "'"))


@pytest.mark.parametrize("size", [2, 3, 100, 1000])
def test_words_are_shown(size: int) -> None:
    shown = page(size, losses=[(100, 3.0), (200, 2.0), (300, 1.5)])
    text = " ".join(shown.itertext())
    assert "0.810" in text
    assert "300 words trained on" in text
    assert len(shown.findall(".//circle")) == min(size, report.MAPPED)
    assert not shown.findall(".//script")
    if size <= report.MAPPED:
        assert NASTY in [one.text for one in shown.findall(".//title")]
    points = shown.find(".//polyline").get("points").split()  # type: ignore[union-attr]
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == sorted(heights), "a loss that falls goes down"


def test_names_do_not_lie_over_each_other() -> None:
    shown = page(1000)
    places = [(float(t.get("x", 0)), float(t.get("y", 0)), t.text or "") for t in shown.findall(".//g/text")]
    assert 20 < len(places) < report.MAPPED
    for i, (x, y, name) in enumerate(places):
        for other, at, _ in places[:i]:
            assert abs(at - y) >= report.LINE or not x <= other <= x + report.LETTER * len(name)


def test_a_loss_that_is_no_number_is_left_out() -> None:
    points = page(50, losses=[(1, 3.0), (2, float("nan")), (3, 1.0)]).find(".//polyline")
    assert points is not None
    assert "nan" not in points.get("points", "nan")
    assert len(points.get("points", "").split()) == 2


def test_a_long_history_is_thinned() -> None:
    points = page(50, losses=[(i, 1 / (i + 1)) for i in range(5500)]).find(".//polyline")
    assert points is not None
    assert 100 < len(points.get("points", "").split()) <= report.POINTS


def test_without_a_history_there_is_no_curve() -> None:
    shown = page(50)
    assert shown.find(".//polyline") is None


@pytest.mark.parametrize("dimensions", [1, 2, 50])
def test_the_plane_has_most_of_the_variance(dimensions: int) -> None:
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((200, dimensions)) * np.linspace(5, 0.1, dimensions)).astype(np.float32)
    places = report.plane(rows)
    assert places.shape == (200, 2)
    widest = np.sort(np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False))[::-1][:2]
    np.testing.assert_allclose(np.linalg.norm(places, axis=0)[: len(widest)], widest, rtol=1e-3)
    np.testing.assert_allclose(report.plane(rows), places)
