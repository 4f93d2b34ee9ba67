"""Values from texts, YAML and JSON: what each kind takes, and what it refuses."""

from __future__ import annotations

import contextlib
import functools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache.config.engine.config import LMCacheEngineConfig
from lmcache.config.engine.definition import Definition, OutOfRangeError, UnparsableError
from lmcache.config.engine.definitions import _CONFIG_DEFINITIONS
from lmcache.config.engine.kinds import FLAG, OBJECT, Kind, choice, integers, number, text, texts, whole

ITEM = (
    st.text(st.characters(exclude_characters=",", exclude_categories=("Cs",)), min_size=1).map(str.strip).filter(bool)
)
WORD = ITEM.filter(lambda value: value[0] not in "'\"[")


def converted(kind: Kind[Any], value: object, is_nullable: bool = False) -> object:
    return Definition(kind, None, "", is_nullable=is_nullable).convert("key", value)


@pytest.mark.parametrize("value", [True, "true", "TRUE", "True", "1", 1, " true ", "'true'", '"1"'])
def test_what_is_true(value: object) -> None:
    assert converted(FLAG, value) is True


@pytest.mark.parametrize("value", [False, "false", "False", "0", 0, "no", "off", '"false"'])
def test_what_is_false(value: object) -> None:
    assert converted(FLAG, value) is False


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (FLAG, "maybe"),
        (FLAG, 2),
        (FLAG, None),
        (FLAG, []),
        (whole(), "many"),
        (whole(), "1.5"),
        (whole(), 1.5),
        (whole(), True),
        (whole(), "9" * 5000),
        (whole(), float("nan")),
        (number(), "nan"),
        (number(), "inf"),
        (number(), "1e999"),
        (number(), 10**400),
        (number(), False),
        (text(), ["a"]),
        (text(), True),
        (texts(), {"a": 1}),
        (texts(), "[1, "),
        (texts(), None),
        (integers(), "1,two"),
        (integers(), [1, None]),
        (OBJECT, "{"),
        (OBJECT, "[" * 100_000),
        (OBJECT, '{"a":' * 40 + "1" + "}" * 40),
        (OBJECT, {"a": functools.reduce(lambda inner, _: [inner], range(400), [])}),
        (OBJECT, "[]"),
        (OBJECT, {1: 2}),
        (OBJECT, 5),
        (choice("a"), 5.5j),
    ],
)
def test_what_is_no_value_of_its_kind(kind: Kind[Any], value: object) -> None:
    with pytest.raises(UnparsableError, match="key must be"):
        converted(kind, value)


@pytest.mark.parametrize(
    ("kind", "value", "allowed"),
    [
        (whole(1, 10), 11, "a whole number from 1 to 10"),
        (whole(), -1, "a whole number of at least 0"),
        (number(0, 1), 1.001, "a number from 0 to 1"),
        (number(0, is_low_open=True), 0, "a number above 0"),
        (number(0, 5, is_low_open=True), 6, "a number above 0 and at most 5"),
        (number(2), "1", "a number of at least 2"),
        (choice("LRU", "LFU"), "ARC", "one of LRU, LFU"),
        (texts("a list of a", "a".__eq__), "a,b", "a list of a"),
        (integers(0, 5), "5,6", "a list of whole numbers from 0 to 5"),
    ],
)
def test_what_is_out_of_range_is_told_with_what_is_allowed(kind: Kind[Any], value: object, allowed: str) -> None:
    with pytest.raises(OutOfRangeError, match=f"key must be {allowed} \\(got"):
        converted(kind, value)


def test_choices_are_taken_in_any_case() -> None:
    assert converted(choice("LRU", "LFU"), " lfu ") == "LFU"


