"""Encrypted blocks: AES-256-GCM in chunks, with a key for each block that is derived from the data key.

A block is a file:

    magic 8 bytes | number uint64 | plaintext bytes uint64 | chunk bytes uint32 | data set 16 bytes | salt 32 bytes
    chunks: ciphertext and a tag of 16 bytes each; the last one is the shorter, and may be empty

Block key: HKDF-SHA256 (RFC 5869) of the data key, salt: data set and salt, info: INFO and the number. Nonce of a chunk:
its number in 11 bytes, and 1 for the last one (STREAM: Hoang, Reyhanitabar, Rogaway, Vizár, 2015), so that chunks
cannot be left out, added or put in another order. The header is authenticated with each chunk. The salt is drawn each
time that a block is written: no key is used for two plaintexts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mms_workloads.contract import Reason
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY_BYTES = 32
ID_BYTES = 16
SALT_BYTES = 32
TAG_BYTES = 16
CHUNK_BYTES = 256 << 10
MAGIC = b"MMSBLK1\n"
INFO = b"mms block 1"
MANIFEST_INFO = b"mms manifest 1"
_HEADER = struct.Struct(f">8sQQI{ID_BYTES}s{SALT_BYTES}s")
_NUMBER = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Header:
    number: int
    size: int  # bytes of plaintext
    chunk_bytes: int
    dataset: bytes
    salt: bytes

    def pack(self) -> bytes:
        return _HEADER.pack(MAGIC, self.number, self.size, self.chunk_bytes, self.dataset, self.salt)

    def stored_size(self) -> int:
        """Of the whole file."""
        return _HEADER.size + self.size + TAG_BYTES * max(1, -(-self.size // self.chunk_bytes))


def read_key(data: bytes, where: str) -> bytes:
    """A data key: 32 bytes as they are, in hexadecimal or in base64. Raises JobError CredentialsInvalid."""
    if len(data) == KEY_BYTES:
        return data
    text = data.strip()
    for decode in (binascii.unhexlify, lambda t: base64.b64decode(t, validate=True)):
        try:
            key = decode(text)
        except (binascii.Error, ValueError):
            continue
        if len(key) == KEY_BYTES:
            return bytes(key)
    raise JobError(
        Reason.CREDENTIALS_INVALID,
        f"{where} holds no key of {KEY_BYTES} bytes, neither as they are nor in hexadecimal or base64: make one with "
        "openssl rand -hex 32",
    )


def block_key(data_key: bytes, dataset: bytes, number: int, salt: bytes) -> bytes:
    return _derived(data_key, dataset + salt, INFO + _NUMBER.pack(number))


def manifest_mac(data_key: bytes, dataset: bytes, manifest: bytes) -> str:
    """In hexadecimal: who does not have the data key cannot change the manifest."""
    return hmac.new(_derived(data_key, dataset, MANIFEST_INFO), manifest, hashlib.sha256).hexdigest()


def _derived(data_key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt, info).derive(data_key)


def seal(data_key: bytes, dataset: bytes, number: int, plain: bytes) -> tuple[bytes, bytes]:
    """The block's file, and its salt."""
    header = Header(number, len(plain), CHUNK_BYTES, dataset, secrets.token_bytes(SALT_BYTES))
    cipher = AESGCM(block_key(data_key, dataset, number, header.salt))
    packed, view = header.pack(), memoryview(plain)
    chunks = (cipher.encrypt(nonce, view[start:stop], packed) for nonce, start, stop in _chunks(header))
    return b"".join([packed, *chunks]), header.salt


def unseal(key: bytes, dataset: bytes, number: int, stored: bytes, uri: str) -> bytes:
    """The plaintext. uri: for messages. Raises JobError DataUnreadable."""
    if len(stored) < _HEADER.size or not stored.startswith(MAGIC):
        raise _damaged(uri, "it is no encrypted block")
    _, found, size, chunk_bytes, of, salt = _HEADER.unpack_from(stored)
    header = Header(found, size, chunk_bytes, of, salt)
    if (of, found) != (dataset, number):
        raise _damaged(uri, f"it is block {found} of data set {of.hex()}, not block {number} of {dataset.hex()}")
    if not chunk_bytes or len(stored) != header.stored_size():
        raise _damaged(
            uri, f"it has {len(stored)} bytes, which is not what its header says: it is cut short or altered"
        )
    cipher, packed, view = AESGCM(key), stored[: _HEADER.size], memoryview(stored)
    parts, at = [], _HEADER.size
    try:
        for nonce, start, stop in _chunks(header):
            end = at + stop - start + TAG_BYTES
            parts.append(cipher.decrypt(nonce, view[at:end], packed))
            at = end
    except InvalidTag as error:
        raise _damaged(
            uri, f"chunk {len(parts)} does not fit its key: it was altered, or the key is another one's"
        ) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _chunks(header: Header) -> Iterator[tuple[bytes, int, int]]:
    """(nonce, start, stop) of the plaintext."""
    count = max(1, -(-header.size // header.chunk_bytes))
    for i in range(count):
        nonce = i.to_bytes(11, "big") + bytes([i == count - 1])
        yield nonce, i * header.chunk_bytes, min(header.size, (i + 1) * header.chunk_bytes)


def _damaged(uri: str, what: str) -> JobError:
    return JobError(
        Reason.DATA_UNREADABLE, f"{uri} cannot be decrypted: {what}. Encrypt the data set again, or correct the key"
    )
