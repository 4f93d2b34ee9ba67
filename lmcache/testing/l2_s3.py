"""The S3 adapter's objects, reached behind its back: by plain HTTP, or as files."""

from __future__ import annotations

import pathlib
import uuid

from lmcache.core.keys import ObjectKey
from lmcache.core.sizes import GIB
from lmcache.l2.base import AdapterContext, L2Adapter
from lmcache.l2.object_names import object_name
from lmcache.l2.s3.adapter import S3L2Adapter
from lmcache.l2.s3.config import S3Config
from lmcache.testing.l2_backend import FilesBackend, L2Backend
from lmcache.testing.s3_servers import (
    ACCESS_KEY_ID,
    BUCKET,
    REGION,
    SECRET_ACCESS_KEY,
    MotoServer,
    RcloneServer,
    S3Server,
)


def s3_config(server: S3Server, prefix: str = "", **settings: object) -> S3Config:
    """Complete, so that nothing is looked for in the environment."""
    given: dict[str, object] = {
        "s3_endpoint": f"s3://{BUCKET}", "s3_endpoint_url": server.url, "s3_region": REGION, "s3_prefix": prefix,
        "aws_access_key_id": ACCESS_KEY_ID, "aws_secret_access_key": SECRET_ACCESS_KEY, "s3_num_io_threads": 8,
    }  # fmt: skip
    return S3Config(**{**given, **settings})  # type: ignore[arg-type]


class MotoBackend(L2Backend):
    """A prefix of its own; `settings` are those of the adapter."""

    listing_asks_the_backend = True

    def __init__(self, server: MotoServer, **settings: object) -> None:
        self.prefix = f"fleet/{uuid.uuid4().hex}"
        self._server = server
        self._settings = settings

    def make(self, context: AdapterContext, capacity_bytes: int) -> L2Adapter:
        config = s3_config(self._server, self.prefix, max_capacity_gb=capacity_bytes / GIB, **self._settings)
        return S3L2Adapter(config, context)

    def name(self, key: ObjectKey) -> str:
        return f"{self.prefix}/{object_name(key, 1023 - len(self.prefix))}"

    def content(self, key: ObjectKey) -> bytes | None:
        return self._server.get(self.name(key))

    def replace(self, key: ObjectKey, content: bytes) -> None:
        self._server.put(self.name(key), content)

    def remove(self, key: ObjectKey) -> None:
        self._server.delete(self.name(key))

    def num_objects(self) -> int:
        return len(self._server.names(f"{self.prefix}/"))

    def close(self) -> None:
        for name in self._server.names(f"{self.prefix}/"):
            self._server.delete(name)


class RcloneBackend(FilesBackend):
    listing_asks_the_backend = True

    def __init__(self, server: RcloneServer) -> None:
        self.prefix = uuid.uuid4().hex
        self._server = server

    def make(self, context: AdapterContext, capacity_bytes: int) -> L2Adapter:
        return S3L2Adapter(s3_config(self._server, self.prefix, max_capacity_gb=capacity_bytes / GIB), context)

    def path(self, key: ObjectKey) -> pathlib.Path:
        return self._server.bucket_folder / self.prefix / object_name(key)

    def num_objects(self) -> int:
        return sum(path.is_file() for path in (self._server.bucket_folder / self.prefix).rglob("*"))
