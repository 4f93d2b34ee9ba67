"""The names table: ids stay true over reuse, compaction, torn tails and restarts."""

from __future__ import annotations

import pathlib
import shutil
import stat
import tempfile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lmcache.memory.names import NameKind, NamesTable

KINDS = st.sampled_from(list(NameKind))
NAMES = st.sampled_from([b"", b"a", b"b", b"org/model", b"\x00" * 40])
Key = tuple[NameKind, bytes]


class NamesMachine(RuleBasedStateMachine):
    """The model: how often each name is held, and by which id."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="names-"))
        self.table = NamesTable(self.folder / "names")
        self.uses: dict[Key, int] = {}
        self.ids: dict[Key, int] = {}

    @rule(kind=KINDS, name=NAMES)
    def acquire(self, kind: NameKind, name: bytes) -> None:
        key = (kind, name)
        name_id = self.table.acquire(kind, name)
        assert self.ids.setdefault(key, name_id) == name_id
        assert len(set(self.ids.values())) == len(self.ids), "an id means one name"
        self.uses[key] = self.uses.get(key, 0) + 1

    @precondition(lambda self: self.uses)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.uses)))
        self.table.release(self.ids[key])
        self.uses[key] -= 1
        if not self.uses[key]:
            del self.uses[key], self.ids[key]

    @rule(torn=st.binary(max_size=60))
    def restart(self, torn: bytes) -> None:
        """The server died, perhaps while it appended; the records name the ids in use."""
        self.table.close()
        with (self.folder / "names").open("ab") as file:
            file.write(torn)
        self.table = NamesTable(self.folder / "names")
        for (kind, name), uses in self.uses.items():
            for _ in range(uses):
                assert self.table.acquire_id(self.ids[kind, name], kind) == name
        self.table.forget_unused()

    @rule(name_id=st.integers(0, 20), kind=KINDS)
    def ask_for_an_unknown_id(self, name_id: int, kind: NameKind) -> None:
        if (kind, name_id) not in {(kind_, id_) for (kind_, _), id_ in self.ids.items()}:
            assert self.table.acquire_id(name_id, kind) is None

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.table) == len(self.ids)

    def teardown(self) -> None:
        self.table.close()
        shutil.rmtree(self.folder)


NamesMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestNamesMachine = NamesMachine.TestCase


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "names"


def test_a_name_that_changed_its_id_survives_a_restart(path: pathlib.Path) -> None:
    """A was 1, C was 2, both went, A came back as 2: the entry `1 = A` in the file is history."""
    table = NamesTable(path)
    table.acquire(NameKind.SALT, b"A")
    table.acquire(NameKind.SALT, b"C")
    table.release(1)
    table.release(2)
    assert table.acquire(NameKind.SALT, b"A") == 2
    table.close()
    again = NamesTable(path)
    assert again.acquire_id(2, NameKind.SALT) == b"A"
    again.forget_unused()
    assert again.acquire(NameKind.SALT, b"A") == 2
    again.release(2)
    again.release(2)
    assert len(again) == 0
    again.close()


@pytest.mark.parametrize("num_torn", [1, 5, 19, 21])
def test_a_torn_last_entry_is_dropped_and_written_over(path: pathlib.Path, num_torn: int) -> None:
    table = NamesTable(path)
    table.acquire(NameKind.MODEL, b"first")
    table.acquire(NameKind.MODEL, b"second")
    table.close()
    path.write_bytes(path.read_bytes()[:-num_torn])
    again = NamesTable(path)
    assert again.acquire_id(1, NameKind.MODEL) == b"first"
    assert again.acquire_id(2, NameKind.MODEL) is None
    assert again.acquire(NameKind.MODEL, b"third") == 2
    again.close()
    third = NamesTable(path)
    assert third.acquire_id(2, NameKind.MODEL) == b"third"
    third.close()


def test_a_flipped_byte_ends_the_reading(path: pathlib.Path) -> None:
    table = NamesTable(path)
    for name in (b"first", b"second", b"third"):
        table.acquire(NameKind.MODEL, name)
    table.close()
    content = bytearray(path.read_bytes())
    content[content.index(b"second")] ^= 1
    path.write_bytes(content)
    again = NamesTable(path)
    assert [again.acquire_id(name_id, NameKind.MODEL) for name_id in (1, 2, 3)] == [b"first", None, None]
    again.close()


def test_a_file_of_many_dead_names_is_written_anew(path: pathlib.Path) -> None:
    table = NamesTable(path)
    kept = table.acquire(NameKind.MODEL, b"kept")
    sizes = []
    for number in range(40):
        table.release(table.acquire(NameKind.SALT, number.to_bytes(2, "big") * 30_000))
        sizes.append(path.stat().st_size)
    assert sizes[0] < sizes[1]
    assert max(sizes) <= 1 << 20, "40 such names would be 2.3 MiB"
    table.close()
    again = NamesTable(path)
    assert again.acquire_id(kept, NameKind.MODEL) == b"kept"
    again.close()


def test_a_name_is_in_the_file_when_its_id_is_returned(path: pathlib.Path) -> None:
    table = NamesTable(path)
    table.acquire(NameKind.ROOT, b"r" * 32)
    assert b"r" * 32 in path.read_bytes()
    table.close()


def test_a_name_too_long_is_refused_and_leaves_nothing(path: pathlib.Path) -> None:
    table = NamesTable(path)
    with pytest.raises(ValueError, match="65535"):
        table.acquire(NameKind.MODEL, bytes(65536))
    assert len(table) == 0
    assert path.stat().st_size == 0
    table.close()


def test_the_file_keeps_its_mode_when_it_is_written_anew(path: pathlib.Path) -> None:
    table = NamesTable(path, 0o600)
    table.acquire(NameKind.MODEL, b"m")
    table.forget_unused()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    table.close()
