"""Stores: mounted files, a web server and a real S3 service; every failure is a reason with a remedy."""

from __future__ import annotations

import http.server
import io
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from mms_workloads import store
from mms_workloads.contract import Reason, Store
from mms_workloads.store import JobError
from tests.unit import weed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def file_store(path: Path, name: str = "") -> Store:
    return Store(uri=f"file://{path}{name}")


def names(found: list[store.Found], root: str) -> list[str]:
    return [f.uri.removeprefix(root) for f in found]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/d.csv", "odd[1].txt", "odd#2?.txt", "of[2]/e.txt"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "tree"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/a.txt", ["/a.txt"]),
        ("/sub", ["/sub/c.txt", "/sub/d.csv"]),
        ("/sub/", ["/sub/c.txt", "/sub/d.csv"]),
        ("", ["/a.txt", "/b.txt", "/odd#2?.txt", "/odd[1].txt", "/of[2]/e.txt", "/sub/c.txt", "/sub/d.csv"]),
        ("/?.txt", ["/a.txt", "/b.txt"]),
        ("/*/*.txt", ["/of[2]/e.txt", "/sub/c.txt"]),
        ("/**/*.csv", ["/sub/d.csv"]),
        ("/[b-z].txt", ["/b.txt"]),
        ("/odd[1].txt", ["/odd[1].txt"]),
        ("/odd#2?.txt", ["/odd#2?.txt"]),
        ("/of[2]", ["/of[2]/e.txt"]),
        ("/sub*", None),
        ("/no.txt", None),
        ("/a.txt/x", None),
    ],
    ids=[
        "file",
        "folder",
        "slash",
        "all",
        "question",
        "star",
        "deep",
        "set",
        "name with brackets",
        "name with a question mark",
        "folder with brackets",
        "folders only",
        "missing",
        "below a file",
    ],
)
def test_glob(tree: Path, pattern: str, expected: list[str] | None) -> None:
    if expected is None:
        with pytest.raises(JobError, match="check the URI") as raised:
            store.glob(file_store(tree, pattern))
        assert (raised.value.reason, raised.value.retryable) == (Reason.DATA_NOT_FOUND, False)
    else:
        found = store.glob(file_store(tree, pattern))
        assert names(found, f"file://{tree}") == expected
        assert all(f.size == len(f.uri.removeprefix(f"file://{tree}/")) for f in found)


@pytest.mark.parametrize("name", ["odd[1].txt", "odd#2?.txt", "a.txt"])
def test_a_found_name_is_read_as_it_is(tree: Path, name: str) -> None:
    """What `glob` returned may hold characters that a pattern or a web address gives a meaning."""
    place = file_store(tree, f"/{name}")
    assert store.stat(place).size == len(name)
    assert store.read_bytes(place) == name.encode()


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("ftp://h/x", "scheme 'ftp' is not served"),
        ("/data/x", "no scheme"),
        ("", "no scheme"),
        ("s3://", "incomplete"),
        ("file://data/x", "incomplete"),
    ],
)
def test_a_uri_that_is_not_served(uri: str, says: str) -> None:
    with pytest.raises(JobError, match=says) as raised:
        store.read_bytes(Store(uri=uri))
    assert raised.value.reason == Reason.JOB_FILE_INVALID
    assert "use s3://bucket/path" in raised.value.message


def test_file_round_trip(tmp_path: Path) -> None:
    place = file_store(tmp_path, "/new/folder/x.bin")
    store.write_bytes(place, b"0123456789")
    assert store.read_bytes(place) == b"0123456789"
    assert store.read_bytes(place, 2, 5) == b"234"
    local = tmp_path / "local"
    store.download(place, local)
    assert local.read_bytes() == b"0123456789"
    local.write_bytes(b"a" * 9_000_000)
    store.upload(place, local)
    with store.open_read(place) as file:
        assert len(file.read()) == 9_000_000
    assert store.list_folder(file_store(tmp_path, "/new")) == [place.uri]
    store.remove_folder(file_store(tmp_path, "/new"))
    assert store.list_folder(file_store(tmp_path, "/new")) == []
    store.remove_folder(file_store(tmp_path, "/new"))


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    place = file_store(tmp_path, "/x")
    store.write_bytes(place, b"old")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if broken == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(JobError, match="No space left") as raised:
        store.write_bytes(place, b"new content")
    assert (raised.value.reason, raised.value.retryable) == (Reason.STORAGE_UNREACHABLE, True)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert store.read_bytes(place) == b"old"


