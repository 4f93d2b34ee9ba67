"""Objects' names in a flat store of names, such as a bucket: from a key and back. Knows no backend.

    <model>@<kv_rank, 8 hex digits>@<group, hex>@<hash, hex>[@<salt>]

`/` of a model name stays. What a store or an XML listing could not carry is percent-encoded. A
name that is too long becomes a hash below `LONG_NAMES`; the object's header then says the key.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import unquote

from lmcache.core.keys import ObjectKey
from lmcache.errors import KeyFormatError

# No model's name begins like this: it would have to contain an `@`.
LONG_NAMES = "@long/"
NAME_BYTES_MAX = 1024

# Control characters and line breaks, `%` itself, slashes that would make an empty part of a path,
# parts `.` and `..`, and blanks at either end.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff%]|(?<![^/])/|(?<![^/])\.{1,2}(?=/)|^\s+|\s+$", re.ASCII
)
_NAME = re.compile(r"([^@]+)@([0-9a-f]{8})@([0-9a-f]{1,8})@([0-9a-f]{64})(?:@([^@/]+))?", re.DOTALL)


def object_name(key: ObjectKey, name_bytes_max: int = NAME_BYTES_MAX) -> str:
    salt = f"@{_quoted(key.cache_salt)}" if key.cache_salt else ""
    name = f"{model_start(key.model_name)}{key.kv_rank:08x}@{key.object_group_id:x}@{key.chunk_hash.hex()}{salt}"
    content = name.encode()
    if len(content) > name_bytes_max:
        return LONG_NAMES + hashlib.sha256(content).hexdigest()
    return name


def model_start(model_name: str) -> str:
    """How the names of a model's objects begin, except for long ones."""
    return f"{_quoted(model_name)}@"


def key_of_name(name: str) -> ObjectKey | None:
    """None: a foreign name, or a long one, which does not tell."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    model, rank, group, digest, salt = found.groups()
    try:
        key = ObjectKey(bytes.fromhex(digest), unquote(model), int(rank, 16), int(group, 16), unquote(salt or ""))
    except KeyFormatError:
        return None
    # One key has one name: anything else was not written by us.
    return key if object_name(key, len(name.encode())) == name else None


def _quoted(text: str) -> str:
    return _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), text)
