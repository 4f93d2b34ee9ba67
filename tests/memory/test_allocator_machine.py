"""The allocator as a state machine, held against a map with one entry per unit of memory."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lmcache.errors import IntegrityError
from lmcache.memory.allocator import Allocator

UNIT = 8


class AllocatorMachine(RuleBasedStateMachine):
    """The model: `taken[unit]`, and the ranges handed out (first unit, number of units, asked length)."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(UNIT)
        self.taken: list[bool] = []
        self.ranges: list[tuple[int, int, int]] = []

    def free_extents(self) -> list[tuple[int, int]]:
        """(number of units, first unit) of every free extent."""
        extents: list[tuple[int, int]] = []
        for unit, is_taken in enumerate(self.taken):
            if is_taken:
                continue
            if extents and sum(extents[-1]) == unit:
                extents[-1] = (extents[-1][0] + 1, extents[-1][1])
            else:
                extents.append((1, unit))
        return extents

    def mark(self, first: int, units: int, is_taken: bool) -> None:
        assert all(taken is not is_taken for taken in self.taken[first : first + units])
        self.taken[first : first + units] = [is_taken] * units

    @rule(units=st.integers(1, 24))
    def grow(self, units: int) -> None:
        self.allocator.grow(units * UNIT)
        self.taken += [False] * units

    @rule(length=st.integers(1, 12 * UNIT))
    def allocate(self, length: int) -> None:
        units = -(-length // UNIT)
        fitting = [extent for extent in self.free_extents() if extent[0] >= units]
        offset = self.allocator.allocate(length)
        if not fitting:
            assert offset is None
            return
        assert offset == min(fitting)[1] * UNIT, "the smallest extent that fits, the first of equals"
        self.mark(offset // UNIT, units, True)
        self.ranges.append((offset // UNIT, units, length))

    @precondition(lambda self: self.ranges)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        first, units, length = self.ranges.pop(data.draw(st.integers(0, len(self.ranges) - 1)))
        self.allocator.free(first * UNIT, length)
        self.mark(first, units, False)

    @rule(data=st.data())
    def rebuild(self, data: st.DataObject) -> None:
        """Recovery finds some of the ranges in use, the rest is free again."""
        self.ranges = sorted(found for found in self.ranges if data.draw(st.booleans()))
        self.taken = [False] * len(self.taken)
        for first, units, _ in self.ranges:
            self.mark(first, units, True)
        self.allocator.rebuild([(first * UNIT, units * UNIT) for units, first in self.free_extents()])

    @invariant()
    def agrees(self) -> None:
        self.allocator.check_integrity()
        free = self.free_extents()
        assert self.allocator.capacity_bytes == len(self.taken) * UNIT
        assert self.allocator.used_bytes == sum(self.taken) * UNIT
        assert self.allocator.free_bytes == sum(units for units, _ in free) * UNIT
        assert self.allocator.largest_free_bytes == max((units for units, _ in free), default=0) * UNIT


AllocatorMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50)
TestAllocatorMachine = AllocatorMachine.TestCase


def test_everything_freed_is_one_extent_again() -> None:
    allocator = Allocator(UNIT)
    allocator.grow(32 * UNIT)
    offsets = [allocator.allocate(UNIT) for _ in range(32)]
    for offset in offsets[::2] + offsets[1::2]:
        assert offset is not None
        allocator.free(offset, UNIT)
    assert allocator.largest_free_bytes == allocator.free_bytes == 32 * UNIT


def test_a_range_freed_twice_is_an_error() -> None:
    allocator = Allocator(UNIT)
    allocator.grow(4 * UNIT)
    offset = allocator.allocate(UNIT)
    assert offset is not None
    allocator.free(offset, UNIT)
    with pytest.raises(IntegrityError, match="free already"):
        allocator.free(offset, UNIT)


def test_free_extents_that_overlap_are_an_error() -> None:
    allocator = Allocator(UNIT)
    allocator.grow(8 * UNIT)
    with pytest.raises(IntegrityError, match="overlaps"):
        allocator.rebuild([(0, 3 * UNIT), (UNIT, UNIT)])


def test_check_integrity_notices_bytes_that_were_freed_inside_a_free_range() -> None:
    allocator = Allocator(UNIT)
    allocator.grow(8 * UNIT)
    allocator.free(2 * UNIT, UNIT)
    with pytest.raises(IntegrityError):
        allocator.check_integrity()


@pytest.mark.parametrize("num_extents_max", [1, 3, 256])
def test_a_sample_finds_nothing_wrong_with_what_is_right(num_extents_max: int) -> None:
    allocator = Allocator(UNIT)
    allocator.check_sample(num_extents_max)
    allocator.grow(33 * UNIT)
    offsets = [allocator.allocate(UNIT) for _ in range(33)]
    allocator.check_sample(num_extents_max)
    for offset in offsets[::2]:
        assert offset is not None
        allocator.free(offset, UNIT)
        allocator.check_sample(num_extents_max)


def test_a_sample_notices_bytes_that_were_freed_inside_a_free_range() -> None:
    allocator = Allocator(UNIT)
    allocator.grow(8 * UNIT)
    allocator.free(2 * UNIT, UNIT)
    with pytest.raises(IntegrityError):
        allocator.check_sample()


def test_a_sample_notices_lists_that_disagree() -> None:
    allocator = Allocator(UNIT)
    allocator.grow(8 * UNIT)
    allocator._start_of_end[8 * UNIT] = UNIT
    with pytest.raises(IntegrityError, match="not listed by its ends"):
        allocator.check_sample()
