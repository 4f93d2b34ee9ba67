"""Who may call what: roles, places, foreign web pages. On an application with routes of every kind."""

from __future__ import annotations

import asyncio
import logging

import pytest
from fastapi import FastAPI

from lmcache.http.guard import GuardConfig, Token, install_guard
from lmcache.http.guard.demands import Demand, Role, demand_of
from tests.http.calling import ELSEWHERE, LOOPBACK, ask

_READ, _OPERATE, _ADMIN = "read-0123456789ab", "operate-0123456789", "admin-0123456789ab"
_TOKENS = (
    Token(Role.READ, _READ, "grafana"),
    Token(Role.OPERATE, _OPERATE, "oncall"),
    Token(Role.ADMIN, _ADMIN, "root"),
)
_PATHS = ("/", "/healthcheck", "/status", "/env", "/threads", "/loglevel", "/run_script", "/cache/clear", "/foreign")


def app_with(config: GuardConfig) -> FastAPI:
    """Answers every path and method with what it was asked."""
    app = FastAPI()
    for path in _PATHS:

        async def answer(path: str = path) -> str:
            return path

        for method in ("GET", "POST", "PUT", "DELETE"):
            app.add_api_route(path, answer, methods=[method], name=f"{method} {path}")
    install_guard(app, config)
    return app


OPEN = app_with(GuardConfig(own_names=frozenset({"cache-host"})))
CLOSED = app_with(GuardConfig(_TOKENS))


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@pytest.mark.parametrize(
    ("method", "path", "query", "expected"),
    [
        ("GET", "/", "", Demand(None, False)),
        ("HEAD", "/healthcheck", "", Demand(None, False)),
        ("POST", "/healthcheck", "", Demand(Role.OPERATE, True)),
        ("GET", "/status", "", Demand(Role.READ, False)),
        ("GET", "/openapi.json", "", Demand(Role.READ, False)),
        ("GET", "/threads", "", Demand(Role.OPERATE, False)),
        ("GET", "/env", "", Demand(Role.ADMIN, False)),
        ("POST", "/run_script", "", Demand(Role.ADMIN, True)),
        ("GET", "/run_script", "", Demand(Role.ADMIN, False)),
        ("GET", "/loglevel", "logger_name=a", Demand(Role.READ, False)),
        ("GET", "/loglevel", "logger_name=a&level=DEBUG", Demand(Role.OPERATE, True)),
        ("GET", "/loglevel", "level=", Demand(Role.OPERATE, True)),
        ("GET", "/status", "level=DEBUG", Demand(Role.READ, False)),
        ("POST", "/clear-cache", "", Demand(Role.OPERATE, True)),
        ("DELETE", "/l2", "", Demand(Role.OPERATE, True)),
        ("PATCH", "/of/a/module/of/somebody", "", Demand(Role.OPERATE, True)),
        ("BREW", "/status", "", Demand(Role.OPERATE, True)),
    ],
)
def test_what_a_call_demands(method: str, path: str, query: str, expected: Demand) -> None:
    assert demand_of(method, path, query) == expected


@pytest.mark.parametrize("client", [LOOPBACK, ELSEWHERE])
@pytest.mark.parametrize("path", ["/", "/healthcheck"])
def test_probes_need_no_token(path: str, client: tuple[str, int]) -> None:
    assert ask(CLOSED, "GET", path, client=client).status_code == 200
    assert ask(OPEN, "GET", path, client=client, host="whatever").status_code == 200


@pytest.mark.parametrize("client", [LOOPBACK, ELSEWHERE])
@pytest.mark.parametrize("path", ["/status", "/env", "/docs", "/openapi.json", "/no-such-path"])
def test_with_tokens_everything_else_needs_one_from_everybody(path: str, client: tuple[str, int]) -> None:
    answer = ask(CLOSED, "GET", path, client=client)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="lmcache"'
    assert f"{path} needs a token of role " in answer.json()["error"]


