"""What README and docs name is there: links lead to files, and each task has an example of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mms_operator.api.training import TrainingSpec
from mms_operator.api.training_task import TASKS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "cluster" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)[^)]*\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = [link for _, link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def tasks_of(place: Path) -> set[str]:
    """What the trainings of a manifest, or of a folder of them, learn."""
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    documents = [one for file in files for one in yaml.safe_load_all(file.read_text(encoding="utf-8"))]
    specs = [TrainingSpec.model_validate(one["spec"]) for one in documents if one["kind"] == "ModelTraining"]
    return {name for spec in specs for name in TASKS if getattr(spec.task, name) is not None}


def test_the_table_of_tasks_has_an_example_of_each() -> None:
    lines = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    linked = {name: ROOT / link for line in lines for name, link in LINK.findall(line) if link.startswith("examples/")}
    assert {name for name, place in linked.items() if name in tasks_of(place)} == set(TASKS) - {"custom"}
    assert [place for place in linked.values() if tasks_of(place) == {"custom"}]
    told = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    missing = [place for place in linked.values() if str(place.relative_to(ROOT)) not in told]
    assert not missing, "docs/tasks.md has the same examples"
