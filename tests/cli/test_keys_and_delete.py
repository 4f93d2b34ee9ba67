"""lmcache keys and lmcache delete: page by page, batch by batch, and one into the other."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lmcache.testing.http_fake import HTTPFake, Reply
from lmcache.testing.operator_api import FakeAdapter, FakeOperatorAPI, make_key
from tests.cli.conftest import Run, Terminal
from tests.conftest import child_env


@pytest.fixture
def stored(api: FakeOperatorAPI) -> FakeAdapter:
    entries = [
        (make_key(number, "m" if number % 2 else "n", "alice" if number < 2 else ""), 1024) for number in range(7)
    ]
    api.state.adapters = [FakeAdapter("FSL2Adapter", "fs", entries), FakeAdapter("S3L2Adapter", "s3")]
    return api.state.adapters[0]


def test_keys_of_all_pages(run: Run, api: FakeOperatorAPI, stored: FakeAdapter) -> None:
    ended = run("keys", "--page-size", "3")
    rows = ended.out.splitlines()
    assert rows[0].split()[0] == "CHUNK_HASH"
    assert [row.split()[0] for row in rows[1:]] == [key["chunk_hash_hex"] for key, _ in stored.entries]
    assert rows[1].endswith("1 KiB  0x01000100      0  n (alice)")
    assert ended.err == "7 keys, 7 KiB\n"
    assert [call.query.get("page_token") for call in api.calls("GET", "/l2/keys")] == [None, "3", "6"]


def test_keys_for_scripts_are_lines(run: Run, api: FakeOperatorAPI, stored: FakeAdapter) -> None:
    lines = [json.loads(line) for line in run("keys", "--json", "--model", "m").out.splitlines()]
    assert [line["key"]["model_name"] for line in lines] == ["m"] * 3
    assert lines[0]["size_bytes"] == 1024


def test_no_more_keys_than_asked_for(run: Run, api: FakeOperatorAPI, stored: FakeAdapter) -> None:
    assert len(run("keys", "--json", "--limit", "4", "--page-size", "3").out.splitlines()) == 4
    assert len(run("keys", "--json", "--limit", "2").out.splitlines()) == 2
    assert api.state.calls[-1].query["page_size"] == "2"


def test_no_keys(run: Run, api: FakeOperatorAPI, stored: FakeAdapter) -> None:
    ended = run("keys", "--adapter", "S3L2Adapter")
    assert (ended.code, ended.out, ended.err) == (0, "", "0 keys, 0 B\n")


def test_adapters_that_cannot_list_or_are_not_there(run: Run, api: FakeOperatorAPI, stored: FakeAdapter) -> None:
    stored.lists = False
    unlisted, unknown = run("keys"), run("keys", "--adapter", "x")
    assert (unlisted.code, unknown.code) == (1, 1)
    assert "answered 501: L2 adapter 'fs' does not support listing" in unlisted.err
    assert "answered 404: no L2 adapter with type_name='x'" in unknown.err
    api.state.adapters = []
    assert "no L2 adapters configured" in run("keys").err


@pytest.mark.parametrize("size", ["0", "5001", "x"])
def test_page_sizes_the_api_does_not_take(run: Run, api: FakeOperatorAPI, size: str) -> None:
    assert run("keys", "--page-size", size).code == 2
    assert not api.state.calls


def test_a_server_that_repeats_itself_does_not_go_on_for_ever(run: Run) -> None:
    with HTTPFake(lambda call: Reply(200, {"adapter": "x", "entries": [], "next_page_token": "again"})) as fake:
        ended = run("keys", "--url", fake.url)
    assert ended.code == 1
    assert "the same page again and again" in ended.err


def test_a_reader_that_has_enough_ends_the_listing_quietly(api: FakeOperatorAPI, stored: FakeAdapter) -> None:
    stored.entries = [(make_key(number), 1) for number in range(5000)]
    keys = subprocess.Popen(
        [sys.executable, "-m", "lmcache", "keys", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=child_env(LMCACHE_HTTP_URL=api.url),
    )  # fmt: skip
    assert keys.stdout is not None
    assert keys.stderr is not None
    keys.stdout.readline()
    keys.stdout.close()
    said = keys.stderr.read()
    keys.stderr.close()
    assert keys.wait(30) in (0, 1)
    assert said == b""


def test_what_keys_lists_delete_takes(run: Run, api: FakeOperatorAPI, stored: FakeAdapter) -> None:
    listed = run("keys", "--json", "--model", "n").out
    ended = run("delete", stdin=listed)
    assert (ended.code, ended.out) == (0, "4 keys asked of FSL2Adapter to be deleted\n")
    assert [key["model_name"] for key, _ in stored.entries] == ["m"] * 3


def test_delete_goes_in_batches_the_api_takes(run: Run, api: FakeOperatorAPI, stored: FakeAdapter) -> None:
    lines = "".join(json.dumps(make_key(number)) + "\n" for number in range(20_001))
    ended = run("delete", "--json", "--adapter", "fs", stdin=lines)
    assert ended.json == {"requested": 20_001, "adapter": "FSL2Adapter", "ok": True}
    calls = api.calls("DELETE", "/l2")
    assert [len(call.body["keys"]) for call in calls] == [10_000, 10_000, 1]
    assert {call.query["adapter"] for call in calls} == {"fs"}


def test_batches_stay_small_where_names_are_long(run: Run, api: FakeOperatorAPI, stored: FakeAdapter) -> None:
    lines = "".join(json.dumps(make_key(number, "m" * 4000)) + "\n" for number in range(2000))
    assert run("delete", stdin=lines).code == 0
    sizes = [int(call.headers["Content-Length"]) for call in api.calls("DELETE", "/l2")]
    assert len(sizes) > 1
    assert max(sizes) < 8 << 20


def test_delete_by_arguments(run: Run, api: FakeOperatorAPI, stored: FakeAdapter) -> None:
    key = stored.entries[0][0]
    arguments = ["delete", key["chunk_hash_hex"], "--model", "n", "--kv-rank", "0x01000100", "--salt", "alice"]
    assert run(*arguments).code == 2
    assert run(*arguments, stdin=Terminal("n\n")).code == 1
    assert len(stored.entries) == 7
    assert run(*arguments, "--yes").code == 0
    assert len(stored.entries) == 6
    assert key not in [kept for kept, _ in stored.entries]


def test_an_adapter_that_fails_is_code_1(run: Run, api: FakeOperatorAPI, stored: FakeAdapter) -> None:
    stored.error = "disk on fire"
    ended = run("delete", stdin=json.dumps(make_key(1)))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "lmcache delete: FSL2Adapter failed after 0 keys: disk on fire\n"
    assert run("delete", "--json", stdin=json.dumps(make_key(1))).json["error"] == "disk on fire"


def test_nothing_to_delete(run: Run, api: FakeOperatorAPI, stored: FakeAdapter) -> None:
    assert run("delete", stdin="\n\n").code == 0
    assert not api.calls("DELETE", "/l2")


@pytest.mark.parametrize("line", ["{", "[]", "1", '{"key": 1}', '{"key": {}}', '{"model_name": "m"}'])
def test_a_bad_line_is_named(run: Run, api: FakeOperatorAPI, stored: FakeAdapter, line: str) -> None:
    ended = run("delete", stdin=f"{json.dumps(make_key(1))}\n\n{line}\n")
    assert ended.code == 2
    assert ended.err.startswith("lmcache delete: line 3 ")
    assert not api.calls("DELETE", "/l2")


def test_a_bad_line_late_says_what_was_done_before(run: Run, api: FakeOperatorAPI, stored: FakeAdapter) -> None:
    lines = "".join(json.dumps(make_key(number)) + "\n" for number in range(10_001))
    ended = run("delete", stdin=lines + "oops\n")
    assert ended.code == 2
    assert ended.err.splitlines()[0] == "lmcache delete: 10000 keys were asked for before this:"
    assert "line 10002 is not JSON" in ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ab"], "needs --model and --kv-rank"),
        (["ab", "--model", "m"], "needs --model and --kv-rank"),
        (["xyz", "--model", "m", "--kv-rank", "1"], "hexadecimal"),
        (["ab", "--model", "m", "--kv-rank", "one"], "is not a number"),
        (["--model", "m"], "belong to CHUNK_HASH"),
    ],
)
def test_bad_use_of_delete(run: Run, api: FakeOperatorAPI, arguments: list[str], said: str) -> None:
    ended = run("delete", *arguments, "--yes")
    assert ended.code == 2
    assert said in ended.err
    assert not api.state.calls


def test_nobody_waits_for_a_terminal_to_end(run: Run, api: FakeOperatorAPI) -> None:
    ended = run("delete", stdin=Terminal(""))
    assert ended.code == 2
    assert "lmcache keys --json | lmcache delete" in ended.err
