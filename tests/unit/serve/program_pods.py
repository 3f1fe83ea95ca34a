"""Serving pods whose models are programs of folders: each folder's answers are known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.unit.serve.serving_pod import ServingPod

if TYPE_CHECKING:
    from pathlib import Path

MODEL = "classify"
CODE = """
import pathlib, sys
import numpy as np

def load(folder):
    sys.path.insert(0, str(folder))
    import ours
    def answer(feeds):
        return {"logits": ours.SIGN * 10 * feeds["pixels"].mean(axis=(2, 3))}
    return answer
"""


class Pod(ServingPod):
    """Its models were not trained here: each is a folder, by a digest that is one letter."""

    def wants(self, letter: str, **more: Any) -> None:
        part = self.root / "part"
        part.write_text(json.dumps({**file_of(self.root, letter), **more}))
        part.replace(self.root / "wanted")

    @property
    def serves(self) -> str:
        return str(self.served()["digest"][-1])

    @property
    def versions(self) -> list[str]:
        folders = (self.root / "models" / "repository" / MODEL).iterdir()
        return sorted(one.name for one in folders if one.is_dir())

    def swap(self) -> dict[str, Any]:
        found: dict[str, Any] = self.served().get("swap") or {}
        return found


def file_of(root: Path, letter: str) -> dict[str, Any]:
    place = {"uri": (root / letter).as_uri()}
    pin = {**place, "digest": f"sha256:{letter * 64}"}
    pretrained = {"trusted": letter in "bcdf"}
    return {"namespace": "d", "name": "n", "artifact": pin, "storage": place, "pretrained": pretrained}


def python(folder: Path, sign: int) -> None:
    """The helper module has the same name in each: a process imports it once."""
    folder.mkdir()
    asked = {"task": "imageClassification", "labels": ["red", "green", "blue"], "image": {"height": 4, "width": 4}}
    (folder / "pipeline.json").write_text(json.dumps(asked))
    (folder / "model.py").write_text(CODE)
    (folder / "ours.py").write_text(f"import sys\nSIGN = {sign}\n")
