"""examples/language/fine-tuning.yaml as it is: adapters beside a network of Transformers, by two workers, served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from mms_cluster import install
from tests.e2e.conftest import upload
from tests.e2e.test_tasks import asked
from tests.unit.serve import transformers_folders
from tests.unit.train import runs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.kube import Kube

pytestmark = pytest.mark.e2e

EXAMPLE = install.CHART.parents[1] / "examples" / "language" / "fine-tuning.yaml"


@pytest.mark.slow
def test_a_language_model_of_transformers(kube: Kube, tmp_path: Path) -> None:
    text = runs.text(2000)
    (tmp_path / "topics").mkdir()
    (tmp_path / "topics" / "a.txt").write_text(text)
    transformers_folders.causal(tmp_path / "causal", "gpt2", text)
    for name in ("topics", "causal"):
        upload(tmp_path / name)
    kube.apply(*yaml.safe_load_all(EXAMPLE.read_text()))
    found = kube.wait_phase("letters", "Complete", 180)["status"]["artifact"]["metrics"]
    measured = {name: float(found[name]) for name in ("bitsPerByte", "bitsPerCharacter")}
    assert 0 < measured["bitsPerCharacter"] < 5, f"of plain letters: {found}"
    assert measured["bitsPerCharacter"] == pytest.approx(measured["bitsPerByte"], rel=1e-3), f"a byte each: {found}"
    kube.wait_condition("modelservice", "letters", "Ready", "True", seconds=120)
    with asked(kube, "letters") as ask:
        likely, unlikely = (
            float(ask("complete", TEXT=said)["BITS_PER_BYTE"][0, 0]) for said in (text[:200].encode(), b"zq" * 40)
        )
    assert 0 < likely < unlikely, f"text as the corpus has it takes {likely} bits a byte, and zqzq... {unlikely}"
