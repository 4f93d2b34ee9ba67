"""What the documents say of the routes of this release, asked of a real server."""

from __future__ import annotations

import json

import httpx
import pytest

import lmcache.utils

_VERSION = lmcache.utils.get_version()

# Method, path, code, content type, body as the documents print it; None: see the route's own test.
_DOCUMENTED = [
    ("GET", "/", 200, "application/json", '{"status":"ok","service":"LMCache HTTP API"}'),
    ("GET", "/healthcheck", 200, "application/json", '{"status":"healthy"}'),
    ("GET", "/status", 200, "application/json", None),
    ("GET", "/metrics", 200, "text/plain; charset=utf-8", None),
    ("GET", "/version", 200, "application/json", json.dumps(_VERSION)),
    ("GET", "/lmc_version", 200, "application/json", json.dumps(lmcache.utils.VERSION)),
    ("GET", "/commit_id", 200, "application/json", json.dumps(lmcache.utils.COMMIT_ID)),
    ("GET", "/no-such-path", 404, "application/json", '{"detail":"Not Found"}'),
    ("POST", "/healthcheck", 405, "application/json", '{"detail":"Method Not Allowed"}'),
    ("DELETE", "/", 405, "application/json", '{"detail":"Method Not Allowed"}'),
]


@pytest.mark.parametrize(("method", "path", "code", "content_type", "body"), _DOCUMENTED)
def test_documented_answer(
    http: httpx.Client, method: str, path: str, code: int, content_type: str, body: str | None
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == code
    assert answer.headers["content-type"] == content_type
    if body is not None:
        assert answer.text == body


def test_application_is_what_the_documents_call_it(http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()
    assert described["info"] == {"title": "LMCache HTTP API", "version": "1.0.0"}
    documented = {path for _, path, code, _, _ in _DOCUMENTED if code == 200}
    assert documented <= set(described["paths"])
    for page in ("/docs", "/redoc"):
        assert http.get(page).status_code == 200
