"""The vocabulary: order, limits, what it says of data that has none."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_workloads.contract import Phrases, Reason, WordEmbedding
from mms_workloads.data import vocabulary
from mms_workloads.store import JobError
from tests.unit.data.words import counts_of

COUNTS = st.dictionaries(st.text("abcdé", min_size=1, max_size=4), st.integers(1, 50), max_size=60)


@given(COUNTS, st.integers(1, 10), st.integers(2, 20))
def test_cut(counts: dict[str, int], minimum: int, most: int) -> None:
    task = WordEmbedding(minCount=minimum, maxVocabulary=most)
    enough = sum(count >= minimum for count in counts.values())
    if enough < 2:
        with pytest.raises(JobError):
            vocabulary.cut(counts_of(counts), task)
        return
    found = vocabulary.cut(counts_of(counts), task)
    assert len(found) == min(enough, most)
    assert all(counts[w] == c >= minimum for w, c in zip(found.words, found.counts, strict=True))
    assert list(found.counts) == sorted(found.counts, reverse=True)
    left_out = [c for w, c in counts.items() if w not in found.words]
    assert max(left_out, default=0) <= found.counts[-1] or enough <= most
    # The same counts give the same numbers, in whatever order they were counted.
    assert vocabulary.cut(counts_of(dict(reversed(counts.items()))), task) == found
    numbers = found.numbered().above(-1)
    assert [numbers[w] for w in found.words] == list(range(len(found)))


@pytest.mark.parametrize(
    ("counts", "minimum", "reason", "says"),
    [
        ({}, 1, Reason.DATA_EMPTY, "no word"),
        ({"a": 3}, 1, Reason.VOCABULARY_TOO_SMALL, "1 of 1 different words"),
        ({"a": 3, "b": 2}, 3, Reason.VOCABULARY_TOO_SMALL, "minCount=3.*the most frequent one 3 times.*lower minCount"),
        ({"a": 3, "b": 2}, 9, Reason.VOCABULARY_TOO_SMALL, "0 of 2 different words.*5 words in all"),
    ],
    ids=["no word", "one word", "one frequent word", "none"],
)
def test_too_little(counts: dict[str, int], minimum: int, reason: Reason, says: str) -> None:
    with pytest.raises(JobError, match=says) as raised:
        vocabulary.cut(counts_of(counts), WordEmbedding(minCount=minimum))
    assert (raised.value.reason, raised.value.retryable) == (reason, False)


@given(COUNTS, st.integers(1, 30))
def test_prune_keeps_the_frequent(counts: dict[str, int], limit: int) -> None:
    pruned = Counter(counts)
    dropped = vocabulary.prune(pruned, limit)
    assert dict(pruned) == {w: c for w, c in counts.items() if c > dropped}
    assert len(pruned) <= limit
    if len(counts) <= limit:
        assert dropped == 0


@given(COUNTS)
def test_counts_travel(counts: dict[str, int]) -> None:
    assert vocabulary.unpack_counts(vocabulary.pack_counts(counts_of(counts))).above(0) == counts


def test_text() -> None:
    assert vocabulary.Vocabulary(("höhe", "a"), (9, 2)).text() == "höhe\t9\na\t2\n"


@pytest.mark.parametrize(("most", "limit"), [(1000, 4_000_000), (2_000_000, 8_000_000)])
def test_counter_limit(most: int, limit: int) -> None:
    assert vocabulary.counter_limit(WordEmbedding(maxVocabulary=most)) == limit


def test_words_that_follow_one_another_become_one() -> None:
    """new york: (40 - 5) / (50 * 40) * 1000 = 17.5; the new: (45 - 5) / (500 * 50) * 1000 = 1.6."""
    words = {"the": 500, "new": 50, "york": 40, "rare": 2, "other": 410}
    pairs = [("new york", 40), ("the new", 45)]

    def found(threshold: float) -> list[tuple[str, int]]:
        return vocabulary.found(words, pairs, 3, Phrases(minCount=5, threshold=threshold))

    assert found(17) == [("new york", 40)]
    assert found(18) == []
    assert found(1) == pairs, "the highest score first"
    joined = {"the": 500, "new": 10, "rare": 2, "other": 410, "new_york": 40}
    assert vocabulary.joined(words, pairs[:1]) == joined, "of york none is left"


@pytest.mark.parametrize(("least", "phrases"), [(39, ("new york", "the new")), (41, ("the new",)), (46, ())])
def test_pairs_that_are_rare_stay_two_words(least: int, phrases: tuple[str, ...]) -> None:
    counts = {"the": 500, "new": 150, "york": 140, "new york": 40, "the new": 45}
    task = WordEmbedding(minCount=1, phrases=Phrases(minCount=least, threshold=0))
    assert vocabulary.cut(counts_of(counts), task).phrases == phrases


def test_words_of_pairs_that_are_cut_off_keep_their_counts() -> None:
    """Text is numbered as it was counted: of the five most frequent ones without new york, which is then the sixth."""
    counts = {"a": 900, "b": 800, "new": 700, "york": 600, "c": 60, "new york": 50}
    task = WordEmbedding(minCount=1, phrases=Phrases(minCount=5, threshold=0))
    for most, phrases in ((5, ()), (6, ("new york",))):
        found = vocabulary.cut(counts_of(counts), task.model_copy(update={"maxVocabulary": most}))
        assert found.phrases == phrases
        each = dict(zip(found.words, found.counts, strict=True))
        assert (each["new"], each["york"]) == (700 - 50 * len(phrases), 600 - 50 * len(phrases))
        numbers = found.numbered().encode(b"new york", "Words", pairs=bool(phrases)).tolist()
        assert [found.words[number] for number in numbers[:-1]] == (["new_york"] if phrases else ["new", "york"])


def test_a_word_that_comes_back_takes_the_place_of_a_pair() -> None:
    """Of two words that are kept one is p q, until x y is cut off: then x is more frequent, and p q is cut off, too."""
    counts = {"a": 1000, "p": 110, "q": 105, "x": 150, "y": 145, "p q": 100, "x y": 90}
    task = WordEmbedding(minCount=1, maxVocabulary=2, phrases=Phrases(minCount=5, threshold=0))
    found = vocabulary.cut(counts_of(counts), task)
    assert (found.words, found.counts, found.phrases) == (("a", "x"), (1000, 150), ())


def test_a_pair_that_is_too_rare_for_the_vocabulary_takes_no_word_from_it() -> None:
    counts = {"a": 100_000, "b": 100_000, "new": 150, "york": 150, "new york": 80}
    task = WordEmbedding(minCount=100, phrases=Phrases())
    assert vocabulary.cut(counts_of(counts), task).words == ("a", "b", "new", "york")


def test_phrases_of_a_vocabulary() -> None:
    task = WordEmbedding(minCount=10, phrases=Phrases(minCount=5, threshold=17))
    counts = {"the": 500, "new": 50, "york": 40, "other": 410, "a b": 9, "a": 9, "b": 9, "new york": 40}
    found = vocabulary.cut(counts_of(counts), task)
    assert found.words == ("the", "other", "new_york", "new")
    assert found.phrases == ("new york",), "the other one is too rare for the vocabulary"
    assert found.numbered().encode(b"the new york new york\nnew other york", "Words", pairs=True).tolist() == [
        0, 2, 2, -1, 3, 1, -1,
    ]  # fmt: skip
    assert vocabulary.cut(counts_of(counts), task.model_copy(update={"phrases": None})).phrases == ()
