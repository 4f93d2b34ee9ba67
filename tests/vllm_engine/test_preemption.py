"""The server mode with more requests than blocks."""

from tests.vllm_shared.preemption import Preemption


class TestPreemption(Preemption):
    pass
