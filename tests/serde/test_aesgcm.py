"""Encryption: what is bound together, which keys are used, and what a key file may say."""

from __future__ import annotations

import base64
import dataclasses
import logging
import os

import pytest

from lmcache.errors import ConfigError, CorruptObjectError
from lmcache.serde.aesgcm import AesGcmSerde, Config, make
from lmcache.serde.key_file import KeyFile
from lmcache.testing.l2_backend import make_data, make_key

KEY = make_key(1, "model", "tenant")
DATA = make_data(1, 1000)
SECRET = "0123456789abcdef" * 4


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys"


@pytest.fixture
def write(path):
    """Replace the key file as an operator would: at once, with another one."""

    def write(text: str) -> str:
        new = path.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o600)
        new.replace(path)
        return str(path)

    return write


def decode(serde, encoded, key=KEY, num_bytes=len(DATA)):
    target = bytearray(num_bytes)
    serde.decode(memoryview(encoded.payload), encoded.parameters, memoryview(target), key)
    return bytes(target)


@pytest.mark.parametrize("num_bytes", [16, 24, 32])
@pytest.mark.parametrize("form", ["hex", "base64"])
def test_keys_of_every_length_and_form(write, num_bytes, form):
    secret = os.urandom(num_bytes)
    text = secret.hex() if form == "hex" else base64.b64encode(secret).decode()
    serde = make(Config(write(f"# comment\n\nk1 {text} # the first\n")))
    encoded = serde.encode(memoryview(DATA), "", KEY)
    assert encoded.parameters["key_id"] == "k1"
    assert DATA[:32] not in encoded.payload
    assert decode(serde, encoded) == DATA


@pytest.mark.parametrize(
    "other",
    [
        make_key(2, "model", "tenant"),
        make_key(1, "model2", "tenant"),
        make_key(1, "model", "tenant2"),
        make_key(1, "model", ""),
        make_key(1, "model", "tenant", kv_rank=1),
        dataclasses.replace(KEY, object_group_id=1),
    ],
)
def test_an_object_is_bound_to_its_key(write, other):
    serde = make(Config(write(f"k1 {SECRET}")))
    encoded = serde.encode(memoryview(DATA), "", KEY)
    with pytest.raises(CorruptObjectError, match="altered"):
        decode(serde, encoded, other)


def test_any_change_is_noticed(write):
    serde = make(Config(write(f"k1 {SECRET}")))
    encoded = serde.encode(memoryview(DATA), "", KEY)
    for position in (0, 500, len(encoded.payload) - 1):
        changed = bytearray(encoded.payload)
        changed[position] ^= 1
        with pytest.raises(CorruptObjectError):
            decode(serde, dataclasses.replace(encoded, payload=bytes(changed)))
    for parameters in ({}, {"key_id": "k1"}, {"key_id": "k1", "nonce": "zz"}, {"key_id": 5, "nonce": "00" * 12},
                       {"key_id": "k1", "nonce": "00" * 12}, {"key_id": "k1", "nonce": 7}):  # fmt: skip
        with pytest.raises(CorruptObjectError):
            decode(serde, dataclasses.replace(encoded, parameters=parameters))
    with pytest.raises(CorruptObjectError, match="wrong length"):
        decode(serde, encoded, num_bytes=999)


def test_no_nonce_is_used_twice(write):
    serde = make(Config(write(f"k1 {SECRET}")))
    nonces = {serde.encode(memoryview(DATA), "", KEY).parameters["nonce"] for _ in range(100)}
    assert len(nonces) == 100
    asked: list[int] = []
    given = AesGcmSerde(KeyFile(write(f"k1 {SECRET}")), lambda size: asked.append(size) or bytes(size))
    given.encode(memoryview(DATA), "", KEY)
    assert asked == [12]


def test_another_key_under_the_same_id_is_noticed(write):
    serde = make(Config(write(f"k1 {SECRET}")))
    encoded = serde.encode(memoryview(DATA), "", KEY)
    write(f"k1 {'ab' * 32}")
    with pytest.raises(CorruptObjectError):
        decode(serde, encoded)


def test_a_new_first_line_is_the_key_from_now_on(write):
    serde = make(Config(write(f"old {SECRET}")))
    before = serde.encode(memoryview(DATA), "", KEY)
    write(f"new {'ab' * 32}\nold {SECRET}\n")
    assert serde.encode(memoryview(DATA), "", KEY).parameters["key_id"] == "new"
    assert decode(serde, before) == DATA
    assert serde.report() == {"type": "aesgcm", "key_id": "new", "num_keys": 2}


def test_a_bad_file_leaves_the_keys_of_before(write, path, caplog):
    serde = make(Config(write(f"k1 {SECRET}")))
    with caplog.at_level(logging.ERROR):
        write("nonsense")
        encoded = serde.encode(memoryview(DATA), "", KEY)
        assert decode(serde, encoded) == DATA
        assert len(caplog.records) == 1, "told once, not for every object"
        path.unlink()
        assert decode(serde, encoded) == DATA
    assert "the keys of before stay in force" in caplog.text
    write(f"k2 {SECRET}")
    assert serde.encode(memoryview(DATA), "", KEY).parameters["key_id"] == "k2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("k1\n", "line 1: must be a key id and a key in hex or base64"),
        (f"k1 {SECRET} more\n", "line 1: must be a key id and a key"),
        (f"\n\nk/1 {SECRET}\n", "line 3: a key id has 1 to 64 letters"),
        (f"{'k' * 65} {SECRET}\n", "line 1: a key id has 1 to 64 letters"),
        (f"k1 {SECRET[:-2]}\n", "line 1: the key must be 16, 24 or 32 bytes"),
        ("k1 ????????????????????????\n", "line 1: the key must be 16, 24 or 32 bytes"),
        (f"k1 {SECRET}\nk1 {SECRET}\n", "line 2: key id 'k1' is there twice"),
        ("k1 schlüssel\n", "is not plain text"),
    ],
)
def test_a_wrong_key_file_is_refused_without_quoting_it(write, text, expected):
    with pytest.raises(ConfigError) as caught:
        make(Config(write(text)))
    assert expected in str(caught.value)
    assert SECRET[:-2] not in str(caught.value)


def test_an_absent_key_file_is_refused(path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        make(Config(str(path)))


def test_a_key_file_that_all_may_read_is_told(write, path, caplog):
    write(f"k1 {SECRET}")
    path.chmod(0o644)
    make(Config(str(path)))
    assert "every user of this machine may read the keys" in caplog.text


def test_a_key_does_not_show_itself(write):
    assert SECRET not in repr(KeyFile(write(f"k1 {SECRET}")).current())
