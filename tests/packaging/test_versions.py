"""Version and commit: known to a built package, whoever built it, and unknown to a bare checkout."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
_BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
_ASK = "from lmcache import utils; print(utils.get_version(), repr(utils.VERSION), repr(utils.COMMIT_ID))"


def build(source: pathlib.Path, kind: str, **env: str) -> pathlib.Path:
    target = source.parent / f"{kind}-of-{source.name}"
    target.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", _BUILD, f"build_{kind}", str(target)],
        cwd=source, capture_output=True, text=True, env={**os.environ, **env}, check=True,
    )  # fmt: skip
    return target / result.stdout.splitlines()[-1]


def version_file(wheel: pathlib.Path) -> dict[str, str]:
    values: dict[str, str] = {}
    exec(zipfile.ZipFile(wheel).read("lmcache/_version.py"), values)
    return {name: values[name] for name in ("VERSION", "COMMIT_ID")}


def said_by(package_root: pathlib.Path) -> str:
    """What the package in this folder says of itself, in a process that sees no other."""
    result = subprocess.run(
        [sys.executable, "-S", "-c", _ASK], cwd=package_root, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def git(folder: pathlib.Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    result = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )  # fmt: skip
    return result.stdout.strip()


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    """What a checkout holds of the build, without git: the package cut down to what a version needs."""
    folder = tmp_path / "source"
    (folder / "lmcache").mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    for name in ("__init__.py", "utils.py", "logging.py", "py.typed"):
        shutil.copy(ROOT / "lmcache" / name, folder / "lmcache")
    return folder


def test_bare_checkout_knows_no_version(source: pathlib.Path) -> None:
    assert said_by(source) == "NA-NA '' ''"


def test_wheel_of_a_checkout_knows_its_commit(source: pathlib.Path) -> None:
    git(source, "init", "--quiet")
    git(source, "add", ".")
    git(source, "commit", "--quiet", "-m", "one")
    commit = git(source, "rev-parse", "HEAD")[:8]
    wheel = build(source, "wheel")
    assert wheel.name == f"lmcache-{VERSION}-py3-none-any.whl"
    assert version_file(wheel) == {"VERSION": VERSION, "COMMIT_ID": commit}
    assert not (source / "lmcache" / "_version.py").exists()


def test_sdist_carries_the_commit_to_its_wheel(source: pathlib.Path) -> None:
    sdist = build(source, "sdist", LMCACHE_COMMIT_ID="ca79ea33")
    with tarfile.open(sdist) as archive:
        archive.extractall(source.parent / "unpacked", filter="data")
    (unpacked,) = (source.parent / "unpacked").iterdir()
    assert version_file(build(unpacked, "wheel")) == {"VERSION": VERSION, "COMMIT_ID": "ca79ea33"}


def test_repository_around_the_source_is_not_asked(source: pathlib.Path) -> None:
    git(source.parent, "init", "--quiet")
    git(source.parent, "commit", "--quiet", "--allow-empty", "-m", "somebody else's")
    assert version_file(build(source, "wheel")) == {"VERSION": VERSION, "COMMIT_ID": ""}


def test_commit_of_the_environment_wins_and_is_checked(source: pathlib.Path) -> None:
    wheel = build(source, "wheel", LMCACHE_COMMIT_ID="0123abcd")
    assert version_file(wheel)["COMMIT_ID"] == "0123abcd"
    shutil.rmtree(wheel.parent)
    with pytest.raises(subprocess.CalledProcessError):
        build(source, "wheel", LMCACHE_COMMIT_ID='"; import os')


def test_installed_wheel_answers_version_and_commit(source: pathlib.Path) -> None:
    wheel = build(source, "wheel", LMCACHE_COMMIT_ID="ca79ea33")
    site = source.parent / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert said_by(site) == f"{VERSION}-ca79ea33 '{VERSION}' 'ca79ea33'"


def test_editable_install_stays_a_bare_checkout(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    build(source, "editable", LMCACHE_COMMIT_ID="ca79ea33")
    assert not list(source.rglob("_version.py"))


def test_version_stands_in_one_place() -> None:
    holders = [path.name for path in (ROOT / "lmcache").rglob("*.py") if f'"{VERSION}"' in path.read_text()]
    assert holders == []
