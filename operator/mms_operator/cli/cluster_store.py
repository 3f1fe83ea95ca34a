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


def put(files: list[Path], uri: str, *, namespace: str, release: str) -> list[tuple[str, int]]:
    """Copies the files into the folder `uri`; gives (URI, bytes) of each."""
    import s3fs  # noqa: PLC0415 - takes half a second; other commands do without

    if not uri.startswith("s3://"):
        raise StoreNotFoundError(f"{uri} is no s3:// URI: the installation's store has buckets, as in s3://corpora/x/")
    keys = _keys(namespace, f"{release}-store")
    with port_forward(namespace, f"svc/{release}-store", STORE_PORT) as address:
        store = s3fs.S3FileSystem(
            key=keys[SECRET_ACCESS_KEY_ID],
            secret=keys[SECRET_ACCESS_KEY],
            client_kwargs={"endpoint_url": f"http://{address}"},
            config_kwargs={"s3": {"addressing_style": "path"}},
        )
        targets = [f"{uri.rstrip('/')}/{file.name}" for file in files]
        store.put([str(file) for file in files], targets)  # several at a time: folders of images are small files
        return [(target, file.stat().st_size) for target, file in zip(targets, files, strict=True)]


def _keys(namespace: str, secret: str) -> dict[str, str]:
    command = ["kubectl", "get", "secret", secret, "--namespace", namespace, "-o", "json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise StoreNotFoundError(
            f"the Secret {namespace}/{secret} of the embedded store cannot be read ({answer.stderr.strip()}): "
            "is the chart installed with store.enabled=true?"
        )
    return {key: base64.b64decode(value).decode() for key, value in json.loads(answer.stdout)["data"].items()}
