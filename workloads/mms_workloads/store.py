"""Access to a contract.Store: object storage (s3), mounted files (file) and web servers (http, https; read only).

Everything that can go wrong becomes a JobError: a reason of the contract, a message that says what to do, and whether
another try can help. Callers never see botocore's or fsspec's exceptions.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import fsspec

from mms_workloads import contract
from mms_workloads.contract import Reason, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

# A store in the same cluster answers in milliseconds; ten seconds without a connection means that it is away.
CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 60  # one request moves at most a few MiB
ATTEMPTS = 3  # botocore's own tries, with backoff, before the error is reported

_COPY_BYTES = 1 << 20

ON_ITS_WAY = "way-"  # how the names of scratch folders begin that go with the work: one that stays was left by a kill

_WRONG_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden", "401"}
_BODILESS = {"403", "401"}
_NOT_FOUND = 404
AT_ONCE = 16  # requests to a store that do not depend on each other
_WEB = {"http", "https"}
_MISSING = {"NoSuchKey", "NoSuchBucket", "404", "NotFound"}
_UNREACHABLE = {
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ConnectionClosedError",
    "HTTPClientError",
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "ServerDisconnectedError",
    "ClientOSError",
    "ClientPayloadError",
    "ResponseParserError",
    "ServerTimeoutError",
    "ConnectionTimeoutError",
    "SocketTimeoutError",
    "FSTimeoutError",
}


class JobError(Exception):
    """Work that cannot go on. `retryable`: the same work may succeed later without a change by the user."""

    def __init__(self, reason: Reason, message: str, *, retryable: bool = False) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class Found:
    """A file in a store; `size` in bytes as stored, `etag` as the store gives it."""

    uri: str
    size: int
    etag: str | None


def credentials_dir() -> Path:
    """Where the stores' Secrets are mounted; MMS_CREDENTIALS_DIR places it elsewhere outside a pod."""
    return Path(os.environ.get("MMS_CREDENTIALS_DIR", contract.CREDENTIALS_DIR))


def filesystem(store: Store) -> tuple[Any, str]:
    """The fsspec file system of a store and the store's path in it (its URI itself for http).

    Raises JobError when the URI's scheme is not served or a credential is missing.
    """
    # Not urlsplit: names of files and objects may hold ? and #.
    scheme, separator, rest = store.uri.partition("://")
    if scheme == "s3" and rest.strip("/"):
        return fsspec.filesystem("s3", **_s3_options(store)), rest.rstrip("/")
    if scheme == "file" and rest.startswith("/"):
        return fsspec.filesystem("file", auto_mkdir=True), rest.rstrip("/") or "/"
    if scheme in {"http", "https"} and rest:
        return fsspec.filesystem("http"), store.uri.rstrip("/")
    what = f"scheme {scheme!r} is not served" if separator else "the URI has no scheme"
    what = "the URI is incomplete" if scheme in {"s3", "file", "http", "https"} and separator else what
    raise JobError(
        Reason.JOB_FILE_INVALID, f"{store.uri}: {what}: use s3://bucket/path, file:///path or https://host/path"
    )


def warm(store: Store) -> None:
    """Loads the code and the descriptions that clients of this store need, and no client yet: a
    process that is forked afterwards need not do it.
    """
    if _scheme(store) != "s3":
        return
    fsspec.get_filesystem_class("s3")
    loader = _session().get_component("data_loader")
    for kind in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("s3", kind)
    for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
        loader.load_data(name)


@cache
def _session() -> Any:
    """What all clients of S3 in this process share: what is the same for all of them is loaded once."""
    from aiobotocore.session import AioSession  # noqa: PLC0415 - many a process talks to no S3 at all

    return AioSession()


def child(store: Store, name: str) -> Store:
    """The store of a file or folder below this one."""
    return store.model_copy(update={"uri": f"{store.uri.rstrip('/')}/{name}"})


def at(store: Store, uri: str) -> Store:
    """The same store at another URI, such as one that `glob` returned."""
    return store.model_copy(update={"uri": uri})