@pytest.mark.parametrize("value", [None, "", "null", "None", " NULL "])
def test_null_where_a_key_may_be_null(value: object) -> None:
    assert converted(text(), value, is_nullable=True) is None
    assert converted(text(), f"'{value}'", is_nullable=True) == str(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a,b", ("a", "b")), (" a , b ,", ("a", "b")), (["a", "b"], ("a", "b")), ('["a", "b"]', ("a", "b")),
     ("'a,b'", ("a", "b")), ("", ()), (7, ("7",))],
)  # fmt: skip
def test_lists(value: object, expected: tuple[str, ...]) -> None:
    assert converted(texts(), value) == expected


@given(st.integers(0, 1 << 53))
def test_whole_numbers_come_back_from_the_environment(value: int) -> None:
    assert converted(whole(), str(value)) == converted(whole(), f'"{value}"') == converted(whole(), value) == value


@given(st.floats(0, 1e15))
def test_numbers_come_back_from_the_environment(value: float) -> None:
    assert converted(number(), repr(value)) == converted(number(), f"'{value!r}'") == value


@given(st.text())
def test_quoted_texts_come_back_whatever_they_hold(value: str) -> None:
    assert converted(text(), f'"{value}"', is_nullable=True) == value


@given(st.lists(WORD))
def test_lists_come_back_from_comma_texts_and_from_json(values: list[str]) -> None:
    joined = ",".join(values)
    # A pair of quotes around all of it would be taken for quotes of the shell.
    assert converted(texts(), f"'{joined}'") == tuple(values)
    assert converted(texts(), json.dumps(values)) == tuple(text().parse(value) for value in values)


@given(st.lists(st.integers(0, 1000)))
def test_lists_of_numbers_come_back(values: list[int]) -> None:
    assert converted(integers(), ",".join(map(str, values))) == converted(integers(), values) == tuple(values)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON))
def test_objects_come_back(value: dict[str, object]) -> None:
    assert converted(OBJECT, json.dumps(value)) == converted(OBJECT, f"'{json.dumps(value)}'") == value
    assert converted(OBJECT, value) == value


def test_what_a_caller_holds_does_not_change_the_configuration() -> None:
    given_object = {"a": [1]}
    kept = converted(OBJECT, given_object)
    given_object["a"].append(2)
    assert kept == {"a": [1]}
    with pytest.raises(TypeError):
        kept["b"] = 1  # type: ignore[index]


SOURCES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()) | JSON


@given(st.sampled_from(sorted(_CONFIG_DEFINITIONS)), SOURCES)
def test_any_value_is_kept_within_its_range_or_refused_in_words(key: str, value: object) -> None:
    definition = _CONFIG_DEFINITIONS[key]
    kept: object = definition
    with contextlib.suppress(UnparsableError, OutOfRangeError):
        kept = definition.convert(key, value)
    if kept is not definition:
        assert (kept is None and definition.is_nullable) or definition.kind.is_allowed(kept)
        # What is kept is taken again, and so is what is shown of it.
        assert definition.convert(key, kept) == kept or isinstance(kept, str)
        json.dumps(LMCacheEngineConfig({key: kept}).as_dict([key]), allow_nan=False).encode()


@pytest.mark.parametrize("key", sorted(_CONFIG_DEFINITIONS))
def test_every_default_is_allowed_by_its_own_definition(key: str) -> None:
    definition = _CONFIG_DEFINITIONS[key]
    assert definition.convert(key, definition.default) == definition.default
    assert definition.description.endswith(".")
    assert not (definition.refusal and definition.no_effect)


def test_secrets_do_not_stand_in_messages() -> None:
    with pytest.raises(UnparsableError) as caught:
        _CONFIG_DEFINITIONS["extra_config"].convert("extra_config", [{"password": "hunter2"}])
    assert "hunter2" not in str(caught.value)
    with pytest.raises(OutOfRangeError) as refused:
        _CONFIG_DEFINITIONS["remote_url"].convert("remote_url", "lm://user:hunter2@host:1")
    assert "hunter2" not in str(refused.value)
    assert "redis" in str(refused.value)
