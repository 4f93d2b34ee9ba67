"""Every policy once more, as the least it can be: plain lists, searched from the front."""

from __future__ import annotations

from collections.abc import Iterable


class NaiveLRU:
    """Slots in the order of their last use, the most recent last; held ones wait outside."""

    name = "LRU"

    def __init__(self) -> None:
        self.order: list[int] = []
        self.held: set[int] = set()
        self.tenant: dict[int, str] = {}

    @property
    def tracked(self) -> set[int]:
        return {*self.order, *self.held}

    def add(self, slot: int, key_hash: int, tenant: str) -> None:
        self.order.append(slot)
        self.tenant[slot] = tenant

    def touch(self, slots: Iterable[int]) -> None:
        for slot in slots:
            if slot in self.order:
                self.order.remove(slot)
                self.order.append(slot)

    def refresh(self, slots: Iterable[int]) -> None:
        self.touch(slots)

    def hold(self, slot: int) -> None:
        if slot in self.order:
            self.order.remove(slot)
            self.held.add(slot)

    def release(self, slot: int) -> None:
        if slot in self.held:
            self.held.remove(slot)
            self.order.append(slot)

    def remove(self, slot: int, is_evicted: bool) -> None:
        self.held.discard(slot)
        if slot in self.order:
            self.order.remove(slot)

    def walk(self, num_max: int, tenant: str | None = None) -> list[int]:
        """The first victims; what a walk changes in the policy, it changes here."""
        return [slot for slot in self.order if tenant is None or self.tenant[slot] == tenant][:num_max]


class NaiveIsolatedLRU(NaiveLRU):
    name = "IsolatedLRU"


class NaiveNoop(NaiveLRU):
    name = "noop"

    def walk(self, num_max: int, tenant: str | None = None) -> list[int]:
        return []


class NaiveARC(NaiveLRU):
    """`recent` and `frequent` list held slots too; where those stand in them does not matter."""

    name = "ARC"

    def __init__(self) -> None:
        super().__init__()
        self.recent: list[int] = []
        self.frequent: list[int] = []
        self.recent_ghosts: list[int] = []
        self.frequent_ghosts: list[int] = []
        self.hashes: dict[int, int] = {}
        self.target = 0.0
        self.size = 0
        self.is_evicting = False

    @property
    def tracked(self) -> set[int]:
        return {*self.recent, *self.frequent}

    def add(self, slot: int, key_hash: int, tenant: str) -> None:
        self.is_evicting = False
        self.hashes[slot] = key_hash
        num_recent, num_frequent = len(self.recent_ghosts), len(self.frequent_ghosts)
        if key_hash in self.recent_ghosts:
            self.recent_ghosts.remove(key_hash)
            self.target = min(self.size, self.target + max(1, num_frequent / num_recent))
            self.frequent.append(slot)
        elif key_hash in self.frequent_ghosts:
            self.frequent_ghosts.remove(key_hash)
            self.target = max(0, self.target - max(1, num_recent / num_frequent))
            self.frequent.append(slot)
        else:
            self.recent.append(slot)

    def touch(self, slots: Iterable[int]) -> None:
        for slot in slots:
            for order in (self.recent, self.frequent):
                if slot in order:
                    order.remove(slot)
                    self.frequent.append(slot)
                    break

    def refresh(self, slots: Iterable[int]) -> None:
        for slot in slots:
            for order in (self.recent, self.frequent):
                if slot in order:
                    order.remove(slot)
                    order.append(slot)

    def hold(self, slot: int) -> None:
        if slot in self.tracked:
            self.held.add(slot)

    def release(self, slot: int) -> None:
        if slot in self.held:
            self.held.remove(slot)
            order = self.recent if slot in self.recent else self.frequent
            order.remove(slot)
            order.append(slot)

    def remove(self, slot: int, is_evicted: bool) -> None:
        if slot not in self.tracked:
            return
        if is_evicted and not self.is_evicting:
            self.is_evicting, self.size = True, len(self.tracked)
        self.held.discard(slot)
        order, ghosts = self.frequent, self.frequent_ghosts
        if slot in self.recent:
            order, ghosts = self.recent, self.recent_ghosts
        order.remove(slot)
        if is_evicted:
            remember(ghosts, self.hashes[slot])
            trim(self.recent_ghosts, self.size - len(self.recent))
            trim(self.frequent_ghosts, 2 * self.size - len(self.tracked) - len(self.recent_ghosts))

    def walk(self, num_max: int, tenant: str | None = None) -> list[int]:
        offered: list[int] = []
        while len(offered) < num_max:
            recent = [slot for slot in self.recent if slot not in offered]
            left = [slot for slot in recent if slot not in self.held]
            others = [slot for slot in self.frequent if slot not in offered and slot not in self.held]
            if left and (len(recent) > self.target or not others):
                offered.append(left[0])
            elif others:
                offered.append(others[0])
            else:
                break
        return offered


