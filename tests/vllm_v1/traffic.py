"""Requests that go on while operators change something, and whether their answers were right."""

from __future__ import annotations

import threading
from types import TracebackType

from lmcache.testing.vllm_engine import EngineProcess
from lmcache.testing.vllm_spec import Output
from tests.vllm_shared.prompts import new_salt, same

# Longer than any request of these tests, shorter than a test may hang.
_END_S = 60.0


class Traffic:
    """A context manager. Prompts are asked for in turn, by a thread that alone talks to the engine meanwhile; vLLM
    forgets them in between, so that hits are ours."""

    def __init__(self, process: EngineProcess, prompts: list[list[int]], salt: str) -> None:
        self.process = process
        self._prompts = prompts
        self._salt = salt
        self._is_over = threading.Event()
        self._progress = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="traffic")
        self.answers: list[tuple[int, Output]] = []
        self.error: Exception | None = None

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join(_END_S)
        assert not self._thread.is_alive(), "a request hangs"
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._is_over.is_set():
                for number, prompt in enumerate(self._prompts):
                    self.process.forget()
                    (output,) = self.process.generate([prompt], 4, salts=[self._salt])
                    with self._progress:
                        self.answers.append((number, output))
                        self._progress.notify_all()
        except Exception as error:  # handed to the test's own thread
            with self._progress:
                self.error = error
                self._progress.notify_all()

    def next_round(self) -> list[int]:
        """Cached tokens of each prompt, in a round of requests that all began from now on."""
        num_prompts = len(self._prompts)
        with self._progress:
            first = -(-(len(self.answers) + 1) // num_prompts) * num_prompts
            is_there = self._progress.wait_for(
                lambda: self.error is not None or len(self.answers) >= first + num_prompts, _END_S
            )
            assert is_there, "requests hang"
            if self.error is not None:
                raise self.error
            return [output.num_cached_tokens for _, output in self.answers[first : first + num_prompts]]

    def check_outputs(self) -> None:
        """Each answer is what vLLM says by itself with as many cached tokens. After the traffic."""
        expected: dict[tuple[int, int], Output] = {}
        for number, output in self.answers:
            case = number, output.num_cached_tokens
            if case not in expected:
                expected[case] = self._own(self._prompts[number], output.num_cached_tokens)
            assert same(output, expected[case]), case

    def _own(self, prompt: list[int], num_tokens: int) -> Output:
        salt = new_salt("oracle")
        if num_tokens:
            self.process.generate([prompt[:num_tokens]], 1, salts=[salt])
        (output,) = self.process.generate([prompt], 4, salts=[salt])
        assert output.num_cached_tokens == num_tokens
        return output
