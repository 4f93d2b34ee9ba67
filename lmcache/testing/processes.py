"""A test's handles on its children: orders and answers, faults met, signals, and what they said meanwhile."""

from __future__ import annotations

import os
import pathlib
import secrets
import signal
import time
from collections import deque

from lmcache.testing import control as c
from lmcache.testing.faults import Action, Fault
from lmcache.testing.nursery import Nursery
from lmcache.testing.server_process import ServerProcessConfig
from lmcache.testing.worker_rank import WorkerProcessConfig

_START_TIMEOUT_S = 60.0
_ANSWER_TIMEOUT_S = 60.0
# How long an engine waits for the server: one that is to notice that it is stopped, and one that shall never take a
# server for gone that is only short of a core.
HASTY_S = 0.5
PATIENT_S = 12.0


class ChildFailedError(AssertionError):
    """A child raised, died unbidden, did not answer, or saw a wrong byte."""


class ChildProcess:
    """One child. Owned by one thread."""

    def __init__(self, name: str, channel: c.Channel) -> None:
        self.name = name
        self._channel = channel
        self._answers: deque[c.Answer] = deque()
        self.said: deque[c.Message] = deque()
        self.is_stopped = False
        self.is_alive = True
        self.pid = self._wait_until_ready()
        # A pid can be given to another process; this handle cannot.
        self._pidfd = os.pidfd_open(self.pid)

    def _wait_until_ready(self) -> int:
        try:
            ready = self._channel.receive(_START_TIMEOUT_S)
        except c.ChannelClosedError:
            ready = None
        if isinstance(ready, c.Ready):
            return ready.pid
        self._channel.close()
        raise ChildFailedError(f"{self.name} did not start")

    def ask(self, order: c.Order, timeout_s: float = _ANSWER_TIMEOUT_S) -> c.Answer:
        self.tell(order)
        return self.answer(timeout_s)

    def tell(self, order: c.Order) -> None:
        """Without waiting for the answer; collect it later with `answer`."""
        self._channel.send(order)

    def answer(self, timeout_s: float = _ANSWER_TIMEOUT_S) -> c.Answer:
        deadline = time.monotonic() + timeout_s
        while not self._answers:
            if not self._take_in(max(0.0, deadline - time.monotonic())):
                state = "is alive" if self.is_alive else "died"
                raise ChildFailedError(f"{self.name} did not answer in {timeout_s:g} s; it {state}")
        answer = self._answers.popleft()
        if isinstance(answer, c.Failed):
            raise ChildFailedError(f"{self.name}: {answer.text}")
        return answer

    def take_said(self) -> list[c.Message]:
        """Everything said unasked so far."""
        while self._take_in(0.0):
            pass
        said = list(self.said)
        self.said.clear()
        return said

    def _take_in(self, timeout_s: float) -> bool:
        """Take in one message. False if none came in time, or if the child is gone."""
        if not self.is_alive:
            return False
        try:
            message = self._channel.receive(timeout_s)
        except c.ChannelClosedError:
            self.is_alive = False
            return False
        if message is None:
            return False
        if isinstance(message, c.ANSWERS):
            self._answers.append(message)
        else:
            self.said.append(message)
        return True

    # Faults

    def arm(self, step: str, action: Action, occurrence: int = 1, delay_s: float = 0.5) -> None:
        self.ask(c.Arm(Fault(step, action, occurrence, delay_s)))

    def wait_for_fault(self, action: Action, timeout_s: float = _ANSWER_TIMEOUT_S) -> bool:
        """Until the armed fault has happened: the process is gone, stopped, or a thread of it sleeps."""
        deadline = time.monotonic() + timeout_s
        while not any(isinstance(message, c.FaultReached) for message in self.said):
            if not self._take_in(max(0.0, deadline - time.monotonic())):
                return False
        self.said = deque(message for message in self.said if not isinstance(message, c.FaultReached))
        if action is Action.KILL:
            self._wait_for_end()
        elif action is Action.STOP:
            self._wait_until_stopped()
        return True

    def _wait_until_stopped(self) -> None:
        deadline = time.monotonic() + _ANSWER_TIMEOUT_S
        while time.monotonic() < deadline:
            if pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                self.is_stopped = True
                return
            time.sleep(0.0005)
        raise ChildFailedError(f"{self.name} did not stop")

    def _wait_for_end(self) -> None:
        """What it said before it died is kept."""
        deadline = time.monotonic() + _ANSWER_TIMEOUT_S
        while self.is_alive and time.monotonic() < deadline:
            self._take_in(0.1)
        if self.is_alive:
            raise ChildFailedError(f"{self.name} did not die")

    def stop(self) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGSTOP)
        self._wait_until_stopped()

    def resume(self) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)
        self.is_stopped = False

    def kill(self) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._wait_for_end()

    def close(self) -> None:
        """Make sure that it is dead; let go of the handle. Idempotent."""
        if self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            self.is_alive = False
        self._channel.close()
        os.close(self._pidfd)
        self._pidfd = -1


