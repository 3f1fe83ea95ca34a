"""A real nginx, from the wheel that the server's image has it from."""

from __future__ import annotations

import shutil
import zipfile
from typing import TYPE_CHECKING

from mms_cluster import images_wheels
from mms_cluster.paths import cache_folder, locked
from mms_cluster.report import Reporter

if TYPE_CHECKING:
    from pathlib import Path


def program() -> Path:
    """Made in the cache the first time, whole or not at all."""
    cache = cache_folder()
    (wheel,) = images_wheels.for_lock("nginx", cache, Reporter())
    folder = cache / "tools" / wheel.stem
    with locked(cache / "tools" / "nginx.lock"):
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            with zipfile.ZipFile(wheel) as members:
                name = next(one for one in members.namelist() if one.endswith("/nginx"))
                shutil.move(members.extract(name, partial), partial / "nginx")
            (partial / "nginx").chmod(0o755)
            partial.rename(folder)
    return folder / "nginx"
