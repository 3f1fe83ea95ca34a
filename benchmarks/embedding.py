"""Word vectors: words trained in a second and what they are worth, ours against gensim, fastText and torch.

Both train on the same words, in the same settings (dimensions 100, window 5, five negatives or a Huffman tree,
subsampling 0.001, for subwords n-grams of 3 to 6 in 2,000,000 buckets), with two threads, in turn: PAIRS times each
kind, for EPOCHS epochs; the figure is the median of the ratios of a pair. Each pair has a seed, and the first SEEDS of
them are scored: Spearman's rho on WordSim-353 and SimLex-999, and the part of the analogies (vocabulary cut at 30,000)
that is right. word2vec.c trains for one epoch. KINDS chooses some of them. How near the machine's limits ours is:
benchmarks/peak.c runs before each of its turns.

file-to-vectors: from the compressed corpus to vectors in word2vec's binary format, start of the program included, after
EPOCHS epochs. softmax: pairs per second over 10,000 words (embedding_softmax.py). distributed: skip-gram on
workers of this machine, of EPOCHS epochs (embedding_distributed.py), beside one process with two threads: speed,
and scores of PAIRS seeds.

The corpus is ../shared/data/wiki.txt.xz where that is, else the speeches of the demo. gensim gets it as a file of one
sentence a line, which is its fastest way to read.
"""

from __future__ import annotations

import collections
import hashlib
import json
import lzma
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_cluster import corpus, paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[1]
RESULTS = Path(os.environ.get("MMS_RESULTS", Path(__file__).parent / "results"))
PAIRS, EPOCHS = int(os.environ.get("PAIRS", "5")), int(os.environ.get("EPOCHS", "5"))
SEEDS = min(PAIRS, int(os.environ.get("SEEDS", "5")))
KINDS = os.environ.get("KINDS", "skip-gram cbow hierarchical softmax distributed file-to-vectors subword").split()
DISTRIBUTED = [(2, "Ring", "None"), (2, "Ring", "BF16"), (2, "ParameterServer", "BF16"), (4, "Ring", "BF16")]
MIN_COUNT = 5
WORD2VEC = "word2vec==0.10.6"
PEERS = ("gensim==4.4.0", "fasttext==0.9.3")  # fastText is compiled: it needs a C++ compiler
SCORES = ("wordsim", "simlex", "analogies")


def source() -> Path:
    wiki = ROOT.parent / "shared" / "data" / "wiki.txt.xz"
    return wiki if wiki.exists() else corpus.speeches(paths.cache_folder())


def text() -> Iterator[str]:
    path = source()
    opened: Any = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt", encoding="utf-8", errors="replace") as file:
        yield from file


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


def peers(packages: Sequence[str] = PEERS) -> str:
    """The Python of an environment that has them."""
    folder = paths.cache_folder() / "benchmarks" / "-".join(packages)
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "complete").touch()
    return str(python)


