"""Bringing the files of a remote tier's folder into L1, whoever wrote them: a server, or an engine of either kind.

The folder is read and left as it is. Knows no HTTP.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lmcache.config.engine.loading import load_engine_config
from lmcache.config.engine.tiers import remote_tiers
from lmcache.core.keys import ObjectKey
from lmcache.embedded.config import Rank
from lmcache.embedded.operations import LoadedChunks
from lmcache.engine.pool import Pool
from lmcache.errors import ConfigError, L2Error, LMCacheError
from lmcache.l1.namespace import NamespaceKey
from lmcache.l1.values import Place
from lmcache.l2.base import AdapterContext, L2Adapter
from lmcache.l2.fs.names import file_name
from lmcache.l2.registry import L2AdapterSpec, make_adapter, parse_adapter_object
from lmcache.memory.records import ready_word
from lmcache.protocol.blobs import split_places
from lmcache.protocol.messages import ReserveStatus

logger = logging.getLogger(__name__)

_AT_ONCE_MAX = 10
_PAGE_KEYS = 1000
# An object, its payload, and whether that is lossy: whether it is in L1 now.
Admit = Callable[[ObjectKey, memoryview, bool], bool]
_SUFFIX = b".data"
_DTYPE_NAMES = {"float16": "half", "float32": "float", "float64": "double"}


@dataclass(frozen=True, slots=True)
class _File:
    """`key` None: its name is not that of an object."""

    folder: L2Adapter
    name: str
    key: ObjectKey | None


def load_fs_chunks(config_path: str, num_chunks_max: int | None, dtype: str, admit: Admit) -> LoadedChunks:
    """`admit` puts an object into L1; False: it does not belong there, or found no room. Called in a few threads.
    `dtype` is how keys that failed are printed. Raises ConfigError where the configuration cannot be read, else
    LMCacheError."""
    adapters = [make_adapter(spec, AdapterContext(spec.type, is_reader=True)) for spec in _folders_of(config_path)]
    try:
        files = [file for adapter in adapters for file in _open_and_list(adapter)]
        chosen = files if num_chunks_max is None else files[:num_chunks_max]
        with ThreadPoolExecutor(_AT_ONCE_MAX, thread_name_prefix="lmcache-fs-chunks") as pool:
            outcomes = list(pool.map(lambda file: _load(file, admit), chosen))
    finally:
        for adapter in adapters:
            adapter.close()
    failed = [_printed(file, dtype) for file, is_loaded in zip(chosen, outcomes, strict=True) if not is_loaded]
    return LoadedChunks(sum(outcomes), len(files), tuple(failed))


def _folders_of(config_path: str) -> list[L2AdapterSpec]:
    """The remote tiers that are folders. Only the file counts: it describes another engine. Raises ConfigError."""
    if not config_path:
        raise ConfigError("config_path is empty: name a configuration file on this host")
    config, _ = load_engine_config({}, {}, config_path)
    specs = [parse_adapter_object(dict(tier.adapter), tier.name) for tier in remote_tiers(config)]
    folders = [spec for spec in specs if spec.type in ("fs", "fs_native")]
    if not folders:
        raise ConfigError(
            f"{config_path} names no remote folder: set remote_url to fs://..., or remote_storage_plugins to [fs]"
        )
    return folders


def _open_and_list(adapter: L2Adapter) -> Iterator[_File]:
    """Objects in the order of the listing, then files that should be objects and are not."""
    adapter.open()
    known: set[bytes] = set()
    token: str | None = None
    while True:
        page = adapter.list_l2_keys(None, _PAGE_KEYS, token)
        for key, _ in page.entries:
            known.add(file_name(key))
            yield _File(adapter, os.fsdecode(file_name(key)), key)
        token = page.next_page_token
        if token is None:
            break
    for name in sorted(_data_files(str(adapter.report_status()["base_path"])) - known):
        yield _File(adapter, os.fsdecode(name), None)


def _data_files(base_path: str) -> set[bytes]:
    """Names of files that look like objects, in the folder or one level below it."""
    try:
        base = os.fsencode(base_path)
        with os.scandir(base) as entries:
            found = list(entries)
        folders = [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]
        names = {entry.name for entry in found if not entry.is_dir(follow_symlinks=False)}
        for folder in folders:
            names.update(os.listdir(folder))
    except OSError as error:
        raise LMCacheError(f"{base_path} cannot be listed: {error.strerror}") from error
    return {name for name in names if name.endswith(_SUFFIX)}


def _load(file: _File, admit: Admit) -> bool:
    if file.key is None:
        return False
    try:
        return admit(file.key, file.folder.load_whole(file.key), file.folder.is_lossy)
    except L2Error as error:
        logger.warning("%s cannot be loaded: %s", file.name, error)
    except Exception:  # the root of a load: log, count as failed, go on with the others
        logger.exception("%s cannot be loaded", file.name)
    return False


def _printed(file: _File, dtype: str) -> str:
    return file.name if file.key is None else printed_key(file.key, dtype)


def printed_key(key: ObjectKey, dtype: str) -> str:
    """`model@world@worker@hash@dtype`, as operators know keys; a tenant's salt as a tag."""
    world_size, rank = key.kv_rank >> 24, key.kv_rank >> 16 & 0xFF
    short = dtype.removeprefix("torch.")
    tag = f"@cache_salt%{key.cache_salt}" if key.cache_salt else ""
    return f"{key.model_name}@{world_size}@{rank}@{key.chunk_hash.hex()}@{_DTYPE_NAMES.get(short, short)}{tag}"