@pytest.mark.parametrize(
    ("error", "writing", "reason", "retryable", "says"),
    [
        (PermissionError(13, "denied"), False, Reason.DATA_UNREADABLE, False, "may not be read"),
        (PermissionError(13, "denied"), True, Reason.STORAGE_DENIED, False, "may not be written to"),
        (FileNotFoundError(2, "no"), False, Reason.DATA_NOT_FOUND, False, "check the URI"),
        (NotADirectoryError(20, "no"), False, Reason.DATA_NOT_FOUND, False, "check the URI"),
        (OSError(5, "Input/output error"), False, Reason.STORAGE_UNREACHABLE, True, "Input/output error"),
    ],
    ids=["read denied", "write denied", "missing", "no folder", "input/output"],
)
def test_explain(error: OSError, writing: bool, reason: Reason, retryable: bool, says: str) -> None:
    explained = store.explain(error, Store(uri="file:///x"), writing=writing)
    assert explained is not None
    assert (explained.reason, explained.retryable) == (reason, retryable)
    assert says in explained.message
    assert "file:///x" in explained.message


def test_a_bug_is_not_taken_for_a_stores_failure() -> None:
    with pytest.raises(ZeroDivisionError), store.errors(Store(uri="file:///x")):
        _ = 1 / 0


def test_a_scratch_volume_that_is_full(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="make it larger") as raised, store.scratch_folder(tmp_path, "x-"):
        raise OSError(28, "No space left on device")
    assert (raised.value.reason, raised.value.retryable) == (Reason.INTERNAL, True)
    assert not list(tmp_path.iterdir())


# Web servers


class Handler(http.server.BaseHTTPRequestHandler):
    """/whole ignores ranges, /denied and /sizeless say what they are called; all else is there with ranges."""

    BODY = b"0123456789" * 100

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, *, head: bool) -> None:
        path = self.path.partition("?")[0]
        body, status = self.BODY, {"/denied": 403, "/missing": 404, "/broken": 500}.get(path, 200)
        wanted = self.headers.get("Range", "")
        if wanted and status == 200 and path not in {"/whole", "/sizeless"}:
            first, last = wanted.removeprefix("bytes=").split("-")
            body, status = body[int(first) : int(last) + 1 if last else None], 206
        self.send_response(status)
        if path != "/sizeless":
            self.send_header("Content-Length", str(len(body)))
        if path not in {"/whole", "/sizeless"}:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["/ranges", "/whole", "/signed?key=a&sig=b%2Fc"], ids=["ranges", "no ranges", "query"])
def test_web(web: str, path: str) -> None:
    place = Store(uri=web + path)
    assert [(f.uri, f.size) for f in store.glob(place)] == [(place.uri, 1000)]
    assert store.read_bytes(place) == Handler.BODY
    assert store.read_bytes(place, 995, 1000) == b"56789"
    assert store.read_bytes(place, 3, 14) == b"34567890123"
    with store.open_read(place) as file:
        assert file.read() == Handler.BODY


def test_a_folder_of_a_web_server(tmp_path: Path) -> None:
    """By its page's links, but for those that sort it and those that lead elsewhere."""
    (tmp_path / "m" / "sub").mkdir(parents=True)
    (tmp_path / "m" / "a.txt").write_text("five!")
    (tmp_path / "m" / "sub" / "b.bin").write_bytes(b"x")
    (tmp_path / "other").write_text("no part of it")

    class Pages(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(tmp_path))

        def list_directory(self, path: Any) -> io.BytesIO:
            listed = "".join(f'<a href="{p.name}{"/" * p.is_dir()}">' for p in Path(path).iterdir())
            page = f'<a href="?C=N;O=D"><a href="../"><a href="/other">{listed}'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            return io.BytesIO(page)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        place = f"http://127.0.0.1:{serving.server_port}/m"
        try:
            found = store.glob(Store(uri=f"{place}/"))
            listed = store.list_folder(Store(uri=place))
            with pytest.raises(JobError, match="no file matches"):
                store.glob(Store(uri=f"{place}/none/"))
        finally:
            serving.shutdown()
            thread.join()
    assert [(one.uri, one.size) for one in found] == [(f"{place}/a.txt", 5), (f"{place}/sub/b.bin", 1)]
    assert listed == [one.uri for one in found]


