"""Settings of the in-process mode: keys, where they come from, and the holder that changes at run time.

`loading.load_engine_config` makes the holder. Knows no component that reads it.
"""

from lmcache.config.engine.config import Change, LMCacheEngineConfig
from lmcache.config.engine.definitions import _CONFIG_DEFINITIONS

__all__ = ["_CONFIG_DEFINITIONS", "Change", "LMCacheEngineConfig"]