@pytest.mark.parametrize(
    "sent",
    ["Bearer wrong-0123456789ab", f"Bearer {_ADMIN}x", f"Bearer {_ADMIN[:-1]}", "Bearer \xfc", "Bearer \x80\xff"],
)
def test_unknown_token(sent: str) -> None:
    answer = ask(CLOSED, "GET", "/status", headers={"authorization": sent})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="lmcache", error="invalid_token"'


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer  ", f"Basic {_ADMIN}", _ADMIN, "bearer\t"])
def test_no_token_at_all(sent: str) -> None:
    assert ask(CLOSED, "GET", "/status", headers={"authorization": sent}).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/status", Role.READ),
        ("GET", "/loglevel", Role.READ),
        ("GET", "/loglevel?logger_name=x&level=DEBUG", Role.OPERATE),
        ("GET", "/threads", Role.OPERATE),
        ("POST", "/cache/clear", Role.OPERATE),
        ("DELETE", "/foreign", Role.OPERATE),
        ("GET", "/env", Role.ADMIN),
        ("POST", "/run_script", Role.ADMIN),
    ],
)
def test_each_role_may_what_those_below_it_may(method: str, path: str, role: Role) -> None:
    for token in _TOKENS:
        answer = ask(CLOSED, method, path, headers=bearer(token.secret), client=ELSEWHERE, host="anything")
        assert answer.status_code == (200 if token.role >= role else 403), token
        if token.role < role:
            challenge = f'Bearer realm="lmcache", error="insufficient_scope", scope="{role.word}"'
            assert answer.headers["www-authenticate"] == challenge
            assert f"needs a token of role {role.word}; this one has role {token.role.word}" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/%65nv", "/env?x=/healthcheck", "/env/", "/x//env", "/./env", "/healthcheck/../env"])
def test_other_spellings_of_a_path_open_nothing(path: str) -> None:
    answer = ask(CLOSED, "GET", path, headers=bearer(_OPERATE))
    assert answer.status_code in (307, 403, 404)
    assert ask(CLOSED, "GET", path).status_code == 401


def test_scheme_is_read_in_any_case() -> None:
    assert ask(CLOSED, "GET", "/status", headers={"authorization": f"bEARER {_READ}"}).status_code == 200


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("path", ["/env", "/run_script"])
def test_without_tokens_this_machine_may_everything(client: str, path: str) -> None:
    for method in ("GET", "POST"):
        assert ask(OPEN, method, path, client=(client, 1)).status_code == 200


@pytest.mark.parametrize("client", ["192.0.2.7", "::ffff:192.0.2.7", "fe80::1%eth0", "2001:db8::1", "testclient", ""])
def test_without_tokens_others_are_refused_what_needs_an_admin(client: str) -> None:
    for method, path in (("GET", "/env"), ("POST", "/run_script"), ("GET", "/run_script")):
        answer = ask(OPEN, method, path, client=(client, 1), headers={"x-forwarded-for": "127.0.0.1"})
        assert answer.status_code == 403
        assert "--http-auth-token-file" in answer.json()["error"]
    assert ask(OPEN, "GET", "/status", client=(client, 1)).status_code == 200
    assert ask(OPEN, "POST", "/cache/clear", client=(client, 1)).status_code == 200


@pytest.mark.parametrize(
    ("client", "listener", "code"),
    [(None, ("/run/api.sock", None), 200), (None, ("127.0.0.1", 8080), 403), (None, None, 403)],
)
def test_unix_socket_is_of_this_machine_and_a_lost_peer_is_not(client: object, listener: object, code: int) -> None:
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": "/env", "raw_path": b"/env", "query_string": b"", "headers": [], "client": client, "server": listener,
    }  # fmt: skip
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    asyncio.run(OPEN(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == code


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost", 200), ("localhost:8080", 200), ("LOCALHOST:1", 200), ("a.localhost", 200),
        ("127.0.0.1:8080", 200), ("[::1]:8080", 200), ("10.1.2.3", 200), ("cache-host:8080", 200), ("Cache-Host", 200),
        ("evil.example:8080", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403),
        ("[::1", 403), ("notlocalhost", 403),
    ],
)  # fmt: skip
def test_name_that_a_foreign_name_server_could_have_given_is_refused_more_than_reading(host: str, code: int) -> None:
    for method, path in (("POST", "/run_script"), ("GET", "/env"), ("POST", "/cache/clear"), ("GET", "/threads")):
        assert ask(OPEN, method, path, host=host).status_code == code
    assert ask(OPEN, "GET", "/status", host=host).status_code == 200


_FOREIGN_PAGES = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:3000"},
    {"origin": "http://[::1"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "http://localhost:8080"},
]


