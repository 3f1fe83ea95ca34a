"""The container images: built from the tree, kept as archives in the cache, named by what is in them.

`build` finds an unchanged image's archive by its tag and does nothing; after a change of the sources it builds only the
last, small layer. `python -m mms_cluster.images build [NAMES...] [--push REGISTRY]` does the same by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mms_cluster import images_engine, images_wheels
from mms_cluster.errors import ClusterError
from mms_cluster.images_plan import (
    BASE,
    DEBIAN_SUITE,
    INSTALLED,
    RECIPES,
    VENDOR_BASE,
    ImageRef,
    Inputs,
    Recipe,
    archive_name,
    debian_rootfs_tag,
    image_name,
    order,
    stale_archives,
)
from mms_cluster.paths import cache_folder, locked, require_space
from mms_cluster.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mms_cluster.images_engine import Engine

CONTAINERFILES = images_wheels.ROOT / "workloads" / "mms_workloads" / "images"
ROOTFS_CONTAINERFILE = """FROM scratch
ADD rootfs.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""
SPACE_GIB = 8  # wheels, layers and archives of all images, with PyTorch's CPU build
CUDA_SPACE_GIB = 16  # the same with the CUDA libraries of PyPI's PyTorch


def build(names: Iterable[str] = INSTALLED, reporter: Reporter | None = None) -> dict[str, ImageRef]:
    """The images called `names`, of RECIPES: name -> image, each with its archive in the cache.

    Raises ClusterError when a program is missing that can't be installed, or fails.
    """
    reporter = reporter or Reporter()
    cache = _cache()
    with locked(cache / "images.lock"):
        for left in [*cache.glob("build-*"), *cache.glob("images/*.partial")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()  # of a killed build
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as scratch:
            builder = _Builder(cache, Path(scratch), reporter)
            return {name: builder.image(name) for name in order(names)}


def push(images: Mapping[str, ImageRef], registry: str, reporter: Reporter | None = None) -> dict[str, ImageRef]:
    """Push to `registry` (host[:port][/path]); the images under their names there."""
    reporter = reporter or Reporter()
    engine = images_engine.choose(_cache(), reporter, docker=images_engine.docker_runs())
    pushed = {}
    for name, image in images.items():
        there = dataclasses.replace(image, name=f"{registry.rstrip('/')}/mms-{name}")
        with reporter.step(f"pushing {there.reference}"):
            engine.push(image, there.reference)
        pushed[name] = there
    return pushed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mms_cluster.images", description="The container images.")
    command = parser.add_subparsers(required=True, metavar="COMMAND").add_parser("build", help="build and archive")
    command.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; by default those of an installation"
    )
    command.add_argument("--push", metavar="REGISTRY", help="push them there: host[:port][/path]")
    arguments = parser.parse_args(argv)
    if unknown := sorted(set(arguments.names) - RECIPES.keys()):
        parser.error(f"no image is called {', '.join(unknown)}: there are {', '.join(RECIPES)}")
    reporter = Reporter()
    try:
        images = build(arguments.names or INSTALLED, reporter)
        if arguments.push:
            images = push(images, arguments.push, reporter)
    except ClusterError as error:
        print(f"mms_cluster.images: {error}", file=sys.stderr)
        return 2
    print(json.dumps({n: {"image": i.reference, "archive": str(i.archive)} for n, i in images.items()}, indent=2))
    return 0