@pytest.mark.parametrize(
    ("path", "reason", "retryable", "says"),
    [
        ("/denied", Reason.DATA_UNREADABLE, False, "grant access"),
        ("/missing", Reason.DATA_NOT_FOUND, False, "check the URI"),
        ("/broken", Reason.STORAGE_UNREACHABLE, True, "500"),
    ],
)
def test_web_failures(web: str, path: str, reason: Reason, retryable: bool, says: str) -> None:
    with pytest.raises(JobError, match=says) as raised:
        store.read_bytes(Store(uri=web + path))
    assert (raised.value.reason, raised.value.retryable) == (reason, retryable)


def test_a_web_server_that_does_not_tell_sizes(web: str) -> None:
    """Such a file must not count as empty."""
    with pytest.raises(JobError, match="does not say its size") as raised:
        store.glob(Store(uri=f"{web}/sizeless"))
    assert raised.value.reason == Reason.DATA_UNREADABLE


def test_the_web_is_read_only(web: str) -> None:
    with pytest.raises(JobError, match="read only: results need an s3:// or file:// URI") as raised:
        store.write_bytes(Store(uri=f"{web}/x"), b"")
    assert raised.value.reason == Reason.STORAGE_DENIED


def test_a_web_server_that_is_away() -> None:
    with socket.socket() as unused:  # bound and not listening
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        with pytest.raises(JobError, match="does not answer") as raised:
            store.read_bytes(Store(uri=uri))
    assert (raised.value.reason, raised.value.retryable) == (Reason.STORAGE_UNREACHABLE, True)


# S3


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[weed.Weed]:
    folder = tmp_path_factory.mktemp("weed")
    with weed.Weed(folder) as running:
        yield running


@pytest.fixture
def s3(service: weed.Weed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Store]:
    """A store in the service: s3(uri, credentials)."""
    keys = {"admin": weed.ADMIN, "reader": weed.READER, "wrong": ("other-key", "x"), "typo": (weed.ADMIN[0], "x")}
    for name, (key, secret) in keys.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "AWS_ACCESS_KEY_ID").write_text(f"{key}\n")
        (tmp_path / name / "AWS_SECRET_ACCESS_KEY").write_text(secret)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("MMS_CREDENTIALS_DIR", str(tmp_path))
    monkeypatch.setattr(store, "ATTEMPTS", 1)  # the backoff is not waited for

    def place(uri: str, credentials: str | None = "admin", endpoint: str = service.endpoint) -> Store:
        return Store(uri=uri, endpoint=endpoint, credentials=credentials)

    fs, _ = store.filesystem(place("s3://data/x"))
    if not fs.exists("data"):
        fs.mkdir("data")
    return place


def test_streams_to_and_from_s3(s3: Callable[..., Store], tmp_path: Path) -> None:
    file, content = s3("s3://data/streams/file"), os.urandom(3_000_000)
    with store.writing(file, tmp_path) as stream:
        stream.write(content[:1])
        stream.write(memoryview(content)[1:])
    with store.reading(file, tmp_path) as path:
        assert path.read_bytes() == content
    assert [path for path in tmp_path.iterdir() if path.name.startswith(store.ON_ITS_WAY)] == []
    cut_short = store.writing(s3("s3://data/streams/other"), tmp_path)
    cut_short.__enter__().write(b"x")
    assert not cut_short.__exit__(RuntimeError, RuntimeError(), None), "the error goes on"
    assert store.list_folder(s3("s3://data/streams")) == [file.uri], "half a file is none"


def test_s3_round_trip(s3: Callable[..., Store], tmp_path: Path) -> None:
    small, large = s3("s3://data/run/small #1.txt"), s3("s3://data/run/deep/large.bin")
    store.write_bytes(small, b"0123456789")
    assert store.read_bytes(small, 2, 5) == b"234"
    local = tmp_path / "large"
    local.write_bytes(os.urandom(7_000_000))
    store.upload(large, local)
    with store.open_read(large) as file:
        assert file.read() == local.read_bytes()
    back = tmp_path / "back"
    store.download(large, back)
    assert back.read_bytes() == local.read_bytes()
    found = store.glob(s3("s3://data/run/*.txt"))
    assert [(f.uri, f.size) for f in found] == [(small.uri, 10)]
    assert found[0].etag
    assert names(store.glob(s3("s3://data/run")), "s3://data/run") == ["/deep/large.bin", "/small #1.txt"]
    assert store.list_folder(s3("s3://data/run/deep")) == [large.uri]
    assert store.stat(s3("s3://data/run/small #1.txt", "reader")).size == 10
    store.write_bytes(small, b"new")
    assert store.read_bytes(small) == b"new"
    store.remove_folder(s3("s3://data/run"))
    assert store.list_folder(s3("s3://data/run")) == []


