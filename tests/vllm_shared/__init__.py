"""Tests that every connector of a real vLLM must pass, over drivers: the connectors' own folders run them."""

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in ("driver", "equality", "preemption")))
