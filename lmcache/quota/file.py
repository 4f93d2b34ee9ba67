"""The file that quotas survive in: JSON, replaced whole. A file that cannot be read is kept aside, never fatal."""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Annotated

import msgspec

from lmcache.core.keys import check_cache_salt
from lmcache.errors import KeyFormatError, QuotaFileError

logger = logging.getLogger(__name__)

_VERSION = 1
_NUM_KEPT_ASIDE_MAX = 100


class _Quota(msgspec.Struct):
    cache_salt: str
    limit_bytes: Annotated[int, msgspec.Meta(ge=0)]


class _QuotaFile(msgspec.Struct):
    version: int
    quotas: list[_Quota]


def read_quotas(path: pathlib.Path) -> dict[str, int]:
    """Limits in bytes by tenant, in the order of their registration; none if there is no file."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_QuotaFile)
        if found.version != _VERSION:
            raise msgspec.ValidationError(f"its version is {found.version}, not {_VERSION}")
        for quota in found.quotas:
            check_cache_salt(quota.cache_salt)
    except FileNotFoundError:
        return {}
    except OSError as error:
        logger.warning("quotas cannot be read from %s (%s): starting without any", path, error.strerror)
        return {}
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyFormatError) as error:
        logger.warning(
            "%s is no file of quotas (%s): starting without any; it is kept as %s", path, error, _keep_aside(path)
        )
        return {}
    return {quota.cache_salt: quota.limit_bytes for quota in found.quotas}


def write_quotas(path: pathlib.Path, limits: Mapping[str, int]) -> None:
    """Replace the file by one that holds exactly these. Raises QuotaFileError; then the old one stands."""
    content = msgspec.json.format(
        msgspec.json.encode(_QuotaFile(_VERSION, [_Quota(salt, limit) for salt, limit in limits.items()]))
    )
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write_through(temporary, content)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise QuotaFileError(f"quotas cannot be kept in {path}: {error.strerror}; nothing was changed") from error


def _write_through(path: pathlib.Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _keep_aside(path: pathlib.Path) -> pathlib.Path:
    """Move a file out of the way under a free name; where it is then."""
    for number in range(_NUM_KEPT_ASIDE_MAX):
        aside = path.with_name(f"{path.name}.bad{number or ''}")
        try:
            os.link(path, aside)
            path.unlink()
        except FileExistsError:
            continue
        except OSError as error:
            logger.warning("%s cannot be renamed: %s", path, error.strerror)
            return path
        return aside
    return path
