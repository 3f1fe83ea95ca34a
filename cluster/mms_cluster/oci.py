"""Images without a registry or a daemon: writing one from static programs, reading what an archive holds.

Formats: the OCI image layout 1.0 and `docker save`.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mms_cluster.errors import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_OCI = "application/vnd.oci.image"


@dataclass(frozen=True)
class ImageId:
    """An image in an archive: its full name, and the digest of its configuration, which fixes all of its content."""

    name: str
    config: str


def write(target: Path, name: str, programs: dict[str, Path], config: dict[str, Any]) -> None:
    """An OCI archive with one layer that holds `programs` (path in the image -> file).

    `config` is the OCI configuration's `config`, such as {"Entrypoint": ["/pause"]}. The same input gives the same
    bytes.
    """
    blobs: dict[str, bytes] = {}

    def put(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"{_OCI}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    layer = put("layer.v1.tar", _tar({path: (file.read_bytes(), 0o755) for path, file in programs.items()}))
    image = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    configuration = put("config.v1+json", json.dumps(image).encode())
    manifest = {"schemaVersion": 2, "mediaType": f"{_OCI}.manifest.v1+json", "config": configuration, "layers": [layer]}
    entry = put("manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    files = {
        "oci-layout": (b'{"imageLayoutVersion":"1.0.0"}', 0o644),
        "index.json": (json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(), 0o644),
        **{f"blobs/sha256/{digest}": (data, 0o644) for digest, data in blobs.items()},
    }
    partial = target.with_name(target.name + ".partial")
    partial.write_bytes(_tar(files))
    partial.replace(target)


def read(archive: Path) -> list[ImageId]:
    """The images in an archive. Raises ClusterError when it is not there, no archive of images or has no names."""
    try:
        with tarfile.open(archive) as tar:
            names = set(tar.getnames())
            if "manifest.json" in names:
                return _docker(tar, archive)
            if "index.json" in names:
                return _oci(tar, archive)
    except FileNotFoundError:
        raise ClusterError(f"{archive} is not there: build the image first, or correct the path.") from None
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise ClusterError(f"{archive} is not a whole archive of images ({error}): save it again.") from None
    raise ClusterError(f"{archive} holds neither manifest.json nor index.json: save an image as docker or OCI archive.")


def full_name(name: str) -> str:
    """The name as the runtime keeps it, with registry and tag: busybox is docker.io/library/busybox:latest."""
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif first != "localhost" and not set(first) & {".", ":"}:
        name = f"docker.io/{name}"
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _docker(tar: tarfile.TarFile, archive: Path) -> list[ImageId]:
    found = [
        ImageId(full_name(name), "sha256:" + hashlib.sha256(_member(tar, entry["Config"])).hexdigest())
        for entry in json.loads(_member(tar, "manifest.json"))
        for name in entry["RepoTags"] or []
    ]
    return _named(found, archive)


def _oci(tar: tarfile.TarFile, archive: Path) -> list[ImageId]:
    found = []
    for entry in json.loads(_member(tar, "index.json"))["manifests"]:
        manifest = json.loads(_member(tar, "blobs/" + entry["digest"].replace(":", "/")))
        annotations = entry.get("annotations", {})
        name = annotations.get("io.containerd.image.name") or annotations.get("org.opencontainers.image.ref.name", "")
        # The annotation of the OCI layout may be the tag alone, which says nothing of whose it is.
        if "/" in name and "config" in manifest:
            found.append(ImageId(full_name(name), manifest["config"]["digest"]))
    return _named(found, archive)


def _named(found: list[ImageId], archive: Path) -> list[ImageId]:
    if not found:
        raise ClusterError(f"The images in {archive} have no names: save it as docker-archive:{archive}:NAME:TAG.")
    return found


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.extractfile(name)
    if member is None:
        raise KeyError(name)
    return member.read()


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, (data, mode) in files.items():
            info = tarfile.TarInfo(name.lstrip("/"))
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()
