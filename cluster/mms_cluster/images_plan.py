"""What each image is made of, and its tag: a digest of everything that goes into it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

BASE = "base"
REPOSITORY = "localhost"
VENDOR_BASE = "docker.io/library/python:3.11-slim"
TAG_LENGTH = 12

# The root file system where no registry can be reached: Debian 12's essential packages and these.
DEBIAN_SUITE = "bookworm"
DEBIAN_PACKAGES = ("ca-certificates", "libpython3.11", "libstdc++6", "python3", "usr-is-merged")


@dataclass(frozen=True)
class Recipe:
    """An image: its Containerfile is `<name>.Containerfile`, the locks are names of files in requirements/.

    `locks` are installed into the image's virtual environment, `tools` are wheels that the build takes something out
    of. `packages` are the project's packages that it holds: a change to any other leaves its tag as it is. `for_tests`:
    it is no part of an installation, and is built only where it is named.
    """

    name: str
    locks: tuple[str, ...] = ()
    torch: bool = False
    tools: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    for_tests: bool = False


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(BASE),
        Recipe("operator", locks=("operator",), tools=("pip",), packages=("mms_operator", "mms_workloads")),
        Recipe("worker", locks=("worker",), torch=True, tools=("pip",), packages=("mms_workloads",)),
        Recipe("server", locks=("server",), torch=True, tools=("pip", "triton", "nginx"), packages=("mms_workloads",)),
        Recipe("store", tools=("store",)),
        Recipe("envoy", tools=("envoy",), for_tests=True),
        Recipe("frameworks", locks=("frameworks",), torch=True, tools=("pip",), for_tests=True),
    )
}
INSTALLED = tuple(name for name, recipe in RECIPES.items() if not recipe.for_tests)


@dataclass(frozen=True)
class ImageRef:
    """A built image: `name` without the tag, and the docker-archive that holds it under `name:tag`."""

    name: str
    tag: str
    archive: Path

    @property
    def reference(self) -> str:
        return f"{self.name}:{self.tag}"


def image_name(recipe: str) -> str:
    return f"{REPOSITORY}/mms-{recipe}"


def digest(parts: Iterable[tuple[str, bytes]]) -> str:
    """A short digest of named contents. Names and lengths count, so that moving a byte between parts changes it."""
    total = hashlib.sha256()
    for name, content in sorted(parts):
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()[:TAG_LENGTH]


@dataclass(frozen=True)
class Inputs:
    """All that decides what an image holds. Wheels are told by their names: their hashes are in the locks."""

    containerfile: bytes
    base: str
    wheels: tuple[str, ...] = ()
    torch: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    locks: Mapping[str, bytes] | None = None
    sources: Mapping[str, bytes] | None = None

    def layers(self) -> dict[str, str]:
        """The build arguments that make a layer be built again when what it is made of changed, and only then."""
        locks = [(f"lock {name}", content) for name, content in (self.locks or {}).items()]
        return {
            "DEPENDENCIES": digest([*locks, *((f"wheel {name}", b"") for name in self.wheels)]),
            "TORCH": digest((f"wheel {name}", b"") for name in self.torch),
            "TOOLS": digest((f"tool {name}", b"") for name in self.tools),
            "SOURCES": digest((self.sources or {}).items()),
        }

    def tag(self) -> str:
        layers = ((name, value.encode()) for name, value in self.layers().items())
        return digest([("containerfile", self.containerfile), ("base", self.base.encode()), *layers])


def debian_rootfs_tag() -> str:
    return digest([("suite", DEBIAN_SUITE.encode()), ("packages", " ".join(DEBIAN_PACKAGES).encode())])


def in_site(member: str, packages: Iterable[str]) -> bool:
    """Whether a member of the project's wheel goes into an image that holds `packages`.

    Of the wheel's own records only METADATA does: it tells the version, and the others name files and commands that
    the image may not have. What images are built from is no part of them.
    """
    top, _, rest = member.partition("/")
    if top.endswith(".dist-info"):
        return rest == "METADATA"
    return top in packages and not member.endswith(".Containerfile")


def headers(metadata: bytes) -> bytes:
    """A wheel's METADATA without the README that follows, which is no reason to build an image again."""
    return metadata.partition(b"\n\n")[0] + b"\n"


def order(names: Iterable[str]) -> list[str]:
    """The recipes of `names`, each once, in the order of RECIPES: the base first. Raises KeyError with unknown ones."""
    wanted = set(names)
    if unknown := sorted(wanted - RECIPES.keys()):
        raise KeyError(*unknown)
    return [name for name in RECIPES if name in wanted]


def archive_name(recipe: str, tag: str) -> str:
    return f"mms-{recipe}-{tag}.tar"


def stale_archives(present: Iterable[str], current: ImageRef) -> list[str]:
    """The names of archives of the same image with other tags."""
    recipe = current.name.rpartition("/")[2].removeprefix("mms-")
    pattern = re.compile(archive_name(re.escape(recipe), f"[0-9a-f]{{{TAG_LENGTH}}}").replace(".tar", r"\.tar"))
    return sorted(name for name in present if pattern.fullmatch(name) and name != current.archive.name)
