"""What one serving pod sends another, readable by that one only, which knows from whom it is.

An agent's key pair is X25519 (RFC 7748), made in its memory. A box is

    the sender's public key, 32 bytes | nonce, 12 bytes | ciphertext of AES-256-GCM, its tag last

with HKDF-SHA256 (RFC 5869) of both keys' secret as the key; info: INFO and both public keys, the sender's first. Nonces
are drawn: of the 2^32 boxes that a key may seal so (NIST SP 800-38D) a rollout has a few thousand.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from collections.abc import Collection

INFO = b"mms inputs 1"
KEY_BYTES, NONCE_BYTES = 32, 12


class BoxError(ValueError):
    """No box of one of the senders, or none for this key."""


class Key:
    """A key pair. public: base64."""

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self._public = self._private.public_key().public_bytes_raw()
        self.public = base64.b64encode(self._public).decode()

    def seal(self, to: str, plain: bytes) -> bytes:
        """to: whose box it is. Raises BoxError: that is no public key."""
        other, nonce = _raw(to), os.urandom(NONCE_BYTES)
        return self._public + nonce + self._cipher(other, self._public + other).encrypt(nonce, plain, None)

    def open(self, box: bytes, senders: Collection[str]) -> bytes:
        """What a sender has sealed. Raises BoxError."""
        sender, nonce = box[:KEY_BYTES], box[KEY_BYTES : KEY_BYTES + NONCE_BYTES]
        if base64.b64encode(sender).decode() not in senders:
            raise BoxError("its sender is none that this pod is told of")
        try:
            cipher = self._cipher(sender, sender + self._public)
            return cipher.decrypt(nonce, box[KEY_BYTES + NONCE_BYTES :], None)
        except (InvalidTag, ValueError) as error:
            raise BoxError("it is sealed for another pod, or damaged") from error

    def _cipher(self, other: bytes, keys: bytes) -> AESGCM:
        try:
            secret = self._private.exchange(X25519PublicKey.from_public_bytes(other))
        except ValueError as error:
            raise BoxError("that is no public key") from error
        return AESGCM(HKDF(hashes.SHA256(), KEY_BYTES, None, INFO + keys).derive(secret))


def _raw(public: str) -> bytes:
    try:
        return base64.b64decode(public, validate=True)
    except ValueError as error:
        raise BoxError("that is no public key") from error
