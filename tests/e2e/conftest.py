"""A real cluster with the chart installed, and a namespace for each test."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from mms_cluster import corpus, images, install, paths, provider
from mms_operator.cli import cluster_store
from tests.e2e.kube import Kube, training
from tests.unit.tasks import datasets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL_BYTES = 1_500_000  # of the corpus: about 250,000 words


@pytest.fixture(scope="session")
def cluster() -> Iterator[provider.Provider]:
    """The cluster of `make demo`; left up for the next run, `make clean-cluster` takes it down."""
    found = provider.choose()
    found.up()
    saved = dict(os.environ)
    os.environ["KUBECONFIG"] = str(found.kubeconfig)
    os.environ["PATH"] = f"{found.tools()}:{os.environ['PATH']}"
    yield found
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(scope="session")
def installed(cluster: provider.Provider) -> provider.Provider:
    cluster.load(images.build(("operator", "worker", "server", "store")))
    install.install(cluster.images)
    return cluster


@dataclass(frozen=True)
class Corpora:
    """Data sets in the installation's store."""

    whole: str
    small: str
    text: bytes

    def put(self, name: str, content: bytes, folder: Path) -> str:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        uri = f"s3://corpora/{folder.name}"
        cluster_store.put([file], uri, namespace=install.NAMESPACE, release=install.RELEASE)
        return f"{uri}/{name}"


@pytest.fixture(scope="session")
def corpora(installed: provider.Provider, tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    whole = corpus.speeches(paths.cache_folder())
    text = whole.read_bytes()
    small = tmp_path_factory.mktemp("corpora") / "small.txt"
    small.write_bytes(text[: text.rindex(b"\n", 0, SMALL_BYTES)])
    for file, folder in ((whole, "sotu"), (small, "small")):
        cluster_store.put([file], f"s3://corpora/{folder}/", namespace=install.NAMESPACE, release=install.RELEASE)
    return Corpora("s3://corpora/sotu/*.txt", "s3://corpora/small/small.txt", text)


@pytest.fixture(scope="session")
def digits(installed: provider.Provider, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in folders by their labels, and s3://corpora/digits with the same."""
    folder = tmp_path_factory.mktemp("tasks") / "digits"
    datasets.image_folder(folder)
    upload(folder)
    return folder


def upload(folder: Path) -> None:
    """A data set, folder by folder, to the folder of its name in s3://corpora."""
    place = {"namespace": install.NAMESPACE, "release": install.RELEASE}
    for parent in sorted({file.parent for file in folder.rglob("*") if file.is_file()}):
        files = sorted(file for file in parent.iterdir() if file.is_file())
        cluster_store.put(files, f"s3://corpora/{parent.relative_to(folder.parent)}/", **place)


@pytest.fixture
def kube(installed: provider.Provider, request: pytest.FixtureRequest) -> Iterator[Kube]:
    """A namespace of its own, without pods after the test."""
    with namespace(request.node.name) as found:
        yield found


@contextmanager
def namespace(test: str) -> Iterator[Kube]:
    """Under the restricted pod security standard."""
    name = "t-" + re.sub(r"[^a-z0-9]+", "-", test.lower()).strip("-")[:50].rstrip("-")
    made = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    found = Kube(name)
    subprocess.run(
        ["kubectl", "delete", "namespace", name, "--ignore-not-found"], check=True, stdout=subprocess.DEVNULL
    )
    found.apply(made)
    yield found
    found.run("delete", "namespace", name, "--wait=false")
    # Nobody is left who asks them anything: they need not wait for clients to leave.
    found.run("delete", "pods", "-l", "mms.dev/service", "--grace-period=1", "--ignore-not-found", "--wait=false")
    found.run("delete", "modelservices,modeltrainings", "--all", "--wait=false")
    # What takes room on the nodes is gone then; Kubernetes looks at the rest of a namespace in five to forty seconds.
    found.wait_none("pods", 120)


@pytest.fixture(scope="session")
def artifacts(installed: provider.Provider, corpora: Corpora) -> list[dict[str, str]]:
    """Two runs of one training; the training is gone, what it published stays."""
    found = []
    with namespace("artifacts") as kube:
        kube.apply(training("words", corpora.small))
        for run in (1, 2):
            if run > 1:
                kube.patch("modeltraining", "words", {"runPolicy": {"run": run}})
            done = kube.wait(
                "modeltraining", "words",
                lambda t, run=run: t.get("status", {}).get("run") == run and t["status"].get("phase") == "Complete",
                180, f"run {run} complete",
            )  # fmt: skip
            found.append({key: done["status"]["artifact"][key] for key in ("uri", "digest")})
    return found
