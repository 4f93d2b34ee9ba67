"""Objects as strings of a Redis or Valkey server, or of a cluster of them, which several servers may share."""

from __future__ import annotations

from lmcache.errors import ConfigError
from lmcache.l2.base import AdapterContext, L2Adapter
from lmcache.l2.redis.config import RedisConfig as Config

TYPE_NAMES = ("redis", "resp", "valkey")


def make(config: Config, context: AdapterContext) -> L2Adapter:
    try:
        import hiredis  # noqa: F401 - only whether they are there
        import redis  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"an L2 adapter of type {context.type_name} needs redis-py and hiredis: pip install lmcache[redis]"
        ) from error
    from lmcache.l2.redis.adapter import RedisL2Adapter

    return RedisL2Adapter(config, context)
