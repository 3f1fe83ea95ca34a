"""The demo: from a bare machine to nearest neighbours of words, answered by Triton.

Each step says what it does, shows that it lives and how long it took, and finds its work done when it is run again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mms_cluster import corpus, images, install, paths, provider
from mms_cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "words"
WORDS = ("freedom", "war", "economy", "children", "congress")
CORPUS_URI = "s3://corpora/sotu/"
TRAINING_LIMIT = 900.0  # seconds: several times what two shared cores take
SERVING_LIMIT = 300.0

console = Console(highlight=False)


@dataclass
class Demo:
    """The steps' surroundings, and the seconds that each took."""

    cluster: provider.Provider
    seconds: dict[str, float] = field(default_factory=dict)

    def step(self, name: str, title: str, work: Callable[[], str | None]) -> None:
        console.print(f"[bold]==> {title}[/]")
        began = time.monotonic()
        said = work()
        self.seconds[name] = round(time.monotonic() - began, 2)
        console.print(f"    [green]done[/] in {self.seconds[name]:.1f} s{f': {said}' if said else ''}")


def main() -> int:
    try:
        demo = Demo(provider.choose())
        run(demo)
    except ClusterError as error:
        console.print(f"[red]{error}[/]", soft_wrap=True)
        return 2
    except subprocess.CalledProcessError as error:
        console.print(f"[red]{' '.join(map(str, error.cmd))} failed; its words are above[/]", soft_wrap=True)
        return 1
    if target := os.environ.get("MMS_DEMO_SECONDS"):
        Path(target).write_text(json.dumps(demo.seconds), encoding="utf-8")
    return 0


def run(demo: Demo) -> None:
    demo.step("cluster", f"A cluster: {demo.cluster.description}", lambda: bring_up(demo.cluster))
    demo.step("images", "Images: operator, worker (PyTorch), server (Triton), store (S3)", lambda: load(demo.cluster))
    demo.step("chart", "The chart, by helm", lambda: install.install(demo.cluster.images))
    demo.step("corpus", "The corpus: 211 State of the Union addresses", upload)
    demo.step("training", "Skip-gram vectors: two worker pods, ring all-reduce", train)
    demo.step("serving", "The model on Triton, checked by golden inferences", serve)
    demo.step("answer", "Questions to Triton, by tritonclient", ask)
    farewell(demo)


def bring_up(cluster: provider.Provider) -> str:
    cluster.up()
    os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
    os.environ["PATH"] = f"{cluster.tools()}:{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
    return f"KUBECONFIG={cluster.kubeconfig}"


def load(cluster: provider.Provider) -> str:
    cluster.load(images.build(("operator", "worker", "server", "store")))
    return ", ".join(f"{image.name}:{image.tag}" for image in cluster.images.values())


def upload() -> str:
    text = corpus.speeches(paths.cache_folder())
    show("mms", "data", "put", str(text), CORPUS_URI)
    return f"{len(text.read_bytes().split()):,} words"


def train() -> str:
    show("kubectl", "apply", "-f", str(EXAMPLE / "training.yaml"))
    began = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("waiting for pods", total=100)
        said = -10
        while True:
            status = get("modeltraining", "words").get("status", {})
            phase, progress = status.get("phase", "Pending"), status.get("progress", {})
            percent = progress.get("percent", 0)
            rate = progress.get("samplesPerSecond")
            line = f"{phase} {progress.get('activity', '')} {percent}%" + (f", {rate:,} words/s" if rate else "")
            bar.update(task, completed=percent, description=line)
            if not console.is_terminal and percent >= said + 20:
                said = percent
                console.print(f"    {line}, loss {progress.get('loss', '-')}")
            if phase == "Complete":
                return ", ".join(f"{key} {value}" for key, value in status["artifact"]["metrics"].items())
            if phase == "Failed" or time.monotonic() - began > TRAINING_LIMIT:
                raise ClusterError(
                    f"the training is {phase}: {ready_message(status)}\nkubectl describe mt words says more"
                )
            time.sleep(0.5)


def serve() -> str:
    show("kubectl", "apply", "-f", str(EXAMPLE / "service.yaml"))
    began = time.monotonic()
    while True:
        service = get("modelservice", "words")
        status = service.get("status", {})
        conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
        current = status.get("observedGeneration") == service["metadata"]["generation"]
        if current and conditions.get("Ready") == "True":
            return f"version {status['versions']['stable']['version']} at {status['grpcUrl']}"
        if time.monotonic() - began > SERVING_LIMIT:
            raise ClusterError(
                f"the service is not ready: {ready_message(status)}\nkubectl describe ms words says more"
            )
        time.sleep(0.5)


def ask() -> None:
    show("mms", "query", "words", *WORDS)


def farewell(demo: Demo) -> None:
    total = sum(demo.seconds.values())
    prefix = (
        ""
        if demo.cluster.borrowed
        else f"export KUBECONFIG={demo.cluster.kubeconfig} PATH={demo.cluster.tools()}:.venv/bin:$PATH\n  "
    )
    console.print(
        f"""
[bold]All of it took {total:.0f} s. Look around:[/]
  {prefix}kubectl get mt,ms
  kubectl describe mt words
  kubectl get pods -L mms.dev/role,mms.dev/rank
  kubectl logs -n {install.NAMESPACE} deploy/{install.RELEASE}-operator
  mms query words peace tariff railroad -k 8
  kubectl delete mt/words ms/words        # the training and the service
  helm uninstall mms -n {install.NAMESPACE}       # the chart
  make clean-cluster                      # the cluster""",
        soft_wrap=True,
    )


def ready_message(status: dict[str, Any]) -> str:
    for condition in status.get("conditions", []):
        if condition["type"] == "Ready":
            return f"{condition['reason']}: {condition['message']}"
    return "it has no status: does the operator run?"


def get(kind: str, name: str) -> dict[str, Any]:
    answer = subprocess.run(["kubectl", "get", kind, name, "-o", "json"], check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def show(*command: str) -> None:
    """Runs a command as the user would, and shows it."""
    console.print(f"    [dim]$ {' '.join(command)}[/]", soft_wrap=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
