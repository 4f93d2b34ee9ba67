"""What an engine of its own is told: the shape of its pages, and the settings of the in-process mode around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmcache.config.engine import LMCacheEngineConfig
from lmcache.config.engine.loading import load_engine_config
from lmcache.config.engine.sources import FILE_VARIABLE, read_environment, read_file
from lmcache.core.keys import check_model_name
from lmcache.core.sizes import GIB, MIB
from lmcache.errors import ConfigError, KeyFormatError
from lmcache.integration.synthetic.shape import ModelShape

_POOL_BYTES_MIN = 64 * MIB


@dataclass(frozen=True, slots=True)
class StandaloneSettings:
    """`num_blocks` of `block_size` tokens; their bytes follow from `seed`."""

    shape: ModelShape
    block_size: int
    num_blocks: int
    model_name: str
    seed: int

    @property
    def pages_bytes(self) -> int:
        return self.shape.bytes_per_token * self.block_size * self.num_blocks


def load_standalone_config(
    settings: StandaloneSettings, environ: Mapping[str, str], config_file: str | None
) -> tuple[LMCacheEngineConfig, list[str]]:
    """As the in-process mode reads it; but the API is on and L1 fits the pages, unless something else is set.

    Raises ConfigError.
    """
    pool_bytes = max(_POOL_BYTES_MIN, 2 * settings.pages_bytes)
    defaults: dict[str, object] = {"internal_api_server_enabled": True, "max_local_cpu_size": pool_bytes / GIB}
    path = config_file or environ.get(FILE_VARIABLE)
    given = {*read_environment(environ).values, *(read_file(path).values if path else ())}
    unset = {f"lmcache.{key}": value for key, value in defaults.items() if key not in given}
    config, warnings = load_engine_config(environ, unset, config_file)
    _check_chunks(config.chunk_size, settings)
    try:
        check_model_name(settings.model_name)
    except KeyFormatError as error:
        raise ConfigError(f"--model cannot be used: {error}") from error
    return config, warnings


def _check_chunks(chunk_size: int, settings: StandaloneSettings) -> None:
    if chunk_size % settings.block_size:
        raise ConfigError(
            f"chunk_size {chunk_size} is not a multiple of --block-size {settings.block_size}: change one of them"
        )
    num_tokens = settings.block_size * settings.num_blocks
    if chunk_size > num_tokens:
        raise ConfigError(
            f"{settings.num_blocks} blocks of {settings.block_size} tokens hold no chunk of chunk_size {chunk_size}: "
            "set more --blocks"
        )
