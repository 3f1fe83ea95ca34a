"""What users of KServe's clients do (kserve on PyPI), in an environment of its own: it brings a server with it."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mms_cluster import paths
from tests.oip import model as tensors
from tests.oip.checks import check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.oip.checks import Subject
    from tests.oip.model import Target, Tensor

NAMES = ("kserve",)
SCRIPT = Path(__file__).with_name("kserve_asks.py")
SECONDS = 300
NEWEST = (3, 13)  # the last Python that this kserve runs on
# What it needs, as pip resolves it, for Python 3.11 to 3.13.
KSERVE = "kserve==0.21.0"
PINS = """
aiohappyeyeballs==2.7.1 aiohttp-retry==2.9.1 aiohttp==3.14.5 aiosignal==1.4.0 annotated-doc==0.0.7
annotated-types==0.8.0 anyio==4.16.0 attrs==26.1.0 certifi==2026.10.19.post1 cffi==2.1.1 charset-normalizer==3.5.3
click==8.5.1 cloudevents==1.13.0 cryptography==50.0.2 deprecation==2.1.0 durationpy==0.11 fastapi==0.165.0
frozenlist==1.8.0 grpc-interceptor==0.15.4 grpcio-tools==1.81.1 grpcio==1.85.3 h11==0.16.0 httpcore==1.0.9
httptools==0.9.0 httpx==0.28.1 idna==3.20 kubernetes==37.0.1 multidict==7.2.1 numpy==2.4.6 oauthlib==4.0.1
opentelemetry-api==1.45.2 orjson==3.13.0 packaging==26.4 pandas==2.3.3 pillow==13.0.0 prometheus_client==0.26.0
propcache==0.5.4 protobuf==6.33.6 psutil==5.9.8 pyasn1==0.6.5 pycparser==3.12 pydantic==2.14.4 pydantic_core==2.50.5
pyjwt==2.15.1 python-dateutil==2.9.0.post0 python-dotenv==1.2.4 python-multipart==0.0.34 pytz==2026.6 pyyaml==6.0.4
requests-oauthlib==2.0.0 requests==2.34.2 setuptools==84.2.1 six==1.17.0 starlette==1.10.0 tabulate==0.10.0
timing-asgi==0.3.2 typing-inspection==0.4.5 typing_extensions==4.16.0 tzdata==2026.6 urllib3==2.8.0 uvicorn==0.54.0
uvloop==0.23.0 watchfiles==1.3.0 websocket-client==1.9.2 websockets==17.4 yarl==1.25.1
"""

SAYS = {
    "kserve.rest.live": "InferenceRESTClient.is_server_live",
    "kserve.rest.ready": "InferenceRESTClient.is_server_ready",
    "kserve.rest.model-ready": "InferenceRESTClient.is_model_ready",
    "kserve.rest.infer.json": "InferenceRESTClient.infer, tensors in JSON",
    "kserve.rest.infer.binary": "InferenceRESTClient.infer, tensors as binary data",
    "kserve.rest.infer.dict": "InferenceRESTClient.infer of a dictionary",
    "kserve.rest.errors": "InferenceRESTClient.infer raises an error with its status",
    "kserve.rest.error-messages": "InferenceRESTClient.infer raises an error with its message",
    "kserve.grpc.live": "InferenceGRPCClient.is_server_live",
    "kserve.grpc.ready": "InferenceGRPCClient.is_server_ready",
    "kserve.grpc.model-ready": "InferenceGRPCClient.is_model_ready",
    "kserve.grpc.infer.typed": "InferenceGRPCClient.infer, typed contents",
    "kserve.grpc.infer.raw": "InferenceGRPCClient.infer, raw contents",
    "kserve.grpc.errors": "InferenceGRPCClient.infer raises an error with its status",
}


def register(name: str) -> None:
    @check(name, KSERVE, SAYS[name], clients=NAMES, once=name.endswith((".live", ".ready")))
    def found(subject: Subject) -> Iterator[str]:
        yield from results(subject.target)[name][subject.model.name]


for each in SAYS:
    register(each)


@functools.cache
def results(target: Target) -> dict[str, dict[str, list[str]]]:
    """All checks with all models, by one process: starting it takes longer than they do."""
    done = subprocess.run(
        [python(), "-I", str(SCRIPT)], input=json.dumps(document(target)), capture_output=True, text=True, check=False,
        timeout=SECONDS,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(f"{SCRIPT.name} failed:\n{done.stderr}")
    found: dict[str, dict[str, list[str]]] = json.loads(done.stdout)
    return found


def document(target: Target) -> dict[str, Any]:
    """The target as the script reads it."""
    models = [
        {
            "name": one.name,
            "version": one.version,
            "tolerance": one.tolerance,
            "max_batch": one.max_batch,
            "examples": [
                [[*map(_as_json, example.inputs)], [*map(_as_json, example.outputs)]] for example in one.examples
            ],
        }
        for one in target.models
    ]
    return {"rest": target.rest, "grpc": target.grpc, "models": models}


def python() -> str:
    """The Python of an environment that has the pinned packages. Raises AssertionError when there can be none."""
    found = _environment()
    if isinstance(found, AssertionError):
        raise found
    return found


@functools.cache
def _environment() -> str | AssertionError:
    """Made in the cache the first time, in a minute. What fails is not tried again by the next check."""
    key = hashlib.sha256(PINS.encode()).hexdigest()[:12]
    folder = paths.cache_folder() / "oip" / f"{KSERVE}-{key}"
    try:
        with paths.locked(folder.with_name("kserve.lock")):
            if not folder.exists():
                _make(folder)
    except AssertionError as error:
        return error
    return str(folder / "bin" / "python")


def _make(folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _run([_interpreter(), "-m", "venv", str(partial)])
    install = ["install", "--quiet", "--no-deps", "--no-compile", "--only-binary", ":all:"]
    _run([str(partial / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *install, KSERVE, *PINS.split()])
    partial.rename(folder)


def _interpreter() -> str:
    if sys.version_info[:2] <= NEWEST:
        return sys.executable
    names = [f"python3.{minor}" for minor in range(NEWEST[1], 10, -1)]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise AssertionError(f"{KSERVE} needs one of {', '.join(names)}: install one")
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(
            f"the environment of {KSERVE} could not be made: {command[0]}:\n{done.stdout}{done.stderr}"
        )


def _as_json(tensor: Tensor) -> dict[str, Any]:
    shape = list(tensor.shape)
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "data": tensors.json_data(tensor)}
