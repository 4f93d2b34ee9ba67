"""The internal API over real sockets: TCP, Unix, TLS, tokens, ports that are taken, the end."""

from __future__ import annotations

import logging
import os
import pathlib
import re
import socket
import stat
import threading

import httpx
import pytest
import trustme

from lmcache.embedded.manager import SCHEDULER, WORKER
from lmcache.errors import ConfigError
from lmcache.testing.ports import free_port
from lmcache.testing.waiting import PATIENCE_S, wait_until
from lmcache.v1.internal_api_server.api_server import THREAD_NAME
from tests.internal_api.serving import Running, Serving

_READ, _ADMIN = "read-0123456789ab", "admin-0123456789ab"
_SCRIPT = {"script": ("s.py", b"result = app.state.lmcache_adapter.lmcache_engine_metadata.role")}


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def api_threads() -> int:
    return [thread.name for thread in threading.enumerate()].count(THREAD_NAME)


def refusal(serving: Serving, **values: object) -> str:
    before = api_threads()
    with pytest.raises(ConfigError) as caught:
        serving.start(**values)
    assert api_threads() == before
    return str(caught.value)


@pytest.fixture
def token_file(tmp_path: pathlib.Path) -> str:
    file = tmp_path / "tokens"
    file.write_text(f"read {_READ}\nadmin {_ADMIN} root\n")
    file.chmod(0o600)
    return str(file)


def test_scheduler_and_worker_share_a_process(serving: Serving) -> None:
    port = free_port(2)
    scheduler = serving.start(SCHEDULER, internal_api_server_port_start=port)
    worker = serving.start(WORKER, internal_api_server_port_start=port)
    for running, role, number in ((scheduler, "scheduler", port), (worker, "worker", port + 1)):
        assert running.http.get("/meta?names=role").json() == {"role": role}
        assert running.http.base_url.port == number
    assert api_threads() == 2


def test_metrics_of_two_halves_stay_apart(serving: Serving) -> None:
    """Both have a metric of this name, and each shows its own."""
    halves = {role: serving.start(role) for role in (SCHEDULER, WORKER)}
    for amount, running in enumerate(halves.values(), start=1):
        running.manager.metrics.counter("lmcache:num_lookup_requests", "Lookups").add(amount)
    for amount, running in enumerate(halves.values(), start=1):
        text = running.http.get("/metrics").text
        assert f"\nlmcache:num_lookup_requests_total {amount}.0\n" in text
        assert "\nprocess_resident_memory_bytes " in text
    assert halves[WORKER].http.post("/metrics/reset").text == "ok"
    assert "lmcache:num_lookup_requests_total 0.0" in halves[WORKER].http.get("/metrics").text
    assert "lmcache:num_lookup_requests_total 1.0" in halves[SCHEDULER].http.get("/metrics").text


def test_port_is_never_taken_from_another(serving: Serving) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = refusal(serving, internal_api_server_port_start=port - 1)
    assert message == (
        f"internal_api_server_port_start {port - 1} + 1 is in use on 127.0.0.1: another lmcache server? "
        "Choose another internal_api_server_port_start"
    )


def test_port_beyond_the_last_one(serving: Serving) -> None:
    message = refusal(serving, internal_api_server_port_start=65535)
    assert message == "internal_api_server_port_start 65535 + 1 is no port: they end with 65535"


def test_host_that_is_not_ours(serving: Serving) -> None:
    assert "internal_api_server_host 192.0.2.1 is not" in refusal(serving, internal_api_server_host="192.0.2.1")


def test_stop_frees_the_port_and_may_be_repeated(serving: Serving) -> None:
    running = serving.start()
    url = str(running.http.base_url)
    assert running.http.get("/freeze/status").status_code == 200  # the connection stays open
    running.server.stop()
    running.server.stop()
    assert not running.server.is_serving
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    port = running.http.base_url.port
    assert port is not None
    serving.start(internal_api_server_port_start=port - 1)


def test_unix_socket(serving: Serving, tmp_path: pathlib.Path) -> None:
    prefix = tmp_path / "run" / "api"
    running = serving.start(internal_api_server_socket_path_prefix=str(prefix), internal_api_server_port_start=6999)
    path = pathlib.Path(f"{prefix}_7000")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert running.http.get("/meta?names=role").json() == {"role": "worker"}
    # Whoever can open the socket is on this machine.
    assert running.http.get("/env").status_code == 200
    assert running.http.post("/run_script", files=_SCRIPT).text == "worker"
    assert running.http.put("/freeze/enable").status_code == 200
    running.server.stop()
    assert not path.exists()


