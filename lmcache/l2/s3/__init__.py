"""Objects in a bucket of S3, of a server compatible with it, of Google Cloud Storage or of Azure."""

from __future__ import annotations

from lmcache.errors import ConfigError
from lmcache.l2.base import AdapterContext, L2Adapter
from lmcache.l2.s3.config import S3Config as Config

TYPE_NAMES = ("s3",)


def make(config: Config, context: AdapterContext) -> L2Adapter:
    try:
        import obstore  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise ConfigError("an L2 adapter of type s3 needs obstore: pip install lmcache[s3]") from error
    from lmcache.l2.s3.adapter import S3L2Adapter

    return S3L2Adapter(config, context)
