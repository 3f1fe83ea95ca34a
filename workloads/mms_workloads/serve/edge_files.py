"""What nginx is given: the configuration from the pod's template, and what the mounted Secrets say now.

API keys stand in no file of nginx: it has their HMAC-SHA-256 under a salt that is new each time, and looks up that of
the key which a request brings. So digests are compared, which tell nothing of how much of a key was right.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_workloads import contract

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KEY_CHARACTERS = 16  # at least
_KEY = re.compile(rf"[!-~]{{{KEY_CHARACTERS},}}")
_DIGEST = """\
import crypto from 'crypto';

const salt = '%s';

function digest(request) {
    const found = /^bearer +(\\S+)$/i.exec(request.headersIn.Authorization || '');
    return found ? crypto.createHmac('sha256', salt).update(found[1]).digest('hex') : '';
}

export default {digest};
"""


@dataclass(frozen=True)
class Inputs:
    """What is mounted. `tls` and `keys` are None where the service has none."""

    config: bytes
    tls: Mapping[str, bytes] | None
    keys: Mapping[str, bytes] | None


@dataclass(frozen=True)
class Clients:
    """Names by keys; `problems` are words about keys that are not taken."""

    by_key: Mapping[str, str]
    problems: tuple[str, ...]


def read(folder: Path, keys: Path) -> Inputs:
    """Raises OSError."""
    mounted = _whole(folder)
    return Inputs((mounted / contract.EDGE_CONFIG).read_bytes(), _files(mounted / "tls"), _files(_whole(keys)))


def clients(keys: Mapping[str, bytes]) -> Clients:
    """The keys of a Secret, without the line's end that many editors leave."""
    by_key: dict[str, str] = {}
    problems = []
    for name, value in sorted(keys.items()):
        key = value.decode("ascii", "replace").rstrip("\r\n")
        if not _KEY.fullmatch(key):
            problems.append(f"{name}: a key has at least {KEY_CHARACTERS} printable ASCII characters and no space")
        elif key in by_key:
            problems.append(f"{name}: it has the same key as {by_key[key]}")
        else:
            by_key[key] = name
    return Clients(by_key, tuple(problems))


def lay(inputs: Inputs, folder: Path, salt: str) -> tuple[str, ...]:
    """Writes what nginx reads into an empty folder; words about keys that are not taken. Raises OSError."""
    _write(folder / contract.EDGE_CONFIG, inputs.config)
    if inputs.tls is not None:
        (folder / "tls").mkdir()
        for name, content in inputs.tls.items():
            _write(folder / "tls" / name, content)
    if inputs.keys is None:
        return ()
    found = clients(inputs.keys)
    lines = [
        f'{hmac.new(salt.encode(), key.encode(), hashlib.sha256).hexdigest()} "{name}";\n'
        for key, name in found.by_key.items()
    ]
    _write(folder / "clients.conf", "".join(lines).encode())
    _write(folder / "keys.js", (_DIGEST % salt).encode())
    return found.problems


def _whole(folder: Path) -> Path:
    """The kubelet's link to what was written together: a certificate and the key that belongs to it."""
    return (folder / "..data").resolve() if (folder / "..data").exists() else folder


def _files(folder: Path) -> dict[str, bytes] | None:
    if not folder.is_dir():
        return None
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
