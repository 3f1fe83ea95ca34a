"""The containers of a serving pod as processes on this machine, with a real Triton."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mms_workloads.contract import Outcome
from mms_workloads.embedding import graph
from mms_workloads.serve import query
from tests.unit.serve import artifacts
from tests.unit.serve.serving_pod import ServingPod, wait
from tests.unit.serve.triton_home import triton_home

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.skipif(
        shutil.which("python3.11") is None or find_library("python3.11") is None,
        reason="the backend's stub embeds Python 3.11",
    ),
]


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[ServingPod]:
    made = ServingPod(tmp_path, triton_home())
    yield made
    made.stop()


def test_finds_out_what_it_can_do_and_says_what_it_has_to(pod: ServingPod) -> None:
    pod.more = {"measure": {"limitSeconds": 5}}
    pod.start_all()
    wait(lambda: pod.readyz()[1].get("reason") == "Measuring")
    wait(lambda: pod.readyz()[0] == 200)
    said = pod.served()
    status = Path(f"/proc/{pod.processes['agent'].pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split("kB")[0]) < 60 * 1024, "it is beside every model"
    measured = said["measured"]
    assert "error" not in measured
    assert [point["concurrency"] for point in measured["curve"]][:2] == [1, 2]
    assert all(0 < point["p99"] < 10 and point["rate"] > 1 for point in measured["curve"])
    asked = said["load"]["models"]["neighbours"]["requests"]
    clients = said["counters"]["requests"] - said["own"]["requests"]
    assert clients == 0
    for _ in range(20):
        query.neighbours(f"127.0.0.1:{pod.ports[1]}", ["word5"], 4)
    said = pod.served()
    assert said["counters"]["requests"] - said["own"]["requests"] == 20
    assert said["load"]["models"]["neighbours"]["requests"] == asked + 20
    assert said["load"]["pending"] == 0
    assert said["load"]["models"]["neighbours"]["quantiles"] == {}, "the last minute is that of the measurement"


def test_finds_the_way_it_does_the_most_and_takes_another_artifact_so(pod: ServingPod) -> None:
    pod.more = {"measure": {"limitSeconds": 40, "objectiveSeconds": 1.0}, "batching": {"instances": 2}}
    pod.start_all()
    wait(lambda: pod.readyz()[0] == 200, 120)
    found = pod.served()["measured"]
    tuned = json.loads((pod.root / "models" / "batching.json").read_text())
    assert found["batching"] == tuned
    assert tuned["instances"] >= 2
    config = (pod.root / "models" / "repository" / "neighbours" / "config.pbtxt").read_text()
    assert f"count: {tuned['instances']} " in config
    assert max(point["rate"] for point in found["curve"]) > 1
    url = f"127.0.0.1:{pod.ports[1]}"
    assert query.neighbours(url, ["word5"], 4)[0].digest == pod.digest
    other = artifacts.build(pod.root / "other", seed=7)
    pod.want(other)
    wait(lambda: pod.served()["digest"] == other.digest)
    with ThreadPoolExecutor(8) as clients:  # whichever process answers
        answers = clients.map(lambda _: query.neighbours(url, ["word5"], 4)[0].digest, range(50))
        assert set(answers) == {other.digest}


def test_serves_and_survives_a_killed_triton(pod: ServingPod) -> None:
    pod.start_all()
    wait(lambda: pod.readyz()[0] == 200)
    expected = [pod.built.words[row] for row, _ in artifacts.cosine_neighbours(pod.built.vectors, 5, 4)]
    units = pod.built.vectors / np.linalg.norm(pod.built.vectors, axis=1, keepdims=True)
    cosines = units @ (units[1] - units[5] + units[7])
    cosines[[1, 5, 7]] = -np.inf
    best = pod.built.words[int(np.argmax(cosines))]
    for url in (f"127.0.0.1:{pod.ports[1]}", f"http://127.0.0.1:{pod.ports[0]}"):
        (answer, _) = query.neighbours(url, ["word5", "höhe"], 4)
        assert (answer.words, answer.version, answer.digest) == (expected, 3, pod.digest)
        assert query.vectors(url, ["word7"] * 300).tolist() == [pod.built.vectors[7].tolist()] * 300
        with pytest.raises(query.UnknownWordError, match="nope"):
            query.neighbours(url, ["nope"])
        (analogy,) = query.analogies(url, [("word5", "höhe", "word7")], 4)
        assert (analogy.words[0], analogy.version, analogy.digest) == (best, 3, pod.digest)
        assert not {"word5", "höhe", "word7"} & set(analogy.words)
        assert query.similarity(url, [("Höhe, word5", "word5 höhe")] * 300) == pytest.approx([1] * 300)
        with pytest.raises(query.InvalidQueryError, match='no known word in "nope"'):
            query.similarity(url, [("word5", "nope")])

    quantiles = pod.served()["load"]["models"]["neighbours"]["quantiles"]
    assert 0 < quantiles["0.5"] <= quantiles["0.99"] < 10
    pod.processes["triton"].send_signal(signal.SIGKILL)
    wait(lambda: pod.readyz()[0] == 503)
    stale = set(Path("/dev/shm").glob(f"mms_triton_{pod.ports[0]}_*"))
    assert stale
    pod.processes["triton"].wait()
    pod.start_triton()
    wait(lambda: pod.readyz()[0] == 200)
    assert not stale & set(Path("/dev/shm").glob("mms_triton_*"))


def test_a_wrong_golden_case_is_never_ready(pod: ServingPod) -> None:
    golden = json.loads((pod.built.folder / "golden.json").read_text())
    golden["cases"][1]["outputs"]["SCORES"][3] += 0.01
    (pod.built.folder / "golden.json").write_text(json.dumps(golden))
    pod.digest = artifacts.seal(pod.built.folder)
    pod.start_all()
    seen: list[int] = []
    wait(lambda: seen.append(pod.readyz()[0]) or pod.processes["agent"].poll() is not None)  # type: ignore[func-returns-value]
    assert 200 not in seen
    assert pod.processes["agent"].returncode == 1
    outcome = Outcome.model_validate_json((pod.root / "agent.termination").read_bytes())
    assert outcome.reason == "GoldenMismatch"
    assert "SCORES[3]" in outcome.message


def test_another_artifact_in_the_running_models(pod: ServingPod) -> None:
    """Of other words and dimensions: no request fails, each answer is of one artifact, and back is quick."""
    other = artifacts.build(pod.root / "other", size=1500, dimensions=20, seed=7, version=4, neighbours=True)
    pod.start_all()
    wait(lambda: pod.readyz()[0] == 200)
    best = {
        built.digest: [built.words[row] for row, _ in artifacts.cosine_neighbours(built.vectors, 5, 4)]
        for built in (pod.built, other)
    }
    url = f"127.0.0.1:{pod.ports[1]}"
    stop, seen = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            (answer,) = query.neighbours(url, ["word5"], 4)
            assert answer.words == best[answer.digest]
            seen.append((answer.digest, answer.version))

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for wanted in (other, pod.built, other):
                pod.want(wanted)
                wait(lambda wanted=wanted: pod.served()["digest"] == wanted.digest)
                assert pod.served()["swap"]["phase"] == "Done"
                assert query.neighbours(url, ["word5"], 4)[0].digest == wanted.digest
                assert query.vectors(url, ["word5"]).shape == (1, wanted.vectors.shape[1])
                assert pod.readyz()[0] == 200
        finally:
            stop.set()
        for one in asking:
            one.result()
    assert set(seen) == {(pod.digest, 3), (other.digest, 4)}
    assert any(str(pod.root) in line for line in mapped(graph.FILE))

    pod.processes["triton"].send_signal(signal.SIGKILL)
    pod.processes["triton"].wait()
    pod.start_triton()
    wait(lambda: pod.readyz()[0] == 200 and query.neighbours(url, ["word5"], 4)[0].digest == other.digest)


def mapped(name: str) -> Iterator[str]:
    """Lines of the maps of all processes, of files with this name."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # of a process that has ended
            yield from (line for line in maps.read_text().splitlines() if line.endswith(name))


