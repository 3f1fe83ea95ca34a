"""What the records of a data set are: a worker's survey of its part, merged by the master into a schema. Pure.

A record is good when it could be read, and its input and label are of the kinds that most records have. Positions of
the others are part of the schema: all workers leave out the same ones.
"""

from __future__ import annotations

import heapq
import json
import math
import re
import zlib
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from mms_workloads.contract import Reason, Statistics
from mms_workloads.data.vocabulary import prune
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mms_workloads.contract import RecordFormat

MAX_CLASSES = 10_000  # with more different labels there are none: they are texts
LONGEST_CLASS = 200  # characters
COUNTED_WORDS = 400_000  # different ones, while they are counted
MOST_WORDS = 100_000  # of a schema: more than text tasks learn
NAMED_RECORDS = 5  # in a message
NOTHING = "none"  # kind of a label that is not there
PAIR = "pair"  # kind of an input that is two texts
CHANNELS = 3
LONGEST_REASON = 1000  # characters
EMPTY = "its input is empty"


@dataclass(frozen=True, slots=True, order=True)
class Bad:
    """A record that is left out. offset: of its first byte in the decompressed file; of Parquet its row."""

    file: int
    offset: int
    reason: str


# Quoted words, and numbers that are no part of a word: what differs from record to record in one reason.
_PARTICULARS = re.compile(r"'[^']*'|(?<![\w.])-?\d[\d.]*(?:e[+-]?\d+)?(?!\w)")


def kinds(bad: Iterable[Bad]) -> Counter[str]:
    """How many records have each reason, its particulars left out."""
    return Counter(_PARTICULARS.sub("…", one.reason) for one in bad)


def without_particulars(bad: Bad) -> Bad:
    """Its reason says nothing that the record says."""
    return replace(bad, reason=next(iter(kinds([bad]))))


@dataclass(frozen=True, slots=True)
class Spread:
    least: int
    median: int
    most: int


