"""Page tokens that stand for a name in an ordered listing: opaque to callers, checked when they come back."""

from __future__ import annotations

import base64
import binascii

import xxhash

from lmcache.errors import PageTokenError

_MARK = b"name:"
_CHECKSUM_BYTES = 8


def encode_name_token(name: str) -> str:
    """The page that follows `name`."""
    content = name.encode()
    return base64.urlsafe_b64encode(_MARK + xxhash.xxh3_64_digest(content) + content).decode()


def decode_name_token(token: str) -> str:
    """Raises PageTokenError for what `encode_name_token` never made."""
    try:
        content = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
        checksum, name = content[len(_MARK) :][:_CHECKSUM_BYTES], content[len(_MARK) + _CHECKSUM_BYTES :]
        if content.startswith(_MARK) and xxhash.xxh3_64_digest(name) == checksum:
            return name.decode()
    except (binascii.Error, UnicodeError, ValueError):
        pass
    raise PageTokenError("malformed page_token: pass the next_page_token of the page before, unchanged")