def glob(store: Store) -> list[Found]:
    """The files that the store's URI names, sorted by URI: one file, a pattern with *, or a folder's files; a web
    server's folder ends with /, and its page has a link to each file. What a file system has by just this name is no
    pattern.

    Raises JobError: DataNotFound when there are none.
    """
    with errors(store):
        fs, path = filesystem(store)
        scheme = _scheme(store)
        # In a web address a ? starts the query.
        if scheme in _WEB and ("*" in path or store.uri.endswith("/")):
            names = fs.glob(path) if "*" in path else _linked(fs, path)
            with ThreadPoolExecutor(AT_ONCE) as pool:  # a page of links says no sizes
                infos = dict(zip(names, pool.map(fs.info, names), strict=True))
        elif scheme not in _WEB and any(c in path for c in "*?[") and not (scheme == "file" and fs.exists(path)):
            infos = fs.glob(path, detail=True)
        else:
            info = fs.info(path)
            infos = {path: info} if info["type"] == "file" else fs.find(path, detail=True)
        found = [_found(scheme, name, info) for name, info in infos.items() if info.get("type", "file") == "file"]
    if not found:
        raise JobError(Reason.DATA_NOT_FOUND, f"no file matches {store.uri}: check the URI and its pattern")
    return sorted(found, key=lambda f: f.uri)


def stat(store: Store) -> Found:
    """One file, whose name is taken as it is. Raises JobError."""
    with errors(store):
        fs, path = filesystem(store)
        return _found(_scheme(store), path, fs.info(path))


def read_bytes(store: Store, start: int | None = None, end: int | None = None) -> bytes:
    """The file's bytes, or those of [start, end). Raises JobError."""
    with errors(store):
        fs, path = filesystem(store)
        data = bytes(fs.cat_file(path, start=start, end=end))
    if end is not None and len(data) > end - (start or 0):
        return data[start:end]  # a web server that knows no ranges sent the whole file
    return data


def read_if_there(store: Store) -> bytes | None:
    """None: there is no such file. Raises JobError."""
    try:
        return read_bytes(store)
    except JobError as error:
        if error.reason is Reason.DATA_NOT_FOUND:
            return None
        raise


@contextlib.contextmanager
def open_read(store: Store) -> Iterator[IO[bytes]]:
    """The file for streaming, read ahead in blocks of 4 MiB. Raises JobError, also while reading inside the block."""
    with errors(store):
        fs, path = filesystem(store)
        options = {} if _scheme(store) == "file" else {"block_size": 4 << 20, "cache_type": "readahead"}
        with fs.open(path, "rb", **options) as file:
            yield cast("IO[bytes]", file)


def write_bytes(store: Store, data: bytes) -> None:
    """Writes a small file: a reader sees the old content or the new, never a part. Raises JobError."""
    with errors(store, writing=True):
        fs, path = filesystem(_writable(store))
        if _scheme(store) != "file":
            fs.pipe_file(path, data)  # one PUT, atomic by S3's rules
            return
        with _replacing(Path(path)) as file:
            file.write(data)


def upload(store: Store, local: Path) -> None:
    """Writes a local file of any size to the store's URI. Raises JobError."""
    with errors(store, writing=True):
        fs, path = filesystem(_writable(store))
        if _scheme(store) != "file":
            fs.put_file(str(local), path)
            return
        with local.open("rb") as source, _replacing(Path(path)) as file:
            shutil.copyfileobj(source, file, _COPY_BYTES)


@contextlib.contextmanager
def writing(store: Store, scratch: Path) -> Iterator[IO[bytes]]:
    """What the block writes, of any size, is in the store after it. Raises JobError.

    scratch: where a file is before it is in a store that is no file system.
    """
    if _scheme(store) == "file":
        with errors(store, writing=True), _replacing(Path(filesystem(store)[1])) as file:
            yield file
        return
    with scratch_folder(scratch, f"{ON_ITS_WAY}upload-") as folder:
        with (folder / "file").open("wb") as file:
            yield file
        upload(store, folder / "file")


