"""Settings of the fault adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from lmcache.errors import ConfigError
from lmcache.l2.fields import fraction, not_negative, whole_number


class Fault(StrEnum):
    ERROR = "error"  # the backend cannot be reached
    DELAY = "delay"  # it answers late
    MISSING = "missing"  # the object is gone (loads)
    # The load fails as one whose checksum does not match, and the object is removed. No byte is altered: outside the
    # adapter's checksums nobody would notice, and wrong KV be delivered.
    CORRUPT = "corrupt"


class Operation(StrEnum):
    STORE = "store"
    LOOKUP = "lookup"
    LOAD = "load"
    DELETE = "delete"


_LOAD_FAULTS = {Fault.MISSING, Fault.CORRUPT}


@dataclass(frozen=True, slots=True)
class FaultInjectConfig:
    """`inner` is the adapter inside, as one would configure it alone.

    Of all calls of `operations` the share `rate` has a fault, one of `faults`, chosen by `seed`.
    `gap_indices` and `gap_tail_ratios` make holes in every lookup, whatever is held: at these
    positions, and where that share of the keys still follows.
    """

    inner: Mapping[str, object] = field(repr=False)
    rate: float = 0.0
    seed: int = 0
    faults: Sequence[str] = (Fault.ERROR,)
    operations: Sequence[str] = (Operation.STORE, Operation.LOOKUP, Operation.LOAD)
    delay_s: float = 0.1
    gap_indices: Sequence[int] = ()
    gap_tail_ratios: Sequence[float] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.inner, dict):
            raise ConfigError('inner must be an adapter, such as {"type": "memory", "max_size_gb": 1}')
        not_negative("rate", self.rate)
        if self.rate > 1:
            raise ConfigError(f"rate must be at most 1 (got {self.rate!r})")
        whole_number("seed", self.seed, 0)
        not_negative("delay_s", self.delay_s)
        _names("faults", self.faults, [str(fault) for fault in Fault])
        _names("operations", self.operations, [str(operation) for operation in Operation])
        for index in _list("gap_indices", self.gap_indices):
            whole_number("gap_indices", index, 0)
        for ratio in _list("gap_tail_ratios", self.gap_tail_ratios):
            fraction("gap_tail_ratios", ratio)
        # The registry imports this module; what is inside is checked where the rest is.
        from lmcache.l2.registry import parse_adapter_object

        parse_adapter_object(self.inner, "inner")

    def faults_of(self, operation: Operation) -> list[Fault]:
        """What may happen to a call of this kind."""
        if operation not in self.operations:
            return []
        is_load = operation is Operation.LOAD
        return [Fault(name) for name in self.faults if is_load or Fault(name) not in _LOAD_FAULTS]


def _list(name: str, value: Sequence[float]) -> Sequence[float]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name} must be a list (got {value!r})")
    return value


def _names(name: str, value: Sequence[str], known: list[str]) -> None:
    if not isinstance(value, list | tuple) or not value or not all(item in known for item in value):
        raise ConfigError(f"{name} must be a list of at least one of {', '.join(known)} (got {value!r})")
