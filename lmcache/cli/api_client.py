"""A client of the HTTP API on one kept connection: requests, answers, and every failure as one line.

Knows no command: what an answer means is theirs to say. No proxy of the environment is used.
"""

from __future__ import annotations

import http.client
import json
import pathlib
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from lmcache.errors import APIRefusedError, ConfigError, ServerUnavailableError

_NOT_READY = ("engine not initialized", "configs not initialized")
_TEXT_CHARACTERS_MAX = 300
# Safe to send again where a kept connection turns out to have been closed meanwhile.
_REPEATABLE = ("GET", "DELETE", "PUT")

Query = Mapping[str, str | int | bool | None]


@dataclass(frozen=True, slots=True)
class APIConfig:
    """`ca_file`: whom to trust instead of the system's authorities. `verifies`: whether TLS is checked at all.
    `flag_prefix`: how the flags begin that these come from, for errors that name them."""

    url: str
    token: str = field(default="", repr=False)
    ca_file: str | None = None
    verifies: bool = True
    timeout_s: float = 10.0
    flag_prefix: str = ""

    def flag(self, name: str) -> str:
        return f"--{self.flag_prefix}{name}"


@dataclass(frozen=True, slots=True)
class APIAnswer:
    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def object(self, *names: str) -> dict[str, Any]:
        """The body, which has fields of these names. Raises APIRefusedError: whoever answered is no server of ours."""
        try:
            found = json.loads(self.body)
        except ValueError:
            found = None
        if not isinstance(found, dict) or any(name not in found for name in names):
            what = f"a JSON object with {', '.join(names)}" if names else "a JSON object"
            text = f"the answer is not {what} but {_shortened(self.text)!r}: is it an lmcache server?"
            raise APIRefusedError(self.status, text)
        return found

    def reason(self) -> str:
        """What the body says was wrong, in whichever of the documented shapes it says it."""
        try:
            body = json.loads(self.body)
        except ValueError:
            return _shortened(self.text)
        if not isinstance(body, dict):
            return _shortened(self.text)
        found = next((body[name] for name in ("error", "reason", "detail") if name in body), self.text)
        if isinstance(found, list):
            return "; ".join(_field_error(item) for item in found)
        return _shortened(str(found))


def _field_error(item: object) -> str:
    if not isinstance(item, dict):
        return str(item)
    place = ".".join(str(part) for part in item.get("loc", ()))
    return f"{place}: {item.get('msg', 'not valid')}"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TEXT_CHARACTERS_MAX else line[:_TEXT_CHARACTERS_MAX] + "..."


def path_of(*parts: str) -> str:
    """A path from parts that may hold any character."""
    return "".join("/" + quote(part, safe="") for part in parts)


class APIClient:
    """Not thread-safe. Raises ConfigError for a URL or certificate that cannot be used."""

    def __init__(self, config: APIConfig) -> None:
        parts = _split_url(config)
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._config = config
        self._prefix = parts.path.rstrip("/")
        self._connection = _make_connection(parts, config)

    def get(self, path: str, *names: str, query: Query | None = None) -> dict[str, Any]:
        """The object at `path`, which has fields of these names."""
        return self.call("GET", path, query).object(*names)

    def call(self, method: str, path: str, query: Query | None = None, body: object = None) -> APIAnswer:
        """The answer, if it is a yes. Raises APIRefusedError, ServerUnavailableError."""
        answer = self.ask(method, path, query, body)
        if answer.status >= 300:
            raise APIRefusedError(answer.status, self._refusal(method, path, answer))
        return answer

    def ask(self, method: str, path: str, query: Query | None = None, body: object = None) -> APIAnswer:
        """The answer, whatever its status. Raises ServerUnavailableError."""
        given = {name: _query_value(value) for name, value in (query or {}).items() if value is not None}
        target = self._prefix + path + (f"?{urlencode(given)}" if given else "")
        is_reused = self._connection.sock is not None
        try:
            try:
                return self._exchange(method, target, body)
            except ConnectionError:
                if not is_reused or method not in _REPEATABLE:
                    raise
                self._connection.close()
                return self._exchange(method, target, body)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ServerUnavailableError(self._failure(error)) from error

    def _exchange(self, method: str, target: str, body: object) -> APIAnswer:
        headers = {"Accept": "application/json, text/plain"}
        if self._config.token:
            headers["Authorization"] = f"Bearer {self._config.token}"
        payload = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            payload = json.dumps(body).encode()
        self._connection.request(method, target, payload, headers)
        response = self._connection.getresponse()
        return APIAnswer(response.status, response.read())

    def _refusal(self, method: str, path: str, answer: APIAnswer) -> str:
        reason = answer.reason()
        if answer.status in (401, 403):
            flag = self._config.flag("token-file")
            hint = f"another {flag}" if self._config.token else f"{flag} FILE"
            wants = "wants a token for" if answer.status == 401 else "refused"
            return f"{self.url} {wants} {method} {path} ({reason}): pass {hint}, if it takes tokens for this"
        if answer.status == 503 and reason in _NOT_READY:
            return f"{self.url} is not ready: {reason} (lmcache ping --wait SECONDS waits for it)"
        if answer.status == 404 and reason == "Not Found":
            return f"{self.url} has no {method} {path}: is it an lmcache server, and of this release?"
        return f"{self.url} answered {answer.status}: {reason}"

    def _failure(self, error: Exception) -> str:
        flag = self._config.flag
        if isinstance(error, ConnectionRefusedError):
            return (
                f"nothing listens at {self.url}: start a server with `make run` or `lmcache server`, or name another "
                f"with {flag('url')}"
            )
        if isinstance(error, TimeoutError):
            return f"{self.url} did not answer in {self._config.timeout_s:g} s"
        if isinstance(error, socket.gaierror):
            return f"{self.url} cannot be resolved to an address: {error.strerror}"
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"the certificate of {self.url} is not trusted ({error.verify_message}): pass {flag('cacert')} FILE"
        if isinstance(error, ssl.SSLError):
            return f"{self.url} does not speak TLS as expected ({error.reason}): is it an http:// URL?"
        if isinstance(error, http.client.HTTPException | ConnectionResetError):
            return f"{self.url} does not speak HTTP as expected ({type(error).__name__}): is it an https:// URL?"
        return f"{self.url} cannot be reached: {error}"

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> APIClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _query_value(value: str | int | bool | None) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _split_url(config: APIConfig) -> SplitResult:
    """`host:port` alone is taken for http."""
    url = config.url
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        has_host = False
    if not has_host or parts.scheme not in ("http", "https") or parts.username or parts.query or parts.fragment:
        raise ConfigError(f"{config.flag('url')} must be http://HOST:PORT or https://HOST:PORT (got {url!r})")
    return parts


def _make_connection(parts: SplitResult, config: APIConfig) -> http.client.HTTPConnection:
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "http":
        if config.ca_file is not None or not config.verifies:
            flags = f"{config.flag('cacert')} and {config.flag('insecure')}"
            raise ConfigError(f"{flags} need an https:// URL (got {config.url!r})")
        return http.client.HTTPConnection(host, port, timeout=config.timeout_s)
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{config.flag('cacert')} {config.ca_file} cannot be used: {error}") from error
    if not config.verifies:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=config.timeout_s, context=context)


def read_token(path: str, flag: str) -> str:
    """The one token a file holds. Raises ConfigError."""
    try:
        token = pathlib.Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag} {path} cannot be read: {error}") from error
    if not token or not token.isascii() or len(token.split()) != 1:
        raise ConfigError(f"{flag} {path} must hold one token, of ASCII characters without spaces")
    return token
