"""Seconds of each phase of `make demo`, cold and warm.

Cold: a fresh clone with an empty home, no caches, no cluster. Warm: the same clone again, with the cluster, the images
and the chart there and the two resources deleted: from `kubectl apply` to the first right answer. A cluster that runs
on this machine is taken down first. There is no peer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(os.environ.get("MMS_RESULTS", ROOT / "benchmarks" / "results")) / "demo.json"
# What a package manager's client needs to reach its registry; everything else of the environment is left behind.
KEPT = (
    "PIP_",
    "SSL_",
    "CURL_CA",
    "REQUESTS_CA",
    "NODE_EXTRA",
    "GIT_SSL",
    "GOPROXY",
    "GOSUMDB",
    "GOFLAGS",
    "npm_config",
)
ANSWERING = ("training", "serving", "answer")


def main() -> int:
    subprocess.run(["make", "--no-print-directory", "clean-cluster"], cwd=ROOT, check=True)
    room = Path(tempfile.mkdtemp(prefix="mms-bench-demo-"))
    samples: dict[str, dict[str, float]] = {}
    try:
        clone = _clone(room)
        samples["cold"] = _demo(clone, room, "cold")
        _delete_resources(clone, room)
        samples["warm"] = _demo(clone, room, "warm")
    finally:
        subprocess.run(
            ["make", "--no-print-directory", "clean-cluster"], cwd=room / "project", env=_env(room), check=False
        )
        shutil.rmtree(room, ignore_errors=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(samples, indent=1), encoding="utf-8")
    for line in lines(samples):
        print(line)
    return 0


def lines(samples: dict[str, dict[str, float]]) -> list[str]:
    """The RESULT lines, from the raw samples alone."""
    said = [
        f"RESULT demo-{kind}-{phase} {seconds:.1f} s"
        for kind, phases in samples.items()
        for phase, seconds in phases.items()
    ]
    said.append(f"RESULT demo-apply-to-answer {sum(samples['warm'][phase] for phase in ANSWERING):.1f} s")
    said.append(f"RESULT demo-cold-total {sum(samples['cold'].values()):.1f} s")
    return said


def _clone(room: Path) -> Path:
    (room / "home").mkdir()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(room / "project")], check=True)
    wheels = ROOT.parent / "shared" / "wheels"
    if wheels.is_dir():
        (room / "shared").mkdir()
        (room / "shared" / "wheels").symlink_to(wheels)
    return room / "project"


def _env(room: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key.startswith(KEPT) or key.lower().endswith("_proxy")}
    return {**kept, "PATH": os.environ["PATH"], "HOME": str(room / "home"), "LANG": "C.UTF-8", "TERM": "dumb"}


def _demo(clone: Path, room: Path, kind: str) -> dict[str, float]:
    """Runs the demo; seconds by phase, `setup` being what came before its first step."""
    seconds = room / f"{kind}.json"
    began = time.monotonic()
    subprocess.run(["make", "demo"], cwd=clone, env={**_env(room), "MMS_DEMO_SECONDS": str(seconds)}, check=True)
    total = time.monotonic() - began
    phases: dict[str, float] = json.loads(seconds.read_text(encoding="utf-8"))
    return {"setup": round(total - sum(phases.values()), 2), **phases}


def _delete_resources(clone: Path, room: Path) -> None:
    state = room / "home" / ".local" / "state" / "mms-cluster"
    env = {**_env(room), "KUBECONFIG": str(state / "kubeconfig"), "PATH": f"{state / 'bin'}:{os.environ['PATH']}"}
    command = ["kubectl", "delete", "mt/words", "ms/words", "--cascade=foreground", "--timeout=120s"]
    subprocess.run(command, cwd=clone, env=env, check=True)


if __name__ == "__main__":
    sys.exit(main())