class NaiveS3FIFO(NaiveLRU):
    name = "S3-FIFO"

    def __init__(self) -> None:
        super().__init__()
        self.small: list[int] = []
        self.main: list[int] = []
        self.parked: list[int] = []
        self.ghosts: list[int] = []
        self.uses: dict[int, int] = {}
        self.hashes: dict[int, int] = {}
        self.size = 0
        self.is_evicting = False

    @property
    def tracked(self) -> set[int]:
        return {*self.small, *self.main, *self.parked}

    def add(self, slot: int, key_hash: int, tenant: str) -> None:
        self.is_evicting = False
        self.hashes[slot], self.uses[slot] = key_hash, 0
        if key_hash in self.ghosts:
            self.ghosts.remove(key_hash)
            self.main.append(slot)
        else:
            self.small.append(slot)

    def touch(self, slots: Iterable[int]) -> None:
        for slot in slots:
            if slot in self.tracked:
                self.uses[slot] = min(3, self.uses[slot] + 1)

    def refresh(self, slots: Iterable[int]) -> None:
        pass

    def hold(self, slot: int) -> None:
        if slot in self.tracked:
            self.held.add(slot)

    def release(self, slot: int) -> None:
        self.held.discard(slot)
        if slot in self.parked:
            self.parked.remove(slot)
            self.main.append(slot)

    def remove(self, slot: int, is_evicted: bool) -> None:
        if slot not in self.tracked:
            return
        if is_evicted and not self.is_evicting:
            self.is_evicting, self.size = True, len(self.tracked)
        self.held.discard(slot)
        if slot in self.small and is_evicted:
            remember(self.ghosts, self.hashes[slot])
            trim(self.ghosts, self.size)
        for queue in (self.small, self.main, self.parked):
            if slot in queue:
                queue.remove(slot)

    def walk(self, num_max: int, tenant: str | None = None) -> list[int]:
        offered: list[int] = []
        while len(offered) < num_max:
            small = [slot for slot in self.small if slot not in offered]
            main = [slot for slot in self.main if slot not in offered]
            if not small and not main:
                break
            from_small = small and (len(small) >= 0.1 * (len(small) + len(main)) or not main)
            slot = small[0] if from_small else main[0]
            queue = self.small if from_small else self.main
            if slot in self.held:
                queue.remove(slot)
                self.parked.append(slot)
            elif from_small and self.uses[slot] >= 2:
                queue.remove(slot)
                self.main.append(slot)
            elif not from_small and self.uses[slot]:
                self.uses[slot] -= 1
                queue.remove(slot)
                queue.append(slot)
            else:
                offered.append(slot)
        return offered


class NaiveFIFO(NaiveLRU):
    """`history`: what happened to each slot that is tracked, as (tick of its arrival, uses, tick of its last use)."""

    name = "FIFO"

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[int, tuple[int, int, int]] = {}
        self.tick = 0

    @property
    def tracked(self) -> set[int]:
        return set(self.history)

    def add(self, slot: int, key_hash: int, tenant: str) -> None:
        self.tick += 1
        self.history[slot] = (self.tick, 1, self.tick)

    def _use(self, slot: int, num_uses: int) -> None:
        self.tick += 1
        if slot in self.history:
            came, uses, _ = self.history[slot]
            self.history[slot] = (came, uses + num_uses, self.tick)

    def touch(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._use(slot, 1)

    def refresh(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._use(slot, 0)

    def hold(self, slot: int) -> None:
        if slot in self.history:
            self.held.add(slot)

    def release(self, slot: int) -> None:
        if slot in self.held:
            self.held.remove(slot)
            self._use(slot, 0)

    def remove(self, slot: int, is_evicted: bool) -> None:
        self.history.pop(slot, None)
        self.held.discard(slot)

    def rank(self, slot: int) -> tuple[int, ...]:
        return (self.history[slot][0],)

    def walk(self, num_max: int, tenant: str | None = None) -> list[int]:
        return sorted(self.tracked - self.held, key=self.rank)[:num_max]


class NaiveMRU(NaiveFIFO):
    name = "MRU"

    def rank(self, slot: int) -> tuple[int, ...]:
        return (-self.history[slot][2],)


class NaiveLFU(NaiveFIFO):
    name = "LFU"

    def rank(self, slot: int) -> tuple[int, ...]:
        return self.history[slot][1:]


def remember(ghosts: list[int], key_hash: int) -> None:
    if key_hash in ghosts:
        ghosts.remove(key_hash)
    ghosts.append(key_hash)


def trim(ghosts: list[int], num_max: int) -> None:
    while len(ghosts) > max(num_max, 0):
        ghosts.pop(0)


_ALL = (NaiveLRU, NaiveIsolatedLRU, NaiveNoop, NaiveARC, NaiveS3FIFO, NaiveFIFO, NaiveMRU, NaiveLFU)
MODELS = {model.name: model for model in _ALL}
