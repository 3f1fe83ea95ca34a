"""Our files in gensim, in the environment that benchmarks compare with."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.embedding import PEERS, peers
from mms_workloads.contract import Store, WordEmbedding
from mms_workloads.embedding import local

if TYPE_CHECKING:
    from pathlib import Path

LOAD = """
import json, sys
from gensim.models import KeyedVectors
loaded = KeyedVectors.load_word2vec_format(sys.argv[1], binary=sys.argv[1].endswith(".bin"))
print(json.dumps({"words": loaded.index_to_key, "vectors": loaded.vectors.tobytes().hex()}))
"""


@pytest.fixture(scope="module")
def python() -> str:
    return peers([one for one in PEERS if one.startswith("gensim")])


@pytest.mark.parametrize(
    "task",
    [{}, {"tokenizer": "Whitespace", "phrases": {"minCount": 1, "threshold": 1}}, {"subwords": {"buckets": 50}}],
    ids=["words", "phrases", "subwords"],
)
def test_gensim_reads_what_is_written(tmp_path: Path, python: str, task: dict[str, Any]) -> None:
    """Words of any script, with marks of any kind, in both formats, to the last bit."""
    (tmp_path / "text").write_text("New York größe 漢字 o'clock 🦀 #1 a\u00adb, new_york\n" * 20, encoding="utf-8")
    fields = {"dimensions": 5, "minCount": 1, "subsample": 0, **task}
    store = Store(uri=f"file://{tmp_path}/text")
    settings = local.Settings(store, WordEmbedding.model_validate(fields), 1, 0.05, 1, 1, text=True)
    result = local.embed(settings, tmp_path / "out", tmp_path / "scratch", lambda _: None)
    for name in ("vectors.bin", "vectors.txt"):
        command = [python, "-W", "ignore", "-c", LOAD, str(tmp_path / "out" / name)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        assert tuple(found["words"]) == result.words
        assert bytes.fromhex(found["vectors"]) == np.ascontiguousarray(result.vectors).tobytes()
