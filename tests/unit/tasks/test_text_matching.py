"""Pairs of texts: what is learnt of them by their labels, what is served, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mms_workloads.contract import TextMatching
from mms_workloads.serve.pipelines import RequestError
from mms_workloads.store import JobError
from mms_workloads.tasks import exporting, starting, text_matching, texts
from mms_workloads.tasks.starting import Start
from mms_workloads.tasks.text_matching import Goal, TextMatcher
from tests.unit.data.counted import counted, described
from tests.unit.tasks import datasets
from tests.unit.tasks.test_starting import bert, word_vectors
from tests.unit.tasks.test_task_runs import artifact, job, metrics, run, served_as_published

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")


def asked(*values: str) -> np.ndarray:
    return np.array([[value.encode()] for value in values], np.object_)


def test_matches_are_found_and_searched(tmp_path: Path) -> None:
    task = {"textMatching": {"dimensions": 32, "maxLength": 16, "search": 1000}}
    training = job(
        tmp_path, task, datasets.paraphrases(tmp_path / "data"), optimizer={"epochs": 6, "learningRate": 0.01}
    )
    assert metrics(run(tmp_path, training))["recallAt1"] > 0.9  # a sixtieth of that by chance
    served = served_as_published(tmp_path, "textMatching", compared=False)
    texts_held = json.loads((artifact(tmp_path) / "search.json").read_text())
    assert len(texts_held) == len(set(texts_held)) == 1000
    found = served.answer({"TEXT": asked("Boris Haas called Greta in Lima"), "K": np.array([[400]], np.int32)})
    nearest = [text.decode() for text in found["TEXTS"][0] if text.startswith(b"a ")]
    assert nearest[0] == "a call in Peru"
    assert (np.diff(found["SCORES"][0]) <= 0).all()
    one = ["Olga left Paul in Cairo"]
    asking = {"TEXT": asked(*one, *one), "OTHER": asked("a departure in Egypt", "a call in Peru")}
    near, far = served.answer(asking)["SCORES"][:, 0]
    assert near > far + 0.3
    search = {"TEXT": asked("Nils met Olga in Oslo"), "K": np.array([[3]], np.int32)}
    together = served.answers([asking, search, asking])
    assert [one["SCORES"].shape for one in together if isinstance(one, dict)] == [(2, 1), (1, 3), (2, 1)]
    np.testing.assert_allclose(together[2]["SCORES"][:, 0], [near, far], atol=1e-5)  # type: ignore[index]
    strange = served.answer({"TEXT": asked("zzz qqq", ""), "OTHER": asked("a call in Peru", "")})["SCORES"]
    assert np.isfinite(strange).all(), "words that nobody knows, and no words"
    with pytest.raises(RequestError, match="K: it is of a search"):
        served.answer({"TEXT": asked("a"), "OTHER": asked("b"), "K": np.array([[1]], np.int32)})


def trained(task: TextMatcher, records: list[dict[str, Any]], steps: int = 60) -> tuple[float, torch.nn.Module]:
    """The metric on the last fifth."""
    network = task.build(1)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.01)
    cut = len(records) * 4 // 5
    batch = task.prepare(records[:cut])
    order = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randperm(cut, generator=order)[:64]
        optimizer.zero_grad()
        loss = task.loss(network, {name: tensor[chosen] for name, tensor in batch.items()}, order) / 64
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        measured = task.measure(network, [task.prepare(records[cut:])])
    return measured[task.metric], network


def of_table(folder: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Pairs of opinions, label 1 or 0, and the words of all."""
    datasets.opinion_pairs(folder, 800)
    rows = [line.split(",") for line in (folder / "pairs.csv").read_text().splitlines()[1:]]
    words: dict[str, int] = {}
    for one, other, _ in rows:
        for word in f"{one} {other}".split():
            words[word] = words.get(word, 0) + 1
    return [{"input": (one, other), "label": int(label)} for one, other, label in rows], words


def matcher(goal: Goal, words: dict[str, int], start: Start = starting.NOTHING, **spec: Any) -> TextMatcher:
    chosen = TextMatching(**{"dimensions": 16, "layers": 0, "maxLength": 32, **spec})
    return TextMatcher(chosen, goal, start, texts.words(words, chosen, start))


def test_whether_two_texts_match(tmp_path: Path) -> None:
    records, words = of_table(tmp_path)
    assert trained(matcher(Goal("Whether", ("0", "1")), words), records)[0] > 0.9


def test_how_much_two_texts_match(tmp_path: Path) -> None:
    records, words = of_table(tmp_path)
    scored = [{**record, "label": 1.0 + 3.5 * record["label"]} for record in records]
    found, network = trained(matcher(Goal("Score", (), 1.0, 4.5), words), scored)
    assert found > 0.75
    assert network.line.requires_grad  # type: ignore[union-attr]


def test_word_vectors_are_the_input(tmp_path: Path) -> None:
    """Those of good words are alike, those of bad ones too: hardly anything is left to learn."""
    records, _ = of_table(tmp_path / "data")
    (tmp_path / "vectors").mkdir()
    start = word_vectors(tmp_path / "vectors")
    found, network = trained(matcher(Goal("Whether", ("0", "1")), {}, start, dimensions=16), records, steps=12)
    assert found > 0.85
    assert not network.encoder.words.weight.requires_grad  # type: ignore[union-attr]


