"""Uploads into the store that the chart brings, with the keys of its Secret and through a port-forward."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import TYPE_CHECKING

from mms_operator.cli import kubectl
from mms_operator.cli.forward import port_forward
from mms_workloads.contract import SECRET_ACCESS_KEY, SECRET_ACCESS_KEY_ID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STORE_PORT = 8333


class StoreNotFoundError(Exception):
    """The release has no embedded store, or its Secret cannot be read."""


class SameTargetError(Exception):
    """Two files would be one object: the second would be kept, and nobody would hear of the first."""


class NothingToPutError(Exception):
    """Folders without a file."""


class CutOffError(Exception):
    """The connection to the store has ended."""


ERRORS = (StoreNotFoundError, SameTargetError, NothingToPutError, CutOffError)


def put(files: list[Path], uri: str, *, namespace: str, release: str) -> list[tuple[str, int]]:
    """Copies the files, and what is below folders, into the folder `uri`; gives (URI, bytes) of each.

    Raises StoreNotFoundError, SameTargetError, NothingToPutError, CutOffError, forward.ForwardError, OSError.
    """
    import s3fs  # noqa: PLC0415 - takes half a second; other commands do without
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - as above

    if not uri.startswith("s3://"):
        raise StoreNotFoundError(f"{uri} is no s3:// URI: the installation's store has buckets, as in s3://corpora/x/")
    targets = _targets(files, uri)
    if not targets:
        raise NothingToPutError(f"there is no file in {', '.join(map(str, files))}")
    keys = _keys(namespace, f"{release}-store")
    with port_forward(namespace, f"svc/{release}-store", STORE_PORT) as address:
        store = s3fs.S3FileSystem(
            key=keys[SECRET_ACCESS_KEY_ID],
            secret=keys[SECRET_ACCESS_KEY],
            client_kwargs={"endpoint_url": f"http://{address}"},
            config_kwargs={"s3": {"addressing_style": "path"}},
        )
        # Several at a time: folders of images are small files.
        try:
            store.put([str(file) for file in targets.values()], list(targets))
        except BotoCoreError as error:
            raise CutOffError(f"the upload to {uri} was cut off: {error}: give the same command again") from error
        return [(target, file.stat().st_size) for target, file in targets.items()]


def _targets(given: list[Path], uri: str) -> dict[str, Path]:
    """The file of each target. Of a folder its name is not kept; those below it are, as they may be labels."""
    found: dict[str, Path] = {}
    for one in given:
        for name, file in _below(one) if one.is_dir() else [(one.name, one)]:
            target = f"{uri.rstrip('/')}/{name}"
            if (other := found.setdefault(target, file)) != file:
                raise SameTargetError(
                    f"{other} and {file} would both be {target}: rename one, or upload them into two folders"
                )
    return found


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    """What tools hide by a dot is left out."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), file


def _keys(namespace: str, secret: str) -> dict[str, str]:
    command = ["kubectl", "get", "secret", secret, "--namespace", namespace, "-o", "json"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise StoreNotFoundError("kubectl is not on PATH: install it") from None
    if answer.returncode:
        raise StoreNotFoundError(
            f"the Secret {namespace}/{secret} of the embedded store cannot be read ({kubectl.words(answer.stderr)}): "
            "is the chart installed with store.enabled=true?"
        )
    data = json.loads(answer.stdout).get("data") or {}
    if missing := [key for key in (SECRET_ACCESS_KEY_ID, SECRET_ACCESS_KEY) if key not in data]:
        raise StoreNotFoundError(
            f"the Secret {namespace}/{secret} of the embedded store lacks {' and '.join(missing)}: add what is "
            "missing, or run helm upgrade, which makes new ones"
        )
    return {key: base64.b64decode(value).decode() for key, value in data.items()}