def word2vec_c() -> Path | None:
    """word2vec.c (Mikolov, 2013) as PyPI's word2vec brings it, compiled with that package's flags."""
    folder = paths.cache_folder() / "benchmarks" / WORD2VEC
    program = folder / "word2vec"
    if program.exists():
        return program
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        print("word2vec.c is not compared: there is no C compiler", flush=True)
        return None
    folder.mkdir(parents=True, exist_ok=True)
    name, _, version = WORD2VEC.partition("==")
    fetch = ["download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", WORD2VEC]
    done = subprocess.run([sys.executable, "-m", "pip", *fetch, "-d", str(folder)], check=False)
    if done.returncode:
        print(f"word2vec.c is not compared: pip could not fetch {WORD2VEC}", flush=True)
        return None
    with tarfile.open(folder / f"{name}-{version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    code = folder / f"{name}-{version}" / "word2vec" / "src" / "word2vec.c"
    flags = ["-O3", "-march=native", "-funroll-loops", "-pthread", "-w"]
    subprocess.run([compiler, str(code), *flags, "-lm", "-o", str(program)], check=True)
    return program


def run_word2vec_c(program: Path, kind: str, folder: Path) -> float:
    """Words per second, by its own figure of words per second of processor time and thread."""
    with tempfile.TemporaryDirectory() as made:
        options = {
            "train": folder / "lines.txt", "output": f"{made}/vectors.bin", "binary": 1, "size": 100, "window": 5,
            "sample": 1e-3, "min-count": 1, "threads": 2, "iter": 1, "cbow": int(kind == "cbow"),
            "hs": int(kind == "hierarchical"), "negative": 0 if kind == "hierarchical" else 5,
        }  # fmt: skip
        command = [str(program), *(str(part) for name, value in options.items() for part in (f"-{name}", value))]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return 2 * 1000 * float(re.findall(r"Words/thread/sec: ([\d.]+)k", said)[-1])


def environment() -> dict[str, str]:
    path = os.pathsep.join(str(one) for one in (ROOT, ROOT / "workloads", ROOT / "operator"))
    return {**os.environ, "PYTHONPATH": path}


def run(python: str, script: str, *arguments: object) -> dict[str, Any]:
    command = [python, str(Path(__file__).parent / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def limits() -> tuple[float, float, float]:
    """What two threads can do here and now: GFLOP/s of fused multiply-adds, GB/s of memory read and written back; and
    nanoseconds until one sees what the other has written.
    """
    source = Path(__file__).with_name("peak.c")
    program = paths.cache_folder() / "benchmarks" / f"peak-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "ziglang", "cc", "-O3", "-march=native", "-pthread", "-fno-sanitize=undefined"]
        subprocess.run([*command, str(source), "-o", str(program)], check=True)
    said = subprocess.run([str(program), "2", "0.5"], stdout=subprocess.PIPE, text=True, check=True).stdout
    flops, memory, handover = said.split()
    return float(flops), float(memory), float(handover)


def pairs(kind: str, folder: Path, python: str) -> tuple[dict[str, list[float]], dict[str, dict[str, list[float]]]]:
    """Words per second of each, and what of the machine's limits ours took; scores of each."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    scores: dict[str, dict[str, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    program, vectors = word2vec_c() if kind != "subword" else None, folder / "vectors.npy"
    sides = {"ours": (sys.executable, "embedding_ours.py"), peer_of(kind): (python, "embedding_peers.py")}
    for pair in range(PAIRS):
        flops, memory, handover = limits()
        made = {}
        for name, (interpreter, script) in sides.items():
            made[name] = run(interpreter, script, folder, kind, EPOCHS, pair, vectors)
            if pair < SEEDS:
                for score, value in run(python, "embedding_peers.py", folder, "scores", 0, 0, vectors).items():
                    scores[name][score].append(value)
        mine, peer = made.values()
        found["ours"].append(mine["words_per_second"])
        found["peer"].append(peer["words_per_second"])
        found["flops"].append(mine["gflops"] / flops)
        found["memory"].append(mine["gigabytes"] / memory)
        if program:
            found["word2vec.c"].append(run_word2vec_c(program, kind, folder))
        print(
            f"{kind} {pair + 1}: {mine['words_per_second'] / 1e6:.2f} against {peer['words_per_second'] / 1e6:.3f} "
            f"million words/s, {mine['words_per_second'] / peer['words_per_second']:.1f}x; "
            f"peak {mine['peak_mib']:.0f} against {peer['peak_mib']:.0f} MiB; threads {handover:.0f} ns apart",
            flush=True,
        )
    return dict(found), {name: dict(of) for name, of in scores.items()}


def peer_of(kind: str) -> str:
    return "fasttext" if kind == "subword" else "gensim"


def compared(kind: str, folder: Path, python: str) -> tuple[dict[str, Any], list[str]]:
    found, scores = pairs(kind, folder, python)
    said = []
    if kind != "subword":  # what its n-grams move depends on the words
        said.append(
            f"limits {kind}: {statistics.median(found['flops']):.0%} of a loop of fused multiply-adds; rows fetched "
            f"and written back, {statistics.median(found['memory']):.0%} of the memory's rate"
        )
    for score in SCORES if SEEDS else ():
        mine, peer = (scores[name][score] for name in ("ours", peer_of(kind)))
        said.append(
            f"quality {kind} {score}: {statistics.mean(mine):.3f} ({min(mine):.3f}-{max(mine):.3f}) vs {peer_of(kind)} "
            f"{statistics.mean(peer):.3f} ({min(peer):.3f}-{max(peer):.3f})"
        )
    for name, peer_name in (("word2vec.c", "word2vec.c"), ("peer", peer_of(kind))):
        if theirs := found.get(name):
            ratio = statistics.median(a / b for a, b in zip(found["ours"], theirs, strict=True))
            a, b = statistics.median(found["ours"]) / 1e6, statistics.median(theirs) / 1e6
            of = kind if name == "peer" else f"{kind}-{name}"
            said.append(f"RESULT {of} {a:.2f} million words/s vs {peer_name} {b:.3f} million words/s: {ratio:.1f}x")
    return {**found, "quality": scores}, said


def softmax(folder: Path) -> tuple[dict[str, Any], list[str]]:
    found = [run(sys.executable, "embedding_softmax.py", folder, pair) for pair in range(PAIRS)]
    ratio = statistics.median(one["ours"] / one["torch"] for one in found)
    a, b = (statistics.median(one[name] for one in found) for name in ("ours", "torch"))
    worst = max(one["difference"] for one in found)
    said = f"softmax: losses of the same steps differ by at most {worst:.1e} of themselves"
    return {"softmax": found}, [said, f"RESULT softmax {a:.0f} pairs/s vs torch {b:.0f} pairs/s: {ratio:.1f}x"]


def file_to_vectors(python: str) -> tuple[dict[str, Any], list[str]]:
    """Seconds of the whole programs, in turn."""
    corpus = source()
    found: dict[str, list[float]] = {"ours": [], "gensim": []}
    with tempfile.TemporaryDirectory() as folder:
        mine = [
            sys.executable, "-c", "from mms_operator.cli import app; app()", "embed", str(corpus),
            "-o", f"{folder}/ours", "--epochs", str(EPOCHS), "--threads", "2",
        ]  # fmt: skip
        peer = [
            python, str(Path(__file__).parent / "embedding_peers.py"), str(corpus), "file-to-vectors",
            str(EPOCHS), "1", f"{folder}/vectors.bin",
        ]  # fmt: skip
        for pair in range(PAIRS):
            for name, command in (("ours", mine), ("gensim", peer)):
                began = time.perf_counter()
                subprocess.run(
                    command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True
                )
                found[name].append(time.perf_counter() - began)
            print(
                f"file-to-vectors {pair + 1}: {found['ours'][-1]:.1f} against {found['gensim'][-1]:.1f} s", flush=True
            )
    ratio = statistics.median(b / a for a, b in zip(found["ours"], found["gensim"], strict=True))
    a, b = statistics.median(found["ours"]), statistics.median(found["gensim"])
    return dict(found), [f"RESULT file-to-vectors {a:.1f} s vs gensim {b:.1f} s: {ratio:.1f}x"]


def distributed(folder: Path, python: str) -> tuple[dict[str, Any], list[str]]:
    """Skip-gram on workers with a thread each, beside one process with two threads."""
    found: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    vectors = folder / "distributed.npy"

    def scored(interpreter: str, script: str, *arguments: object) -> dict[str, Any]:
        made = run(interpreter, script, *arguments, vectors)
        return {**made, **run(python, "embedding_peers.py", folder, "scores", 0, 0, vectors)}

    for pair in range(PAIRS):
        alone = scored(sys.executable, "embedding_ours.py", folder, "skip-gram", EPOCHS, pair)
        found["one process"].append(alone)
        for workers, mode, wire in DISTRIBUTED:
            how = (source(), workers, mode, wire, EPOCHS, pair, folder / "words.txt")
            one = scored(sys.executable, "embedding_distributed.py", *how)
            name = f"{mode}-{wire}-{workers}"
            found[name].append(one)
            part = one["words_per_second"] / alone["words_per_second"]
            print(f"{name} {pair + 1}: {part:.2f} of one process; {one}", flush=True)
    said = []
    for name, runs in found.items():
        for score in SCORES:
            values = [one[score] for one in runs]
            said.append(f"quality {name} {score}: {statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})")
    single = found.pop("one process")
    b = statistics.median(one["words_per_second"] for one in single) / 1e6
    for name, runs in found.items():
        a = statistics.median(one["words_per_second"] for one in runs) / 1e6
        pairs = zip(runs, single, strict=True)
        ratio = statistics.median(one["words_per_second"] / by["words_per_second"] for one, by in pairs)
        moved = statistics.median(one["bytes_per_word"] for one in runs)
        said.append(
            f"RESULT distributed-{name} {a:.2f} million words/s vs one process {b:.2f} million words/s: {ratio:.2f}x, "
            f"{moved:.0f} bytes per word"
        )
    return {**found, "one process": single}, said


def main() -> int:
    folder, python = paths.cache_folder() / "benchmarks" / "words", peers()
    prepare(folder)
    kept = {}
    for kind in KINDS:
        if kind == "softmax":
            kept[kind], lines = softmax(folder)
        elif kind == "distributed":
            kept[kind], lines = distributed(folder, python)
        elif kind == "file-to-vectors":
            kept[kind], lines = file_to_vectors(python)
        else:
            kept[kind], lines = compared(kind, folder, python)
        print("\n".join(lines), flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "embedding.json").write_text(json.dumps(kept), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
