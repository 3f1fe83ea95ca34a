"""The command line, without a cluster: a kubectl of a few lines of shell stands in for the real one."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import s3fs
from botocore.exceptions import EndpointConnectionError
from typer.testing import CliRunner

from mms_operator.cli import app, cluster_store, forward
from mms_workloads.serve import query
from mms_workloads.serve.access import Access
from mms_workloads.serve.query import Analogy, Neighbours

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a kubectl of a shell script, which also writes its arguments into the file that is given back."""
    said = tmp_path / "arguments"

    def make(script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "kubectl"
        program.write_text(f'#!/bin/sh\necho "$@" >> {said}\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return said

    return make


LISTENS = "echo 'Forwarding from 127.0.0.1:4711 -> 8001'; exec sleep 60"
REFUSES = "echo 'error: services \"words\" not found' >&2; exit 1"
ANSWERS = [Neighbours("gold", ["silver", "[/]odd[b]"], [0.91, 0.5], 1, "sha256:0")]


def test_a_forward_is_open_while_its_context_is(kubectl: Callable[[str], Path]) -> None:
    said = kubectl(LISTENS)
    with forward.port_forward("ns", "svc/words", 8001) as address:
        assert address == "127.0.0.1:4711"
    assert said.read_text().split() == [
        "port-forward", "--namespace", "ns", "svc/words", ":8001", "--address", "127.0.0.1",
    ]  # fmt: skip


def test_a_forward_that_says_much_goes_on(kubectl: Callable[[str], Path], tmp_path: Path) -> None:
    """kubectl writes a line for each connection: more than a pipe holds, in time."""
    done = tmp_path / "done"
    lines = "yes 'Handling connection for 4711' | head -n 20000"
    kubectl(f"echo 'Forwarding from 127.0.0.1:4711 -> 1'; {lines}; {lines} >&2; touch {done}; exec sleep 60")
    with forward.port_forward("ns", "svc/words", 1):
        deadline = time.monotonic() + 10
        while not done.exists():
            assert time.monotonic() < deadline, "kubectl is stuck"
            time.sleep(0.02)


def test_a_forward_that_fails_says_why(kubectl: Callable[[str], Path]) -> None:
    kubectl(REFUSES)
    with (
        pytest.raises(forward.ForwardError, match=r'no connection to svc/words in namespace ns: .*"words" not found'),
        forward.port_forward("ns", "svc/words", 8001),
    ):
        pass


def test_without_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(forward.ForwardError, match="not on PATH"), forward.port_forward("ns", "svc/words", 8001):
        pass


@pytest.mark.parametrize("url", [None, "host:8001"])
def test_query(monkeypatch: pytest.MonkeyPatch, kubectl: Callable[[str], Path], url: str | None) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(query, "neighbours", lambda *args, access: asked.append((*args, access)) or ANSWERS)
    said = kubectl(LISTENS)
    arguments = ["query", "words", "gold", "-n", "ns", "-k", "2", *(["--url", url] if url else [])]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert asked == [(url or "127.0.0.1:4711", ["gold"], 2, Access())]
    assert said.exists() == (url is None)
    assert "gold" in result.stdout
    assert "silver 0.91" in result.stdout
    assert "[/]odd[b] 0.50" in result.stdout, "words are no markup"


def test_a_key_and_an_authority(
    monkeypatch: pytest.MonkeyPatch, kubectl: Callable[[str], Path], tmp_path: Path
) -> None:
    """Through a port-forward the certificate is for the Service, not for the loopback."""
    asked: list[Any] = []
    monkeypatch.setattr(query, "neighbours", lambda *args, access: asked.append((args[0], access)) or ANSWERS)
    kubectl(LISTENS)
    key, ca = tmp_path / "key", tmp_path / "ca.crt"
    key.write_text("a key of sixteen\n")
    ca.touch()
    options = ["--api-key-file", str(key), "--ca", str(ca)]
    for url in ([], ["--url", "https://host:8000"]):
        result = CliRunner().invoke(app, ["query", "words", "gold", "-n", "ns", *options, *url])
        assert result.exit_code == 0, result.output
    assert asked == [
        ("grpcs://127.0.0.1:4711", Access("a key of sixteen", str(ca), "words.ns.svc")),
        ("https://host:8000", Access("a key of sixteen", str(ca))),
    ]
    key.write_text("\n")
    result = CliRunner().invoke(app, ["query", "words", "gold", *options])
    assert result.exit_code == 1
    assert "is empty" in result.stderr


def test_nothing_of_an_answer_becomes_an_emoji(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "neighbours", lambda *_, **__: [Neighbours(":x:", [":key:"], [0.5], 1, "sha256:0")])
    result = CliRunner().invoke(app, ["query", "words", ":x:", "--url", "host:1"])
    assert result.stdout.splitlines()[-1].split() == [":x:", ":key:", "0.50"]


def test_query_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "neighbours", lambda *_, **__: ANSWERS)
    result = CliRunner().invoke(app, ["query", "words", "gold", "--url", "host:1", "--json"])
    assert json.loads(result.stdout) == {"gold": [["silver", 0.91], ["[/]odd[b]", 0.5]]}


@pytest.mark.parametrize("url", [None, "host:8001"])
def test_analogy(monkeypatch: pytest.MonkeyPatch, kubectl: Callable[[str], Path], url: str | None) -> None:
    asked: list[Any] = []
    answer = Analogy(("man", "king", "[b]"), ["queen", "[/]odd"], [0.91, 0.5], 1, "sha256:0")
    monkeypatch.setattr(query, "analogies", lambda *args, access: asked.append((*args, access)) or [answer])
    said = kubectl(LISTENS)
    options = ["-n", "ns", "-k", "2", *(["--url", url] if url else [])]
    result = CliRunner().invoke(app, ["analogy", "words", "man", "king", "[b]", *options])
    assert result.exit_code == 0, result.output
    assert asked == [(url or "127.0.0.1:4711", [("man", "king", "[b]")], 2, Access())]
    assert said.exists() == (url is None)
    assert "man : king = [b] : ?" in result.stdout
    assert "queen 0.91  [/]odd 0.50" in result.stdout, "words are no markup"
    result = CliRunner().invoke(app, ["analogy", "words", "man", "king", "[b]", *options, "--json"])
    assert json.loads(result.stdout) == [["queen", 0.91], ["[/]odd", 0.5]]


@pytest.mark.parametrize("url", [None, "host:8001"])
def test_similarity(monkeypatch: pytest.MonkeyPatch, kubectl: Callable[[str], Path], url: str | None) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(query, "similarity", lambda *args, access: asked.append((*args, access)) or [0.7125])
    said = kubectl(LISTENS)
    arguments = ["similarity", "words", "a text", "another", "-n", "ns", *(["--url", url] if url else [])]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert asked == [(url or "127.0.0.1:4711", [("a text", "another")], Access())]
    assert said.exists() == (url is None)
    assert result.stdout == "0.71\n"
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout) == 0.7125


