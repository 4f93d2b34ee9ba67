"""NUMA nodes as the kernel lists them."""

from __future__ import annotations

import pathlib

import pytest

from lmcache.memory.numa import online_nodes


@pytest.mark.parametrize(
    ("text", "nodes"), [("0\n", [0]), ("0-1\n", [0, 1]), ("0-1,3\n", [0, 1, 3]), ("0,2-4,7", [0, 2, 3, 4, 7])]
)
def test_ranges_are_read(tmp_path: pathlib.Path, text: str, nodes: list[int]) -> None:
    path = tmp_path / "online"
    path.write_text(text)
    assert online_nodes(path) == nodes


def test_a_kernel_that_says_nothing_has_one_node(tmp_path: pathlib.Path) -> None:
    assert online_nodes(tmp_path / "absent") == [0]
