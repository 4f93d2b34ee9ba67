"""What stands in paths and queries percent-encoded: bytes that are no text, and slashes inside of a parameter."""

from __future__ import annotations

import pathlib
import socket
from collections.abc import Callable, Iterator

import pytest

from lmcache.http.guard import GuardConfig
from lmcache.http.guard.demands import Role
from lmcache.http.guard.tokens import Token
from lmcache.http.path_parameters import as_written, rest_of_path
from lmcache.http.registry import HTTPAPIRegistry
from lmcache.server.http_app import make_app
from lmcache.testing.waiting import PATIENCE_S
from tests.http.calling import ask as ask_app
from tests.http.no_engine import NoLifecycle, ask
from tests.http.storage_site import MOCK, StorageSite, storage_site
from tests.server.running import RunningServer

_NO_TEXT = {"error": "path and query must be UTF-8, percent-encoded"}
# A lone byte, the beginning of a character, half a surrogate pair, a slash written too long.
_NO_UTF8 = ("%ff", "a%C3", "%ED%A0%80", "%C0%AF", "%C3/%A9")
_LIMIT = {"limit_gb": 1}


@pytest.fixture(scope="module")
def site(make_pool_folder: Callable[[], pathlib.Path]) -> Iterator[StorageSite]:
    with storage_site(make_pool_folder(), [MOCK]) as found:
        yield found


@pytest.mark.parametrize("written", _NO_UTF8)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/quota/{}"), ("GET", "/quota/{}"), ("DELETE", "/quota/{}"),
        ("GET", "/reconfigure/{}/status"), ("POST", "/reconfigure/{}/resize"), ("POST", "/reconfigure/mock/{}"),
        ("GET", "/cache/prefetches/{}"), ("GET", "/periodic-threads/{}"), ("GET", "/no-such-path/{}"),
        ("GET", "/l2/keys?model_name={}"), ("GET", "/cache/objects?page_token={}"), ("GET", "/threads?name={}"),
        ("GET", "/loglevel?level=DEBUG&logger_name={}"),
    ],
)  # fmt: skip
def test_what_is_not_utf8_is_refused(site: StorageSite, method: str, path: str, written: str) -> None:
    answer = site.ask(method, path.format(written), json=_LIMIT)
    assert (answer.status_code, answer.json()) == (400, _NO_TEXT)
    assert site.engine.quotas.list() == {}


def test_the_replacement_character_itself_is_text(site: StorageSite) -> None:
    """Nobody else can reach its quota by bytes that are none."""
    assert site.ask("PUT", "/quota/%EF%BF%BD", json=_LIMIT).json()["cache_salt"] == "\ufffd"
    assert site.ask("DELETE", "/quota/%ff").status_code == 400
    assert site.ask("DELETE", "/quota/%EF%BF%BD").json()["status"] == "removed"


def test_before_the_engine_is_there_too() -> None:
    assert ask("GET", "/quota/%ff").json() == _NO_TEXT
    answer = ask("PUT", "/quota/a%2Fb", json=_LIMIT)
    assert (answer.status_code, answer.json()) == (503, {"error": "engine not initialized"})


@pytest.mark.parametrize(
    ("written", "salt"),
    [
        ("a%2Fb", "a/b"), ("a/b", "a/b"), ("%2F", "/"), ("a%2F", "a/"), ("a%2Fb%0Ac", "a/b\\nc"),
        ("_default%2F", "_default/"),
    ],
)  # fmt: skip
def test_a_salt_with_a_slash_is_one_that_no_key_can_have(site: StorageSite, written: str, salt: str) -> None:
    error = {"error": f"cache_salt must not contain frozenset({{'/'}}) (got '{salt}')"}
    for method in ("PUT", "GET", "DELETE"):
        answer = site.ask(method, f"/quota/{written}", json=_LIMIT)
        assert (answer.status_code, answer.json()) == (400, error)
    assert site.engine.quotas.list() == {}


def test_the_empty_salt_is_not_reached_by_an_empty_name(site: StorageSite) -> None:
    """Without the sentinel the path is that of the list, as ever."""
    site.engine.quotas.set("", 1)
    try:
        answer = site.ask("DELETE", "/quota/")
        assert (answer.status_code, answer.headers.get("location")) == (307, "http://127.0.0.1/quota")
        assert site.ask("DELETE", "/quota").status_code == 405
        assert site.engine.quotas.list() == {"": 1}
    finally:
        site.engine.quotas.remove("")


def test_other_names_with_a_slash_are_unknown_in_the_words_of_their_family(site: StorageSite) -> None:
    site.app.state.periodic_threads = site.threads
    answer = site.ask("GET", "/periodic-threads/storage%2Fflush")
    assert (answer.status_code, answer.json()) == (404, {"error": "Thread not found: storage/flush"})
    answer = site.ask("GET", "/cache/prefetches/a%2Fb")
    assert (answer.status_code, answer.json()) == (404, {"detail": "no prefetch has request_id 'a/b'"})


def test_such_a_parameter_is_written_like_any_other() -> None:
    assert as_written("/quota/" + rest_of_path("cache_salt")) == "/quota/{cache_salt}"
    assert as_written("/x/{n:int}/{rest}") == "/x/{n:int}/{rest}"


def test_such_a_path_has_one_owner_and_can_be_disabled() -> None:
    registry = HTTPAPIRegistry("lmcache.v1.multiprocess.http_apis")
    assert ("PUT", "/quota/{cache_salt}") in registry.paths()
    registry.disable(["/quota/{cache_salt}"], "--http-disable")
    app = make_app({}, registry, NoLifecycle())
    assert [ask_app(app, "GET", path).status_code for path in ("/quota/a", "/quota/a%2Fb", "/quota")] == [404, 404, 503]
    assert "/quota/{cache_salt}" not in app.openapi()["paths"]
    assert "/periodic-threads/{thread_name}" in app.openapi()["paths"]


def _speak(server: RunningServer, target: bytes) -> tuple[int, bytes]:
    """Status and body, asked by hand: clients would encode the target."""
    with socket.create_connection(("127.0.0.1", server.http_port), PATIENCE_S) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_over_a_real_socket(server: RunningServer) -> None:
    for target in (b"/quota/%ff", b"/quota/a?x=%ff"):
        status, body = _speak(server, target)
        assert (status, b"percent-encoded" in body) == (400, True)
    assert _speak(server, b"/quota/a%2Fb")[0] == 400
    # Bytes that are not even encoded do not get as far as to the endpoints.
    assert _speak(server, b"/quota/\xff")[0] == 400
    assert _speak(server, b"/quota/%C3%A9")[0] == 200


def test_tokens_are_asked_for_first() -> None:
    config = GuardConfig((Token(Role.READ, "0123456789abcdef", "reader"),))
    app = make_app({}, HTTPAPIRegistry("lmcache.v1.multiprocess.http_apis"), NoLifecycle(), config)
    assert ask_app(app, "GET", "/quota/%ff").status_code == 401
