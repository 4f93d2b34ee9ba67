"""What the tests of `lmcache doctor` share: a subject as given, and findings by level."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from lmcache.cli.doctor.diagnosis import examine
from lmcache.cli.doctor.findings import Finding
from lmcache.cli.doctor.reading import read_subject
from lmcache.cli.doctor.subject import Host
from lmcache.memory.room import Room

IN_PROCESS = "LMCacheConnectorV1"
SERVER = "LMCacheMPConnector"
ROOMY = Room(1 << 40, None)


def host_of(version: str | None = "0.32.0+cpu", room: Room = ROOMY, root: pathlib.Path | None = None) -> Host:
    return Host(lambda: version, root or pathlib.Path("/dev/shm"), lambda _: room, timeout_s=20.0)


def transfer_of(connector: str, extra: dict[str, Any] | None = None, **fields: Any) -> str:
    given = {"kv_connector": connector, "kv_role": "kv_both", **fields}
    return json.dumps({name: value for name, value in given.items() if value is not None}
                      | ({"kv_connector_extra_config": extra} if extra is not None else {}))  # fmt: skip


def serve(transfer: str, *flags: str) -> list[str]:
    return ["vllm", "serve", "org/model", "--kv-transfer-config", transfer, *flags]


def findings_of(
    words: Sequence[str] = (), config: str | None = None, host: Host | None = None, http_url: str | None = None,
    **environ: str,
) -> list[Finding]:  # fmt: skip
    return examine(read_subject(words, None, config, environ, host or host_of(), http_url))


def only(findings: Sequence[Finding], level: str, what: str) -> Finding:
    """The one finding there is, of this level, that says this."""
    assert [finding.level.value for finding in findings] == [level], findings
    assert what in findings[0].what
    return findings[0]
