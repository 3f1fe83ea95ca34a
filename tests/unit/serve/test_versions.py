"""The folders of a model's versions, as they are to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_workloads.serve import generations, repository, versions
from mms_workloads.serve.generations import Generation, Generations, Report
from mms_workloads.serve.layout import Layout
from mms_workloads.serve.repository import Model, Models
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Word vectors of version 1, and a model as it is."""
    made = Layout(models=tmp_path)
    models = Models(models=[*repository.word_models().models, Model(name="as-it-is", code=None)])
    generations.write(made.running, models)
    for model in models.models:
        (made.repository / model.name).mkdir(parents=True)
        (made.repository / model.name / "config.pbtxt").touch()
    (made.repository / "as-it-is" / "7").mkdir()
    assert versions.arrange(made, {1})
    return made


def folders(layout: Layout) -> dict[str, list[str]]:
    return {
        one.name: sorted(file.name for file in one.iterdir() if file.is_dir()) for one in layout.repository.iterdir()
    }


def test_arrange(layout: Layout) -> None:
    stale = generations.report_of(layout.generations, "vectors_0_0", 2)
    generations.write(stale, Report(serving="a", held=["a"], refused={}))
    assert versions.arrange(layout, {1, 2})
    assert not versions.arrange(layout, {1, 2})
    assert versions.there(layout) == {1, 2}
    assert not stale.exists(), "who said that has ended"
    assert list((layout.repository / "vectors" / "2" / "__pycache__").glob("model.*.pyc"))
    assert versions.arrange(layout, {2})
    assert folders(layout) == {**{name: ["2"] for name in repository.MODELS}, "as-it-is": ["7"]}


def test_what_an_attempt_has_left_is_not_loaded(layout: Layout) -> None:
    held = [Generation(digest=one, version=1, folder=one, triton=number) for number, one in enumerate("ab", 1)]
    generations.write(layout.generations, Generations(serving="a", held=held))
    versions.arrange(layout, {1, 2})
    versions.settle(layout)
    assert versions.there(layout) == {1}
    assert generations.read(layout.generations) == Generations(serving="a", held=held[:1])


@pytest.mark.parametrize("text", ["", '{"serving": "c", "held": []}'])
def test_a_pod_that_does_not_know_what_serves(layout: Layout, text: str) -> None:
    layout.generations.write_text(text)
    with pytest.raises(JobError, match=r"generations\.json"):
        versions.settle(layout)
