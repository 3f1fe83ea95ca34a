"""Compressed files (.gz, .xz, .bz2, .zst): as they come, or onto a volume."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import zlib
from typing import IO, TYPE_CHECKING, cast

from mms_workloads import store as stores
from mms_workloads.contract import Reason
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mms_workloads.contract import Store

CHUNK_BYTES = 256 << 10
# What bz2 and Arrow say of damage, in an OSError like those of a store.
_DAMAGE = ("data stream", "compressed stream", "ZSTD decompress failed")


def chunks(store: Store) -> Iterator[bytes]:
    """What is in a file, CHUNK_BYTES at a time. Raises JobError."""
    with stores.open_read(store) as raw:
        try:
            with _decompressor(store.uri, raw) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
        except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise _corrupt(store.uri, error) from error
        except OSError as error:
            if error.errno is None and any(said in str(error) for said in _DAMAGE):
                raise _corrupt(store.uri, error) from error
            raise


def decompress(store: Store, target: Path, grow: Callable[[int], None]) -> None:
    """Streams a file into `target`, complete or not at all. grow: is told of bytes before they are written.

    Raises JobError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    try:
        with partial.open("wb") as out:
            for chunk in chunks(store):
                grow(len(chunk))
                out.write(chunk)
        partial.replace(target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise JobError(
                Reason.DATA_UNREADABLE,
                f"no room on the scratch volume to decompress {store.uri}: make the volume larger, or data.cacheSize "
                "smaller",
            ) from error
        raise JobError(
            Reason.INTERNAL, f"the scratch volume cannot be written ({error}): make it larger", retryable=True
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _decompressor(uri: str, raw: IO[bytes]) -> IO[bytes]:
    suffix = uri.lower().rpartition(".")[2]
    if suffix == "gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if suffix == "zst":
        import pyarrow as pa  # noqa: PLC0415 - large, and few data sets need it

        return cast("IO[bytes]", pa.CompressedInputStream(raw, "zstd"))
    return lzma.LZMAFile(raw) if suffix == "xz" else bz2.BZ2File(raw)


def _corrupt(uri: str, error: Exception) -> JobError:
    return JobError(
        Reason.DATA_UNREADABLE,
        f"{uri} cannot be decompressed: {str(error) or type(error).__name__}. The file is damaged or cut short: "
        "upload it again",
    )
