"""What is kept back when settings or the environment are shown. Knows names and strings, no setting.

A name is judged by its look: rather a harmless value hidden than a secret shown.
"""

from __future__ import annotations

import re

REDACTED = "***"

# "auth" is not the beginning of "author", nor "token" that of "tokenizer"; a key is one only at the end of a word (not
# "keep", "keyboard").
_SECRET_NAME = re.compile(
    r"secret|token(?!i[sz])|passw|passphrase|(?<=[_-])pwd|credential|cookie|auth(?!or(?!i[sz]))|keys?(?![a-z])",
    re.IGNORECASE,
)
# The name of a place where a secret lies, which is no secret.
_PLACE_NAME = re.compile(r"(file|path|dir|folder|sock|socket)$", re.IGNORECASE)
# How many tokens of text: "min_retrieve_tokens", "MAX_TOKENS", "tokens_per_block".
_TOKEN_COUNT = re.compile(
    r"(?<![a-z])(?:(?:min|max|num|total)(?:[_-][a-z]+)*?[_-]tokens(?![a-z])|tokens[_-]per(?![a-z]))", re.IGNORECASE
)
_USER_INFO = re.compile(r"(?<=://)[^/?#\s]*@")


def looks_secret(name: str) -> bool:
    """Whether a setting or variable of this name may hold what others must not see."""
    return _SECRET_NAME.search(_TOKEN_COUNT.sub("", name)) is not None and _PLACE_NAME.search(name) is None


def without_user_info(text: str) -> str:
    """`scheme://user:password@host` becomes `scheme://***@host`, wherever it stands in the text."""
    return _USER_INFO.sub(f"{REDACTED}@", text)


def redact_text(name: str, value: str) -> str:
    """The value as it may be shown. An empty one says that nothing is set, and is shown."""
    if value and looks_secret(name):
        return REDACTED
    return without_user_info(value)
