"""Uploads into the store that the chart brings, with the keys of its Secret and through a port-forward."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import TYPE_CHECKING

from mms_operator.cli.forward import port_forward
from mms_workloads.contract import SECRET_ACCESS_KEY, SECRET_ACCESS_KEY_ID

if TYPE_CHECKING:
    from pathlib import Path

STORE_PORT = 8333


class StoreNotFoundError(Exception):
    """The release has no embedded store, or its Secret cannot be read."""


class SameTargetError(Exception):
    """Two files would be one object: the second would be kept, and nobody would hear of the first."""


def put(files: list[Path], uri: str, *, namespace: str, release: str) -> list[tuple[str, int]]:
    """Copies the files into the folder `uri`; gives (URI, bytes) of each."""
    import s3fs  # noqa: PLC0415 - takes half a second; other commands do without

    if not uri.startswith("s3://"):
        raise StoreNotFoundError(f"{uri} is no s3:// URI: the installation's store has buckets, as in s3://corpora/x/")
    targets = _targets(files, uri)
    keys = _keys(namespace, f"{release}-store")
    with port_forward(namespace, f"svc/{release}-store", STORE_PORT) as address:
        store = s3fs.S3FileSystem(
            key=keys[SECRET_ACCESS_KEY_ID],
            secret=keys[SECRET_ACCESS_KEY],
            client_kwargs={"endpoint_url": f"http://{address}"},
            config_kwargs={"s3": {"addressing_style": "path"}},
        )
        store.put([str(file) for file in files], targets)  # several at a time: folders of images are small files
        return [(target, file.stat().st_size) for target, file in zip(targets, files, strict=True)]


def _targets(files: list[Path], uri: str) -> list[str]:
    """Where each goes. Of the folders that they are in nothing is kept."""
    known: dict[str, Path] = {}
    for file in files:
        if (other := known.setdefault(file.name, file)) != file:
            raise SameTargetError(
                f"{other} and {file} would both be {uri.rstrip('/')}/{file.name}: rename one, or upload them into "
                "two folders"
            )
    return [f"{uri.rstrip('/')}/{file.name}" for file in files]


def _keys(namespace: str, secret: str) -> dict[str, str]:
    command = ["kubectl", "get", "secret", secret, "--namespace", namespace, "-o", "json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise StoreNotFoundError(
            f"the Secret {namespace}/{secret} of the embedded store cannot be read ({answer.stderr.strip()}): "
            "is the chart installed with store.enabled=true?"
        )
    data = json.loads(answer.stdout).get("data") or {}
    if missing := [key for key in (SECRET_ACCESS_KEY_ID, SECRET_ACCESS_KEY) if key not in data]:
        raise StoreNotFoundError(
            f"the Secret {namespace}/{secret} of the embedded store lacks {' and '.join(missing)}: add what is "
            "missing, or run helm upgrade, which makes new ones"
        )
    return {key: base64.b64decode(value).decode() for key, value in data.items()}
