"""The guard in a real server process: flags and files, TLS, addresses beyond loopback, what it says in its log."""

from __future__ import annotations

import pathlib
import socket
import ssl
from typing import Any

import httpx
import pytest
import trustme

from lmcache.cli.server import ENDPOINTS_PACKAGE
from lmcache.config.mp_server import HTTPConfig
from lmcache.errors import ConfigError
from lmcache.server.http_front import prepare_http
from lmcache.testing.waiting import PATIENCE_S
from tests.server.conftest import StartServer
from tests.server.running import RunningServer

_READ, _OPERATE, _ADMIN = "read-0123456789ab", "operate-0123456789", "admin-0123456789ab"
_TOKEN_FILE = f"""# who may call
read    {_READ}     grafana
operate {_OPERATE}          # no name

admin   {_ADMIN}    root
"""
_SCRIPT = {"script": ("s.py", b"result = 1 + 1")}


@pytest.fixture
def token_file(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "tokens"
    file.write_text(_TOKEN_FILE)
    file.chmod(0o600)
    return file


def own_address() -> str:
    """An address of this host beyond loopback. Nothing is sent: the kernel only chooses a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this host has no address but loopback")
        return str(probe.getsockname()[0])


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def refusal(**settings: Any) -> str:
    """What the start says of these settings, before anything listens."""
    with pytest.raises(ConfigError) as caught:
        prepare_http(HTTPConfig(**settings), ENDPOINTS_PACKAGE)
    return str(caught.value)


def test_tokens_guard_a_server_on_loopback_too(start_server: StartServer, token_file: pathlib.Path) -> None:
    server = start_server("--http-auth-token-file", str(token_file))
    server.wait_until_up()
    assert server.http.get("/").status_code == 200
    assert server.http.get("/status").status_code == 401
    assert server.http.get("/status", headers=bearer(_READ)).status_code == 200
    assert server.http.get("/env", headers=bearer(_OPERATE)).status_code == 403
    assert server.http.get("/env", headers=bearer(_ADMIN)).status_code == 200
    assert server.http.post("/run_script", files=_SCRIPT, headers=bearer(_READ)).status_code == 403
    assert server.http.post("/run_script", files=_SCRIPT, headers=bearer(_ADMIN)).text == "2"
    assert server.http.post("/metrics/reset", headers=bearer(_OPERATE)).status_code == 200
    assert server.stop() == 0
    log = server.errors()
    assert "lmcache.audit: 127.0.0.1 grafana (read): POST /run_script -> 403 in" in log
    assert "lmcache.audit: 127.0.0.1 root (admin): POST /run_script -> 200 in" in log
    assert "lmcache.audit: 127.0.0.1 line-3 (operate): POST /metrics/reset -> 200 in" in log
    assert "other users" not in log
    assert not any(secret in log for secret in (_READ, _OPERATE, _ADMIN))


def test_token_file_that_others_can_read_is_warned_of(start_server: StartServer, token_file: pathlib.Path) -> None:
    token_file.chmod(0o644)
    server = start_server("--http-auth-token-file", str(token_file))
    server.wait_until_listening()
    assert f"other users can read the token in {token_file}: chmod 600" in server.errors()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"", "holds no token"),
        (b"# read 0123456789abcdef\n\n", "holds no token"),
        (b"0123456789abcdef", "line 1: must be `<role> <token>`"),
        (b"read 0123456789abcdef a b", "line 1: must be `<role> <token>`"),
        (b"\nroot 0123456789abcdef", "line 2: the role must be one of read, operate, admin (got 'root')"),
        (b"read short-secret", "line 1: the token must have at least 16 characters"),
        (b"read 0123456789abcd\xc3\xa9fgh", "line 1: the token must consist of"),
        (b"read 0123456789abcdef na/me", "line 1: the name must be"),
        (b"read 0123456789abcdef\nadmin 0123456789abcdef", "the token of line-2 is there twice"),
    ],
)
def test_bad_token_file_is_refused_in_a_line(tmp_path: pathlib.Path, text: bytes | None, said: str) -> None:
    file = tmp_path / "tokens"
    if text is not None:
        file.write_bytes(text)
        file.chmod(0o600)
    line = refusal(http_auth_token_file=str(file))
    assert f"--http-auth-token-file {file}" in line
    assert said in line
    assert "0123456789abcdef" not in line
    assert "short-secret" not in line


def test_client_beyond_loopback_is_told_the_remedy(start_server: StartServer) -> None:
    address = own_address()
    server = start_server("--http-host", "0.0.0.0")
    server.wait_until_up()
    assert "HTTP on 0.0.0.0 can be reached from other hosts" in server.errors()
    with httpx.Client(base_url=f"http://{address}:{server.http_port}", timeout=PATIENCE_S) as foreign:
        claims = {"x-forwarded-for": "127.0.0.1", "forwarded": "for=127.0.0.1", "x-real-ip": "127.0.0.1"}
        for answer in (foreign.get("/env", headers=claims), foreign.post("/run_script", files=_SCRIPT, headers=claims)):
            assert answer.status_code == 403
            assert "--http-auth-token-file FILE" in answer.json()["error"]
        assert foreign.get("/status").status_code == 200
        assert foreign.post("/metrics/reset").status_code == 200
    # The same listener, from this machine; what a proxy claims takes nothing away either.
    assert server.http.get("/env", headers={"x-forwarded-for": "192.0.2.7"}).status_code == 200
    assert server.http.post("/run_script", files=_SCRIPT).text == "2"
    server.wait_for_error(f"lmcache.audit: {address}: POST /run_script -> 403 in")


def test_start_on_every_ipv6_address_knows_mapped_clients(start_server: StartServer) -> None:
    server = start_server("--http-host", "::")
    server.wait_until_up()
    assert server.http.get("/env").status_code == 200  # over IPv4, seen as ::ffff:127.0.0.1
    with httpx.Client(base_url=f"http://[::1]:{server.http_port}", timeout=PATIENCE_S) as ipv6:
        assert ipv6.get("/env").status_code == 200


def test_loopback_without_tokens_warns_of_nothing(start_server: StartServer) -> None:
    server = start_server()
    server.wait_until_up()
    assert "can be reached" not in server.errors()
    rebound = {"host": f"evil.example:{server.http_port}", "origin": f"http://evil.example:{server.http_port}"}
    assert server.http.post("/run_script", files=_SCRIPT, headers=rebound).status_code == 403
    assert server.http.post("/run_script", files=_SCRIPT, headers={"origin": "https://x.example"}).status_code == 403
    assert server.http.post("/run_script", files=_SCRIPT).status_code == 200


def test_body_above_the_bound_is_answered_with_413(start_server: StartServer) -> None:
    server = start_server()
    server.wait_until_up()
    answer = server.http.request("DELETE", "/l2", content=b"x" * ((8 << 20) + 1))
    assert (answer.status_code, list(answer.json())) == (413, ["error"])
    parts = (b"x" * (1 << 20) for _ in range(9))
    assert server.http.post("/run_script", content=parts).status_code == 413
    assert server.http.get("/healthcheck").status_code == 200


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(authority: trustme.CA, tmp_path: pathlib.Path) -> tuple[str, str]:
    """Paths of a chain for this host and of its key."""
    issued = authority.issue_cert("127.0.0.1", "localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return str(chain), str(key)


def wait_for_https(server: RunningServer, authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    server.http.close()
    server.http = httpx.Client(base_url=f"https://127.0.0.1:{server.http_port}", verify=context, timeout=PATIENCE_S)
    lines = server.wait_until_up()
    assert any(line.split() == ["HTTP", f"https://127.0.0.1:{server.http_port}"] for line in lines)


def test_https(start_server: StartServer, authority: trustme.CA, certificate: tuple[str, str]) -> None:
    chain, key = certificate
    server = start_server("--http-ssl-certfile", chain, "--http-ssl-keyfile", key)
    wait_for_https(server, authority)
    assert server.http.get("/status").json()["is_healthy"] is True
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{server.http_port}/")
    assert server.stop() == 0


def test_chain_and_key_in_one_file(
    start_server: StartServer, authority: trustme.CA, certificate: tuple[str, str], tmp_path: pathlib.Path
) -> None:
    both = tmp_path / "both.pem"
    both.write_text("".join(pathlib.Path(path).read_text() for path in certificate))
    server = start_server("--http-ssl-certfile", str(both))
    wait_for_https(server, authority)


def test_tokens_without_tls_beyond_loopback_are_warned_of(
    start_server: StartServer, token_file: pathlib.Path, certificate: tuple[str, str]
) -> None:
    guarded = ("--http-host", "0.0.0.0", "--http-auth-token-file", str(token_file))
    server = start_server(*guarded)
    server.wait_until_listening()
    assert "HTTP on 0.0.0.0 takes tokens unencrypted" in server.errors()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"keyfile": "key.pem"}, "--http-ssl-keyfile needs --http-ssl-certfile"),
        ({"certfile": "no-such.pem"}, "--http-ssl-certfile {}/no-such.pem cannot be read: No such file"),
        ({"certfile": "chain.pem", "keyfile": "no-such.pem"}, "--http-ssl-keyfile {}/no-such.pem cannot be read"),
        ({"certfile": "chain.pem"}, "must be a PEM chain and its unencrypted key"),
        ({"certfile": "key.pem", "keyfile": "key.pem"}, "must be a PEM chain and its unencrypted key"),
        ({"certfile": "chain.pem", "keyfile": "other-key.pem"}, "KEY_VALUES_MISMATCH"),
        ({"certfile": "chain.pem", "keyfile": "encrypted-key.pem"}, "the key is encrypted"),
        ({"certfile": "text.pem", "keyfile": "text.pem"}, "must be a PEM chain and its unencrypted key"),
    ],
)
def test_bad_certificate_is_refused_in_a_line(
    authority: trustme.CA, certificate: tuple[str, str], tmp_path: pathlib.Path, files: dict[str, str], said: str
) -> None:
    other = authority.issue_cert("other")
    (tmp_path / "other-key.pem").write_bytes(other.private_key_pem.bytes())
    (tmp_path / "encrypted-key.pem").write_text(_ENCRYPTED_KEY)
    (tmp_path / "text.pem").write_text("no certificate")
    paths = {f"http_ssl_{name}": str(tmp_path / file) for name, file in files.items()}
    assert said.format(tmp_path) in refusal(**paths)


def test_bad_file_ends_the_start_with_one_line(start_server: StartServer, token_file: pathlib.Path) -> None:
    token_file.write_text("root 0123456789abcdef")
    for flag in ("--http-auth-token-file", "--http-ssl-certfile"):
        server = start_server(flag, str(token_file))
        assert server.process.wait(60) == 2
        (line,) = server.errors().splitlines()
        assert f"{flag} {token_file}" in line


# Its password is "test"; nothing was ever encrypted for it.
_ENCRYPTED_KEY = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGbMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAiZcAoB8xPh1wICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEENeTJh0s6vOCDuWpzJbX5cMEQDQw
F0Vhiq6CZ1FDZq7qwcdVFl9McM5c0TCHHXRYbu+E6lHZmHjU1+bv8hhFVMwCQ1l8
JxjI4aVyym2nKGKDNns=
-----END ENCRYPTED PRIVATE KEY-----
"""