def test_what_is_measured_for_an_analysis(pod: ServingPod) -> None:
    """Triton's counters grow by what the agent asks, and another version's answers are compared."""
    near = artifacts.build(pod.root / "near", size=2000, dimensions=50, version=4)  # the same vectors
    far = artifacts.build(pod.root / "far", size=2000, dimensions=50, seed=9, version=5)
    pod.start_all()
    wait(lambda: pod.readyz()[0] == 200)
    before = pod.served()["counters"]
    assert before["requests"] >= 3, "the golden cases"
    assert before["failed"] == 0
    (pod.root / "probe").write_text("50")
    wait(lambda: pod.served()["counters"]["requests"] > before["requests"] + 20)
    (pod.root / "probe").write_text("")
    after = pod.served()["counters"]
    assert after["seconds"] > before["seconds"] > 0
    assert after["timed"] == after["requests"]
    for built, differing in ((near, 0), (far, 20)):
        pod.want(built, reference=pod.built)
        wait(lambda built=built: pod.served()["digest"] == built.digest and "comparison" in pod.served())
        wanted = {"reference": pod.digest, "compared": 20, "differing": differing}
        assert pod.served()["comparison"] == wanted


def test_a_bad_artifact_is_refused_by_a_running_pod(pod: ServingPod) -> None:
    corrupt = artifacts.build(pod.root / "corrupt", size=1500, dimensions=20, seed=7, version=4)
    (corrupt.folder / "vocabulary.txt").write_text("word\t1\n")
    wrong = artifacts.build(pod.root / "wrong", size=1500, dimensions=20, seed=7, version=4)
    golden = json.loads((wrong.folder / "golden.json").read_text())
    golden["cases"][1]["outputs"]["SCORES"][3] += 0.01
    (wrong.folder / "golden.json").write_text(json.dumps(golden))
    wrong = replace(wrong, digest=artifacts.seal(wrong.folder, version=4))
    pod.start_all()
    wait(lambda: pod.readyz()[0] == 200)
    for built, reason in ((corrupt, "ArtifactCorrupt"), (wrong, "GoldenMismatch")):
        pod.want(built)
        wait(lambda built=built: (pod.served().get("swap") or {}).get("digest") == built.digest)
        wait(lambda: pod.served()["swap"]["phase"] == "Failed")
        assert pod.served()["swap"]["reason"] == reason
        assert pod.served()["digest"] == pod.digest
        assert pod.readyz()[0] == 200
        assert query.neighbours(f"127.0.0.1:{pod.ports[1]}", ["word5"], 4)[0].digest == pod.digest
