"""The table of quotas as a state machine against a dict, restarts included; and what it refuses."""

from __future__ import annotations

import math
import pathlib
import shutil
import tempfile
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lmcache.core.sizes import GIB
from lmcache.errors import ConfigError, KeyFormatError
from lmcache.quota.manager import QuotaManager, bytes_of_gb

SALT = st.sampled_from(["", "a", "b", "tenant 3", "ü", "_default"])
LIMIT = st.integers(0, 5) | st.integers(0, (1 << 63) - 1)
USAGE = st.dictionaries(SALT, st.integers(0, 10), max_size=6)


class QuotaMachine(RuleBasedStateMachine):
    @initialize(default=st.integers(0, 3))
    def open(self, default: int) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lmcache-test-"))
        self.path = self.folder / "state" / "quotas.json"
        self.default = default
        self.model: dict[str, int] = {}
        self.quotas = QuotaManager(default, self.path)

    @rule(salt=SALT, limit=LIMIT)
    def set(self, salt: str, limit: int) -> None:
        self.quotas.set(salt, limit)
        self.model[salt] = limit

    @rule(salt=SALT)
    def remove(self, salt: str) -> None:
        assert self.quotas.remove(salt) == (self.model.pop(salt, None) is not None)

    @rule(limit=st.sampled_from([-1, math.inf, math.nan, -math.inf, 1 << 63]))
    def refuse(self, limit: float) -> None:
        with pytest.raises(ConfigError, match="a quota must"):
            self.quotas.set("a", limit)

    @rule(usage=USAGE)
    def ask_who_holds_too_much(self, usage: dict[str, int]) -> None:
        limit_of = {salt: self.model.get(salt, self.default) for salt in usage}
        expected = {salt: used - limit_of[salt] for salt, used in usage.items() if used > limit_of[salt]}
        assert self.quotas.excess(usage) == expected

    @rule()
    def restart(self) -> None:
        self.quotas = QuotaManager(self.default, self.path)

    @invariant()
    def agrees(self) -> None:
        assert list(self.quotas.list().items()) == list(self.model.items())
        for salt in ("", "a", "nobody"):
            assert self.quotas.get(salt) == self.model.get(salt)
            assert self.quotas.limit_bytes(salt) == self.model.get(salt, self.default)
            assert self.quotas.is_wiped(salt) == (salt not in self.model and not self.default)
        if self.path.parent.exists():
            assert [found.name for found in self.path.parent.iterdir()] == ["quotas.json"]

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


QuotaMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20)
TestQuotaMachine = QuotaMachine.TestCase


@pytest.mark.parametrize("salt", ["a@b", "a/b", "x" * 129, "nul\0"])
def test_what_is_no_cache_salt_gets_no_quota(salt: str) -> None:
    with pytest.raises(KeyFormatError):
        QuotaManager().set(salt, 1)


def test_without_a_file_quotas_hold_while_the_process_lives() -> None:
    quotas = QuotaManager()
    quotas.set("a", 7)
    assert quotas.list() == {"a": 7}
    assert QuotaManager().list() == {}


@given(limit_gb=st.floats(0, 1e9))
def test_gigabytes_are_cut_to_whole_bytes(limit_gb: float) -> None:
    assert bytes_of_gb(limit_gb) == int(limit_gb * GIB)


@pytest.mark.parametrize(
    ("limit_gb", "text"),
    [(-0.001, "negative"), (-1e-12, "negative"), (math.inf, "finite"), (math.nan, "finite"), (1e300, "finite"),
     (1.7e308, "finite")],
)  # fmt: skip
def test_gigabytes_that_are_no_limit_are_refused(limit_gb: float, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        bytes_of_gb(limit_gb)


def test_a_negative_default_is_refused() -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        QuotaManager(-1)


def test_many_threads_lose_no_quota(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "quotas.json"
    quotas = QuotaManager(0, path)
    threads = [
        threading.Thread(target=lambda first=first: [quotas.set(f"{first}-{n}", n) for n in range(20)])
        for first in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert QuotaManager(0, path).list() == quotas.list()
    assert len(quotas.list()) == 80
