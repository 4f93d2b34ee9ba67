"""The settings of the in-process mode: what their own checks say, and chunks against blocks."""

from __future__ import annotations

from collections.abc import Iterator

from lmcache.cli.doctor.findings import Finding, Level, error, of_line, warning
from lmcache.cli.doctor.subject import DEFAULT_BLOCK_SIZES, ENGINE_PREFIX, Subject
from lmcache.config.engine import LMCacheEngineConfig
from lmcache.config.engine.loading import load_engine_config
from lmcache.config.engine.tiers import tiers
from lmcache.errors import ConfigError
from lmcache.l2.registry import parse_adapter_object


def load_settings(subject: Subject) -> tuple[LMCacheEngineConfig | None, list[Finding]]:
    """The configuration, if there is one, and what is wrong with it."""
    try:
        config, lines = load_engine_config(subject.environ, subject.engine_extra, subject.config_file)
    except ConfigError as refusal:
        return None, [error(str(refusal), "vLLM does not start with it", "correct the value")]
    return config, [of_line(Level.WARNING, _with_prefix(line)) for line in lines]


def _with_prefix(line: str) -> str:
    """A key of kv_connector_extra_config is told with the prefix that it has there."""
    before, guess, name = line.partition("; did you mean ")
    is_ours = before.endswith("in kv_connector_extra_config is ignored")
    return f"{before}{guess}{ENGINE_PREFIX}{name}" if guess and is_ours else line


def check_tiers(config: LMCacheEngineConfig) -> Iterator[Finding]:
    """Types and fields, as their adapters know them."""
    try:
        found = tiers(config)
    except ConfigError as refusal:
        yield error(str(refusal), "vLLM does not start with it")
        return
    for tier in found:
        try:
            parse_adapter_object(dict(tier.adapter), tier.name)
        except ConfigError as refusal:
            yield error(str(refusal), "vLLM does not start with it")


def check_chunk_size(subject: Subject, chunk_size: int, where: str, remedy: str) -> Iterator[Finding]:
    """`where`: who says so; `remedy` takes the size that fits. A block size that nobody chose is assumed, and the
    assumption is told."""
    size, name, is_sure = _block_size(subject)
    if chunk_size % size == 0:
        return
    fitting = max(size, chunk_size // size * size)
    why = "a chunk must be whole blocks: vLLM does not start"
    yield (error if is_sure else warning)(
        f"{where} {chunk_size} is not a multiple of {name}",
        why if subject.command.block_size else f"{why} (no --block-size is given)",
        f"{remedy.format(fitting)}, or start vLLM with a --block-size that divides {chunk_size}",
    )


def _block_size(subject: Subject) -> tuple[int, str, bool]:
    """Blocks, what to call them, and whether they are known: by a flag, or by the installed build."""
    given = subject.command.block_size
    if given is not None:
        return given, f"--block-size {given}", True
    version = subject.host.find_vllm()
    device = "CPU" if "cpu" in (version or "") else "GPU"
    size = DEFAULT_BLOCK_SIZES[device]
    return size, f"vLLM's default block size on {device}, {size}", version is not None
