"""The decision whether a call is answered: pure, from what is known of it before its body.

With tokens, everybody needs one, but for the open paths. Without, what needs an admin is
answered to this machine alone, and a web page cannot borrow the place of a browser on it
for more than reading: neither by a form that posts here, nor by a name of its own that is
made to resolve to this machine (a reader may: proxies on this machine keep foreign names).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmcache.http.guard.callers import is_own_name, is_same_origin
from lmcache.http.guard.demands import Demand, Role
from lmcache.http.guard.tokens import Token, find_token

_BODY_BYTES_MAX = 8 << 20
_REALM = 'Bearer realm="lmcache"'
# What a browser says of a call that a page of this very server makes, or the address bar.
_OWN_SITES = frozenset({"same-origin", "none"})


@dataclass(frozen=True, slots=True)
class GuardConfig:
    """`tokens` empty: none are asked for. `own_names`: host names beside localhost by which a browser on this
    machine may call. `token_setting`: how the remedy is named."""

    tokens: tuple[Token, ...] = ()
    own_names: frozenset[str] = frozenset()
    token_setting: str = "--http-auth-token-file"
    body_bytes_max: int = _BODY_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Call:
    """`headers` by lower-case name. `path` as the router sees it."""

    path: str
    demand: Demand
    is_local: bool
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Refusal:
    """`challenge`: the value of WWW-Authenticate."""

    status: int
    error: str
    challenge: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`refusal` None: let it pass."""

    refusal: Refusal | None = None
    token: Token | None = None


def judge(config: GuardConfig, call: Call) -> Verdict:
    role = call.demand.role
    if role is None:
        return Verdict()
    if config.tokens:
        return _judge_token(config, call, role)
    return Verdict(_foreign(config, call, role) or _by_a_web_page(config, call, role))


def _judge_token(config: GuardConfig, call: Call, role: Role) -> Verdict:
    scheme, _, presented = call.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not presented.strip():
        error = f"{call.path} needs a token of role {role.word}: send `Authorization: Bearer <token>`"
        return Verdict(Refusal(401, error, _REALM))
    token = find_token(config.tokens, presented.strip())
    if token is None:
        return Verdict(Refusal(401, "this server does not know the token", f'{_REALM}, error="invalid_token"'))
    if token.role < role:
        error = f"this call of {call.path} needs a token of role {role.word}; this one has role {token.role.word}"
        challenge = f'{_REALM}, error="insufficient_scope", scope="{role.word}"'
        return Verdict(Refusal(403, error, challenge), token)
    return Verdict(None, token)


def _foreign(config: GuardConfig, call: Call, role: Role) -> Refusal | None:
    if call.is_local or role < Role.ADMIN:
        return None
    return Refusal(
        403, f"{call.path} is answered to clients on the server's own machine: ask from there, or start the server "
        f"with {config.token_setting} FILE and send a token of role {role.word}",
    )  # fmt: skip


def _by_a_web_page(config: GuardConfig, call: Call, role: Role) -> Refusal | None:
    host, origin = call.headers.get("host", ""), call.headers.get("origin")
    is_own = not host or is_own_name(host, config.own_names)
    if call.is_local and role > Role.READ and not is_own:
        return Refusal(
            403, f"{host!r} is not a name of this machine: call localhost or an address, or {_remedy(config)}"
        )
    if not call.demand.is_change:
        return None
    site = call.headers.get("sec-fetch-site", "none")
    is_own_page = origin is None or (is_own and is_same_origin(origin, host))
    if site in _OWN_SITES and is_own_page:
        return None
    return Refusal(403, f"a page of another site may not make this call: {_remedy(config)}")


def _remedy(config: GuardConfig) -> str:
    return f"use tokens ({config.token_setting})"
