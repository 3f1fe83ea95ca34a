"""The product's main job: a corpus goes in, Triton answers, and the answers are good."""

from __future__ import annotations

import itertools
import random
import uuid
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml

from mms_cluster import install
from mms_operator.cli.forward import port_forward
from mms_workloads.serve import query
from tests.e2e.kube import Kube, condition

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Corpora

pytestmark = pytest.mark.e2e

# Pairs that belong together in American public speech. The corpus has no list of them: what the vectors know of them
# comes from the contexts of the words.
PAIRS = (
    ("war", "peace"), ("army", "navy"), ("gold", "silver"), ("imports", "exports"), ("senate", "house"),
    ("men", "women"), ("north", "south"), ("income", "tax"), ("soviet", "union"), ("health", "care"),
    ("farmers", "agriculture"), ("schools", "education"), ("troops", "soldiers"), ("spain", "cuba"),
    ("railroads", "railways"), ("treaty", "convention"), ("iraq", "afghanistan"), ("jobs", "businesses"),
    ("revenue", "expenditures"), ("crime", "drugs"), ("land", "lands"), ("river", "mississippi"),
    ("mexico", "texas"), ("oil", "energy"), ("families", "children"), ("bonds", "notes"), ("court", "judges"),
    ("france", "britain"), ("slavery", "slave"), ("wages", "labor"),
)  # fmt: skip
EXAMPLES = install.CHART.parents[1] / "examples"
FLOOR = 0.85  # of the pairs' area under the curve; untrained and shuffled vectors stay near 0.5


def pair_auc(vectors: dict[str, np.ndarray], seed: int = 0) -> float:
    """How often a pair is closer than the same word with another pair's word: 0.5 is chance, 1 is best."""
    unit = {word: vector / np.linalg.norm(vector) for word, vector in vectors.items()}
    others = random.Random(seed)
    wins = trials = 0
    for (a, b), _ in itertools.product(PAIRS, range(20)):
        stranger = others.choice([w for pair in PAIRS if a not in pair for w in pair])
        wins += float(unit[a] @ unit[b]) > float(unit[a] @ unit[stranger])
        trials += 1
    return wins / trials


def test_corpus_to_answers(kube: Kube, corpora: Corpora) -> None:
    """examples/words as it is: two workers, ring all-reduce, Triton, tritonclient."""
    for name in ("training", "service"):
        with (EXAMPLES / "words" / f"{name}.yaml").open() as file:
            kube.apply(*yaml.safe_load_all(file))

    done = kube.wait_phase("words", "Complete", 400)
    assert condition(done, "Finished")["status"] == "True"
    assert done["status"]["artifact"]["digest"].startswith("sha256:")
    kube.wait_condition("modelservice", "words", "Ready", "True", seconds=180)
    served = kube.get("modelservice", "words")["status"]["versions"]["stable"]
    assert served["digest"] == done["status"]["artifact"]["digest"]

    words = sorted({word for pair in PAIRS for word in pair})
    with port_forward(kube.namespace, "svc/words", 8001) as address:
        answers = {answer.word: answer for answer in query.neighbours(address, ["war", "gold"], 10)}
        vectors = dict(zip(words, query.vectors(address, words), strict=True))
        with pytest.raises(query.QueryError, match="qwertzuiop"):
            query.neighbours(address, ["qwertzuiop"], 3)
    assert "silver" in answers["gold"].words
    assert answers["gold"].scores == sorted(answers["gold"].scores, reverse=True)

    assert pair_auc(vectors) > FLOOR
    shuffled = dict(zip(words, random.Random(1).sample(list(vectors.values()), len(words)), strict=True))
    untrained = {word: np.random.default_rng(i).normal(size=100) for i, word in enumerate(words)}
    assert pair_auc(shuffled) < FLOOR - 0.15
    assert pair_auc(untrained) < FLOOR - 0.15


def test_the_smallest_example(kube: Kube, corpora: Corpora) -> None:
    """examples/small as it is: one worker, text that is split at white space."""
    with (EXAMPLES / "small" / "training.yaml").open() as file:
        kube.apply(yaml.safe_load(file))
    done = kube.wait_phase("small", "Complete")
    assert done["status"]["artifact"]["version"] == 1


NUMERALS, THINGS = "一二三四五六七八九十", "书信画报"


def test_the_chinese_example(kube: Kube, corpora: Corpora, tmp_path: Path) -> None:
    """examples/chinese as it is: CBOW of characters, which are asked for as they are written."""
    some = random.Random(1)
    told = [
        f"{some.choice('我你他她')}{some.choice('有买读写')}{some.choice(NUMERALS)}{some.choice('本封张份')}{some.choice(THINGS)}。"
        for _ in range(20_000)
    ]
    corpora.put("chinese.txt", "".join(told).encode(), tmp_path / "chinese")
    kube.apply(*yaml.safe_load_all((EXAMPLES / "chinese" / "words.yaml").read_text()))
    kube.wait_phase("chinese", "Complete")
    kube.wait_condition("modelservice", "chinese", "Ready", "True", seconds=180)
    with port_forward(kube.namespace, "svc/chinese", 8001) as address:
        numerals, things = query.neighbours(address, ["三", "书"], 3)
    assert set(numerals.words) <= set(NUMERALS)
    assert set(things.words) <= set(THINGS)


def test_the_example_of_subwords(kube: Kube, corpora: Corpora) -> None:
    """examples/subwords as it is: a word that the corpus does not have is found near those it is made of."""
    assert b"taxationless" not in corpora.text.lower()
    kube.apply(*yaml.safe_load_all((EXAMPLES / "subwords" / "words.yaml").read_text()))
    kube.wait_phase("subwords", "Complete", 400)
    kube.wait_condition("modelservice", "subwords", "Ready", "True", seconds=180)
    with port_forward(kube.namespace, "svc/subwords", 8001) as address:
        (unseen,) = query.neighbours(address, ["taxationless"], 10)
    assert "taxation" in unseen.words


def test_the_example_with_a_store_of_ones_own(kube: Kube, corpora: Corpora) -> None:
    """examples/own-store with the addresses and keys of a store that is there; two servers."""
    keys = Kube(install.NAMESPACE).get("secret", f"{install.RELEASE}-store")["data"]
    store = f"http://{install.RELEASE}-store.{install.NAMESPACE}:8333"
    for name in ("secret", "training", "service"):
        with (EXAMPLES / "own-store" / f"{name}.yaml").open() as file:
            manifest = yaml.safe_load(file)
        if name == "secret":
            manifest = {**manifest, "stringData": {}, "data": {key: keys[key] for key in manifest["stringData"]}}
        if name == "training":
            manifest["spec"]["data"] |= {"uri": corpora.small, "endpoint": store}
            manifest["spec"]["storage"] |= {
                "uri": f"s3://mms/{kube.namespace}-{uuid.uuid4().hex[:8]}",
                "endpoint": store,
            }
        kube.apply(manifest)
    kube.wait_phase("own-store", "Complete")
    kube.wait_condition("modelservice", "own-store", "Ready", "True", seconds=180)
    assert kube.get("modelservice", "own-store")["status"]["readyReplicas"] == 2
    with port_forward(kube.namespace, "svc/own-store", 8001) as address:
        assert query.neighbours(address, ["congress"], 3)
