"""Word vectors: words trained in a second and what they are worth, ours against gensim.

Both train on the same words, in the same settings (dimensions 100, window 5, five negatives or a Huffman tree,
subsampling 0.001), with two threads, in turn: PAIRS times each kind, for EPOCHS epochs; the figure is the median of the
ratios of a pair. Then the quality of both after QUALITY_EPOCHS, for SEEDS seeds: Spearman's rho on WordSim-353 and
SimLex-999, and the part of the analogies (vocabulary cut at 30,000) that is right. KINDS chooses some of them.

The corpus is ../shared/data/wiki.txt.xz where that is, else the speeches of the demo. gensim gets it as a file of one
sentence a line, which is its fastest way to read.
"""

from __future__ import annotations

import collections
import json
import lzma
import os
import re
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_cluster import corpus, paths

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
RESULTS = Path(os.environ.get("MMS_RESULTS", Path(__file__).parent / "results"))
PAIRS, EPOCHS = int(os.environ.get("PAIRS", "5")), int(os.environ.get("EPOCHS", "1"))
SEEDS, QUALITY_EPOCHS = int(os.environ.get("SEEDS", "3")), int(os.environ.get("QUALITY_EPOCHS", "5"))
KINDS = os.environ.get("KINDS", "skip-gram cbow hierarchical").split()
MIN_COUNT = 5
PEERS = ("gensim==4.4.0",)
SCORES = ("wordsim", "simlex", "analogies")


def text() -> Iterator[str]:
    wiki = ROOT.parent / "shared" / "data" / "wiki.txt.xz"
    if wiki.exists():
        with lzma.open(wiki, "rt", encoding="utf-8", errors="replace") as file:
            yield from file
    else:
        yield from corpus.speeches(paths.cache_folder()).read_text(encoding="utf-8").splitlines()


def prepare(folder: Path) -> None:
    """tokens.npy (int32, -1 after each line), words.txt (word and count a line, the most frequent first), lines.txt."""
    if (folder / "tokens.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    lines = [re.findall(r"\w+", line.lower()) for line in text()]
    counts = collections.Counter(word for line in lines for word in line)
    kept = [(word, count) for word, count in counts.most_common() if count >= MIN_COUNT]
    numbers = {word: number for number, (word, _) in enumerate(kept)}
    tokens: list[int] = []
    with (folder / "lines.txt").open("w", encoding="utf-8") as file:
        for line in lines:
            if words := [word for word in line if word in numbers]:
                tokens += [*(numbers[word] for word in words), -1]
                file.write(" ".join(words) + "\n")
    (folder / "words.txt").write_text("".join(f"{word}\t{count}\n" for word, count in kept), encoding="utf-8")
    np.save(folder / "tokens.npy", np.array(tokens, np.int32))


def peers() -> str:
    """The Python of an environment that has them."""
    folder = paths.cache_folder() / "benchmarks" / "-".join(PEERS)
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEERS], check=True)
        (folder / "complete").touch()
    return str(python)


def run(python: str, script: str, *arguments: object) -> dict[str, Any]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "workloads")])
    command = [python, str(Path(__file__).parent / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def speed(kind: str, folder: Path, python: str) -> tuple[list[float], list[float]]:
    ours, theirs = [], []
    for pair in range(PAIRS):
        mine = run(sys.executable, "embedding_ours.py", folder, kind, EPOCHS, pair)
        peer = run(python, "embedding_gensim.py", folder, kind, EPOCHS, pair)
        ours.append(mine["words_per_second"])
        theirs.append(peer["words_per_second"])
        print(
            f"{kind} {pair + 1}: {ours[-1] / 1e6:.2f} against {theirs[-1] / 1e6:.3f} million words/s, "
            f"{ours[-1] / theirs[-1]:.1f}x; peak {mine['peak_mib']:.0f} against {peer['peak_mib']:.0f} MiB",
            flush=True,
        )
    return ours, theirs


def quality(kind: str, folder: Path, python: str) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {}
    scripts = {"ours": (sys.executable, "embedding_ours.py"), "gensim": (python, "embedding_gensim.py")}
    for seed in range(SEEDS):
        for name, (interpreter, script) in scripts.items():
            vectors = folder / f"{name}.npy"
            run(interpreter, script, folder, kind, QUALITY_EPOCHS, seed, vectors)
            scores = run(python, "embedding_gensim.py", folder, "scores", 0, 0, vectors)
            for score in SCORES:
                found.setdefault(name, {}).setdefault(score, []).append(scores[score])
            print(f"{kind} {name}, seed {seed}: {scores}", flush=True)
    return found


def main() -> int:
    folder, python = paths.cache_folder() / "benchmarks" / "words", peers()
    prepare(folder)
    said, kept = [], {}
    for kind in KINDS:
        ours, theirs = speed(kind, folder, python)
        kept[kind] = {"ours": ours, "gensim": theirs, "quality": quality(kind, folder, python) if SEEDS else {}}
        for score in SCORES if SEEDS else ():
            mine, peer = (kept[kind]["quality"][name][score] for name in ("ours", "gensim"))
            said.append(
                f"quality {kind} {score}: {statistics.mean(mine):.3f} ({min(mine):.3f}-{max(mine):.3f}) vs gensim "
                f"{statistics.mean(peer):.3f} ({min(peer):.3f}-{max(peer):.3f})"
            )
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        a, b = statistics.median(ours) / 1e6, statistics.median(theirs) / 1e6
        said.append(f"RESULT {kind} {a:.2f} million words/s vs gensim {b:.3f} million words/s: {ratio:.1f}x")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "embedding.json").write_text(json.dumps(kept), encoding="utf-8")
    print("\n".join(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