@contextlib.contextmanager
def reading(store: Store, scratch: Path) -> Iterator[Path]:
    """A local path of the file: of a file system its own, else that of a copy in `scratch`. Raises JobError."""
    if _scheme(store) == "file":
        with errors(store):
            yield Path(filesystem(store)[1])
        return
    with scratch_folder(scratch, f"{ON_ITS_WAY}download-") as folder:
        download(store, folder / "file")
        yield folder / "file"


def download(store: Store, local: Path) -> None:
    """Copies the file to a local path. Raises JobError."""
    with errors(store):
        fs, path = filesystem(store)
        fs.get_file(path, str(local))


def list_folder(store: Store) -> list[str]:
    """The URIs of all files below a folder, sorted; empty when there is none. Raises JobError."""
    with errors(store):
        fs, path = filesystem(store)
        fs.invalidate_cache()
        scheme = _scheme(store)
        if scheme in _WEB:
            return sorted(_linked(fs, path))
        # Some S3 services list a folder that was emptied, or its placeholder, as an object.
        return sorted(_uri(scheme, name) for name in fs.find(path) if name.startswith(f"{path}/") and name[-1] != "/")


def _linked(fs: Any, folder: str) -> list[str]:
    """The addresses of the files that a web server's folder and those in it link to."""
    fs.invalidate_cache()
    base = f"{folder}/"
    return [url for url in fs.find(base) if url.startswith(base) and not set(url[len(base) :]) & set("?#")]


def remove_folder(store: Store) -> None:
    """Deletes all files below a folder; nothing to do when there is none. Raises JobError."""
    with errors(store, writing=True), contextlib.suppress(FileNotFoundError):
        fs, path = filesystem(_writable(store))
        fs.rm(path, recursive=True)


@contextlib.contextmanager
def scratch_folder(scratch: Path, prefix: str) -> Iterator[Path]:
    """A folder for files on their way; it goes with the block. Raises JobError when the volume cannot be written."""
    try:
        with tempfile.TemporaryDirectory(dir=scratch, prefix=prefix) as folder:
            yield Path(folder)
    except OSError as error:
        raise JobError(
            Reason.INTERNAL,
            f"the scratch volume {scratch} cannot be written ({error}): make it larger",
            retryable=True,
        ) from error


@contextlib.contextmanager
def errors(store: Store, *, writing: bool = False) -> Iterator[None]:
    """Turns the exceptions of file systems into JobErrors about this store."""
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        mapped = explain(error, store, writing=writing)
        if mapped is None:
            raise
        if any(_client_error_code(e) in _BODILESS for e in _chain(error)):
            mapped = _listing_error(store) or mapped
        raise mapped from error


def explain(error: BaseException, store: Store, *, writing: bool = False) -> JobError | None:
    """What an exception of fsspec, s3fs or botocore means to the user; None when it is none of a store's."""
    chain = list(_chain(error))
    codes = {str(code) for e in chain if (code := _client_error_code(e))}
    names = {type(e).__name__ for e in chain}
    text = str(error) or type(error).__name__
    uri, where = store.uri, store.endpoint or "the provider's own endpoint"
    if codes & _WRONG_KEY or "does not exist in our records" in text or "NoCredentialsError" in names:
        return JobError(
            Reason.CREDENTIALS_INVALID,
            f"{where} does not accept the access key for {uri}: check {contract.SECRET_ACCESS_KEY_ID} and "
            f"{contract.SECRET_ACCESS_KEY} in the Secret ({text})",
        )
    if "NoSuchBucket" in codes or "bucket does not exist" in text.lower():
        return JobError(
            Reason.STORAGE_DENIED if writing else Reason.DATA_NOT_FOUND,
            f"the bucket of {uri} does not exist at {where}: create it or correct the URI",
        )
    if names & _UNREACHABLE:
        return JobError(
            Reason.STORAGE_UNREACHABLE,
            f"{uri}: {where} does not answer: check the endpoint and that the pods may reach it ({text})",
            retryable=True,
        )
    if codes & _DENIED or isinstance(error, PermissionError) or _http_status(error) in {401, 403}:
        reason = Reason.STORAGE_DENIED if writing else Reason.DATA_UNREADABLE
        verb = "written to" if writing else "read"
        return JobError(
            reason, f"{uri} may not be {verb} with these credentials: grant access or use other ones ({text})"
        )
    if (
        codes & _MISSING
        or isinstance(error, FileNotFoundError | NotADirectoryError)
        or _http_status(error) == _NOT_FOUND
    ):
        return JobError(Reason.DATA_NOT_FOUND, f"there is nothing at {uri}: check the URI")
    if isinstance(error, OSError) or codes or _http_status(error):
        return JobError(Reason.STORAGE_UNREACHABLE, f"{uri}: {text}", retryable=True)
    return None