def test_query_that_fails_says_why_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise query.NotReadyError("the model [/v2/x] is not there")

    monkeypatch.setattr(query, "neighbours", fails)
    result = CliRunner().invoke(app, ["query", "words", "gold", "--url", "host:1"])
    assert result.exit_code == 1
    assert "the model [/v2/x] is not there" in result.stderr
    assert result.stdout == ""


def secret() -> str:
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
    return json.dumps({"data": {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()}})


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []

    class FileSystem:
        def __init__(self, **options: Any) -> None:
            seen.append(options)

        def put(self, sources: list[str], targets: list[str]) -> None:
            if any("forbidden" in target for target in targets):
                raise PermissionError("Access Denied")
            if any("broken" in target for target in targets):
                raise EndpointConnectionError(endpoint_url="http://127.0.0.1:4711")
            seen.extend((source.rsplit("/", 1)[-1], target) for source, target in zip(sources, targets, strict=True))

    monkeypatch.setattr(s3fs, "S3FileSystem", FileSystem)
    return seen


def test_put(kubectl: Callable[[str], Path], uploads: list[Any], tmp_path: Path) -> None:
    kubectl(f"case $1 in get) echo '{secret()}';; *) {LISTENS.replace('8001', '8333')};; esac")
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x" * 2_000_000)
    files = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    result = CliRunner().invoke(app, ["data", "put", *files, "s3://corpora/books/"])
    assert result.exit_code == 0, result.output
    options, *written = uploads
    assert (options["key"], options["secret"]) == ("id", "key")
    assert options["client_kwargs"] == {"endpoint_url": "http://127.0.0.1:4711"}
    assert written == [("a.txt", "s3://corpora/books/a.txt"), ("b.txt", "s3://corpora/books/b.txt")]
    assert "s3://corpora/books/a.txt  2.0 MB" in result.stdout


