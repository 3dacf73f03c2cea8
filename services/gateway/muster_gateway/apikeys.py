"""The text of an API key, `mst_<id>_<secret>`: making (from given randomness), parsing, hashing."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

from muster.domain.errors import Unauthenticated

ID_BYTES = 6
SECRET_BYTES = 32

# The alphabets are wider than what `make_key` writes, so that keys made elsewhere pass.
_KEY = re.compile(r"mst_(?P<id>[a-z0-9]{1,32})_(?P<secret>[A-Za-z0-9_-]{32,128})", re.ASCII)
_ID = re.compile(r"[a-z0-9]{1,32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class KeyText:
    """A parsed key. `secret` must not be logged or stored; `digest` may be stored."""

    id: str
    secret: str

    @property
    def digest(self) -> bytes:
        """SHA-256 of the secret. A fast hash will do: the secret has 256 random bits."""
        return hashlib.sha256(self.secret.encode()).digest()

    @property
    def text(self) -> str:
        return f"mst_{self.id}_{self.secret}"

    def opens(self, stored_digest: bytes) -> bool:
        """Whether this is the key whose digest was stored; in constant time."""
        return hmac.compare_digest(self.digest, stored_digest)


def make_key(random_bytes: bytes) -> KeyText:
    """A new key out of ID_BYTES + SECRET_BYTES of randomness."""
    assert len(random_bytes) == ID_BYTES + SECRET_BYTES
    return KeyText(random_bytes[:ID_BYTES].hex(), random_bytes[ID_BYTES:].hex())


def parse_key(text: str) -> KeyText:
    """Raises Unauthenticated; the text is not quoted, since it may be a key mistyped by one."""
    match = _KEY.fullmatch(text)
    if match is None:
        raise Unauthenticated("the API key is malformed; it reads mst_<id>_<secret>")
    return KeyText(match["id"], match["secret"])


def is_key_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None
