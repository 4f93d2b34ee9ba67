"""Slots of stores and retrieves, as operators read them in the log."""

from __future__ import annotations

from lmcache.embedded.slot_log import slots_line, slots_of_blocks


def test_slots_are_logged_as_operators_write_them() -> None:
    line = slots_line("Retrieve", "request-1", 10, slots_of_blocks((7, 3, 4), 4, 10))
    assert line == "[KVCache Check] Retrieve request request-1, tokens=10, slot_mapping: [[28,31],[12,17]]"
    assert slots_line("Store", "r", 2, slots_of_blocks((2,), 4, 2)).endswith("tokens=2, slot_mapping: [8,9]")