def test_a_folder_of_transformers_is_trained_further(tmp_path: Path) -> None:
    datasets.paraphrases(tmp_path, 400)
    pairs = [json.loads(line) for line in (tmp_path / "paraphrases.jsonl").read_text().splitlines()]
    records = [{"input": (pair["sentence1"], pair["sentence2"]), "label": None} for pair in pairs]
    (folder := tmp_path / "bert").mkdir()
    bert(folder, sorted({word for pair in pairs for text in pair.values() for word in text.lower().split()}))
    task = matcher(Goal("Matches"), {}, Start(folder, "u"), architecture="Pretrained", maxLength=16)
    found, network = trained(task, records)
    assert found > 0.8  # an eightieth by chance
    module, example, varying = task.exported(network)
    exporting.to_onnx(module, example, varying, task.outputs(), tmp_path / "model.onnx")


def test_a_text_that_occurs_twice_in_a_batch_is_no_other() -> None:
    task = matcher(Goal("Matches"), {"a": 2, "b": 2, "c": 2})
    network = task.build(1).eval()
    twice = [{"input": ("a b", "c"), "label": None}] * 2
    assert task.loss(network, task.prepare(twice), torch.Generator()).item() == pytest.approx(0, abs=1e-5)


def test_texts_are_told_apart_in_float32() -> None:
    """Where their vectors are products in BF16, which has three digits: how near they are differs by less."""

    class Given(torch.nn.Module):
        def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            del mask
            generator = torch.Generator().manual_seed(int(tokens[0, 0]))
            vectors = torch.nn.functional.normalize(torch.randn(len(tokens), 64, generator=generator))
            return vectors, torch.ones(len(tokens), 2)

    task = matcher(Goal("Matches"), {"a": 3, "b": 2})
    batch = task.prepare([{"input": pair, "label": None} for pair in (("a", "b"), ("b", "a"), ("a b", "b a"))])
    network = Given()
    network.register_parameter("somewhere", torch.nn.Parameter(torch.zeros(1)))
    expected = task.loss(network, batch, torch.Generator())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task.loss(network, batch, torch.Generator()), expected)


def goal_of(file: Path, **fields: str) -> Goal:
    schema = counted(described(file, fields=fields), file.parent).schema
    assert schema is not None
    assert schema.input == "pair"
    return text_matching.goal(schema)


@pytest.mark.parametrize(
    ("labels", "goal"),
    [
        ([None, None], Goal("Matches")),
        ([1, 1], Goal("Matches")),
        ([1, 0], Goal("Whether", ("0", "1"))),
        ([True, False], Goal("Whether", ("false", "true"))),
        (["no", "yes"], Goal("Whether", ("no", "yes"))),
        ([1, 3, 5], Goal("Score", (), 1.0, 5.0)),
        ([0, 0.5, 2], Goal("Score", (), 0.0, 2.0)),
        (["0.25", "3"], Goal("Score", (), 0.25, 3.0)),
    ],
)
def test_what_labels_say(tmp_path: Path, labels: list[Any], goal: Goal) -> None:
    lines = [
        {"premise": "x", "first": f"text {i}", "second": "other", "score": label} for i, label in enumerate(labels)
    ]
    for line in lines:
        if line["score"] is None:
            del line["score"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert goal_of(tmp_path / "pairs.jsonl") == goal


def test_columns_that_are_named(tmp_path: Path) -> None:
    table = pa.table({"text": ["a b", "c"], "reply": ["b", "d"], "stars": [1, 0]})
    pq.write_table(table, tmp_path / "pairs.parquet")
    fields = {"pair": "reply", "label": "stars"}
    assert goal_of(tmp_path / "pairs.parquet", **fields) == Goal("Whether", ("0", "1"))
    with pytest.raises(JobError, match=r"no field answer for data\.fields\.pair, and has text, reply, stars"):
        goal_of(tmp_path / "pairs.parquet", pair="answer")


def test_labels_that_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("text1,text2,label\na,b,red\na,b,green\na,b,blue\n")
    with pytest.raises(JobError, match="and these have blue, green, red"):
        goal_of(tmp_path / "pairs.csv")


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        ([("a", "a"), ("b", "b"), ("c", "c")], 1.0),
        ([("a", "a"), ("b", "b"), ("a", "a")], 1.0),  # the same text twice is one
        ([("zzz", "zzz"), ("yyy", "yyy"), ("xxx", "xxx"), ("www", "www")], 0.25),  # no word is known: all are as near
    ],
)
def test_recall_of_texts_that_are_as_near(pairs: list[tuple[str, str]], found: float) -> None:
    spec = TextMatching(layers=0, dimensions=16)
    words = texts.words(dict.fromkeys("abc", 2), spec, starting.NOTHING)
    matcher = TextMatcher(spec, Goal("Matches"), starting.NOTHING, words)
    network = matcher.build(1).eval()
    with torch.no_grad():
        torch.nn.init.eye_(network.get_parameter("encoder.words.weight"))
        batches = [matcher.prepare([{"input": pair} for pair in some]) for some in (pairs[:1], pairs[1:])]
        assert matcher.measure(network, batches) == {"recallAt1": found}


def test_spearman() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a = rng.integers(0, 5, 200).astype(float)
    b = a + rng.normal(0, 2, 200)
    assert text_matching.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert text_matching.spearman(a, np.zeros(200)) == 0
