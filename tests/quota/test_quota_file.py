"""The file of quotas: what is torn or foreign is kept aside with a warning; what cannot be written changes nothing."""

from __future__ import annotations

import json
import pathlib
import stat

import pytest

from lmcache.errors import QuotaFileError
from lmcache.quota.manager import QuotaManager

QUOTAS = {"version": 1, "quotas": [{"cache_salt": "a", "limit_bytes": 7}]}


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "quotas.json"


def test_the_file_is_for_its_user_only_and_can_be_read_by_people(path: pathlib.Path) -> None:
    QuotaManager(0, path).set("a", 7)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == QUOTAS
    assert len(path.read_text().splitlines()) > 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        json.dumps(QUOTAS).encode()[:-5],
        b"\xff\xfe\x00",
        b"[]",
        b'{"version": 2, "quotas": []}',
        b'{"version": 1, "quotas": [{"cache_salt": "a", "limit_bytes": -1}]}',
        b'{"version": 1, "quotas": [{"cache_salt": "a", "limit_bytes": "many"}]}',
        b'{"version": 1, "quotas": [{"cache_salt": "a@b", "limit_bytes": 1}]}',
        b'{"version": 1, "quotas": [{"cache_salt": "\xff", "limit_bytes": 1}]}',
    ],
)
def test_a_torn_or_foreign_file_is_kept_aside(
    path: pathlib.Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for aside in ("quotas.json.bad", "quotas.json.bad1"):
        path.write_bytes(content)
        quotas = QuotaManager(0, path)
        assert quotas.list() == {}
        assert path.with_name(aside).read_bytes() == content
        assert not path.exists()
        assert "is no file of quotas" in caplog.text
        assert aside in caplog.text
    quotas.set("b", 1)
    assert QuotaManager(0, path).list() == {"b": 1}


def test_a_folder_in_place_of_the_file_is_a_warning_and_then_a_clear_error(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()
    quotas = QuotaManager(0, path)
    assert "quotas cannot be read" in caplog.text
    with pytest.raises(QuotaFileError, match="nothing was changed"):
        quotas.set("a", 1)
    assert quotas.list() == {}
    assert [found.name for found in path.parent.iterdir()] == ["quotas.json"]


def test_what_cannot_be_kept_is_not_in_force(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    quotas = QuotaManager(5, tmp_path / "file" / "quotas.json")
    with pytest.raises(QuotaFileError, match=r"quotas cannot be kept in .*: File exists"):
        quotas.set("a", 1)
    assert (quotas.list(), quotas.limit_bytes("a")) == ({}, 5)
