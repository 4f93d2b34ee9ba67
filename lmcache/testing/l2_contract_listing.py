"""The part of the L2 contract about listing: pages, tokens, and the walk that the scrubber takes."""

from __future__ import annotations

import pytest

from lmcache.core.keys import ObjectKey
from lmcache.errors import ListingUnsupportedError, PageTokenError
from lmcache.testing.l2_backend import Bench, make_data, make_key

FOREIGN_TOKENS = ["0", "bogus", "b0guß", "💩", "cm93Og==", "cm93Oi0x", "b3RoZXI6NQ==", "x" * 10_000, "\x00", "1 2"]


def _fill(bench: Bench) -> dict[str, list[ObjectKey]]:
    """Objects of three models, two tenants; by model."""
    keys: dict[str, list[ObjectKey]] = {}
    for number in range(10):
        model_name = ["meta/llama", "meta", "Qwen/Qwen3 Ü"][number % 3]
        key = make_key(number, model_name, ["", "tenant"][number % 2])
        bench.store(key, make_data(number, 100 + number))
        keys.setdefault(model_name, []).append(key)
    return keys


class ListingContract:
    @pytest.fixture
    def listing_bench(self, bench: Bench) -> Bench:
        if not bench.adapter.supports_listing:
            pytest.skip("this adapter cannot list")
        return bench

    def test_listing_pages_hold_every_object_once(self, listing_bench: Bench) -> None:
        keys = [key for group in _fill(listing_bench).values() for key in group]
        expected = {key: listing_bench.backend.stored_bytes(key) for key in keys}
        for page_size in range(1, len(keys) + 2):
            listed = listing_bench.listed(page_size=page_size)
            assert len(listed) == len(keys)
            assert dict(listed) == expected

    def test_listing_of_one_model(self, listing_bench: Bench) -> None:
        for model_name, keys in _fill(listing_bench).items():
            for page_size in (1, 2, 100):
                listed = [key for key, _ in listing_bench.listed(model_name, page_size)]
                assert len(listed) == len(keys)
                assert set(listed) == set(keys)
        assert listing_bench.listed("met") == []

    def test_listing_of_nothing(self, listing_bench: Bench) -> None:
        page = listing_bench.adapter.list_l2_keys(None, 10, None)
        assert (page.entries, page.next_page_token) == ([], None)

    def test_listing_goes_on_while_objects_come_and_go(self, listing_bench: Bench) -> None:
        keys = [key for group in _fill(listing_bench).values() for key in group]
        page = listing_bench.adapter.list_l2_keys(None, 4, None)
        seen = [key for key, _ in page.entries]
        left = [key for key in keys if key not in seen]
        listing_bench.adapter.delete([seen[0], left[0]])
        while page.next_page_token is not None:
            page = listing_bench.adapter.list_l2_keys(None, 4, page.next_page_token)
            seen += [key for key, _ in page.entries]
        assert len(seen) == len(set(seen))
        assert set(left[1:]) <= set(seen)

    def test_listing_finds_no_deleted_object(self, listing_bench: Bench) -> None:
        keys = [key for group in _fill(listing_bench).values() for key in group]
        listing_bench.adapter.delete(keys[:5])
        assert {key for key, _ in listing_bench.listed()} == set(keys[5:])

    def test_listing_after_a_restart(self, listing_bench: Bench) -> None:
        if not listing_bench.backend.survives_restart:
            pytest.skip("nothing is left to list")
        _fill(listing_bench)
        before = dict(listing_bench.listed())
        listing_bench.reopen()
        assert dict(listing_bench.listed(page_size=3)) == before

    @pytest.mark.parametrize("token", FOREIGN_TOKENS, ids=range(len(FOREIGN_TOKENS)))
    def test_listing_refuses_foreign_tokens(self, listing_bench: Bench, token: str) -> None:
        _fill(listing_bench)
        with pytest.raises(PageTokenError):
            listing_bench.adapter.list_l2_keys(None, 4, token)

    def test_where_it_is_not_supported_it_says_so(self, bench: Bench) -> None:
        if bench.adapter.supports_listing:
            pytest.skip("it is supported")
        with pytest.raises(ListingUnsupportedError, match=f"{bench.adapter.class_name} does not implement"):
            bench.adapter.list_l2_keys(None, 10, None)

    def test_the_walk_meets_every_object_once(self, bench: Bench) -> None:
        keys = [key for group in _fill(bench).values() for key in group]
        for num_keys_max in (1, 3, 100):
            met: list[ObjectKey] = []
            cursor = 0
            while True:
                found, cursor = bench.adapter.keys_after(cursor, num_keys_max)
                met += found
                if cursor == 0:
                    break
            assert len(met) == len(keys)
            assert set(met) == set(keys)
