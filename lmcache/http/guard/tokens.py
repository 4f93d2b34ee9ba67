"""The tokens of the HTTP API: a file of lines `<role> <token> [name]`, and the search for the one presented."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from lmcache.errors import ConfigError
from lmcache.http.guard.demands import Role
from lmcache.http.secret_files import read_secret_file

_CHARACTERS_MIN = 16
# What a bearer token may consist of in a header (RFC 6750).
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_ROLES = {role.word: role for role in Role}


@dataclass(frozen=True, slots=True)
class Token:
    """`name` tells the holders apart in the audit log."""

    role: Role
    secret: str = field(repr=False)
    name: str


def find_token(tokens: Iterable[Token], presented: str) -> Token | None:
    """Compares with every token in full: the time taken says nothing about any of them."""
    found = None
    candidate = presented.encode("utf-8", "surrogateescape")
    for token in tokens:
        if hmac.compare_digest(token.secret.encode(), candidate):
            found = token
    return found


def read_tokens(path: str, setting: str) -> tuple[Token, ...]:
    """Raises ConfigError, naming the setting and the line, never the token."""
    tokens: list[Token] = []
    for number, line in enumerate(read_secret_file(path, setting).splitlines(), start=1):
        words = line.partition("#")[0].split()
        if words:
            tokens.append(_parse(words, number, f"{setting} {path}, line {number}:"))
    if not tokens:
        raise ConfigError(f"{setting} {path} holds no token, so that nobody could call: write lines `<role> <token>`")
    secrets = [token.secret for token in tokens]
    for index, token in enumerate(tokens):
        if token.secret in secrets[:index]:
            raise ConfigError(f"{setting} {path}: the token of {token.name} is there twice")
    return tuple(tokens)


def _parse(words: list[str], number: int, place: str) -> Token:
    if not 2 <= len(words) <= 3:
        raise ConfigError(f"{place} must be `<role> <token>`, and a name for the audit log if you like")
    role, secret, name = [*words, f"line-{number}"][:3]
    if role not in _ROLES:
        raise ConfigError(f"{place} the role must be one of {', '.join(_ROLES)} (got {role!r})")
    if len(secret) < _CHARACTERS_MIN:
        raise ConfigError(f"{place} the token must have at least {_CHARACTERS_MIN} characters")
    if _TOKEN.fullmatch(secret) is None:
        raise ConfigError(f"{place} the token must consist of letters, digits and -._~+/, with = at its end alone")
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"{place} the name must be at most 64 letters, digits and ._@-")
    return Token(_ROLES[role], secret, name)