@pytest.mark.parametrize(
    ("script", "uri", "why"),
    [
        pytest.param(REFUSES, "s3://corpora/x", "cannot be read", id="no store"),
        pytest.param(LISTENS, "file:///x", "is no s3:// URI", id="no bucket"),
        pytest.param(
            f"case $1 in get) echo '{secret()}';; *) {LISTENS};; esac",
            "s3://forbidden/x",
            "Access Denied",
            id="refused",
        ),
        pytest.param(
            f"case $1 in get) echo '{secret()}';; *) {LISTENS};; esac",
            "s3://broken/x",
            "the upload to s3://broken/x was cut off: Could not connect to the endpoint URL",
            id="cut off",
        ),
        pytest.param(
            'case $1 in get) echo \'{"data": {"other": "eA=="}}\';; esac',
            "s3://corpora/x",
            "mms-system/mms-store of the embedded store lacks AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            id="no keys",
        ),
        pytest.param("echo '{}'", "s3://corpora/x", "lacks AWS_ACCESS_KEY_ID", id="nothing in it"),
    ],
)
@pytest.mark.usefixtures("uploads")
def test_put_that_fails_says_why(
    kubectl: Callable[[str], Path], tmp_path: Path, script: str, uri: str, why: str
) -> None:
    kubectl(script)
    (tmp_path / "a.txt").write_text("x")
    result = CliRunner().invoke(app, ["data", "put", str(tmp_path / "a.txt"), uri])
    assert result.exit_code == 1
    assert why in " ".join(result.stderr.split())
    assert isinstance(result.exception, SystemExit), "no traceback"


@pytest.mark.parametrize(
    "arguments", [["query", "words", "gold"], ["rollout", "status", "words"], ["data", "put", "{}", "s3://corpora/x"]]
)
def test_a_cluster_that_does_not_answer_is_told_in_a_line(
    kubectl: Callable[[str], Path], tmp_path: Path, arguments: list[str]
) -> None:
    log = "E1130 22:11:31.401619    9255 memcache.go:265] couldn't get current server API group list"
    kubectl(f'echo "{log}" >&2; echo "{log}" >&2; echo \'The connection to the server x:1 was refused\' >&2; exit 1')
    (tmp_path / "a.txt").write_text("x")
    result = CliRunner().invoke(app, [one.format(tmp_path / "a.txt") for one in arguments])
    assert result.exit_code == 1
    assert "The connection to the server x:1 was refused" in result.stderr
    assert "memcache" not in result.stderr
    kubectl(f'echo "{log}" >&2; exit 1')
    assert "memcache" in CliRunner().invoke(app, [one.format(tmp_path / "a.txt") for one in arguments]).stderr


def test_put_without_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    result = CliRunner().invoke(app, ["data", "put", str(tmp_path / "a.txt"), "s3://corpora/x"])
    assert (result.exit_code, result.stderr) == (1, "kubectl is not on PATH: install it\n")


def test_two_files_of_one_name_are_refused(
    kubectl: Callable[[str], Path], uploads: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl(f"case $1 in get) echo '{secret()}';; *) {LISTENS};; esac")
    monkeypatch.chdir(tmp_path)
    for folder in ("cats", "dogs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_text(folder)
    result = CliRunner().invoke(app, ["data", "put", "cats/1.jpg", "dogs/1.jpg", "s3://corpora/pets/"])
    assert result.exit_code == 1
    assert "cats/1.jpg and dogs/1.jpg would both be s3://corpora/pets/1.jpg" in " ".join(result.stderr.split())
    assert uploads == []
    again = CliRunner().invoke(app, ["data", "put", "cats/1.jpg", "cats/1.jpg", "s3://corpora/pets/"])
    assert again.exit_code == 0, "the same file twice loses nothing"


def test_folders_are_put_with_what_is_below_them(
    kubectl: Callable[[str], Path], uploads: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl(f"case $1 in get) echo '{secret()}';; *) {LISTENS};; esac")
    monkeypatch.chdir(tmp_path)
    for name in ("pets/cats/1.jpg", "pets/dogs/1.jpg", "pets/dogs/.DS_Store", "labels.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    result = CliRunner().invoke(app, ["data", "put", "pets/", "labels.csv", "s3://corpora/pets/"])
    assert result.exit_code == 0, result.output
    said = result.output.split()
    assert [one for one in said if one.startswith("s3://")] == [
        "s3://corpora/pets/cats/1.jpg",
        "s3://corpora/pets/dogs/1.jpg",
        "s3://corpora/pets/labels.csv",
    ]
    (tmp_path / "none").mkdir()
    result = CliRunner().invoke(app, ["data", "put", "none", "s3://corpora/pets/"])
    assert result.exit_code == 1
    assert "there is no file in none" in result.stderr


def test_the_release_names_the_stores_service(
    kubectl: Callable[[str], Path], uploads: list[Any], tmp_path: Path
) -> None:
    said = kubectl(f"case $1 in get) echo '{secret()}';; *) {LISTENS};; esac")
    (tmp_path / "a.txt").write_text("x")
    cluster_store.put([tmp_path / "a.txt"], "s3://c/", namespace="ns", release="mine")
    assert "svc/mine-store" in said.read_text()
    assert f":{cluster_store.STORE_PORT}" in said.read_text()


@pytest.mark.parametrize("arguments", [[], ["data"], ["query"], ["analogy"], ["similarity"]])
def test_help_is_what_comes_of_too_little(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Usage" in result.output
