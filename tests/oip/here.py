"""A serving pod's processes on this machine, with an artifact that `mms embed` made of a few kilobytes of text."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.numpy import load_file

from mms_workloads.embedding.golden import golden
from tests.oip import words
from tests.unit.serve import artifacts
from tests.unit.serve.artifacts import Built
from tests.unit.serve.edge_here import EdgeHere
from tests.unit.serve.serving_pod import ServingPod, wait
from tests.unit.serve.triton_home import triton_home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.oip.model import Target

RUN = 3
VOCABULARY = [*(f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"), "höhe", "weiß", "größe"]
TOPICS, SENTENCES, LENGTH = 12, 600, 10


@contextmanager
def triton(root: Path, *, behind_edge: bool = False) -> Iterator[Target]:
    """Ready, its golden cases answered rightly. `root`: an empty folder, where the processes write their logs."""
    edge: EdgeHere | None = None
    built = embedded(root / "store", root / "corpus.txt")
    pod = ServingPod(root, triton_home(), built=built)
    try:
        pod.start_all()
        wait(lambda: pod.readyz()[0] == 200)
        ports = (pod.ports[0], pod.ports[1])
        if behind_edge:
            edge = EdgeHere(root / "edge", ports, {"edge": "Sidecar"})
            edge.begin()
            ports = (edge.http, edge.grpc)
        http, grpc = (f"127.0.0.1:{port}" for port in ports)
        yield words.target(built.folder, run=RUN, digest=built.digest, rest=f"http://{http}", grpc=grpc)
    finally:
        if edge:
            edge.kill()
        pod.stop()


def embedded(folder: Path, corpus: Path) -> Built:
    corpus.write_text(text(), encoding="utf-8")
    embed = [str(Path(sys.executable).with_name("mms")), "embed", str(corpus), "--output", str(folder)]
    options = ["--dimensions", "24", "--min-count", "1", "--threads", "1", "--epochs", "20", "--subsample", "0"]
    subprocess.run([*embed, *options], check=True, capture_output=True)
    vectors = load_file(folder / "model.safetensors")["vectors"]
    lines = (folder / "vocabulary.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    known = [line.rpartition("\t")[0] for line in lines]
    (folder / "golden.json").write_text(golden(vectors, tuple(known)).model_dump_json(), encoding="utf-8")
    (folder / "evaluation.json").write_text("{}", encoding="utf-8")
    return Built(folder, artifacts.seal(folder, version=RUN), known, vectors)


def text() -> str:
    """Sentences of a topic's words: in random ones there would be nothing to learn, and all vectors would be alike."""
    chosen = random.Random(1)
    topics = [VOCABULARY[place::TOPICS] for place in range(TOPICS)]
    return "".join(" ".join(chosen.choices(chosen.choice(topics), k=LENGTH)) + "\n" for _ in range(SENTENCES))
