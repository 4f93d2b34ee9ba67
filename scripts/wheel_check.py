"""Build wheel and sdist, install each into a clean environment, and hold them to what they promise.

The suite without vLLM then runs against the installed wheel, from a folder in which the
checkout cannot be imported. Arguments are passed on to pytest.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = sorted(name for name in PROJECT["optional-dependencies"] if name != "dev")
DEV_TOOLS = PROJECT["optional-dependencies"]["dev"]
# What looks at the sources only, and our own extras; the rest of the tools is for the tests.
SOURCE_TOOLS = ("build", "import-linter", "mypy", "ruff", "setuptools", f"{PROJECT['name']}[")
TEST_TOOLS = [line for line in DEV_TOOLS if not line.startswith(SOURCE_TOOLS)]
# What an installed package says of itself, asked from inside its environment.
ASK_VERSION = "from lmcache.utils import *; print(get_version(), VERSION, COMMIT_ID)"


def run(*command: str | pathlib.Path, cwd: pathlib.Path = ROOT, **variables: str) -> str:
    env = {**os.environ, **variables}
    env.pop("PYTHONPATH", None)
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def build(source: pathlib.Path, target: pathlib.Path, kind: str) -> pathlib.Path:
    shutil.rmtree(source / "build", ignore_errors=True)  # what an earlier build left would be packed again
    run(sys.executable, "-m", "build", f"--{kind}", "--outdir", target, source)
    shutil.rmtree(source / "build", ignore_errors=True)
    (found,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return found


def expected_commit() -> str:
    return run("git", "rev-parse", "HEAD").strip()[:8]


def check_wheel(wheel: pathlib.Path, commit: str) -> None:
    """Pure Python, and nothing but the package inside."""
    assert wheel.name.endswith("-py3-none-any.whl"), f"{wheel.name} is not a pure Python wheel"
    names = zipfile.ZipFile(wheel).namelist()
    foreign = [name for name in names if not name.startswith(("lmcache/", f"lmcache-{PROJECT['version']}.dist-info/"))]
    assert not foreign, f"the wheel holds {foreign}"
    version_file = zipfile.ZipFile(wheel).read("lmcache/_version.py").decode()
    assert f'COMMIT_ID = "{commit}"' in version_file, f"{wheel.name} does not know commit {commit}: {version_file}"


def check_installed(python: pathlib.Path, commit: str, folder: pathlib.Path) -> None:
    version = PROJECT["version"]
    answer = run(python, "-c", ASK_VERSION, cwd=folder).split()
    assert answer == [f"{version}-{commit}", version, commit], f"the installed package says {answer}"
    command = run(python.parent / "lmcache", "--version", cwd=folder).strip()
    assert command == f"{version}-{commit}", f"the installed command says {command}"


def run_suite(python: pathlib.Path, folder: pathlib.Path, arguments: list[str]) -> None:
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)  # pytest's settings
    left_out = [f"--ignore={path.relative_to(folder)}" for path in folder.rglob("test_*.py") if needs_more(path)]
    command = [str(python), "-m", "pytest", "-q", "--ignore-glob=*/vllm_*", "--ignore=tests/packaging", *left_out]
    subprocess.run([*command, *arguments, "tests"], cwd=folder, check=True)


def needs_more(test: pathlib.Path) -> bool:
    """Than the package: an engine, or what is in the checkout alone."""
    return re.search(r"^(import|from) (torch|vllm|benchmarks)\b", test.read_text(), re.MULTILINE) is not None


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="lmcache-wheel-check-") as name:
        folder = pathlib.Path(name)
        commit = expected_commit()
        wheel = build(ROOT, folder / "wheel", "wheel")
        check_wheel(wheel, commit)
        sdist = build(ROOT, folder / "sdist", "sdist")
        shutil.unpack_archive(sdist, folder / "unpacked")
        (source,) = (folder / "unpacked").iterdir()
        check_wheel(build(source, folder / "wheel-of-sdist", "wheel"), commit)
        run(sys.executable, "-m", "venv", folder / "env")
        python = folder / "env" / "bin" / "python"
        wanted = f"{wheel}[{','.join(EXTRAS)}]" if EXTRAS else str(wheel)
        run(python, "-m", "pip", "install", "--quiet", wanted, *TEST_TOOLS)
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        check_installed(python, commit, elsewhere)
        run_suite(python, elsewhere, arguments)
        print(f"{wheel.name}: {PROJECT['version']}-{commit}, suite passed from outside the checkout")


if __name__ == "__main__":
    main(sys.argv[1:])
