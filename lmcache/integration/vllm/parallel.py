"""An engine's ranks: how many, which one this is, and which rank's objects it reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ParallelStrategy:
    """`rank` counts pipeline-major: `pipeline rank * tensor size + tensor rank`.

    With MLA (`is_mla`) every tensor rank holds the same bytes: the first of each pipeline stage
    stores for all, and all read its objects.
    """

    world_size: int
    rank: int
    tensor_size: int
    is_mla: bool

    @classmethod
    def of(cls, vllm_config: Any, is_mla: bool, rank: int) -> ParallelStrategy:
        parallel = vllm_config.parallel_config
        return cls(
            world_size=parallel.tensor_parallel_size * parallel.pipeline_parallel_size,
            rank=rank,
            tensor_size=parallel.tensor_parallel_size,
            is_mla=is_mla,
        )

    @property
    def column(self) -> int:
        """This rank's place among the places of a promised chunk."""
        return self.rank // self.tensor_size if self.is_mla else self.rank

    @property
    def source_rank(self) -> int:
        """The rank under whose key this one's objects are known."""
        return self.column * self.tensor_size if self.is_mla else self.rank

    @property
    def stores(self) -> bool:
        return not self.is_mla or self.rank % self.tensor_size == 0

    @property
    def stores_for_others(self) -> bool:
        return self.is_mla and self.stores and self.tensor_size > 1

    def at(self, rank: int) -> ParallelStrategy:
        return dataclasses.replace(self, rank=rank)
