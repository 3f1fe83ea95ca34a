"""Installs the chart on a cluster: images to where its nodes find them, then `helm upgrade --install`."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_cluster.images_plan import ImageRef

CHART = Path(__file__).parents[2] / "charts" / "mms"
NAMESPACE = "mms-system"
RELEASE = "mms"


def helm_values(images: Mapping[str, ImageRef]) -> list[str]:
    """The chart's values for these images, as helm's arguments."""
    return [
        argument
        for role, image in sorted(images.items())
        if role != "base"
        for argument in ("--set-string", f"images.{role}={image.name}:{image.tag}")
    ]


def install(images: Mapping[str, ImageRef], *, namespace: str = NAMESPACE, extra: tuple[str, ...] = ()) -> None:
    """Installs or upgrades the release and waits until the operator and the store are ready.

    Raises CalledProcessError with helm's own words on its standard error.
    """
    command = ["helm", "upgrade", "--install", RELEASE, str(CHART), "--namespace", namespace, "--create-namespace"]
    command += ["--wait", "--timeout", "5m", "--set", "store.enabled=true", *helm_values(images), *extra]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
