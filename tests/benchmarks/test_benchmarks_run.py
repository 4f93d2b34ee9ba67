"""The benchmarks that need no vLLM, at tiny sizes: that they run and report, not how fast anything is."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from benchmarks import __main__ as suite
from benchmarks import busy_tier, demo, http, lookup, scale, start, transfer
from benchmarks.common import SHARED_MEMORY, Row, print_rows
from lmcache.testing.waiting import wait_until
from tests.conftest import child_env, hear_sigint


def num_judged(rows: list[Row]) -> int:
    return sum(row.is_met is not None for row in rows)


@pytest.fixture(autouse=True)
def no_pools_left() -> None:
    yield
    assert not list(SHARED_MEMORY.glob(f"lmcache-bench-*{os.getpid()}*"))


def test_transfer(capsys: pytest.CaptureFixture[str]) -> None:
    rows = transfer.main(request_tokens=1024, sizes=((4096, 4),), rounds=2, warm_up=1)

    assert num_judged(rows) == 2
    printed = capsys.readouterr().out
    assert all(row.name in printed for row in rows)


def test_lookup() -> None:
    rows = lookup.main(sizes=(1024, 4096), rounds=3)

    assert [row.name for row in rows] == ["1K tokens", "4K tokens"]
    assert num_judged(rows) == 2


def test_start() -> None:
    assert num_judged(start.main(rounds=1, pool_gib=0.125, idle_s=0.0)) == 2


def test_scale() -> None:
    assert num_judged(scale.main(num_few=300, num_many=600, rounds=20)) == 4


def test_http() -> None:
    rows = http.main(num_calls=20, num_lookups=20, num_salts=5, rounds=2, num_objects=6000, status_s=0.1)

    assert num_judged(rows) == 6


def test_busy_tier(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert num_judged(busy_tier.main(rounds=1, num_lookups=1, burst_chunks=64, prompt_tokens=1024)) == 1


def test_summary_names_what_was_missed_and_what_broke() -> None:
    results = {"lookup": [Row("8K", "9 ms", "<= 1 ms", False), Row("128K", "2", "<= 3", True), Row("own", "1 ms")]}

    lines = suite.summary(results, ["scale"]).splitlines()

    assert lines == ["1 of 2 targets met", "  missed  lookup: 8K: 9 ms (target <= 1 ms)", "  broke   scale"]


def test_rows_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows("title", [Row("a", "1", "<= 2", True), Row("b", "3", "<= 2", False)])

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[2:]] == ["ok", "MISSED"]


def test_table_of_the_demo() -> None:
    answers = [demo.Answer("first time", 4.0, 0), demo.Answer("again", 0.08, 4096)]

    lines = demo.table(answers, 4096).splitlines()

    assert [line.split() for line in lines[1:]] == [
        ["first", "time", "0", "4000", "ms"], ["again", "4096", "80", "ms", "50x"],
    ]  # fmt: skip


def run_suite(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = pathlib.Path(suite.__file__).parents[1]
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=root, env=child_env(), capture_output=True, text=True, timeout=120)


def test_unknown_name_is_refused() -> None:
    ended = run_suite("lokup")

    assert ended.returncode == 2
    assert "no benchmark is called lokup" in ended.stderr


def test_machine_facts_come_first() -> None:
    facts = suite.machine_facts()

    assert "cores" in facts
    assert "Python 3." in facts


def test_interrupted_benchmark_leaves_nothing() -> None:
    root = pathlib.Path(suite.__file__).parents[1]
    command = [sys.executable, "-m", "benchmarks", "start"]
    process = subprocess.Popen(
        command, cwd=root, env=child_env(), stdout=subprocess.PIPE, text=True, preexec_fn=hear_sigint
    )

    def has_a_pool() -> bool:
        assert process.poll() is None
        return bool(list(SHARED_MEMORY.glob(mine)))

    mine = f"lmcache-bench-{process.pid}-*"
    try:
        assert process.stdout is not None
        assert "cores" in process.stdout.readline()
        wait_until(has_a_pool, 60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert not list(SHARED_MEMORY.glob(mine))
