"""Random faults against one server and several engines that share chunks: the rounds of the fence.

Each round picks a role, a step and a fault, and what happens meanwhile. Every so often
everything comes to rest, and then nothing may be lost: no slot, no lock, no byte, and, where
the pool is roomy, no object whose commit was acknowledged.
"""

from __future__ import annotations

import pathlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from lmcache.testing import control as c
from lmcache.testing.faults import Action, Fault
from lmcache.testing.nursery import Nursery
from lmcache.testing.processes import PATIENT_S, ChildFailedError, EngineHandle, ServerHandle
from lmcache.testing.server_process import ServerProcessConfig

SERVER_STEPS = (
    "l1.payload", "l1.reserved", "store.reserved", "l1.commit", "l1.committed", "store.committed", "store.closed",
    "lookup.locked", "lookup.promised", "lookup.released", "lookup.ended",
)  # fmt: skip
PRESSURE_STEPS = ("l1.evicted",)
ENGINE_STEPS = (
    "store.reserve", "store.granted", "store.copy", "store.half", "store.commit", "store.answered",
    "lookup.asked", "lookup.answered", "load.check", "load.copy", "load.half", "load.copied",
)  # fmt: skip
_FAULT_TIMEOUT_S = 5.0
_ROUNDS_PER_REST = 15
_RUNNING_MIN = 2


@dataclass(frozen=True, slots=True)
class ArenaConfig:
    """`is_roomy`: everything fits and nobody clears, so that what was acknowledged must stay."""

    num_slots: int
    num_prompts: int
    chunks_per_prompt: int = 6
    num_engines: int = 4
    num_ranks: int = 1
    is_roomy: bool = False
    uses_namespaces: bool = False


@dataclass(slots=True)
class ArenaReport:
    faults: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # role, action, step
    num_loads_ok: int = 0
    num_loads_failed: int = 0
    num_rests: int = 0
    num_acknowledged: int = 0
    num_restarts: int = 0

    @property
    def num_rounds(self) -> int:
        return self.faults.total()