class ChunkAdmission:
    """Puts objects that came from elsewhere into L1. `writer_uid`: as whom it writes to slots. `keeps` is asked after
    each: what came while L1 stopped keeping objects goes again."""

    def __init__(
        self,
        pool: Pool,
        rank: Rank,
        chunk_bytes: int,
        writer_uid: int,
        make_key: Callable[[str], NamespaceKey],
        keeps: Callable[[], bool],
    ) -> None:
        self._pool = pool
        self._rank = rank
        self._chunk_bytes = chunk_bytes
        self._writer_uid = writer_uid
        self._make_key = make_key
        self._keeps = keeps

    def admit(self, key: ObjectKey, payload: memoryview, is_lossy: bool = False) -> bool:
        """Whether it is in L1 now, from before perhaps. False also for an object that is not one of this rank's. Its
        root need not be known: the digest is a hash of it, and nobody of another root will ask for it."""
        if not self._fits(key, len(payload)):
            return False
        l1, namespace, rank_group = self._pool.l1, self._make_key(key.cache_salt), self._rank.rank_group
        result = l1.reserve(namespace, rank_group, self._writer_uid, [key.chunk_hash], len(payload))
        if result.statuses[0] != ReserveStatus.RESERVED:
            return result.statuses[0] in (ReserveStatus.EXISTS, ReserveStatus.BUSY)
        slot, word, offset, length = split_places(l1.places(result.slots))[0]
        place = Place(slot, word, length)
        self._pool.view(offset, length)[:] = payload
        if l1.commit_loaded(self._writer_uid, place, lock=False, is_temporary=False, is_lossy=is_lossy) is None:
            return False
        if not self._keeps():
            l1.let_go([place._replace(slot_word=ready_word(word))])
            return False
        return True

    def _fits(self, key: ObjectKey, num_bytes: int) -> bool:
        """Its model and rank, and whole blocks, no more than a chunk of them."""
        is_ours = key.model_name == self._rank.model_name
        is_of_rank = (key.kv_rank, key.object_group_id) == self._rank.rank_group
        is_chunk = 0 < num_bytes <= self._chunk_bytes and num_bytes % self._rank.layout.block_bytes == 0
        return is_ours and is_of_rank and is_chunk
