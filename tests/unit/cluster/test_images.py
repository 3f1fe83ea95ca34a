"""Archives of images."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from mms_cluster import oci
from mms_cluster.errors import ClusterError
from mms_cluster.provider import in_archives

if TYPE_CHECKING:
    from pathlib import Path


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def docker(path: Path, tags: list[str] | None) -> Path:
    manifest = [{"Config": "c.json", "RepoTags": tags, "Layers": []}]
    return archive(path, {"c.json": b"{}", "manifest.json": json.dumps(manifest).encode()})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    targets = [tmp_path / "a.tar", tmp_path / "b.tar"]
    for target in targets:
        oci.write(target, "localhost/x:1", {"/program": program}, {"Entrypoint": ["/program"]})
    first, second = (target.read_bytes() for target in targets)
    assert first == second, "the same input gives the same image"
    (image,) = oci.read(targets[0])
    assert image.name == "localhost/x:1"
    program.write_bytes(b"another")
    oci.write(targets[1], "localhost/x:1", {"/program": program}, {"Entrypoint": ["/program"]})
    assert oci.read(targets[1])[0].config != image.config


def test_docker_archive(tmp_path: Path) -> None:
    path = docker(tmp_path / "a.tar", ["localhost/mms-worker:abc"])
    (image,) = oci.read(path)
    assert image == oci.ImageId("localhost/mms-worker:abc", f"sha256:{hashlib.sha256(b'{}').hexdigest()}")
    (found,) = in_archives([path]).items()
    assert (found[0], found[1].name, found[1].tag) == ("worker", "localhost/mms-worker", "abc")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "is not there", id="missing"),
        pytest.param(b"no tar", "is not a whole archive", id="no-tar"),
        pytest.param({"x": b""}, "neither manifest.json nor index.json", id="another-tar"),
        pytest.param({"manifest.json": b"{"}, "is not a whole archive", id="broken"),
        pytest.param(
            {"c": b"{}", "manifest.json": b'[{"Config":"c","RepoTags":null}]'}, "have no names", id="nameless"
        ),
    ],
)
def test_bad_archives(tmp_path: Path, content: dict[str, bytes] | bytes | None, message: str) -> None:
    path = tmp_path / "a.tar"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        archive(path, content)
    with pytest.raises(ClusterError, match=message):
        oci.read(path)


@pytest.mark.parametrize(
    ("name", "full"),
    [
        pytest.param("busybox", "docker.io/library/busybox:latest", id="short"),
        pytest.param("team/x:1", "docker.io/team/x:1", id="no-registry"),
        pytest.param("localhost/x", "localhost/x:latest", id="localhost"),
        pytest.param("host:5000/x:1", "host:5000/x:1", id="port"),
    ],
)
def test_full_name(name: str, full: str) -> None:
    assert oci.full_name(name) == full