@pytest.mark.parametrize("headers", _FOREIGN_PAGES)
@pytest.mark.parametrize("client", [LOOPBACK, ELSEWHERE])
def test_page_of_another_site_cannot_change_anything(headers: dict[str, str], client: tuple[str, int]) -> None:
    for method, path in (("POST", "/cache/clear"), ("DELETE", "/foreign"), ("GET", "/loglevel?level=DEBUG")):
        answer = ask(OPEN, method, path, headers=headers, client=client)
        assert answer.status_code == 403
        assert "another site" in answer.json()["error"]
    assert ask(OPEN, "GET", "/status", headers=headers, client=client).status_code == 200


def test_page_under_a_rebound_name_cannot_change_anything() -> None:
    headers = {"origin": "http://evil.example:8080", "sec-fetch-site": "same-origin"}
    for client in (LOOPBACK, ELSEWHERE):
        assert (
            ask(OPEN, "POST", "/cache/clear", headers=headers, host="evil.example:8080", client=client).status_code
            == 403
        )


def test_own_page_may_and_so_may_a_token_from_any_page() -> None:
    own = {"origin": "http://localhost:8080", "sec-fetch-site": "same-origin"}
    assert ask(OPEN, "POST", "/cache/clear", headers=own).status_code == 200
    for headers in _FOREIGN_PAGES:
        assert ask(CLOSED, "POST", "/cache/clear", headers={**headers, **bearer(_OPERATE)}).status_code == 200


def test_unknown_path_and_wrong_method_are_the_frameworks() -> None:
    assert ask(OPEN, "GET", "/no-such-path").json() == {"detail": "Not Found"}
    assert ask(OPEN, "PATCH", "/status").json() == {"detail": "Method Not Allowed"}
    assert ask(CLOSED, "PATCH", "/", headers=bearer(_ADMIN)).status_code == 405


def audited(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "lmcache.audit"]


def test_changes_are_audited_with_who_what_and_result(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lmcache.audit"):
        ask(CLOSED, "GET", "/status", headers=bearer(_READ))
        ask(CLOSED, "POST", "/cache/clear?a=b", headers=bearer(_OPERATE), client=ELSEWHERE, content=b"a secret body")
        ask(CLOSED, "POST", "/run_script", headers=bearer(_OPERATE))
        ask(CLOSED, "DELETE", "/foreign")
        ask(CLOSED, "GET", "/loglevel?logger_name=x&level=DEBUG", headers=bearer(_ADMIN))
    lines = audited(caplog)
    assert [line.partition(" in ")[0] for line in lines] == [
        "192.0.2.7 oncall (operate): POST /cache/clear?a=b -> 200",
        "127.0.0.1 oncall (operate): POST /run_script -> 403",
        "127.0.0.1: DELETE /foreign -> 401",
        "127.0.0.1 root (admin): GET /loglevel?logger_name=x&level=DEBUG -> 200",
    ]
    assert all(line.endswith(" ms") for line in lines)
    assert not any(secret in line for line in lines for secret in ("a secret body", _READ, _OPERATE, _ADMIN))


def test_audit_cannot_be_silenced_by_the_level_of_its_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, "lmcache.audit"), caplog.at_level(logging.CRITICAL, "lmcache"):
        caplog.handler.setLevel(logging.INFO)
        ask(OPEN, "GET", "/loglevel?logger_name=lmcache.audit&level=CRITICAL")
    assert "GET /loglevel?logger_name=lmcache.audit&level=CRITICAL -> 200" in audited(caplog)[0]


def test_audit_line_stays_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lmcache.audit"):
        ask(OPEN, "POST", "/x%0aroot (admin): POST /y -> 200%1b[2J?q=%0a" + "z" * 5000)
    (line,) = audited(caplog)
    assert line.isprintable()
    assert len(line) < 500


def test_failed_change_is_audited_as_500(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()

    @app.post("/broken")
    async def broken() -> None:
        raise RuntimeError("surprise")

    install_guard(app, GuardConfig())
    with caplog.at_level(logging.INFO, "lmcache.audit"):
        assert ask(app, "POST", "/broken").status_code == 500
    assert "POST /broken -> 500" in audited(caplog)[0]


def test_web_socket_is_closed() -> None:
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"}

    asyncio.run(OPEN({"type": "websocket", "path": "/status", "headers": []}, receive, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_description_names_what_the_guard_answers() -> None:
    operation = CLOSED.openapi()["paths"]["/status"]["get"]
    assert {"401", "403"} <= set(operation["responses"])
    assert operation["security"] == [{"bearer": []}]
    assert "401" not in OPEN.openapi()["paths"]["/status"]["get"]["responses"]
    assert "403" not in CLOSED.openapi()["paths"]["/healthcheck"]["get"]["responses"]