READS: list[Callable[[Store], Any]] = [store.glob, store.read_bytes, store.stat]
CLOSED = "http://127.0.0.1:9"  # the discard port: nobody listens


class Case(NamedTuple):
    uri: str
    credentials: str | None
    endpoint: str | None  # None: the service's
    reason: Reason
    retryable: bool
    says: str

    def place(self, s3: Callable[..., Store]) -> Store:
        return s3(self.uri, self.credentials, **({"endpoint": self.endpoint} if self.endpoint else {}))


@pytest.mark.parametrize("read", READS, ids=["glob", "read", "stat"])
@pytest.mark.parametrize(
    "case",
    [
        Case("s3://data/x", "wrong", None, Reason.CREDENTIALS_INVALID, False, "check AWS_ACCESS_KEY_ID"),
        Case("s3://data/x", "typo", None, Reason.CREDENTIALS_INVALID, False, "AWS_SECRET_ACCESS_KEY in the Secret"),
        Case("s3://data/x", "empty", None, Reason.CREDENTIALS_INVALID, False, "has no key AWS_ACCESS_KEY_ID"),
        Case("s3://data/x", "absent", None, Reason.CREDENTIALS_INVALID, False, "has no key AWS_ACCESS_KEY_ID"),
        Case("s3://data/x", None, None, Reason.DATA_UNREADABLE, False, "grant access"),
        Case("s3://nowhere/x", "admin", None, Reason.DATA_NOT_FOUND, False, "check the URI|does not exist"),
        Case("s3://data/missing", "admin", None, Reason.DATA_NOT_FOUND, False, "check the URI"),
        Case("s3://data/x", "admin", CLOSED, Reason.STORAGE_UNREACHABLE, True, "check the endpoint"),
    ],
    ids=["wrong key", "wrong secret", "empty secret", "no secret", "anonymous", "no bucket", "no key", "away"],
)
def test_s3_read_failures(s3: Callable[..., Store], read: Callable[[Store], Any], case: Case) -> None:
    with pytest.raises(JobError, match=case.says) as raised:
        read(case.place(s3))
    assert (raised.value.reason, raised.value.retryable) == (case.reason, case.retryable)
    assert case.uri in raised.value.message


@pytest.mark.parametrize(
    "case",
    [
        Case("s3://data/w", "reader", None, Reason.STORAGE_DENIED, False, "may not be written to.*grant access"),
        Case("s3://data/w", "wrong", None, Reason.CREDENTIALS_INVALID, False, "check AWS_ACCESS_KEY_ID"),
        Case("s3://data/w", None, None, Reason.STORAGE_DENIED, False, "grant access"),
        Case("s3://data/w", "admin", CLOSED, Reason.STORAGE_UNREACHABLE, True, "check the endpoint"),
    ],
    ids=["read only", "wrong key", "anonymous", "away"],
)
@pytest.mark.parametrize("way", ["write", "upload"])
def test_s3_write_failures(s3: Callable[..., Store], tmp_path: Path, way: str, case: Case) -> None:
    place, local = case.place(s3), tmp_path / "local"
    local.write_bytes(b"x")
    with pytest.raises(JobError, match=case.says) as raised:
        store.write_bytes(place, b"x") if way == "write" else store.upload(place, local)
    assert (raised.value.reason, raised.value.retryable) == (case.reason, case.retryable)


def test_a_bucket_that_is_missing_when_written_to() -> None:
    """SeaweedFS makes buckets as they are written to; others answer with NoSuchBucket."""
    from botocore.exceptions import ClientError

    error = ClientError({"Error": {"Code": "NoSuchBucket", "Message": "x"}}, "PutObject")
    explained = store.explain(error, Store(uri="s3://b/x"), writing=True)
    assert explained is not None
    assert (explained.reason, explained.retryable) == (Reason.STORAGE_DENIED, False)
    assert "create it or correct the URI" in explained.message
