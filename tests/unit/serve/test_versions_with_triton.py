"""A model whose program is another one, in a running pod with a real Triton: a version beside the one that answers."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from typing import TYPE_CHECKING

import pytest
import tritonclient.grpc as triton

from mms_workloads.contract import InputOrders
from tests.unit.serve import networks
from tests.unit.serve.networks import of_one_colour, request
from tests.unit.serve.program_pods import MODEL, Pod, file_of, python
from tests.unit.serve.serving_pod import wait
from tests.unit.serve.triton_home import triton_home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(
        shutil.which("python3.11") is None or find_library("python3.11") is None,
        reason="the backend's stub embeds Python 3.11",
    ),
]


def texts(folder: Path) -> None:
    folder.mkdir()
    networks.words(folder)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    """Serves an ONNX network."""
    made = Pod(tmp_path / "pod", triton_home())
    (made.root / "a").mkdir()
    networks.colours(made.root / "a")
    made.more = file_of(made.root, "a")
    yield made
    made.stop()


class Clients:
    """Ask all the time, over gRPC, and see what answers: (digest's letter, Triton's version, label of a red image)."""

    def __init__(self, port: int) -> None:
        self.seen: list[tuple[str, str, str]] = []
        self._stop, self._url = threading.Event(), f"127.0.0.1:{port}"
        self._pool = ThreadPoolExecutor(2)
        self._asking = [self._pool.submit(self._ask) for _ in range(2)]

    def _ask(self) -> None:
        red = triton.InferInput("IMAGE", [1, 1], "BYTES")
        red.set_data_from_numpy(request(of_one_colour((255, 0, 0))))
        with triton.InferenceServerClient(self._url) as client:
            while not self._stop.wait(0.02):
                found = client.infer(MODEL, [red])
                label, digest = found.as_numpy("LABELS"), found.as_numpy("DIGEST")
                version = found.get_response().model_version
                self.seen.append((digest[0, 0].decode()[-1], version, label[0, 0].decode()))

    def end(self) -> set[tuple[str, str, str]]:
        """What was seen. Raises what a request that failed has raised."""
        self._stop.set()
        self._pool.shutdown()
        for one in self._asking:
            one.result()
        return set(self.seen)


def test_other_programs_are_versions_of_their_own(pod: Pod) -> None:
    """No request fails, what is wrong never answers, and the version before is back without being loaded."""
    python(pod.root / "b", 1)
    python(pod.root / "c", -1)
    (pod.root / "g").mkdir()
    networks.dense(pod.root / "g")
    pod.start_all()
    wait(lambda: pod.readyz()[0] == 200)
    clients = Clients(pod.ports[1])
    try:
        pod.wants("g")
        wait(lambda: pod.serves == "g")
        assert pod.versions == ["1"], "other labels and sizes are no other program"
        pod.wants("b")
        wait(lambda: pod.serves == "b")
        loaded = pod.swap()["seconds"]
        assert pod.versions == ["1", "2"], "the one before stays for the way back"
        counted = [pod.served()["counters"]["requests"]]
        pod.wants("c")
        wait(lambda: pod.serves == "c")
        assert pod.versions == ["2", "3"]
        counted.append(pod.served()["counters"]["requests"])
        stable, following = (file_of(pod.root, letter)["artifact"]["digest"] for letter in "bc")
        pod.order(InputOrders(stable=stable, next=following, perSecond=20, both=True))
        wait(lambda: pod.served().get("inputs", {}).get("compared", 0) >= 3)
        found = pod.served()["inputs"]
        assert found["differing"] == found["compared"], "each answered by its own version"
        pod.wants("b")
        wait(lambda: pod.serves == "b")
        took = pod.swap()["seconds"]
        assert pod.versions == ["2"]
        counted.append(pod.served()["counters"]["requests"])
        assert counted == sorted(counted), "what a version has counted stays when it ends"
    finally:
        seen = clients.end()
    assert {one[:2] for one in seen} == {("a", "1"), ("g", "1"), ("b", "2"), ("c", "3")}, "each is of one artifact"
    assert {one for one in seen if one[0] in "abc"} == {("a", "1", "red"), ("b", "2", "red"), ("c", "3", "green")}
    assert took < loaded / 3, "it was there"

    pod.processes["triton"].kill()
    pod.processes["triton"].wait()
    pod.start_triton()
    wait(lambda: pod.readyz()[0] == 200)
    assert (pod.serves, pod.versions) == ("b", ["2"]), "a Triton that begins anew loads what serves"


def test_what_is_wrong_or_needs_new_pods_never_answers(pod: Pod) -> None:
    """A process that answers otherwise than when it was fetched; other tensors; what is not wanted any more."""
    texts(pod.root / "e")
    for letter, then in (("d", "SIGN = -1"), ("f", "import time; time.sleep(3)")):
        python(pod.root / letter, 1)
        with (pod.root / letter / "ours.py").open("a") as file:
            file.write(f'if "mms_workloads.serve.fetch" not in sys.orig_argv:\n    {then}\n')
    pod.start_all()
    wait(lambda: pod.readyz()[0] == 200)
    clients = Clients(pod.ports[1])
    try:
        for letter, reason in (("d", "GoldenMismatch"), ("e", "NewPodsNeeded")):
            pod.wants(letter)
            wait(
                lambda letter=letter: pod.swap().get("digest", "").endswith(letter) and pod.swap()["phase"] == "Failed"
            )
            assert pod.swap()["reason"] == reason, pod.swap()
            assert (pod.serves, pod.versions, pod.readyz()[0]) == ("a", ["1"], 200)
        pod.wants("f")
        wait(lambda: pod.versions == ["1", "2"])
        pod.wants("a")
        wait(lambda: pod.versions == ["1"] and not pod.swap())
        assert (pod.serves, pod.readyz()[0]) == ("a", 200)
    finally:
        seen = clients.end()
    assert seen == {("a", "1", "red")}


def test_a_version_in_which_triton_ends_twice_is_given_up(pod: Pod) -> None:
    """As when its container has too little memory for both: the kernel kills it, and the kubelet starts it again."""
    python(pod.root / "f", 1)
    with (pod.root / "f" / "ours.py").open("a") as file:
        file.write('if "mms_workloads.serve.fetch" not in sys.orig_argv:\n')
        file.write(f'    import time; open("{pod.root}/loads", "w").close(); time.sleep(5)\n')
    pod.start_all()
    wait(lambda: pod.readyz()[0] == 200)
    pod.wants("f")
    for retryable in (True, False):
        wait((pod.root / "loads").exists)
        (pod.root / "loads").unlink()
        pod.processes["triton"].kill()
        pod.processes["triton"].wait()
        pod.start_triton()
        wait(lambda: pod.swap().get("phase") == "Failed")
        assert (pod.swap()["reason"], pod.swap()["retryable"]) == ("ModelLoadFailed", retryable)
        assert "Triton ended" in pod.swap()["message"]
        wait(lambda: pod.readyz()[0] == 200 and pod.versions == ["1"])
        assert pod.serves == "a"