@dataclass(frozen=True, slots=True)
class Images:
    """frames: of animations and arrays [T, H, W, C]; 1 of still images."""

    channels: int
    height: Spread
    width: Spread
    frames: Spread
    statistics: Statistics


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of texts in characters, of word lists in words, of sound in seconds."""

    longest: float
    mean: float


@dataclass(frozen=True, slots=True)
class Schema:
    """classes: the different labels of records, boxes or words, sorted, with how often each occurs; empty where the
    labels are texts, fractions or none. index: by file, where records start, ascending and sparse; of files whose
    records can be found only from their start on.
    """

    format: RecordFormat
    input: str  # text, pair, words, image, audio, numbers
    label: str  # none, string, integer, number, tags, boxes
    classes: Mapping[str, int] = field(default_factory=dict)
    records: int = 0  # good ones
    bad: tuple[Bad, ...] = ()
    images: Images | None = None
    lengths: Lengths | None = None
    rates: Mapping[int, int] = field(default_factory=dict)  # of sound: samples per second, with how many records
    index: Mapping[int, Sequence[int]] = field(default_factory=dict)
    words: Mapping[str, int] = field(
        default_factory=dict
    )  # of texts, in small letters between spaces, most frequent first
    scores: tuple[float, float] | None = None  # of pairs whose labels are numbers: the least and the greatest

    def document(self) -> dict[str, Any]:
        """As JSON."""
        document = asdict(self)
        document["bad"] = [[b.file, b.offset, b.reason] for b in self.bad]
        document["classes"] = list(self.classes.items())
        document["words"] = list(self.words.items())
        if self.images:
            document["images"]["statistics"] = self.images.statistics.model_dump()
        return document

    @classmethod
    def read(cls, document: dict[str, Any]) -> Schema:
        images = document["images"]
        if images:
            spreads = {name: Spread(**images[name]) for name in ("height", "width", "frames")}
            images = Images(images["channels"], **spreads, statistics=Statistics(**images["statistics"]))
        return cls(
            **{
                **document,
                "classes": dict(document["classes"]),
                "words": dict(document["words"]),
                "bad": tuple(Bad(*one) for one in document["bad"]),
                "images": images,
                "lengths": Lengths(**document["lengths"]) if document["lengths"] else None,
                "rates": {int(k): v for k, v in document["rates"].items()},
                "index": {int(k): list(v) for k, v in document["index"].items()},
                "scores": tuple(scores) if (scores := document.get("scores")) else None,
            }
        )


def class_of(label: object) -> str:
    """The class that a label names."""
    if isinstance(label, bool):
        return "true" if label else "false"
    return str(label)


@dataclass(slots=True)
class Pixels:
    """Sums over images, by channel, of values 0 to 1; grey ones count as three equal channels."""

    images: int = 0
    pixels: int = 0
    channels: int = 1
    sums: list[float] = field(default_factory=lambda: [0.0] * CHANNELS)
    squares: list[float] = field(default_factory=lambda: [0.0] * CHANNELS)
    means: list[float] = field(default_factory=lambda: [0.0] * CHANNELS)  # of each image's means
    mean_squares: list[float] = field(default_factory=lambda: [0.0] * CHANNELS)
    stds: list[float] = field(default_factory=lambda: [0.0] * CHANNELS)
    std_squares: list[float] = field(default_factory=lambda: [0.0] * CHANNELS)
    heights: Counter[int] = field(default_factory=Counter)
    widths: Counter[int] = field(default_factory=Counter)
    frames: Counter[int] = field(default_factory=Counter)

    def add(self, shape: tuple[int, int, int, int], means: Sequence[float], squares: Sequence[float]) -> None:
        """shape: frames, height, width, channels; means of the values and of their squares, by channel."""
        frames, height, width, channels = shape
        count = frames * height * width
        self.images, self.pixels, self.channels = self.images + 1, self.pixels + count, max(self.channels, channels)
        for counter, value in ((self.heights, height), (self.widths, width), (self.frames, frames)):
            counter[value] += 1
        for c in range(CHANNELS):
            mean, square = means[min(c, channels - 1)], squares[min(c, channels - 1)]
            std = math.sqrt(max(0.0, square - mean * mean))
            for sums, term in (
                (self.sums, mean * count),
                (self.squares, square * count),
                (self.means, mean),
                (self.mean_squares, mean * mean),
                (self.stds, std),
                (self.std_squares, std * std),
            ):
                sums[c] += term

    def merge(self, other: Pixels) -> None:
        self.images, self.pixels = self.images + other.images, self.pixels + other.pixels
        self.channels = max(self.channels, other.channels)
        for name in ("sums", "squares", "means", "mean_squares", "stds", "std_squares"):
            setattr(self, name, [a + b for a, b in zip(getattr(self, name), getattr(other, name), strict=True)])
        for name in ("heights", "widths", "frames"):
            getattr(self, name).update(getattr(other, name))

    def summary(self) -> Images:
        def spread(sums: list[float], squares: list[float], count: int) -> tuple[list[float], list[float]]:
            means = [s / count for s in sums[: self.channels]]
            pairs = zip(squares, means, strict=False)
            return means, [math.sqrt(max(0.0, q / count - m * m)) for q, m in pairs]

        mean, std = spread(self.sums, self.squares, self.pixels)
        image_mean, image_mean_std = spread(self.means, self.mean_squares, self.images)
        image_std, image_std_std = spread(self.stds, self.std_squares, self.images)
        statistics = Statistics(
            mean=mean,
            std=std,
            imageMean=image_mean,
            imageMeanStd=image_mean_std,
            imageStd=image_std,
            imageStdStd=image_std_std,
        )
        heights, widths, frames = (_spread(c) for c in (self.heights, self.widths, self.frames))
        return Images(self.channels, heights, widths, frames, statistics)


@dataclass(slots=True)
class Survey:
    """What was found in a part of a data set; parts merge in any order to the same."""

    limit: int  # bad records that the data set may have
    kinds: Counter[str] = field(default_factory=Counter)  # "input label" -> records
    examples: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # of each kind the first limit + 1
    classes: dict[str, Counter[str] | None] = field(default_factory=dict)  # by kind; None: too many
    bad: list[Bad] = field(default_factory=list)  # the first limit + 1
    bad_count: int = 0
    pixels: Pixels = field(default_factory=Pixels)
    measured: int = 0  # records with a length
    total: float = 0.0
    longest: float = 0.0
    rates: Counter[int] = field(default_factory=Counter)
    index: dict[int, list[int]] = field(default_factory=dict)
    words: Counter[str] = field(default_factory=Counter)
    scores: tuple[float, float] | None = None  # the least and the greatest

    def score(self, value: float) -> None:
        """A label of a pair."""
        self.scores = _range(self.scores, (value, value))

    def read(self, words: Iterable[str]) -> None:
        """Of a text; rare ones are forgotten where there are too many."""
        self.words.update(words)
        if len(self.words) > COUNTED_WORDS:
            prune(self.words, COUNTED_WORDS)

    def good(self, file: int, offset: int, kind: str, classes: Iterable[str]) -> None:
        """A record of a kind, "input label"."""
        self.kinds[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) <= self.limit:
            examples.append((file, offset))
        counts = self.classes.setdefault(kind, Counter())
        if counts is not None:
            counts.update(classes := list(classes))
            if len(counts) > MAX_CLASSES or any(len(name) > LONGEST_CLASS for name in classes):
                self.classes[kind] = None

    def length(self, value: float) -> None:
        self.measured += 1
        self.total += value
        self.longest = max(self.longest, value)

    def reject(self, bad: Bad) -> None:
        self.bad_count += 1
        if len(self.bad) <= self.limit:
            self.bad.append(replace(bad, reason=_writable(bad.reason)))

    def merge(self, other: Survey) -> None:
        self.kinds.update(other.kinds)
        for kind, examples in other.examples.items():
            self.examples[kind] = heapq.nsmallest(self.limit + 1, self.examples.get(kind, []) + examples)
        for kind, theirs in other.classes.items():
            both = _both(self.classes.get(kind, Counter()), theirs)
            self.classes[kind] = both if both is not None and len(both) <= MAX_CLASSES else None
        self.bad = heapq.nsmallest(self.limit + 1, self.bad + other.bad)
        self.bad_count += other.bad_count
        self.pixels.merge(other.pixels)
        self.measured, self.total = self.measured + other.measured, self.total + other.total
        self.longest = max(self.longest, other.longest)
        self.rates.update(other.rates)
        self.index.update(other.index)
        self.words.update(other.words)
        self.scores = _range(self.scores, other.scores)
        prune(self.words, COUNTED_WORDS)

    def schema(self, chosen: RecordFormat, names: Sequence[str]) -> Schema:
        """names: of the files. Raises JobError: DataEmpty, DataInvalid."""
        self.check(names)
        if not self.kinds:
            what = f"none of them is good: {_tell(self.bad, names)}" if self.bad else "check the URI and data.format"
            raise JobError(Reason.DATA_EMPTY, f"no record was found in {len(names)} files: {what}")
        kinds = Counter(self.kinds)
        empty = [kind for kind in kinds if kind.endswith(" empty")]  # a list without entries goes with any list
        top = min(
            (kind for kind in kinds if kind not in empty or len(kinds) == len(empty)), key=lambda k: (-kinds[k], k)
        )
        input_kind, label_kind = top.split(" ")
        fits = {top, f"{input_kind} empty"} if label_kind in {"tags", "boxes"} else {top}
        if input_kind == PAIR and {f"{PAIR} integer", f"{PAIR} number"} & fits and f"{PAIR} number" in kinds:
            fits, label_kind = {f"{PAIR} integer", f"{PAIR} number"}, "number"  # a score may be whole
        odd = [
            Bad(*place, f"it has {_say(kind)}, where most records have {_say(top)}")
            for kind in kinds
            if kind not in fits
            for place in self.examples[kind]
        ]
        count = sum(n for kind, n in kinds.items() if kind not in fits)
        if self.bad_count + count > self.limit:
            raise _too_many(self.bad_count + count, self.limit, sorted([*self.bad, *odd]), names)
        labelled = label_kind in {"string", "integer", "tags", "boxes"}
        counts = self.classes.get(top) if labelled else None
        classes = dict(sorted(counts.items(), key=_order)) if counts else {}
        return Schema(
            chosen,
            input_kind,
            label_kind,
            classes,
            sum(kinds[kind] for kind in fits),
            tuple(sorted([*self.bad, *odd])),
            self.pixels.summary() if self.pixels.images else None,
            Lengths(self.longest, self.total / self.measured) if self.measured else None,
            dict(sorted(self.rates.items())),
            {file: self.index[file] for file in sorted(self.index)},
            dict(sorted(self.words.items(), key=lambda item: (-item[1], item[0]))[:MOST_WORDS]),
            self.scores if label_kind in {"integer", "number"} else None,
        )

    def check(self, names: Sequence[str]) -> None:
        """Raises JobError when more records are bad than may be."""
        if self.bad_count > self.limit:
            raise _too_many(self.bad_count, self.limit, self.bad, names)

    def pack(self) -> bytes:
        document = {**_shallow(self), "pixels": _shallow(self.pixels), "bad": [asdict(bad) for bad in self.bad]}
        return zlib.compress(json.dumps(document, ensure_ascii=False).encode(), 6)

    @classmethod
    def unpack(cls, data: bytes) -> Survey:
        document = json.loads(zlib.decompress(data))
        pixels = document["pixels"]
        for name in ("heights", "widths", "frames"):
            pixels[name] = _counter(pixels[name])
        classes = {kind: None if c is None else Counter(c) for kind, c in document["classes"].items()}
        return cls(
            **{
                **document,
                "kinds": Counter(document["kinds"]),
                "examples": {k: [(f, o) for f, o in places] for k, places in document["examples"].items()},
                "classes": classes,
                "bad": [Bad(**one) for one in document["bad"]],
                "pixels": Pixels(**pixels),
                "rates": _counter(document["rates"]),
                "index": {int(k): v for k, v in document["index"].items()},
                "words": Counter(document["words"]),
                "scores": tuple(document["scores"]) if document["scores"] else None,
            }
        )


def _range(ours: tuple[float, float] | None, theirs: tuple[float, float] | None) -> tuple[float, float] | None:
    if ours is None or theirs is None:
        return ours or theirs
    return min(ours[0], theirs[0]), max(ours[1], theirs[1])


def _both(ours: Counter[str] | None, theirs: Counter[str] | None) -> Counter[str] | None:
    return None if ours is None or theirs is None else ours + theirs


def _shallow(one: Survey | Pixels) -> dict[str, Any]:
    """Not asdict, which takes a Counter apart."""
    return {f.name: getattr(one, f.name) for f in fields(one)}


def _counter(document: dict[str, int]) -> Counter[int]:
    return Counter({int(k): v for k, v in document.items()})


def _order(item: tuple[str, int]) -> tuple[int, float, str]:
    """Whole numbers by their value, before words."""
    name = item[0]
    number = name.isdecimal() or (name[:1] == "-" and name[1:].isdecimal())
    return (0, int(name), name) if number else (1, 0, name)


def _spread(counts: Counter[int]) -> Spread:
    ordered = sorted(counts)
    half, seen = sum(counts.values()) / 2, 0
    for value in ordered:
        seen += counts[value]
        if seen >= half:
            break
    return Spread(ordered[0], value, ordered[-1])


def _writable(reason: str) -> str:
    """It may quote what the record says, whatever that is."""
    short = reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + "..."
    return short.encode(errors="backslashreplace").decode()


def _say(kind: str) -> str:
    input_kind, label_kind = kind.split(" ")
    label = "no label" if label_kind == NOTHING else f"a label of kind {label_kind}"
    return f"an input of kind {input_kind} and {label}"


def _too_many(count: int, limit: int, bad: Sequence[Bad], names: Sequence[str]) -> JobError:
    return JobError(
        Reason.DATA_INVALID,
        f"{count} records are bad, and data.quality.maxBadRecords is {limit}: {_tell(bad, names)}. "
        "Correct them, or raise maxBadRecords to leave them out",
    )


def _tell(bad: Sequence[Bad], names: Sequence[str]) -> str:
    said = "; ".join(f"{names[b.file]} at {b.offset}: {b.reason}" for b in bad[:NAMED_RECORDS])
    return said + ("; ..." if len(bad) > NAMED_RECORDS else "")