class ServerHandle(ChildProcess):
    def __init__(self, nursery: Nursery, config: ServerProcessConfig) -> None:
        self.config = config
        super().__init__("server", nursery.fork("server", config))

    def cycle(self, advance_s: float = 0.0, reaps: bool = True) -> c.ServerReport:
        """One turn of eviction loop and reaper; fails if the tables of L1 do not agree."""
        report = self.ask(c.Cycle(advance_s, reaps))
        if not isinstance(report, c.ServerReport) or report.error:
            raise ChildFailedError(f"the server's tables disagree: {report}")
        return report

    def settle(self, timeout_s: float = _ANSWER_TIMEOUT_S, without_sessions: bool = False) -> c.ServerReport:
        """Cycle until nothing is being written, quarantined or locked; fails if that never comes.

        Clients end their sessions a moment after their requests: `without_sessions` waits for that too.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            report = self.cycle()
            if report.is_settled and not (without_sessions and report.num_sessions):
                return report
            if time.monotonic() > deadline:
                raise ChildFailedError(f"slots or locks are lost: {report}")
            time.sleep(0.02)

    def clear(self, force: bool = True) -> int:
        done = self.ask(c.ClearAll(force))
        return done.count if isinstance(done, c.Done) else 0


class EngineHandle(ChildProcess):
    """An engine of `num_ranks` ranks in one process."""

    def __init__(
        self,
        nursery: Nursery,
        name: str,
        url: str,
        num_ranks: int = 1,
        in_pid_namespace: bool = False,
        first_batch_chunks: int = 8,
        patience_s: float = HASTY_S,
        prefetch_wait_s: float = 0.0,
    ) -> None:
        uids = [secrets.randbits(63) | 1 for _ in range(1 + num_ranks)]
        config = WorkerProcessConfig(
            url, f"{name}-{uids[0]:x}", uids, first_batch_chunks=first_batch_chunks, rpc_timeout_s=patience_s,
            prefetch_wait_s=prefetch_wait_s,
        )  # fmt: skip
        super().__init__(name, nursery.fork("worker", config, in_pid_namespace))

    def wait_joined(self) -> None:
        done = self.ask(c.WaitJoined())
        if not isinstance(done, c.Done) or not done.count:
            raise ChildFailedError(f"{self.name} did not join")

    def announce(self, names: list[str]) -> None:
        """A later `store` of the same names finds its first places reserved."""
        self.ask(c.Announce(names))

    def store(self, names: list[str]) -> c.StoreReport:
        report = self.ask(c.Store(names))
        assert isinstance(report, c.StoreReport)
        return report

    def look(self, request_id: str, names: list[str]) -> c.Looked:
        looked = self.ask(c.Look(request_id, names))
        assert isinstance(looked, c.Looked)
        return looked

    def keep(self, request_id: str, looked: c.Looked, num_chunks: int) -> c.Looked:
        """Give back what was promised behind the first chunks."""
        kept = self.ask(c.Keep(request_id, looked.promise, num_chunks))
        assert isinstance(kept, c.Looked)
        return kept

    def load(self, looked: c.Looked) -> c.LoadReport:
        report = self.ask(c.Load(looked.promise))
        assert isinstance(report, c.LoadReport)
        return report

    def verify(self, names: list[str]) -> list[str]:
        """Those of these chunks that do not come back."""
        verified = self.ask(c.Verify(names), 120.0)
        assert isinstance(verified, c.Verified)
        return verified.missing

    def end(self, request_id: str) -> None:
        self.ask(c.End(request_id))

    def read(self, names: list[str]) -> int:
        """Look up, load, end; how many leading chunks came back. Fails on a failed load or a wrong byte."""
        looked = self.look("read", names)
        report = self.load(looked)
        self.end("read")
        if not report.is_ok or report.num_wrong_bytes:
            raise ChildFailedError(f"{self.name} read {report}")
        return looked.num_chunks
