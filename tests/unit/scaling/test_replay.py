"""`mms replay`, whole: a trace in, a table and a page out; and what it says of bad options."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from mms_operator.cli import app
from mms_operator.lab import plots, report
from mms_operator.lab.compare import Answer, Comparison, Question, compare, rounded_down, static_fleets, thinned
from mms_operator.lab.simulate import Outcome
from mms_operator.plan.scaling.types import Capacity, Decision

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

CAPACITY = Capacity(service_seconds=0.5, objective_seconds=2.0)
USUAL = ("--objective-ms", "2000", "--service-ms", "500")


@pytest.fixture(scope="module")
def times() -> list[float]:
    chance = random.Random(3)
    return sorted(240 * chance.random() for _ in range(1200))


@pytest.fixture(scope="module")
def answer(times: list[float]) -> Answer:
    return compare(Question(times, CAPACITY, (5.0, 60.0)), lambda _: None)


@pytest.fixture
def path(tmp_path: Path, times: list[float]) -> Path:
    path = tmp_path / "<trace>.csv"
    path.write_text("time\n" + "".join(f"{time}\n" for time in times))
    return path


def replay(path: Path, *options: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["replay", str(path), *options])


def parsed(page: str) -> ET.Element:
    return ET.fromstring(page[page.index("<body>") : page.index("</html>")])


def test_table_and_page(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    done = replay(path, *USUAL, "--cold-start", "5,30", "-o", str(out))
    assert done.exit_code == 0, done.output
    for said in (
        "5 s",
        "30 s",
        "ours",
        "KPA",
        "HPA",
        "KEDA",
        "static",
        "replica-hours",
        "1,200 requests",
        "All begin with",
    ):
        assert said in done.output
    assert "<trace>.csv" in " ".join(parsed(out.read_text()).itertext())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--objective-ms", "400", "--service-ms", "500"), "--objective-ms: 400 ms are less than a request takes"),
        (("--objective-ms", "400", "--service-ms", "0"), "--service-ms: give milliseconds above 0, not 0"),
        (("--objective-ms", "nan", "--service-ms", "500"), "--objective-ms: give milliseconds above 0"),
        ((*USUAL, "--cold-start", "5;30"), "--cold-start: give seconds with commas between them, as 5,30, not '5;30'"),
        ((*USUAL, "--cold-start", "-1"), "--cold-start: give 0 or more seconds each"),
        ((*USUAL, "--concurrency", "0"), "--concurrency: give 1 or more, not 0"),
        ((*USUAL, "--within", "1"), "--within: give a part above 0 and below 1"),
        ((*USUAL, "--within", "99"), "such as 0.99, not 99"),
        ((*USUAL, "--least", "-1"), "--least: give 0 or more replicas, not -1"),
        ((*USUAL, "--begin", "-1"), "--begin: give 0 or more seconds"),
        ((*USUAL, "--seconds", "0"), "--seconds: give seconds above 0"),
        ((*USUAL, "--begin", "1000"), "no request between 1000 s and inf s of the trace"),
        ((*USUAL, "--output", "none/there.html"), "--output: there is no folder none"),
        ((*USUAL, "--output", "/"), "--output: / is a folder; name a file in it"),
        (USUAL[:2], "--service-ms"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options(path: Path, options: tuple[str, ...], said: str) -> None:
    done = replay(path, *options)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
    assert "Traceback" not in done.output


@pytest.mark.parametrize("text", [None, "soon\n"], ids=["not there", "no trace"])
def test_a_trace_that_cannot_be_read(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "other.csv"
    if text is not None:
        path.write_text(text)
    done = replay(path, *USUAL)
    assert done.exit_code == 2
    assert "other.csv" in done.output
    assert "Traceback" not in done.output


def test_all_begin_with_the_cheapest_static_fleet(answer: Answer) -> None:
    within = {n: outcome.within for n, outcome in answer.static.items()}
    assert within[answer.cheapest] >= 0.99 > within[answer.cheapest - 1]
    assert list(answer.shown_static()) == [f"static {answer.cheapest}", f"static {answer.cheapest - 1}"]
    for one in answer.comparisons:
        for outcome in (*one.scaled.values(), answer.static[answer.cheapest]):
            assert outcome.requests == len(answer.question.times)
            if outcome.within >= 0.99:
                assert outcome.replica_hours >= one.bound_hours


def test_a_burst_takes_a_fleet_that_is_searched_for() -> None:
    # 200 at once: at most 1 % late; each replica serves 4 of them in time. 50 replicas serve all, 49 only 196.
    static, cheapest = static_fleets(Question([0.0] * 200 + [600.0], CAPACITY, ()), lambda _: None)
    assert cheapest == 50
    assert len(static) < 20


def test_a_short_trace_may_take_less_than_its_mean() -> None:
    # Four in a second are two replicas' work; but one serves them in 2 s, which is in time for all of them.
    static, cheapest = static_fleets(Question([0.0, 0.0, 0.0, 1.0], CAPACITY, ()), lambda _: None)
    assert (cheapest, sorted(static)) == (1, [1, 2])


def test_the_best_peer_meets_the_objective() -> None:
    def outcome(late: int, hours: float) -> Outcome:
        return Outcome(requests=1000, late=late, replica_seconds=3600 * hours)

    scaled = {"ours": outcome(0, 1), "KPA": outcome(11, 2), "HPA": outcome(10, 4), "KEDA": outcome(0, 5)}
    static = {2: outcome(100, 2), 3: outcome(0, 4.5)}
    answer = Answer(Question([0.0], CAPACITY, (5.0,)), static, 3, [Comparison(5.0, scaled, 0.5)])
    assert answer.best_peer(answer.comparisons[0])[0] == "HPA"


@pytest.mark.parametrize(("part", "said"), [(0.98999, "98.99 %"), (0.99, "99.00 %"), (1.0, "100.00 %"), (0, "0.00 %")])
def test_parts_are_rounded_down(part: float, said: str) -> None:
    assert rounded_down(part) == said


@pytest.mark.parametrize(("count", "shown"), [(0, 0), (1, 1), (500, 500), (501, 251), (5000, 500)])
def test_long_lists_are_thinned(count: int, shown: int) -> None:
    assert len(thinned(count, 500)) == shown


def test_the_page_is_whole_and_alone(answer: Answer) -> None:
    text = report.page(answer, "<script>alert('&')</script>")
    for outside in ("http", "<script", "src=", "@import", "url("):
        assert outside not in text.replace("&lt;script", "")
    page = parsed(text)
    pictures = page.findall(".//svg")
    assert [one.get("aria-label", "")[:4] for one in pictures] == ["Late"] * 2 + ["Our "] * 2
    for svg in pictures[:2]:
        names = [one.text for one in svg.findall(".//g/text")]
        assert names[:4] == ["ours", "KPA", "HPA", "KEDA"]
        assert {f"static {answer.cheapest}", f"static {answer.cheapest - 1}"} <= set(names)
    for svg in pictures:
        width, height = (float(one) for one in svg.get("viewBox", "").split()[2:])
        for points in svg.findall(".//polyline") + svg.findall(".//polygon"):
            for x, y in (point.split(",") for point in points.get("points", "").split()):
                assert 0 <= float(x) <= width
                assert 0 <= float(y) <= height
    assert "the smallest static fleet that meets the objective" in " ".join(page.itertext())


def test_decisions_are_shown_with_their_reasons_up_to_a_bound(answer: Answer) -> None:
    ours = Outcome(requests=10, decisions=[(float(i), Decision(i, f"because of {i}")) for i in range(1200)])
    one = Comparison(5.0, {**answer.comparisons[0].scaled, "ours": ours}, 0.0)
    page = report.page(Answer(answer.question, answer.static, answer.cheapest, [one]), "x")
    assert page.count("because of") == 400 <= report.ROWS
    assert "Changes: 1200, of which 400 are shown." in page


@pytest.mark.parametrize("end", [1e-6, 0.3, 1.0, 7.0, 60.0, 999.0, 1e6])
def test_axes_have_a_few_round_numbers(end: float) -> None:
    ticks = plots._ticks(end)
    assert ticks[0] == 0
    assert 3 <= len(ticks) <= plots.TICKS + 1
    assert ticks[-1] <= end * (1 + 1e-9)


def test_a_trace_of_one_request(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text("time\n5\n")
    done = replay(path, *USUAL, "--cold-start", "0", "--least", "0", "-o", str(tmp_path / "out.html"))
    assert done.exit_code == 0, done.output
