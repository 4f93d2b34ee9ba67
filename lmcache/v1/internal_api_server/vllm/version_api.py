"""Version and commit of the running package, as bare JSON strings."""

from __future__ import annotations

from fastapi import APIRouter

from lmcache.utils import COMMIT_ID, VERSION, get_version

router = APIRouter()


@router.get("/version")
async def version() -> str:
    """`<version>-<commit>`, each `NA` where the build did not say."""
    return get_version()


@router.get("/lmc_version")
async def lmc_version() -> str:
    """The version of this package; empty where the build did not say."""
    return VERSION


@router.get("/commit_id")
async def commit_id() -> str:
    """The commit this package was built from; empty where the build did not say."""
    return COMMIT_ID
