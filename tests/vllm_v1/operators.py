"""The internal API of a running vLLM, as operators call it."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from tests.vllm_v1.driver import EmbeddedDriver
from tests.vllm_v1.tiers import object_files, wait_until_stored
from tests.vllm_v1.waiting import wait_until

_TIMEOUT_S = 60.0
# What vLLM's scheduler would publish.
_LISTEN = """
engine.told = []
take = scheduler.connector.take_events
def spy():
    events = list(take())
    engine.told += events
    return events
scheduler.connector.take_events = spy
"""
_TOLD = """
del scheduler.connector.take_events
result = [list(event.token_ids) for event in engine.told]
"""


# As much as tests in one process: see the conftest of `tests/embedded`.
_PATIENT_MODULES = [f"lmcache.embedded.{name}" for name in ("backends", "engine_operations", "tier_engine")]
_BE_PATIENT = b"""
import lmcache.embedded.backends as backends
import lmcache.embedded.engine_operations as engine_operations
import lmcache.embedded.tier_engine as tier_engine
backends.OPEN_PATIENCE_S = tier_engine.OPEN_PATIENCE_S = backends._SETTLE_S = engine_operations._HAND_OVER_S = 30.0
result = "patient"
"""


class Api:
    """Of one process: on a TCP port, or on the unix socket `<socket_prefix>_<port>`."""

    def __init__(self, port: int, socket_prefix: str | None = None, token: str | None = None) -> None:
        path = None if socket_prefix is None else f"{socket_prefix}_{port}"
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(uds=path), timeout=_TIMEOUT_S,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
        )  # fmt: skip

    def ask(self, method: str, target: str, code: int = 200, **settings: Any) -> httpx.Response:
        answer = self.http.request(method, target, **settings)
        assert answer.status_code == code, f"{method} {target}: {answer.status_code} {answer.text}"
        return answer

    def json(self, method: str, target: str, code: int = 200, body: Any = None) -> Any:
        answer = self.ask(method, target, code, json=body)
        assert answer.headers["content-type"] == "application/json"
        return answer.json()

    def set(self, **values: Any) -> dict[str, Any]:
        """Change settings, all of them."""
        updated: dict[str, Any] = self.json("POST", "/conf", body=values)["updated"]
        assert updated.keys() == values.keys()
        return updated

    def be_patient(self) -> None:
        """What its process waits a moment for, a tier that opens or is written to, it waits for as long as it takes."""
        self.set(script_allowed_imports=_PATIENT_MODULES)
        assert self.ask("POST", "/run_script", files={"script": _BE_PATIENT}).text == "patient"
        self.set(script_allowed_imports=None)

    def settings(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json("GET", "/conf")
        return found

    def restore(self, before: dict[str, Any]) -> None:
        now = self.settings()
        if changed := {key: value for key, value in before.items() if now[key] != value}:
            self.set(**changed)

    def lookup_name(self) -> str:
        """Of the client or the server, whichever it has."""
        info = self.json("GET", "/lookup/info")
        name: str = info["client" if info["role"] == "scheduler" else "server"]
        return name

    def recreate_lookup(self) -> tuple[str, str]:
        changed = self.json("POST", "/lookup/recreate")
        return changed["old"], changed["new"]

    def metric(self, name: str) -> float:
        """The sum of its series; 0 where there is none."""
        lines = self.ask("GET", "/metrics").text.splitlines()
        series = [line for line in lines if line.split("{")[0].split(" ")[0] == f"lmcache:{name}"]
        return sum(float(line.rsplit(" ", 1)[1]) for line in series)

    def close(self) -> None:
        self.http.close()


@contextlib.contextmanager
def apis(port: int, count: int = 2, **options: Any) -> Iterator[list[Api]]:
    """The scheduler's, and then those of the workers."""
    found = [Api(port + index, **options) for index in range(count)]
    try:
        yield found
    finally:
        for api in found:
            api.close()


@dataclass
class Operated:
    """A vLLM whose two halves can be called. `disk`: the folder of its disk tier."""

    engine: EmbeddedDriver
    scheduler: Api
    worker: Api
    disk: pathlib.Path

    def files(self) -> set[str]:
        """Of objects, once all are written."""
        wait_until_stored(self.engine)
        return object_files(self.disk)

    def l1_order(self) -> tuple[list[bytes], list[bytes]]:
        """Digests that L1 holds by their last use, and in the order in which they would be evicted."""
        self.settle()
        found: tuple[list[bytes], list[bytes]] = self.engine.run(
            "state = worker.engine.l1._state\n"
            "scanned = state.slots.records.scan()\n"
            "recency = dict(zip(scanned.slots.tolist(), scanned.recency.tolist(), strict=True))\n"
            "ready = {slot: digest for _, digest, slot in state.ready_slots()}\n"
            "used = [ready[slot] for slot in sorted(ready, key=recency.__getitem__)]\n"
            "result = used, [ready[slot] for slot in state.policy.victims()]\n"
        )
        return found

    def settle(self) -> None:
        """What was fetched for a lookup is let go of a moment after that was answered."""
        source = "result = worker.engine.storage.prefetches.is_at_rest"
        wait_until(lambda: self.engine.run(source), "nothing is being fetched")

    def num_in_l1(self) -> int:
        return len(self.l1_order()[0])

    @contextlib.contextmanager
    def told(self) -> Iterator[list[list[int]]]:
        """Tokens of the chunks that KV events told of meanwhile; known at the end."""
        found: list[list[int]] = []
        self.engine.run(_LISTEN)
        try:
            yield found
        finally:
            found += self.engine.run(_TOLD)

    def leave_disk_only(self) -> None:
        """What is held is held by the disk tier alone."""
        self.files()
        self.settle()
        self.worker.json("DELETE", "/cache/clear?locations=LocalCPUBackend")
        assert self.num_in_l1() == 0

    @contextlib.contextmanager
    def as_before(self) -> Iterator[None]:
        """Whatever is switched or set in between is undone, and what was stored is gone."""
        before = self.scheduler.settings(), self.worker.settings()
        names = self.scheduler.lookup_name(), self.worker.lookup_name()
        yield
        for api, settings in zip((self.scheduler, self.worker), before, strict=True):
            api.restore(settings)
        self.worker.ask("PUT", "/freeze/disable")
        self.worker.ask("PUT", "/hot_cache/enable")
        for name in self.worker.json("GET", "/bypass/list")["bypassed_backends"]:
            self.worker.ask("PUT", f"/bypass/remove?backend_name={name}")
        self.worker.ask("POST", "/backends")
        for api, name in zip((self.worker, self.scheduler), reversed(names), strict=True):
            if api.lookup_name() != name:
                api.ask("POST", "/lookup/create")
        self.files()
        self.settle()
        self.worker.ask("DELETE", "/cache/clear")
        self.engine.check_nothing_held()
        assert not self.files()
