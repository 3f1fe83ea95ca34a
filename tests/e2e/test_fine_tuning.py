"""From pretrained weights on, by two workers, and served: examples/fine-tuning and examples/language/fine-tuning.yaml,
each as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from mms_cluster import install
from tests.e2e.conftest import upload
from tests.e2e.kube import installation_store
from tests.e2e.test_tasks import asked
from tests.unit.models import folders
from tests.unit.serve import transformers_folders
from tests.unit.tasks import datasets
from tests.unit.train import runs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Corpora
    from tests.e2e.kube import Kube

pytestmark = pytest.mark.e2e

EXAMPLES = install.CHART.parents[1] / "examples"


def trained(kube: Kube, example: str, name: str) -> dict[str, float]:
    """The metrics of what the example's training has published, which its service serves."""
    kube.apply(*yaml.safe_load_all((EXAMPLES / example).read_text()))
    found = kube.wait_phase(name, "Complete", 240)["status"]["artifact"]["metrics"]
    kube.wait_condition("modelservice", name, "Ready", "True", seconds=120)
    return {metric: float(value) for metric, value in found.items()}


def put(folder: Path, name: str) -> None:
    with installation_store() as store:
        store.put(f"{folder}/", f"models/{name}/", recursive=True)


def test_an_image_classifier_of_timm(kube: Kube, digits: Path, tmp_path: Path) -> None:
    """EfficientNet-Lite0, which knows ImageNet: its last layer learns digits in one data epoch."""
    put(folders.efficientnet_of_timm(tmp_path), "efficientnet-timm")
    found = trained(kube, "fine-tuning/images.yaml", "digits-tuned")
    assert found["accuracy"] > 0.75, f"a tenth by chance, 0.6 from random weights: {found}"
    images, labels = datasets.digits()
    with asked(kube, "digits-tuned") as ask:
        told = [ask("classify", IMAGE=datasets.png(image))["LABELS"][0, 0].decode() for image in images[:20]]
    assert sum(one == label for one, label in zip(told, labels, strict=False)) >= 13


def test_a_text_classifier_of_transformers(kube: Kube, corpora: Corpora, tmp_path: Path) -> None:
    """MiniLM, which knows English: adapters learn of 640 sentences which are old."""
    datasets.eras(tmp_path / "eras", corpora.text.decode())
    upload(tmp_path / "eras")
    (tmp_path / "minilm").mkdir()
    put(folders.minilm(tmp_path / "minilm"), "minilm")
    found = trained(kube, "fine-tuning/texts.yaml", "eras")
    assert found["accuracy"] > 0.8, f"a half by chance, and from random weights: {found}"
    with asked(kube, "eras") as ask:
        told = [ask("classify", TEXT=text.encode())["LABELS"][0, 0].decode() for text in datasets.SPOKEN]
    assert sum(one == era for one, era in zip(told, datasets.SPOKEN.values(), strict=True)) >= 3


@pytest.mark.slow
def test_a_language_model_of_transformers(kube: Kube, tmp_path: Path) -> None:
    text = runs.text(2000)
    (tmp_path / "topics").mkdir()
    (tmp_path / "topics" / "a.txt").write_text(text)
    transformers_folders.causal(tmp_path / "causal", "gpt2", text)
    for name in ("topics", "causal"):
        upload(tmp_path / name)
    found = trained(kube, "language/fine-tuning.yaml", "letters")
    assert 0 < found["bitsPerCharacter"] < 5, f"of plain letters: {found}"
    assert found["bitsPerCharacter"] == pytest.approx(found["bitsPerByte"], rel=1e-3), f"a byte each: {found}"
    with asked(kube, "letters") as ask:
        likely, unlikely = (
            float(ask("complete", TEXT=said)["BITS_PER_BYTE"][0, 0]) for said in (text[:200].encode(), b"zq" * 40)
        )
    assert 0 < likely < unlikely, f"text as the corpus has it takes {likely} bits a byte, and zqzq... {unlikely}"
