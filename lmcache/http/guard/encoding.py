"""Whether path and query of a call are text. Frameworks put replacement characters where they are not, and two
addresses that are none would then mean one and the same thing."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from starlette.types import Scope


def is_text(scope: Scope) -> bool:
    try:
        for part in (scope.get("raw_path") or b"", scope["query_string"]):
            unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        return False
    return True
