"""Steps per second of data-parallel training: ours against DistributedDataParallel on gloo. `make bench-train-step`.

The same model, data in the same order, optimizer (AdamW, torch's fused one on both sides) and global batch; a rank is a
process with one thread, started by torchrun; train_step_rank.py is what it does and train_step_models.py what it
trains. All ranks make a few steps with one side and then with the next: a round. A figure is the median over the
rounds in which the machine was quiet (others.py), and a ratio the median of the ratios within the rounds.

Ours is what a worker has, without its master: FlatState, and Ring over RingTransport without TLS, with gradients as
they are (fp32), in BF16 or in Int8. DistributedDataParallel gets buckets as small as ours, gradients that are views of
them and a static graph. Its bfloat16 hook refuses gloo, so that its compression is the float16 hook.

Links: loopback as it is, where the ranks' communication takes processor time from their computation and little else;
and each connection paced to a rate, as between nodes with such a network. "free" is the time without communication:
every rank trains for itself, all at once. No way of communicating can be faster, so it bounds every ratio.

The raw samples are in train_step.json; `python benchmarks/train_step.py --results FILE` computes the lines again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.others import quiet, words

ROOT = Path(__file__).parents[1]
RANK = Path(__file__).with_name("train_step_rank.py")
WORKLOADS = os.environ.get("MMS_BENCH_WORKLOADS", "transformer,cnn").split(",")
RANKS = tuple(int(size) for size in os.environ.get("MMS_BENCH_RANKS", "2,4").split(","))
ROUNDS = int(os.environ.get("MMS_BENCH_ROUNDS", "12"))
STEPS = int(os.environ.get("MMS_BENCH_STEPS", "2"))  # of a side, in a round on one link
LINKS = os.environ.get("MMS_BENCH_LINKS", "0,1e9")  # bits per second; 0: loopback as it is
SIDES = ("ddp", "fp32", "bf16", "int8", "ddp-fp16", "free")
COMPARED = (("fp32", "ddp"), ("bf16", "ddp"), ("int8", "ddp"), ("bf16", "ddp-fp16"))

# Margins, relative. The two sides round differently from the first sum on, and training amplifies it.
FIRST_STEPS, FIRST_MARGIN = 5, 1e-4  # fp32 against DistributedDataParallel, each step
LAST_STEPS, LAST_MARGIN = 10, 0.01  # the same, the mean of the last steps
COMPRESSED_MARGIN = 0.02  # BF16 and Int8 against fp32, the mean of the last steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="print the lines of this file instead of measuring")
    arguments = parser.parse_args()
    if arguments.results:
        return report(json.loads(arguments.results.read_text()))
    samples: dict[str, Any] = {"steps": STEPS, "cores": os.cpu_count(), "runs": {}}
    for name in WORKLOADS:
        for size in RANKS:
            print(f"{name}, {size} ranks", file=sys.stderr)
            samples["runs"][f"{name}-{size}"] = measure(name, size)
    file = Path(os.environ.get("MMS_RESULTS", "benchmarks/results")) / "train_step.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(samples, indent=1))
    print(f"samples: {file}")
    return report(samples)


def measure(name: str, size: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), str(RANK)]
    path = os.pathsep.join([str(ROOT / "workloads"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "samples.json"
        options = ["--rounds", str(ROUNDS), "--steps", str(STEPS), "--links", LINKS, "--out", str(out)]
        subprocess.run([*command, name, *options], env=environment, check=True)
        samples: dict[str, Any] = json.loads(out.read_text())
    return samples


def report(samples: dict[str, Any]) -> int:
    """The lines, from the raw samples alone. 1 when a loss is beyond its margin, or ranks differ."""
    steps, runs = samples["steps"], samples["runs"]
    print(f"{samples['cores']} cores; ms of a step")
    for name, run in runs.items():
        print(f"\n{name}: {run['parameters'] * 4 / 1e6:.1f} MB of gradients")
        for link, rounds in run["rounds"].items():
            kept = quiet(rounds)
            print(f"  {_link(link) or 'loopback'}: {words(rounds)}")
            print("   " + "".join(f"  {side} {1e3 * _seconds(kept, side) / steps:.0f}" for side in SIDES))
            shares = (f"{1 - _ratio(kept, 'free', side):.1%}" for side in ("fp32", "ddp"))
            print("     communication is {} of a step, and of the peer's {}".format(*shares))
        _print_all_reduce(run)
    print()
    for name, run in runs.items():
        for link, rounds in run["rounds"].items():
            place = f"{name}-{_link(link)}" if _link(link) else name
            for way, peer in COMPARED:
                what = "-".join([place, *([way] if way != "fp32" else []), *(["vs", peer] if peer != "ddp" else [])])
                print(f"RESULT train-step-{what} {_against(quiet(rounds), way, peer, steps)}")
            print(f"BOUND  train-step-{place} {_against(quiet(rounds), 'free', 'ddp', steps)}")
    print()
    checks = [check for name, run in runs.items() for check in _checks(name, run)]
    for good, said in checks:
        print(f"{'ok  ' if good else 'FAIL'} {said}")
    return 0 if all(good for good, _ in checks) else 1


def _against(rounds: list[dict[str, float]], way: str, peer: str, steps: int) -> str:
    ours, theirs = (steps / _seconds(rounds, side) for side in (way, peer))
    return f"{ours:.3f} steps/s vs {peer} {theirs:.3f} steps/s: {_ratio(rounds, peer, way):.3f}x"


def _seconds(rounds: list[dict[str, float]], side: str) -> float:
    return statistics.median(one[side] for one in rounds)


def _ratio(rounds: list[dict[str, float]], above: str, below: str) -> float:
    return statistics.median(one[above] / one[below] for one in rounds)


def _link(link: str) -> str:
    bits = int(link)
    return f"{bits / 1e9:g}gbit" if bits else ""


def _print_all_reduce(run: dict[str, Any]) -> None:
    took = run["all_reduce"]
    ways = ", ".join(f"{way} {1e3 * took[way]:.1f}" for way in ("fp32", "bf16", "int8", "gloo"))
    share = took["stream"] / took["fp32"]
    print(
        f"  the whole gradient reduced, nothing computed: {ways} ms; a bare stream of as many bytes "
        f"{1e3 * took['stream']:.1f} ms: fp32 is at {share:.0%} of loopback"
    )


def _checks(name: str, run: dict[str, Any]) -> list[tuple[bool, str]]:
    losses, found = run["losses"], []
    first = max(abs(a - b) / b for a, b in zip(losses["fp32"][:FIRST_STEPS], losses["ddp"][:FIRST_STEPS], strict=True))
    found.append(_within(f"{name} loss of the first {FIRST_STEPS} steps, fp32 against ddp", first, FIRST_MARGIN))
    for way, other, margin in (
        ("fp32", "ddp", LAST_MARGIN),
        ("bf16", "fp32", COMPRESSED_MARGIN),
        ("int8", "fp32", COMPRESSED_MARGIN),
    ):
        mine, theirs = (statistics.mean(losses[one][-LAST_STEPS:]) for one in (way, other))
        of = f"the last {LAST_STEPS} of {len(losses[way])} steps"
        said = f"{name} mean loss of {of}, {way} {mine:.4f} against {other} {theirs:.4f}"
        found.append(_within(said, abs(mine - theirs) / theirs, margin))
    learned = statistics.mean(losses["fp32"][-LAST_STEPS:]) / losses["fp32"][0]
    found.append((learned < 0.8, f"{name} has learned: its loss is {learned:.0%} of the first step's"))
    found.extend(
        (run["identical"][way], f"{name} {way}: all ranks hold the same parameters to the bit")
        for way in ("fp32", "bf16", "int8")
    )
    return found


def _within(what: str, difference: float, margin: float) -> tuple[bool, str]:
    return difference <= margin, f"{what}: they differ by {difference:.2g}, and may by {margin:g}"


if __name__ == "__main__":
    sys.exit(main())
