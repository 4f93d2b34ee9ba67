"""Runtime reconfiguration on the real application with a real engine: the memory adapter, a plugin, DAX's bodies."""

from __future__ import annotations

import asyncio
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from lmcache.core.sizes import GIB
from lmcache.errors import BackendError, ReconfigureError
from lmcache.storage.call_gate import CallGate
from lmcache.testing.waiting import PATIENCE_S
from tests.http.no_engine import ask
from tests.http.storage_site import (
    FAKE_DAX,
    FAULTY,
    MEMORY,
    MOCK,
    SILENT,
    WRAPPED_MOCK,
    FaultyL2Adapter,
    StorageSite,
    encoded,
    make_key,
    storage_site,
)

_SIZE_HELP = "size must be a positive integer byte count or a string like '100GiB'"
_PATHS = pytest.mark.parametrize("form", ["/reconfigure/{}/{}", "/reconfigure/{}/l2/{}"], ids=["old", "later"])


@pytest.fixture(params=[MOCK, WRAPPED_MOCK], ids=["bare", "wrapped"])
def site(pool_folder: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[StorageSite]:
    with storage_site(pool_folder, [request.param]) as found:
        yield found


@pytest.fixture
def plugin(pool_folder: pathlib.Path, plugins: None) -> Iterator[tuple[StorageSite, FaultyL2Adapter]]:
    """A `faulty` adapter behind a `silent` one."""
    with storage_site(pool_folder, [SILENT, FAULTY]) as found:
        yield found, faulty_in(found, "faulty")


def faulty_in(site: StorageSite, selector: str) -> FaultyL2Adapter:
    adapter = site.tier(selector).adapter
    assert isinstance(adapter, FaultyL2Adapter)
    return adapter


class Taker:
    """Puts down what a DAX adapter is asked for."""

    def __init__(self, site: StorageSite, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[tuple[str, dict[str, object]]] = []
        monkeypatch.setattr(faulty_in(site, "dax"), "reconfigure", self._take)

    def _take(self, operation: str, payload: Mapping[str, object]) -> dict[str, object]:
        self.taken.append((operation, dict(payload)))
        return {"status": "ok", "operation": operation}


# Telling


def test_backends(pool_folder: pathlib.Path, plugins: None) -> None:
    with storage_site(pool_folder, [MOCK, SILENT, MEMORY, MOCK, FAKE_DAX]) as site:
        expected = {"enabled": True, "num_backends": 3, "backends": ["dax", "memory", "mock"]}
        assert site.ask("GET", "/reconfigure/backends").json() == expected


@_PATHS
def test_no_backend_at_all(pool_folder: pathlib.Path, form: str) -> None:
    with storage_site(pool_folder) as site:
        nothing = {"enabled": False, "num_backends": 0, "backends": []}
        assert site.ask("GET", "/reconfigure/backends").json() == nothing
        unknown = {"enabled": False, "backend": "dax", "num_adapters": 0, "adapters": []}
        assert site.ask("GET", form.format("dax", "status")).json() == unknown


@_PATHS
def test_status(site: StorageSite, form: str) -> None:
    site.put([make_key(1)])
    expected = {
        "enabled": True,
        "backend": "mock",
        "num_adapters": 1,
        "adapters": [
            {
                "adapter_index": 0,
                "l2_adapter_index": 0,
                "backend": "mock",
                "supported_operations": ["status", "resize"],
                "status": {
                    "stored_object_count": 1,
                    "locked_key_count": 0,
                    "current_size_bytes": site.tier().adapter.usage().total_bytes_used,
                    "max_capacity_bytes": GIB,
                },
            }
        ],
    }
    for name in ("mock", "MOCK", "%20Mock%20"):
        assert site.ask("GET", form.format(name, "status")).json() == expected


def test_indexes_are_those_of_the_backend(pool_folder: pathlib.Path, plugins: None) -> None:
    with storage_site(pool_folder, [SILENT, MEMORY, MOCK, MEMORY]) as site:
        entries = site.ask("GET", "/reconfigure/memory/status").json()["adapters"]
        assert [(entry["adapter_index"], entry["l2_adapter_index"]) for entry in entries] == [(0, 1), (1, 3)]
        assert site.ask("GET", "/reconfigure/silent/status").json()["enabled"] is False
        answer = site.ask("POST", "/reconfigure/memory/resize", json={"adapter_index": 1, "size": "1GiB"})
        assert answer.json()["adapter_index"] == 1
        sizes = [site.engine.storage.tiers()[index].adapter.usage().total_capacity_bytes for index in (1, 3)]
        assert sizes == [GIB // 2, GIB]


# Changing


@_PATHS
def test_resize(site: StorageSite, form: str) -> None:
    answer = site.ask("POST", form.format("mock", "resize"), json={"size": "2GiB"})
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok", "operation": "resize", "old_size_bytes": GIB, "new_size_bytes": 2 * GIB, "deleted_keys": 0,
        "adapter_index": 0,
    }  # fmt: skip
    assert site.ask("POST", form.format("%20MOCK", "Resize%20"), json={"size": 4096}).status_code == 200
    assert site.tier().adapter.usage().total_capacity_bytes == 4096


def test_a_smaller_size_evicts(site: StorageSite) -> None:
    site.put([make_key(number) for number in range(10)])
    used = site.tier().adapter.usage().total_bytes_used
    answer = site.ask("POST", "/reconfigure/mock/resize", json={"adapter_index": 0, "size": used // 2}).json()
    assert answer["deleted_keys"] == 5
    assert site.listed() == [encoded(make_key(number)) for number in range(5, 10)]


@pytest.mark.parametrize(
    "size", [0, -1, "0", "", "x", "1e3", "0.5", True, False, None, 1.0, [1], {}, "9" * 65, 1 << 63, "\ud800"]
)
def test_sizes_that_the_memory_adapter_refuses(site: StorageSite, size: object) -> None:
    content = json.dumps({"size": size})
    answer = site.ask("POST", "/reconfigure/mock/resize", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()) == (400, {"error": _SIZE_HELP})
    assert site.tier().adapter.usage().total_capacity_bytes == GIB


def test_fields_and_operations_that_the_memory_adapter_does_not_know(site: StorageSite) -> None:
    answer = site.ask("POST", "/reconfigure/mock/resize", json={"size": 1, "later": 1, "é": 1})
    assert answer.status_code == 400
    assert answer.json() == {"error": "resize takes `size` alone (got later, é as well)"}
    for operation in ("shrink", "status", "l2"):
        answer = site.ask("POST", f"/reconfigure/mock/{operation}", json={})
        text = f"unsupported mock reconfigure operation: {operation}"
        assert (answer.status_code, answer.json()) == (400, {"error": text})


def test_other_fields_go_unchanged_to_the_adapter(plugin: tuple[StorageSite, FaultyL2Adapter]) -> None:
    site, _ = plugin
    body = {"adapter_index": 0, "a": [1, None, {"b": 1.5}], "backend": "x", "é": ""}
    answer = site.ask("POST", "/reconfigure/faulty/count", json=body)
    payload = {name: value for name, value in body.items() if name != "adapter_index"}
    assert answer.json() == {"payload": payload, "most_inside": 1, "adapter_index": 0}


def test_changes_of_one_adapter_follow_each_other(plugin: tuple[StorageSite, FaultyL2Adapter]) -> None:
    site, adapter = plugin

    async def conversation(http: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(*(http.post("/reconfigure/faulty/count", json={}) for _ in range(8)))
        assert [answer.status_code for answer in answers] == [200] * 8

    site.talk(conversation)
    assert adapter.most_inside == 1


def test_a_change_that_takes_too_long_is_not_waited_for(plugin: tuple[StorageSite, FaultyL2Adapter]) -> None:
    site, _ = plugin
    tier = site.tier("faulty")
    tier.gate = CallGate("faulty", change_patience_s=0.01)
    with tier.gate.change():
        answer = site.ask("POST", "/reconfigure/faulty/count", json={})
        text = "another change of L2 adapter faulty is under way"
        assert (answer.status_code, answer.json()) == (503, {"error": text})
    assert site.ask("POST", "/reconfigure/faulty/count", json={}).status_code == 200


# Errors


@_PATHS
@pytest.mark.parametrize("index", [1, -1, 1 << 80])
def test_an_index_out_of_range(site: StorageSite, form: str, index: int) -> None:
    answer = site.ask("POST", form.format("mock", "resize"), json={"adapter_index": index, "size": "1GiB"})
    assert (answer.status_code, answer.json()) == (404, {"error": "mock adapter not found"})


def test_a_backend_that_is_not_there(site: StorageSite) -> None:
    answer = site.ask("POST", "/reconfigure/foo/bar", json={"a": 1})
    assert (answer.status_code, answer.json()) == (404, {"error": "foo adapter not found"})


def test_a_backend_that_cannot_be_reconfigured(plugin: tuple[StorageSite, FaultyL2Adapter]) -> None:
    answer = plugin[0].ask("POST", "/reconfigure/silent/resize", json={})
    assert (answer.status_code, answer.json()) == (404, {"error": "silent adapter not found"})


@pytest.mark.parametrize("content", [b"[]", b"null", b"1", b'"x"', b""])
@_PATHS
def test_a_body_that_is_no_object(form: str, content: bytes) -> None:
    answer = ask("POST", form.format("dax", "resize"), content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    (item,) = answer.json()["detail"]
    assert item["loc"] == ["body"]
    # To older FastAPI `null` is no body, to newer it is one of another type.
    expected = {b"": {"missing"}, b"null": {"missing", "dict_type"}}
    assert item["type"] in expected.get(content, {"dict_type"})


@pytest.mark.parametrize("index", ["0", True, 1.0, None, [0], "\ud800"])
def test_an_index_of_another_type(index: object) -> None:
    """Before the engine is asked for."""
    content = json.dumps({"adapter_index": index})
    headers = {"content-type": "application/json"}
    answer = ask("POST", "/reconfigure/mock/resize", content=content, headers=headers)
    assert answer.status_code == 422
    (item,) = answer.json()["detail"]
    assert item["loc"] == ["adapter_index"]
    assert item["url"].startswith("https://errors.pydantic.dev/")


@_PATHS
def test_blank_parts_of_a_path(form: str) -> None:
    for backend in ("%20", "%20%09"):
        answer = ask("GET", form.format(backend, "status"))
        assert (answer.status_code, answer.json()) == (400, {"error": "backend must be non-empty"})
        answer = ask("POST", form.format(backend, "%20"), json={})
        assert (answer.status_code, answer.json()) == (400, {"error": "backend must be non-empty"})
    answer = ask("POST", form.format("mock", "%20"), json={"adapter_index": "x"})
    assert (answer.status_code, answer.json()) == (400, {"error": "operation must be non-empty"})


@_PATHS
def test_without_an_engine(form: str) -> None:
    expected = {"error": "engine not initialized"}
    for method, path, body in (
        ("GET", "/reconfigure/backends", None),
        ("GET", form.format("dax", "status"), None),
        ("POST", form.format("mock", "resize"), {"size": "1GiB"}),
        ("POST", form.format("dax", "add"), {"device_path": "/dev/dax0.0", "size": 1}),
    ):
        answer = ask(method, path, json=body)
        assert (answer.status_code, answer.json()) == (503, expected)


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (ReconfigureError(403, "it is disabled"), 403, {"error": "it is disabled"}),
        (ReconfigureError(409, "dup", {"sample_keys": ["a"]}), 409, {"error": "dup", "sample_keys": ["a"]}),
        (ReconfigureError(409, "", {"status": "blocked"}), 409, {"status": "blocked"}),
        (ReconfigureError(507, "no room on \udc80"), 507, {"error": "no room on \udc80"}),
        (BackendError("it is gone"), 503, {"error": "it is gone"}),
        (RuntimeError("a bug"), 503, {"error": "RuntimeError: a bug"}),
    ],
)
def test_what_an_adapter_raises(
    plugin: tuple[StorageSite, FaultyL2Adapter], error: Exception, status: int, body: dict[str, Any]
) -> None:
    site, adapter = plugin
    adapter.error = error
    answer = site.ask("POST", "/reconfigure/faulty/count", json={})
    assert (answer.status_code, answer.json()) == (status, body)
    adapter.error = None
    assert site.ask("POST", "/reconfigure/faulty/count", json={}).status_code == 200


def test_an_adapter_that_opens_slowly(pool_folder: pathlib.Path) -> None:
    with storage_site(pool_folder, [MOCK], opens=False) as site:
        answer = site.ask("POST", "/reconfigure/mock/resize", json={"size": 1})
        assert (answer.status_code, answer.json()) == (503, {"error": "L2 adapter mock is opening: not ready"})
        assert site.ask("GET", "/reconfigure/mock/status").json()["num_adapters"] == 1
        site.tier().start()
        assert site.tier().wait_until_open(PATIENCE_S)


# Device-DAX


def test_dax_bodies_reach_the_adapter_whole(
    pool_folder: pathlib.Path, plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with storage_site(pool_folder, [FAKE_DAX]) as site:
        taker = Taker(site, monkeypatch)
        path = {"device_path": "/dev/dax1.0"}
        for operation, body in (
            ("add", {**path, "size": "100GiB"}),
            ("ADD", {**path, "size": "1.5 k", "adapter_index": 0}),
            ("add", {**path, "size": " 7 "}),
            ("remove", path),
            ("remove", {**path, "mode": "drain", "force": True}),
            ("resize", {**path, "size": 4096}),
            ("resize", {**path, "size": 1, "mode": "evict", "force": False}),
        ):
            answer = site.ask("POST", f"/reconfigure/dax/{operation}", json=body)
            assert answer.json() == {"status": "ok", "operation": operation.lower(), "adapter_index": 0}
        assert taker.taken == [
            ("add", {**path, "size": 100 * GIB}),
            ("add", {**path, "size": 1536}),
            ("add", {**path, "size": 7}),
            ("remove", {**path, "mode": "migrate", "force": False}),
            ("remove", {**path, "mode": "drain", "force": True}),
            ("resize", {**path, "size": 4096, "mode": "migrate", "force": False}),
            ("resize", {**path, "size": 1, "mode": "evict", "force": False}),
        ]


_PATH = {"device_path": "/dev/dax0.0"}


@pytest.mark.parametrize(
    ("operation", "body", "kind", "loc"),
    [
        ("add", {}, "missing", ["device_path"]),
        ("add", _PATH, "missing", ["size"]),
        ("add", {**_PATH, "size": 1, "mode": "evict"}, "extra_forbidden", ["mode"]),
        ("add", {"device_path": 1, "size": 1}, "string_type", ["device_path"]),
        ("add", {**_PATH, "size": True}, "int_type", ["size", "int"]),
        ("add", {**_PATH, "size": 1.0}, "int_type", ["size", "int"]),
        ("add", {**_PATH, "size": 1.5}, "int_type", ["size", "int"]),
        ("add", {**_PATH, "size": None}, "int_type", ["size", "int"]),
        ("add", {**_PATH, "size": 1, "adapter_index": "0"}, "int_type", ["adapter_index"]),
        ("remove", {**_PATH, "size": 1}, "extra_forbidden", ["size"]),
        ("remove", {**_PATH, "mode": "purge"}, "literal_error", ["mode"]),
        ("remove", {**_PATH, "force": 1}, "bool_type", ["force"]),
        ("resize", _PATH, "missing", ["size"]),
        ("resize", {**_PATH, "size": 1, "mode": "drain"}, "literal_error", ["mode"]),
    ],
)
def test_dax_bodies_of_another_form(operation: str, body: dict[str, Any], kind: str, loc: list[str]) -> None:
    """422 made by hand: `loc` without `body`, with pydantic's `url`. The engine is not asked for."""
    answer = ask("POST", f"/reconfigure/dax/{operation}", json=body)
    assert answer.status_code == 422
    item = answer.json()["detail"][0]
    assert (item["type"], item["loc"]) == (kind, loc)
    assert item["url"].startswith("https://errors.pydantic.dev/")
    assert set(item) >= {"msg", "input"}


@pytest.mark.parametrize("size", [0, -1, "0", "1e3", "", "x", "-1", "1.2.3g", "1 pib", "1" * 65, 1 << 70])
def test_dax_sizes_that_cannot_be(size: object) -> None:
    """Before the engine is asked for, and before the adapter is looked for."""
    answer = ask("POST", "/reconfigure/dax/add", json={**_PATH, "size": size, "adapter_index": 9})
    assert (answer.status_code, answer.json()) == (400, {"error": _SIZE_HELP})


@pytest.mark.parametrize("operation", ["status", "drain", "l2", "x" * 5000])
def test_dax_operations_that_there_are_not(operation: str) -> None:
    answer = ask("POST", f"/reconfigure/dax/{operation}", json={"whatever": 1})
    text = f"unsupported dax reconfigure operation: {operation[:100]}"
    assert (answer.status_code, answer.json()) == (400, {"error": text})


def test_the_order_of_checks(pool_folder: pathlib.Path, plugins: None) -> None:
    with storage_site(pool_folder, [FAKE_DAX]) as site:
        faulty_in(site, "dax").error = ReconfigureError(403, "DAX hotplug is disabled")
        body: dict[str, Any] = {"adapter_index": 1, "size": "x", "extra": 1}
        steps = [({"device_path": ""}, 422), ({"extra": None}, 400), ({"size": 1}, 404), ({"adapter_index": 0}, 403)]
        for change, status in steps:
            body |= change
            body = {name: value for name, value in body.items() if value is not None}
            assert site.ask("POST", "/reconfigure/dax/add", json=body).status_code == status
