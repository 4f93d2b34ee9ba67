"""GET /env: everything, sorted; and nothing secret where that is asked for."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable

import httpx
import pytest

from lmcache.config.redaction import looks_secret, without_user_info
from tests.http.in_process import ask, common_app
from tests.server.running import running_server

_SECRETS = (
    "MY_API_KEY", "HF_TOKEN", "DB_PASSWORD", "PGPASSWORD", "MYSQL_PWD", "AWS_SECRET_ACCESS_KEY", "APIKEY", "apiKey",
    "BASIC_AUTH", "AUTHORIZATION", "GOOGLE_CREDENTIAL", "OPENAI_KEYS", "LDAP_PASSWD", "SSH_PASSPHRASE",
)  # fmt: skip
_HARMLESS = ("PATH", "HOME", "PWD", "GIT_AUTHOR_NAME", "KEYBOARD", "l1_keep", "zmq_token_file", "SSH_AUTH_SOCK")


def test_all_variables_sorted_and_indented(http: httpx.Client) -> None:
    answer = http.get("/env")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    variables = json.loads(answer.text)
    assert variables["PATH"] == os.environ["PATH"]
    assert answer.text == json.dumps(variables, indent=2, sort_keys=True)


def test_nothing_is_hidden_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "shown")
    assert ask(common_app("env_api"), "GET", "/env").json()["MY_API_KEY"] == "shown"


def test_undecodable_variable_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "ODD", os.fsdecode(b"\xff\xfe"))
    answer = ask(common_app("env_api"), "GET", "/env")
    assert answer.status_code == 200
    assert answer.json()["ODD"] == "\udcff\udcfe"


def test_redacting_server_hides_what_looks_secret(make_pool_folder: Callable[[], pathlib.Path]) -> None:
    given = {**dict.fromkeys(_SECRETS, "open sesame"), "DB_URL": "redis://u:open sesame@db:6379/0", "EMPTY_TOKEN": ""}
    given["DB_URL"] = given["DB_URL"].replace(" ", "%20")
    with running_server(make_pool_folder(), "--http-redact-env", only_listens=True, **given) as server:
        text = server.http.get("/env").text
    shown = json.loads(text)
    assert {name: shown[name] for name in _SECRETS} == dict.fromkeys(_SECRETS, "***")
    assert "sesame" not in text
    assert shown["DB_URL"] == "redis://***@db:6379/0"
    assert (shown["EMPTY_TOKEN"], shown["PATH"]) == ("", os.environ["PATH"])


@pytest.mark.parametrize("name", _SECRETS)
def test_name_looks_secret(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize("name", _HARMLESS)
def test_name_looks_harmless(name: str) -> None:
    assert not looks_secret(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://token@host/x", "https://***@host/x"),
        ("a redis://:p@one, redis://u:p@two", "a redis://***@one, redis://***@two"),
        ("http://host/path@2", "http://host/path@2"),
        ("http://host?mail=a@b", "http://host?mail=a@b"),
        ("someone@example.org", "someone@example.org"),
    ],
)
def test_user_inside_a_url_is_hidden(text: str, expected: str) -> None:
    assert without_user_info(text) == expected