class Arena:
    """One server, its engines, and their fate. Owned by one thread."""

    def __init__(self, nursery: Nursery, config: ArenaConfig, folder: pathlib.Path, url: str, seed: str) -> None:
        self._nursery = nursery
        self._config = config
        self._url = url
        self._rng = random.Random(seed)
        self.report = ArenaReport()
        # Acknowledged since the last rest: ranks by name of the chunk.
        self._acknowledged: dict[str, set[int]] = {}
        self._num_born = 0
        self._server_config = ServerProcessConfig(str(folder), url, config.num_slots)
        self._server = ServerHandle(nursery, self._server_config)
        self._engines = [self._new_engine() for _ in range(config.num_engines)]

    def run(self, num_rounds: int) -> ArenaReport:
        """Raises ChildFailedError for a wrong byte, a lost slot, a leaked lock, a lost object or a crash."""
        num_tries = 0
        while self.report.num_rounds < num_rounds:
            self._round()
            num_tries += 1
            if num_tries > 3 * num_rounds + 20:
                raise ChildFailedError(f"only {self.report.num_rounds} of {num_tries} faults happened")
            if num_tries % _ROUNDS_PER_REST == 0:
                self._rest()
        self._rest()
        return self.report

    def close(self) -> None:
        for child in (*self._engines, self._server):
            child.close()

    def _new_engine(self) -> EngineHandle:
        self._num_born += 1
        is_apart = self._config.uses_namespaces and self._rng.random() < 0.3
        engine = EngineHandle(
            self._nursery,
            f"engine-{self._num_born}",
            self._url,
            self._config.num_ranks,
            in_pid_namespace=is_apart,
            first_batch_chunks=self._rng.choice((1, 2, 8)),
        )
        self._set_going(engine)
        return engine

    def _set_going(self, engine: EngineHandle) -> None:
        seed = self._rng.getrandbits(32)
        engine.ask(c.Traffic(seed, self._config.num_prompts, self._config.chunks_per_prompt))

    # A round

    def _round(self) -> None:
        running = [engine for engine in self._engines if not engine.is_stopped]
        if self._rng.random() < 0.25:
            self._fault_in_server()
        elif len(running) >= _RUNNING_MIN:
            self._fault_in_engine(self._rng.choice(running))
        self._meanwhile()
        for engine in [engine for engine in self._engines if engine.is_stopped]:
            too_few = len([other for other in self._engines if not other.is_stopped]) < _RUNNING_MIN
            if too_few or self._rng.random() < 0.4:
                self._wake_or_kill(engine)
        for engine in self._engines:
            self._listen(engine)
            if not engine.is_alive:
                raise ChildFailedError(f"{engine.name} died unbidden")

    def _fault_in_engine(self, engine: EngineHandle) -> None:
        action = self._rng.choices((Action.KILL, Action.STOP, Action.DELAY), (40, 45, 15))[0]
        step = self._rng.choice(ENGINE_STEPS)
        if not self._strike("engine", engine, step, action):
            return
        if action is Action.KILL:
            self._replace(engine)
        elif action is Action.STOP and not self._config.is_roomy and self._rng.random() < 0.5:
            self._overwrite()
        elif action is Action.DELAY and self._rng.random() < 0.5:
            self._restart_server()

    def _fault_in_server(self) -> None:
        action = self._rng.choices((Action.KILL, Action.STOP), (60, 40))[0]
        steps = SERVER_STEPS if self._config.is_roomy else SERVER_STEPS + PRESSURE_STEPS
        if not self._strike("server", self._server, self._rng.choice(steps), action):
            return
        if action is Action.KILL:
            self._start_server()
            return
        time.sleep(self._rng.random() * 0.8)
        if self._rng.random() < 0.3:
            self._restart_server()
        else:
            self._server.resume()

    def _strike(self, role: str, child: EngineHandle | ServerHandle, step: str, action: Action) -> bool:
        """Whether the step was reached, and the fault with it."""
        child.ask(c.Arm(Fault(step, action, self._rng.randint(1, 3))))
        if not child.wait_for_fault(action, _FAULT_TIMEOUT_S):
            if not child.is_alive:
                raise ChildFailedError(f"{child.name} died unbidden")
            child.ask(c.Arm(None))
            # It may have happened while we gave up.
            if not child.wait_for_fault(action, 0.0):
                return False
        self.report.faults[role, action, step] += 1
        return True

    def _replace(self, engine: EngineHandle) -> None:
        self._listen(engine)
        engine.close()
        self._engines[self._engines.index(engine)] = self._new_engine()

    def _wake_or_kill(self, engine: EngineHandle) -> None:
        if self._rng.random() < 0.25:
            engine.kill()
            self._replace(engine)
        else:
            engine.resume()

    def _restart_server(self) -> None:
        self._server.kill()
        self._start_server()

    def _start_server(self) -> None:
        self._server.close()
        self._server = ServerHandle(self._nursery, self._server_config)
        self.report.num_restarts += 1

    def _meanwhile(self) -> None:
        """What others do while some are stopped: time passes, dead ones are buried, everything is cleared."""
        rng = self._rng
        if rng.random() < 0.5:
            self._server.cycle(rng.choice((0.0, 0.0, 21.0, 41.0, 61.0)))
        if not self._config.is_roomy and rng.random() < 0.15:
            self._server.clear(force=rng.random() < 0.7)
        if rng.random() < 0.5:
            time.sleep(rng.random() * 0.05)

    def _overwrite(self) -> None:
        """Free all that can be freed under whoever is stopped, and let others fill the whole pool anew."""
        self._server.cycle(self._rng.choice((0.0, self._server_config.write_ttl_s + 1)))
        self._server.clear(force=True)
        for _ in range(50):
            report = self._server.cycle()
            if report.num_objects + report.num_quarantined >= self._config.num_slots:
                return
            time.sleep(0.01)

    def _listen(self, engine: EngineHandle) -> None:
        for message in engine.take_said():
            match message:
                case c.Stored(rank, names):
                    for name in names:
                        self._acknowledged.setdefault(name, set()).add(rank)
                    self.report.num_acknowledged += len(names)
                case c.TrafficCount(num_ok, num_failed):
                    self.report.num_loads_ok += num_ok
                    self.report.num_loads_failed += num_failed
                case c.WrongBytes():
                    raise ChildFailedError(f"{engine.name}: {message}")

    # A rest

    def _rest(self) -> None:
        """Everybody finishes; then nothing may be lost."""
        for engine in self._engines:
            if engine.is_stopped:
                engine.resume()
        for engine in self._engines:
            engine.tell(c.Pause())
        for engine in self._engines:
            engine.answer()
            engine.wait_joined()
            self._listen(engine)
        self._server.cycle(self._server_config.session_ttl_s + 1)  # sessions that nobody ended
        report = self._server.settle()
        chunk_bytes = report.used_bytes / report.num_objects if report.num_objects else 0
        if report.num_objects and chunk_bytes != int(chunk_bytes):
            raise ChildFailedError(f"used bytes are not those of the objects: {report}")
        if self._config.is_roomy:
            self._check_acknowledged()
            self._server.clear()
        self._acknowledged.clear()
        self.report.num_rests += 1
        for engine in self._engines:
            self._set_going(engine)

    def _check_acknowledged(self) -> None:
        whole = [name for name, ranks in self._acknowledged.items() if len(ranks) == self._config.num_ranks]
        # One of its own: those that fight take a server that is short of a core for gone.
        reader = EngineHandle(self._nursery, "reader", self._url, self._config.num_ranks, patience_s=PATIENT_S)
        try:
            reader.wait_joined()
            missing = reader.verify(whole)
            self._listen(reader)
        finally:
            reader.close()
        if missing:
            raise ChildFailedError(f"{len(missing)} of {len(whole)} acknowledged objects are gone: {missing[:5]}")
