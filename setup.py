"""Build hooks: a built package knows its version and commit, a bare checkout does not.

The version stands in pyproject.toml alone. The commit comes from LMCACHE_COMMIT_ID, from
git, or from the `_version.py` that an sdist carries, in this order.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = pathlib.Path(__file__).resolve().parent
VERSION_FILE = pathlib.PurePath("lmcache", "_version.py")
COMMIT_CHARACTERS = 8


def git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()


def commit_of_checkout() -> str:
    """The commit of this very checkout, not of a repository that happens to lie around it."""
    top = git("rev-parse", "--show-toplevel")
    is_ours = bool(top) and pathlib.Path(top).resolve() == ROOT
    return git("rev-parse", "HEAD")[:COMMIT_CHARACTERS] if is_ours else ""


def commit_of_sdist() -> str:
    try:
        found = re.search(r'^COMMIT_ID = "([0-9a-f]*)"$', (ROOT / VERSION_FILE).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found.group(1) if found else ""


def commit_id() -> str:
    given = os.environ.get("LMCACHE_COMMIT_ID", "")
    if given and not re.fullmatch(r"[0-9a-f]{4,40}", given):
        raise SystemExit(f"LMCACHE_COMMIT_ID must be 4 to 40 hexadecimal digits (got {given!r})")
    return given or commit_of_checkout() or commit_of_sdist()


def write_version(folder: str, version: str) -> None:
    path = pathlib.Path(folder, VERSION_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # may be a hard link to the source
    path.write_text(f'"""Written at build time."""\n\nVERSION = "{version}"\nCOMMIT_ID = "{commit_id()}"\n')


class BuildPy(build_py):
    """An editable install stays what it is, a checkout, and gets no version file."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            write_version(self.build_lib, self.distribution.get_version())


class Sdist(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        write_version(base_dir, self.distribution.get_version())


setup(cmdclass={"build_py": BuildPy, "sdist": Sdist})