def _listing_error(store: Store) -> JobError | None:
    """What a listing says of a key that was refused: the answer to HEAD has no body, and so tells no reason."""
    fs, path = filesystem(store)
    try:
        fs.call_s3("list_objects_v2", Bucket=path.partition("/")[0], MaxKeys=1)
    except Exception as error:  # noqa: BLE001 - only a clear answer counts
        answer = explain(error, store)
        return answer if answer and answer.reason is Reason.CREDENTIALS_INVALID else None
    return None


def _s3_options(store: Store) -> dict[str, Any]:
    client: dict[str, Any] = {}
    if store.endpoint:
        client["endpoint_url"] = store.endpoint
    if store.region or store.endpoint:
        client["region_name"] = store.region or "us-east-1"  # services of one's own ignore it, the signature needs one
    options: dict[str, Any] = {
        "client_kwargs": client,
        "config_kwargs": {
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "read_timeout": READ_TIMEOUT_SECONDS,
            "retries": {"max_attempts": ATTEMPTS, "mode": "standard"},
            # Newer checksum trailers are refused by many S3-compatible services.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            **({"s3": {"addressing_style": "path"}} if store.endpoint else {}),
        },
        "use_listings_cache": False,
        "session": _session(),
    }
    if store.credentials:
        options["key"] = _secret(store, contract.SECRET_ACCESS_KEY_ID)
        options["secret"] = _secret(store, contract.SECRET_ACCESS_KEY)
    elif not any(name in os.environ for name in ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")):
        options["anon"] = True
    return options


def _secret(store: Store, key: str) -> str:
    path = credentials_dir() / (store.credentials or "") / key
    try:
        value = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        value = ""
    if not value:
        raise JobError(
            Reason.CREDENTIALS_INVALID,
            f"the Secret of {store.uri} has no key {key}, or it is empty: add it to the Secret",
        )
    return value


def _writable(store: Store) -> Store:
    if _scheme(store) in _WEB:
        raise JobError(Reason.STORAGE_DENIED, f"{store.uri} is read only: results need an s3:// or file:// URI")
    return store


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """What is written to it becomes the target's content, at once and durable."""
    _make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """And those above it, whose names last as well."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """So that a name in it outlives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {
            errno.EINVAL,
            errno.ENOTSUP,
            errno.EBADF,
        }:  # some network file systems know no such thing
            raise
    finally:
        os.close(descriptor)


def _scheme(store: Store) -> str:
    return store.uri.partition("://")[0]


def _found(scheme: str, name: str, info: dict[str, Any]) -> Found:
    uri = _uri(scheme, name)
    size = info.get("size")
    if size is None:
        raise JobError(
            Reason.DATA_UNREADABLE,
            f"the server of {uri} does not say its size: put the file on another server or into S3",
        )
    return Found(uri, int(size), _etag(info))


def _uri(scheme: str, name: str) -> str:
    return name if "://" in name else f"{scheme}://{name}"


def _etag(info: dict[str, Any]) -> str | None:
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return str(etag).strip('"')
    return str(info["mtime"]) if "mtime" in info else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _client_error_code(error: BaseException) -> str | None:
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _http_status(error: BaseException) -> int | None:
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None