class _Builder:
    """One run, under the cache's lock. Programs are looked for when something has to be built, not before."""

    def __init__(self, cache: Path, scratch: Path, reporter: Reporter) -> None:
        self._cache = cache
        self._scratch = scratch
        self._reporter = reporter
        self._archives = cache / "images"
        self._archives.mkdir(exist_ok=True)
        self._docker = images_engine.docker_runs()
        self._base_tag = self._inputs(RECIPES[BASE]).tag()

    def image(self, name: str) -> ImageRef:
        recipe = RECIPES[name]
        inputs = self._inputs(recipe)
        image = ImageRef(image_name(name), tag := inputs.tag(), self._archives / archive_name(name, tag))
        if image.archive.exists():
            return image
        cuda = any(wheel.startswith("nvidia_") for wheel in inputs.torch)
        require_space(self._cache, CUDA_SPACE_GIB if cuda else SPACE_GIB, "building the images")
        with self._reporter.step(f"building {image.reference}"):
            self._make(recipe, image.reference, inputs)
            partial = image.archive.with_suffix(".partial")
            self._engine.save(image.reference, partial)
            partial.rename(image.archive)
        for stale in stale_archives((path.name for path in self._archives.iterdir()), image):
            (self._archives / stale).unlink()
        self._engine.forget(image.name, [image.reference])
        return image

    @functools.cached_property
    def _engine(self) -> Engine:
        return images_engine.choose(self._cache, self._reporter, docker=self._docker)

    @functools.cached_property
    def _project(self) -> Path:
        return images_wheels.project(self._scratch)

    def _inputs(self, recipe: Recipe) -> Inputs:
        """What decides the image, downloaded where it isn't in the cache."""
        below = VENDOR_BASE if self._docker else debian_rootfs_tag()
        locks = (*recipe.locks, *recipe.tools)
        return Inputs(
            containerfile=_containerfile(recipe.name).read_bytes(),
            base=below if recipe.name == BASE else self._base_tag,
            locks={name: images_wheels.lock(name) for name in locks},
            wheels=tuple(wheel.name for wheel in self._wheels(recipe)),
            torch=tuple(wheel.name for wheel in self._torch(recipe)),
            tools=tuple(wheel.name for wheel in self._tools(recipe)),
            sources=images_wheels.site(self._project, recipe.packages) if recipe.packages else {},
        )

    def _wheels(self, recipe: Recipe) -> list[Path]:
        return [wheel for lock in recipe.locks for wheel in images_wheels.for_lock(lock, self._cache, self._reporter)]

    def _torch(self, recipe: Recipe) -> list[Path]:
        return images_wheels.for_torch(self._cache, self._reporter) if recipe.torch else []

    def _tools(self, recipe: Recipe) -> list[Path]:
        return [wheel for lock in recipe.tools for wheel in images_wheels.for_lock(lock, self._cache, self._reporter)]

    def _make(self, recipe: Recipe, reference: str, inputs: Inputs) -> None:
        """Build the image in the engine's storage, and before it what it stands on."""
        if self._engine.exists(reference):
            return
        if recipe.name == BASE:
            base = VENDOR_BASE if self._docker else self._rootfs()
        else:
            base = f"{image_name(BASE)}:{self._base_tag}"
            self._make(RECIPES[BASE], base, self._inputs(RECIPES[BASE]))
        context = self._scratch / recipe.name
        context.mkdir()
        _fill(context / "wheels", self._wheels(recipe))
        _fill(context / "torch", self._torch(recipe))
        _fill(context / "tools", self._tools(recipe))
        for path, content in (inputs.sources or {}).items():
            target = context / "site" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        used = {
            name: value for name, value in inputs.layers().items() if f"ARG {name}\n".encode() in inputs.containerfile
        }
        self._engine.build(reference, _containerfile(recipe.name), context, {"BASE": base, **used})
        shutil.rmtree(context)

    def _rootfs(self) -> str:
        """The image of a Debian root file system made here, for where the vendor's image can't be pulled."""
        reference = f"{image_name('rootfs')}:{debian_rootfs_tag()}"
        if self._engine.exists(reference):
            return reference
        archive = self._cache / f"rootfs-{debian_rootfs_tag()}.tar"
        if not archive.exists():
            with self._reporter.step(f"making the Debian root file system ({DEBIAN_SUITE})"):
                images_engine.debian_rootfs(archive)
        context = self._scratch / "rootfs"
        context.mkdir()
        os.link(archive, context / "rootfs.tar")
        containerfile = self._scratch / "rootfs.Containerfile"
        containerfile.write_text(ROOTFS_CONTAINERFILE, encoding="ascii")
        self._engine.build(reference, containerfile, context, {})
        return reference


def _cache() -> Path:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _containerfile(name: str) -> Path:
    return CONTAINERFILES / f"{name}.Containerfile"


def _fill(folder: Path, files: Iterable[Path]) -> None:
    """Hard links: the wheels of PyTorch are large, and the cache is one file system."""
    folder.mkdir()
    for file in files:
        os.link(file, folder / file.name)


if __name__ == "__main__":
    sys.exit(main())
