"""Small questions to vLLM's configuration, at a path vLLM itself imports."""

from __future__ import annotations

from typing import Any


def mla_enabled(model_config: Any) -> bool:
    """Whether the model uses multi-head latent attention."""
    return bool(getattr(model_config, "use_mla", False))
