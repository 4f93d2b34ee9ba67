"""`python -m benchmarks [name ...]`: all benchmarks or those named, then which targets were met.

A target that is missed is a result; only what breaks ends with another exit code than 0.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import pathlib
import platform
import sys
import traceback

from benchmarks.common import Row, interrupt_once

_NEED_VLLM = ("vllm_ttft", "hooks", "embedded_ttft", "embedded_hooks", "embedded_start")
NAMES = ("transfer", "lookup", "start", "scale", "replay", "http", "busy_tier", "fs", "s3", "redis", *_NEED_VLLM)


def machine_facts() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), platform.machine())
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    cores = len(os.sched_getaffinity(0))
    return (
        f"{model}, {cores} cores, {memory_gib:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )


def summary(results: dict[str, list[Row]], broken: list[str]) -> str:
    judged = [(name, row) for name, rows in results.items() for row in rows if row.is_met is not None]
    missed = [(name, row) for name, row in judged if not row.is_met]
    lines = [f"{len(judged) - len(missed)} of {len(judged)} targets met"]
    lines += [f"  missed  {name}: {row.name}: {row.value} (target {row.target})" for name, row in missed]
    lines += [f"  broke   {name}" for name in broken]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; all by default")
    names = parser.parse_args().names or NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    interrupt_once()
    print(machine_facts())
    results: dict[str, list[Row]] = {}
    broken: list[str] = []
    for name in names:
        if name in _NEED_VLLM and importlib.util.find_spec("vllm") is None:
            print(f"\n{name} needs vLLM, which is not installed: skipped")
            continue
        try:
            results[name] = importlib.import_module(f"benchmarks.{name}").main()
        except Exception:  # the root of a benchmark: say it, go on with the next
            traceback.print_exc()
            broken.append(name)
    print(f"\n{summary(results, broken)}")
    return 1 if broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