def test_unix_socket_that_somebody_listens_on_is_left_alone(serving: Serving, tmp_path: pathlib.Path) -> None:
    settings = {"internal_api_server_socket_path_prefix": str(tmp_path / "api")}
    first = serving.start(internal_api_server_port_start=6999, **settings)
    message = refusal(serving, internal_api_server_port_start=6999, **settings)
    path = tmp_path / "api_7000"
    assert message.startswith(f"internal_api_server_socket_path_prefix: somebody listens on {path} already")
    assert first.http.get("/freeze/status").status_code == 200


def test_stale_unix_socket_is_replaced(serving: Serving, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "api_7000"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    running = serving.start(
        internal_api_server_port_start=6999, internal_api_server_socket_path_prefix=str(tmp_path / "api")
    )
    assert running.http.get("/freeze/status").status_code == 200


def test_socket_of_a_successor_stays(serving: Serving, tmp_path: pathlib.Path) -> None:
    running = serving.start(
        internal_api_server_port_start=6999, internal_api_server_socket_path_prefix=str(tmp_path / "api")
    )
    path = tmp_path / "api_7000"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        running.server.stop()
        assert path.exists()


def test_unix_paths_that_cannot_be(serving: Serving, tmp_path: pathlib.Path) -> None:
    (tmp_path / "api_7000").write_text("mine")
    (tmp_path / "file").write_text("")
    key = "internal_api_server_socket_path_prefix"
    settings = {"internal_api_server_port_start": 6999}
    assert "is no socket" in refusal(serving, **settings, **{key: str(tmp_path / "api")})
    assert (tmp_path / "api_7000").read_text() == "mine"
    for prefix in (tmp_path / "file" / "api", tmp_path / ("x" * 200)):
        assert refusal(serving, **settings, **{key: str(prefix)}).startswith(f"{key}: cannot listen on {prefix}")


def test_tokens(serving: Serving, token_file: str) -> None:
    http = serving.start(internal_api_server_auth_token_file=token_file).http
    refused = http.get("/conf")
    assert (refused.status_code, refused.json()["error"]) == (
        401, "/conf needs a token of role read: send `Authorization: Bearer <token>`",
    )  # fmt: skip
    assert http.get("/conf", headers=bearer(_READ)).status_code == 200
    assert http.put("/freeze/enable", headers=bearer(_READ)).status_code == 403
    assert http.put("/freeze/enable", headers=bearer(_ADMIN)).status_code == 200
    assert http.get("/env", headers=bearer(_READ)).status_code == 403
    assert http.post("/run_script", files=_SCRIPT, headers=bearer(_ADMIN)).text == "worker"


def test_tokens_guard_unix_sockets_too(serving: Serving, token_file: str, tmp_path: pathlib.Path) -> None:
    http = serving.start(
        internal_api_server_auth_token_file=token_file,
        internal_api_server_socket_path_prefix=str(tmp_path / "api"),
    ).http
    assert http.get("/conf").status_code == 401
    assert http.get("/conf", headers=bearer(_READ)).status_code == 200


def test_token_files_that_cannot_be_used(serving: Serving, tmp_path: pathlib.Path) -> None:
    key = "internal_api_server_auth_token_file"
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.touch(0o600)
    assert refusal(serving, **{key: str(missing)}).startswith(f"{key} {missing} cannot be read")
    assert refusal(serving, **{key: str(empty)}).startswith(f"{key} {empty} holds no token")


def test_tls(serving: Serving, tmp_path: pathlib.Path) -> None:
    authority, pem = trustme.CA(), tmp_path / "cert.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
    trusted = httpx.create_ssl_context()
    authority.configure_trust(trusted)
    running = serving.start(tls=trusted, internal_api_server_ssl_certfile=str(pem))
    assert running.http.base_url.scheme == "https"
    assert running.http.get("/freeze/status").status_code == 200
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://localhost:{running.http.base_url.port}/conf")
    running.server.stop()
    assert not running.server.is_serving


def test_certificate_that_cannot_be_used(serving: Serving, tmp_path: pathlib.Path) -> None:
    key, missing = "internal_api_server_ssl_certfile", tmp_path / "missing.pem"
    assert refusal(serving, **{key: str(missing)}).startswith(f"{key} {missing} cannot be read")


def test_disabled_endpoints(serving: Serving) -> None:
    http = serving.start(internal_api_server_disable=["run_script", "/env", "backends"]).http
    assert http.post("/run_script", files=_SCRIPT).status_code == 404
    assert http.get("/env").status_code == 404
    assert http.get("/backends").status_code == 404
    assert http.get("/bypass/list").status_code == 200
    assert refusal(serving, internal_api_server_disable=["nonsense"]).startswith(
        "internal_api_server_disable knows no 'nonsense': name modules ("
    )


def test_env_is_redacted_on_request(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMCACHE_TEST_PASSWORD", "hunter2")
    assert "hunter2" in serving.start().http.get("/env").text
    assert "hunter2" not in serving.start(internal_api_server_redact_env=True).http.get("/env").text


def test_script_settings(serving: Serving) -> None:
    patient = serving.start(script_allowed_imports=["math"]).http
    allowed = {"script": ("s.py", b"import math\nresult = math.floor(2.5)")}
    assert patient.post("/run_script", files=allowed).text == "2"
    hasty = serving.start(internal_api_server_script_timeout_seconds=0.05).http
    endless = {"script": ("s.py", b"while True:\n  pass")}
    assert hasty.post("/run_script", files=endless).text == "Error executing script: timed out after 0.05 s"


def calls_logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.endswith("access_log")]


@pytest.mark.parametrize(
    ("extra", "is_logged"),
    [({}, False), ({"internal_api_server_log_level": "info"}, True),
     ({"internal_api_server_log_level": "trace", "internal_api_server_access_log": False}, False)],
)  # fmt: skip
def test_access_log(serving: Serving, caplog: pytest.LogCaptureFixture, extra: object, is_logged: bool) -> None:
    caplog.set_level(logging.INFO, "lmcache")
    access = logging.getLogger("uvicorn.access")
    before = (access.level, access.propagate, list(access.handlers))
    running = serving.start(extra_config=extra)
    running.http.get("/conf?names=chunk_size")
    running.server.stop()  # a line is written after the answer
    lines = calls_logged(caplog)
    assert bool(lines) is is_logged
    if is_logged:
        assert re.fullmatch(r"127\.0\.0\.1: GET /conf\?names=chunk_size -> 200 in \d+\.\d ms", lines[0])
    # The engine around us has servers of its own, which use this logger.
    assert (access.level, access.propagate, list(access.handlers)) == before


def test_level_of_the_http_server_is_left_to_whoever_set_it(serving: Serving) -> None:
    logger = logging.getLogger("uvicorn")
    serving.start(extra_config={"internal_api_server_log_level": "error"})
    assert logger.level == logging.ERROR
    kept, logger.handlers = logger.handlers, [logging.NullHandler()]
    try:
        serving.start(extra_config={"internal_api_server_log_level": "info"})
        assert logger.level == logging.ERROR
    finally:
        logger.handlers = kept
    serving.start()
    assert logger.level == logging.WARNING


def test_calls_that_change_something_are_audited(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lmcache")
    running = serving.start()
    running.http.put("/freeze/enable")
    running.server.stop()
    audited = [record.getMessage() for record in caplog.records if record.name == "lmcache.audit"]
    assert audited
    assert audited[0].startswith("127.0.0.1: PUT /freeze/enable -> 200 in")


def test_web_pages_of_other_sites_change_nothing(serving: Serving) -> None:
    http = serving.start().http
    refused = http.put("/freeze/enable", headers={"origin": "http://evil.example"})
    assert refused.status_code == 403
    assert "internal_api_server_auth_token_file" in refused.json()["error"]


def wait_in_clear(running: Running, number: int) -> tuple[threading.Event, list[threading.Thread]]:
    """As many clients as that wait for clears which end with the event."""
    release, begun = threading.Event(), threading.Event()

    def clear(locations: object = None) -> int:
        begun.set()
        release.wait(PATIENCE_S)
        return 0

    engine = running.manager.fake_engine
    assert engine is not None
    engine.clear = clear  # type: ignore[method-assign]
    clients = [threading.Thread(target=running.http.delete, args=("/cache/clear",)) for _ in range(number)]
    for client in clients:
        client.start()
    assert begun.wait(PATIENCE_S)
    return release, clients


def test_calls_that_hang_hold_up_none_of_another_kind(serving: Serving) -> None:
    running = serving.start()
    release, clients = wait_in_clear(running, 60)
    for target in ("/conf", "/freeze/status", "/bypass/list", "/lookup/info", "/metrics", "/meta", "/threads"):
        assert running.http.get(target).status_code == 200
    assert running.http.post("/conf", json={"min_retrieve_tokens": 5}).status_code == 200
    release.set()
    for client in clients:
        client.join()


def test_stop_does_not_wait_for_a_call_that_hangs(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever made it is told, and the log needs no traceback for it."""
    running = serving.start()
    release, clients = wait_in_clear(running, 1)
    answers: list[httpx.Response] = []
    late = threading.Thread(target=lambda: answers.append(running.http.delete("/cache/clear")))
    late.start()
    wait_until(lambda: len(running.server._http.server_state.tasks) == 2)  # it has come
    running.server.stop(grace_s=1)
    assert not running.server.is_serving
    release.set()
    for client in (*clients, late):
        client.join()
    assert [(answer.status_code, answer.json()) for answer in answers] == [(503, {"error": "the server is stopping"})]
    assert not [record for record in caplog.records if record.exc_info]


def test_socket_folder_keeps_no_descriptor(serving: Serving, tmp_path: pathlib.Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        refusal(serving, internal_api_server_socket_path_prefix=str(tmp_path / ("x" * 200)))
    assert len(os.listdir("/proc/self/fd")) <= before
