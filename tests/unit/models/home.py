"""Networks with real weights, from packages, in the cache."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from mms_cluster.paths import cache_folder, locked

LOCK = Path(__file__).with_name("requirements.lock")


def models_home() -> Path:
    """The folder where the packages of the lock are. Made the first time, whole or not at all."""
    text = LOCK.read_bytes()
    folder = cache_folder() / "models" / hashlib.sha256(text).hexdigest()[:12]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / "lock"):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
            target = ["--no-compile", "--require-hashes", "--target", str(partial), "-r", str(LOCK)]
            subprocess.run([*command, *target], check=True)
            partial.rename(folder)
    return folder


def importable() -> Path:
    """The same, and `import` finds the packages; those that the environment has go before."""
    folder = models_home()
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return folder
