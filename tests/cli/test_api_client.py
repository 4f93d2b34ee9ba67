"""What every operator command does when the server is not there, not ready, or wants to know who asks."""

from __future__ import annotations

import pathlib
import socket
import ssl
import subprocess

import pytest

from lmcache.testing.http_fake import HTTPFake, Reply
from lmcache.testing.operator_api import FakeOperatorAPI, OperatorState, make_key
from lmcache.testing.ports import free_port
from tests.cli.conftest import Run


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", paths[0], "-keyout", paths[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return paths


def test_nobody_listens(run: Run) -> None:
    port = free_port()
    ended = run("status", "--url", f"http://127.0.0.1:{port}")
    assert ended.code == 3
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert (
        f"nothing listens at http://127.0.0.1:{port}: start a server with `make run` or `lmcache server`" in ended.err
    )


def test_a_server_that_never_answers_costs_the_timeout(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        ended = run("status", "--url", f"127.0.0.1:{port}", "--timeout", "0.05")
    assert ended.code == 3
    assert f"http://127.0.0.1:{port} did not answer in 0.05 s" in ended.err


def test_an_answer_that_is_not_http(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        import threading

        def greet() -> None:
            peer, _ = other.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        ended = run("status", "--url", f"127.0.0.1:{other.getsockname()[1]}")
        thread.join()
    assert ended.code == 3
    assert "does not speak HTTP as expected" in ended.err


def test_a_name_without_an_address(run: Run) -> None:
    ended = run("status", "--url", "http://no-such-host.invalid:8080")
    assert ended.code == 3
    assert "cannot be resolved to an address" in ended.err


@pytest.mark.parametrize(
    "url", ["ftp://host", "http://", "http://host:port", "http://host:0", "http://a@host:1", "http://h:1/?x=1", ""]
)
def test_bad_url_is_bad_use(run: Run, url: str) -> None:
    ended = run("ping", "--url", url)
    assert ended.code == 2
    assert ended.err == f"lmcache: --url must be http://HOST:PORT or https://HOST:PORT (got {url!r})\n"


def test_a_path_before_the_api_is_kept(run: Run) -> None:
    def answer(call):
        return Reply(200, {"status": "healthy"}) if call.parts == ("cache", "1", "healthcheck") else Reply(404, {})

    with HTTPFake(answer) as proxy:
        assert run("ping", "--url", f"{proxy.url}/cache/1/").code == 0


@pytest.mark.parametrize(
    "command", [["status"], ["conf"], ["clear", "--yes"], ["keys"], ["quota", "list"], ["adapters"]]
)
def test_an_engine_that_is_not_there_yet(run: Run, api: FakeOperatorAPI, command: list[str]) -> None:
    api.state.num_not_ready = 1
    ended = run(*command)
    assert (ended.code, ended.out) == (1, "")
    assert f"{api.url} is not ready: " in ended.err
    assert ended.err.count("\n") == 1


def test_a_token_is_asked_for_by_its_flag(run: Run, api: FakeOperatorAPI) -> None:
    api.state.token = "secret-secret-secret"
    ended = run("status")
    assert ended.code == 1
    assert "wants a token for GET /status (this call needs a token): pass --token-file FILE" in ended.err


def test_the_token_of_the_file_is_sent(
    run: Run, api: FakeOperatorAPI, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.state.token = "secret-secret-secret"
    (tmp_path / "token").write_text("secret-secret-secret\n")
    (tmp_path / "other").write_text("another\n")
    assert run("status", "--token-file", str(tmp_path / "token")).code == 0
    refused = run("status", "--token-file", str(tmp_path / "other"))
    assert refused.code == 1
    assert "pass another --token-file" in refused.err
    monkeypatch.setenv("LMCACHE_HTTP_TOKEN_FILE", str(tmp_path / "token"))
    assert run("status").code == 0


def test_a_token_of_a_low_role(run: Run, api: FakeOperatorAPI, tmp_path: pathlib.Path) -> None:
    api.state.token, api.state.role_error = "reader-reader-reader", "needs a token of role operate"
    (tmp_path / "token").write_text("reader-reader-reader")
    ended = run("clear", "--yes", "--token-file", str(tmp_path / "token"))
    assert ended.code == 1
    assert "refused POST /clear-cache (needs a token of role operate): pass another --token-file" in ended.err


@pytest.mark.parametrize(
    "content", [None, b"", b"two words", b"admin secret\nread other", b"\xff\xfe", "schlüssel".encode()]
)
def test_a_token_file_that_cannot_be_used(run: Run, tmp_path: pathlib.Path, content: bytes | None) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    ended = run("ping", "--token-file", str(path))
    assert ended.code == 2
    assert f"--token-file {path} " in ended.err


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, {"detail": "bad page_token"}, "answered 400: bad page_token"),
        (404, {"detail": "Not Found"}, "has no GET /status: is it an lmcache server"),
        (503, {"detail": "no L2 adapters configured"}, "answered 503: no L2 adapters configured"),
        (422, {"detail": [{"loc": ["query", "page_size"], "msg": "too small"}]}, "query.page_size: too small"),
        (500, "Internal Server Error", "answered 500: Internal Server Error"),
        (302, {}, "answered 302"),
        (200, "<html>hello</html>", "is it an lmcache server?"),
        (200, [1, 2], "is it an lmcache server?"),
    ],
)
def test_other_answers_are_one_line_and_code_1(run: Run, status: int, body: object, said: str) -> None:
    with HTTPFake(lambda call: Reply(status, body)) as fake:
        ended = run("status", "--url", fake.url)
    assert (ended.code, ended.out) == (1, "")
    assert said in ended.err
    assert ended.err.count("\n") == 1


def test_a_connection_dropped_between_two_requests_is_made_again(run: Run) -> None:
    state = OperatorState(drops_connections=True)
    with FakeOperatorAPI(state) as api:
        from lmcache.testing.operator_api import FakeAdapter

        state.adapters = [FakeAdapter("FSL2Adapter", "fs", [(make_key(number), 1) for number in range(5)])]
        ended = run("keys", "--page-size", "2", "--json", "--url", api.url)
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 5


def test_tls_is_checked(run: Run, certificate: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with FakeOperatorAPI(tls=context) as api:
        untrusted = run("ping", "--url", api.url)
        assert untrusted.code == 3
        assert "is not trusted" in untrusted.err
        assert "--cacert FILE" in untrusted.err
        assert run("ping", "--url", api.url, "--cacert", str(certificate[0])).code == 0
        assert run("ping", "--url", api.url, "--insecure").code == 0
        (tmp_path / "no.pem").write_text("nothing")
        bad = run("ping", "--url", api.url, "--cacert", str(tmp_path / "no.pem"))
        assert bad.code == 2
        assert "--cacert" in bad.err


def test_tls_asked_of_a_plain_server(run: Run, api: FakeOperatorAPI) -> None:
    ended = run("ping", "--url", api.url.replace("http:", "https:"))
    assert ended.code == 3
    assert "is it an http:// URL?" in ended.err


def test_flags_of_tls_without_tls(run: Run, api: FakeOperatorAPI) -> None:
    ended = run("ping", "--insecure")
    assert ended.code == 2
    assert "--cacert and --insecure need an https:// URL" in ended.err
