"""`lmcache doctor` on this host: real pools, folders, sockets and ports that are in the way, or are not."""

from __future__ import annotations

import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lmcache.core.sizes import GIB, MIB
from lmcache.memory.pool_files import Geometry, PoolFiles
from lmcache.memory.room import Room
from lmcache.server.pools import occupied_bytes
from lmcache.testing.ports import free_port
from tests.cli.doctor_site import IN_PROCESS, findings_of, host_of, only, serve, transfer_of
from tests.conftest import StartChild

WORDS = serve(transfer_of(IN_PROCESS, {"lmcache.max_local_cpu_size": 1}))
# Enough for the pool of one rank with its index, not for two.
ONE_POOL = Room(int(1.2 * GIB), None)
HOLD = """
import pathlib, sys
from lmcache.memory.pool_files import Geometry, PoolFiles
files = PoolFiles(pathlib.Path(sys.argv[1]), Geometry.for_pool(1 << 20))
files.populate(0, 1 << 20)
print("held", flush=True)
sys.stdin.readline()
files.close(keep=True)
print("left", flush=True)
"""


@pytest.fixture(autouse=True)
def no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LMCACHE_CONFIG_FILE", "VLLM_RPC_BASE_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_a_pool_for_every_rank_of_every_engine(tmp_path: pathlib.Path) -> None:
    one, three = (host_of(room=room, root=tmp_path) for room in (ONE_POOL, Room(3 * GIB, None)))
    assert findings_of(WORDS, host=one) == []
    assert findings_of([*WORDS, "-tp", "2"], host=three) == []
    for flags in (["-tp", "2"], ["-pp", "2"], ["-dp", "2"]):
        found = only(findings_of([*WORDS, *flags], host=one), "error", "2 pools of max_local_cpu_size")
        assert "set max_local_cpu_size to 0.5 or less" in found.remedy


def test_the_limit_of_the_container_counts(tmp_path: pathlib.Path) -> None:
    room = Room(100 * GIB, 512 * MIB)
    only(findings_of(WORDS, host=host_of(room=room, root=tmp_path)), "error", "512 MiB are free")


def test_what_is_reserved_is_not_free(tmp_path: pathlib.Path) -> None:
    words = serve(transfer_of(IN_PROCESS, {"lmcache.max_local_cpu_size": 1, "lmcache.reserve_local_cpu_size": 0.5}))
    only(findings_of(words, host=host_of(room=ONE_POOL, root=tmp_path)), "error", f"no room in {tmp_path}")


def test_no_pool_needs_no_room(tmp_path: pathlib.Path) -> None:
    words = serve(transfer_of(IN_PROCESS, {"lmcache.max_local_cpu_size": 0}))
    only(findings_of(words, host=host_of(room=Room(0, None), root=tmp_path)), "warning", "nothing is cached")


def test_pools_that_dead_processes_left(tmp_path: pathlib.Path, start_child: StartChild) -> None:
    """Those of engines go with the next start; those of servers are kept for theirs."""
    needed = Geometry.for_pool(GIB).total_bytes
    host = host_of(room=Room(needed - 64 * 1024, None), root=tmp_path)
    only(findings_of(WORDS, host=host), "error", "no room in")
    private = tmp_path / f"lmcache-embedded-{os.geteuid()}-dead"
    child = start_child(HOLD, str(private))
    assert child.read_line() == "held"
    only(findings_of(WORDS, host=host), "error", "no room in")
    child.write_line()
    assert child.read_line() == "left"
    found = only(findings_of(WORDS, host=host), "note", "no room in")
    assert "the next start removes it" in found.remedy
    only(findings_of(WORDS, host=host_of(room=Room(MIB, None), root=tmp_path)), "error", "no room in")
    kept = PoolFiles(tmp_path / "lmcache-kept", Geometry.for_pool(MIB))
    kept.close(keep=True)
    room = Room(needed - occupied_bytes(private) - 4096, None)
    found = only(findings_of(WORDS, host=host_of(room=room, root=tmp_path)), "error", "no room in")
    assert "`lmcache pool rm kept` frees" in found.remedy


