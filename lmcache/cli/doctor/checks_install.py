"""Versions, environments and the shape of the engine: what this release can serve at all."""

from __future__ import annotations

import pathlib
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from lmcache.cli.doctor.findings import Finding, error, note, warning
from lmcache.cli.doctor.subject import Subject

# The release whose connectors ours are made for.
_VLLM = "0.32"
# In the version of every build of vLLM for CPUs: it finds its device by it.
_CPU_BUILD = "cpu"
_OTHER_HOSTS = ("ray", "external_launcher")
_CONTEXT_PARALLEL = ("prefill-context-parallel-size", "decode-context-parallel-size")


def find_vllm() -> str | None:
    """The version that is installed beside us. Imports nothing of it."""
    try:
        return version("vllm")
    except PackageNotFoundError:
        return None


def check_install(subject: Subject) -> Iterator[Finding]:
    other = _other_environment(subject.command.program)
    if other is not None:
        yield from _check_environment(other)
        return
    found = subject.host.find_vllm()
    if found is None:
        if subject.command.program:
            yield note(
                "vLLM is not installed in this environment", "its version cannot be compared",
                "install lmcache where vLLM is, and run this command there",
            )  # fmt: skip
    elif not found.startswith(f"{_VLLM}."):
        yield warning(
            f"vLLM {found} is installed", f"lmcache's connectors are made for vLLM {_VLLM}",
            f"install vLLM {_VLLM}, or expect it not to start",
        )  # fmt: skip
    elif _CPU_BUILD not in found:
        yield error(
            f"vLLM {found} is a build for GPUs", "only KV that lies in the memory of CPUs can be cached: the engine "
            "runs without cache", f"use vLLM's build for CPUs, such as {found.partition('+')[0]}+{_CPU_BUILD}",
        )  # fmt: skip


def _other_environment(program: str) -> pathlib.Path | None:
    """The prefix of the program's environment, where that is not ours and looks like one."""
    found = shutil.which(program) if program else None
    if found is None:
        return None
    prefix = pathlib.Path(found).absolute().parent.parent
    has_packages = any(prefix.glob("lib/python3*/site-packages/vllm*"))
    return prefix if has_packages and prefix != pathlib.Path(sys.prefix) else None


def _check_environment(prefix: pathlib.Path) -> Iterator[Finding]:
    packages = list(prefix.glob("lib/python3*/site-packages"))
    if not any(found for folder in packages for found in folder.glob("*lmcache*")):
        yield error(
            f"the environment {prefix} has vLLM and no lmcache", "vLLM loads the connector from its own environment",
            f"{prefix}/bin/pip install lmcache",
        )  # fmt: skip


def check_engine_shape(subject: Subject) -> Iterator[Finding]:
    """What is declined at the start, as far as flags tell. Raises ConfigError."""
    command = subject.command
    for name in _CONTEXT_PARALLEL:
        if command.number(name) > 1:
            yield error(f"--{name} is above 1", "engines with context parallelism run without cache", "leave it out")
    executor = command.flags.get("distributed-executor-backend", "mp")
    may_leave_host = command.number("nnodes") > 1 or executor in _OTHER_HOSTS
    if command.num_ranks > 1 and may_leave_host:
        yield error(
            f"the {command.num_ranks} ranks may run on several hosts", "shared memory does not reach other hosts: "
            "the engine runs without cache", "use the executor mp on one host",
        )  # fmt: skip
