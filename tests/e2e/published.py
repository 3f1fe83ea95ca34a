"""Artifacts as a training has published them, published once more with something else in them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from tests.e2e.kube import installation_store

if TYPE_CHECKING:
    from collections.abc import Callable


def published_again(artifact: dict[str, str]) -> dict[str, str]:
    """The same files in another folder, under another digest."""
    uri = f"{artifact['uri']}-again"
    with installation_store() as store:
        for path in store.ls(artifact["uri"], detail=False):
            name = path.rpartition("/")[2]
            data = store.cat_file(path)
            if name == "manifest.json":
                data = json.dumps({**json.loads(data), "metrics": {"again": 1.0}}).encode()
                found = digest(data)
            store.pipe_file(f"{uri}/{name}", data)
    return {"uri": uri, "digest": found}


def with_other_weights(artifact: dict[str, str], change: Callable[[bytes], bytes]) -> dict[str, str]:
    """Files that are what their digests say, whose weights were never trained."""
    with installation_store() as store:
        files = {path.rpartition("/")[2]: store.cat_file(path) for path in store.ls(artifact["uri"], detail=False)}
        weights = files["model.safetensors"] = change(files["model.safetensors"])
        manifest = json.loads(files["manifest.json"])
        manifest["files"]["model.safetensors"] |= {"size": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
        files["manifest.json"] = json.dumps(manifest).encode()
        made = digest(files["manifest.json"])
        uri = f"{artifact['uri']}-{made[7:19]}"
        for name, data in files.items():
            store.pipe_file(f"{uri}/{name}", data)  # ten pieces of 50 MiB at a time
    return {"uri": uri, "digest": made}


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