def test_shared_memory_that_is_not_there(tmp_path: pathlib.Path) -> None:
    host = host_of(root=tmp_path / "none")
    found = findings_of(WORDS, host=host)
    assert "is not writable" in found[0].what


def test_folders_of_tiers(tmp_path: pathlib.Path) -> None:
    extra = {"lmcache.max_local_cpu_size": 1, "lmcache.local_disk": str(tmp_path / "a/b"),
             "lmcache.max_local_disk_size": 0.001}  # fmt: skip
    assert findings_of(serve(transfer_of(IN_PROCESS, extra))) == []
    assert not (tmp_path / "a").exists()
    extra["lmcache.max_local_disk_size"] = 1 << 20
    found = only(findings_of(serve(transfer_of(IN_PROCESS, extra))), "warning", "is more than")
    assert "set it to" in found.remedy
    (tmp_path / "file").write_text("")
    extra |= {"lmcache.max_local_disk_size": 0.001, "lmcache.local_disk": str(tmp_path / "file")}
    only(findings_of(serve(transfer_of(IN_PROCESS, extra))), "error", "LocalDiskBackend: the folder")
    remote = {"lmcache.max_local_cpu_size": 1, "lmcache.remote_storage_plugins": ["fs"],
              "lmcache.extra_config": {"fs_base_path": str(tmp_path / "file/x")}}  # fmt: skip
    only(findings_of(serve(transfer_of(IN_PROCESS, remote))), "error", "RemoteBackend-fs: the folder")


def test_settings_of_tiers_are_their_adapters_to_know(tmp_path: pathlib.Path) -> None:
    settings = {"remote_storage_plugin.fs.base_path": str(tmp_path), "remote_storage_plugin.fs.num_wrkers": 3}
    extra = {"lmcache.remote_storage_plugins": ["fs"], "lmcache.extra_config": settings}
    only(findings_of(serve(transfer_of(IN_PROCESS, extra))), "error", "num_wrkers")


def test_sockets_of_lookups(tmp_path: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(prefix="l", dir="/tmp") as short:
        assert findings_of(WORDS, VLLM_RPC_BASE_PATH=f"{short}/rpc") == []
        pathlib.Path(short, "file").write_text("")
        only(findings_of(WORDS, VLLM_RPC_BASE_PATH=f"{short}/file"), "error", "no socket can be made in")
    long = str(tmp_path / ("x" * 80))
    only(findings_of(WORDS, VLLM_RPC_BASE_PATH=long), "error", "set VLLM_RPC_BASE_PATH to a shorter")


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def api_words(**settings: object) -> list[str]:
    extra = {"lmcache.max_local_cpu_size": 1, "lmcache.internal_api_server_enabled": True}
    return serve(transfer_of(IN_PROCESS, extra | {f"lmcache.internal_api_server_{k}": v for k, v in settings.items()}))


def test_ports_of_the_internal_api() -> None:
    """Index 0 alone where a test knows of one free port: the next may be anybody's."""
    assert findings_of(api_words(port_start=free_port(), include_index_list=[0])) == []
    with taken_port() as port:
        found = only(findings_of(api_words(port_start=port, include_index_list=[0])), "warning", "cannot listen")
        assert f"the scheduler's internal API cannot listen at 127.0.0.1:{port} (Address already in use)" in found.what
        found = only(findings_of(api_words(port_start=port - 1, include_index_list=[1])), "warning", "cannot listen")
        assert f"worker 0's internal API cannot listen at 127.0.0.1:{port}" in found.what
    words = api_words(port_start=65535, include_index_list=[1])
    only(findings_of(words), "error", "worker 0's internal API would have port 65536")


def test_socket_paths_and_files_of_the_internal_api(tmp_path: pathlib.Path) -> None:
    assert findings_of(api_words(socket_path_prefix=str(tmp_path / "api"), include_index_list=[0])) == []
    for path in (tmp_path / "none/api", tmp_path / ("x" * 100)):
        only(findings_of(api_words(socket_path_prefix=str(path), include_index_list=[0])), "error", "cannot listen at")
    words = api_words(port_start=free_port(), include_index_list=[0], auth_token_file=str(tmp_path / "none"))
    only(findings_of(words), "error", "internal_api_server_auth_token_file")
