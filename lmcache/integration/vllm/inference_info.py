"""What an operator may know of the vLLM around us. A field that this vLLM does not have is null."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from lmcache.config.json_safe import encodable, make_json_safe
from lmcache.config.redaction import REDACTED, looks_secret, without_user_info
from lmcache.utils import get_version

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = logging.getLogger(__name__)

# `name='text'` as dataclasses and `'name': 'text'` as mappings print it.
_NAMED_TEXT = re.compile(r"""(\b\w+)(['"]?\s*[=:]\s*)('[^']*'|"[^"]*")""")
# A shorter one would be found in words that have nothing to do with it.
_SECRET_CHARACTERS_MIN = 4


class VLLMInference:
    """An `InferenceEngine`. Read anew with every question: vLLM settles some fields late."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._vllm_config = vllm_config

    def version(self) -> dict[str, object]:
        return {"vllm_version": _told("vllm_version", _vllm_version)}

    def info(self) -> dict[str, object]:
        config = self._vllm_config
        return {
            **self.version(),
            "lmcache_version": get_version(),
            "vllm_config": _told("vllm_config", lambda: describe_config(config)),
            "model_config": {name: _told(name, partial(read, config)) for name, read in _MODEL.items()},
            "cache_config": {name: _told(name, partial(read, config)) for name, read in _CACHE.items()},
        }


def _vllm_version() -> str:
    """As vLLM says it, suffixes such as `+cpu` included."""
    import vllm

    return str(vllm.__version__)


# Of the whole model, also where a rank has a part of it.
_MODEL: Mapping[str, Callable[[Any], object]] = {
    "model": lambda config: config.model_config.model,
    "dtype": lambda config: str(config.model_config.dtype),
    "max_model_len": lambda config: config.model_config.max_model_len,
    "vocab_size": lambda config: config.model_config.get_vocab_size(),
    "num_layers": lambda config: config.model_config.get_total_num_hidden_layers(),
    "num_attention_heads": lambda config: config.model_config.hf_text_config.num_attention_heads,
    "num_kv_heads": lambda config: config.model_config.get_total_num_kv_heads(),
    "head_size": lambda config: config.model_config.get_head_size(),
}
_CACHE: Mapping[str, Callable[[Any], object]] = {
    name: attrgetter(f"cache_config.{name}")
    for name in ("block_size", "cache_dtype", "gpu_memory_utilization", "swap_space", "enable_prefix_caching")
}

# What reading a field of another version's configuration may end in.
_ODD = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)


def _told(name: str, read: Callable[[], object]) -> object:
    """None where this vLLM has no such field, or cannot work it out."""
    try:
        return make_json_safe(read())
    except _ODD as error:  # one that is odd hides no other
        logger.debug("vLLM does not tell %s: %s", name, error)
        return None


# Secrets


def describe_config(config: Any) -> str:
    """vLLM's own text, without the secrets that its configuration holds or that look like some."""
    text = str(config)
    for secret in sorted(set(_secrets(config)), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return encodable(without_user_info(_NAMED_TEXT.sub(_hide, text)))


def _hide(found: re.Match[str]) -> str:
    name, link, quoted = found.groups()
    is_hidden = looks_secret(name) and len(quoted) > len("''")
    return f"{name}{link}{quoted[0]}{REDACTED}{quoted[0]}" if is_hidden else found.group()


def _secrets(config: Any) -> Iterator[str]:
    """Wherever vLLM may print them, the values of settings that are secret by their name."""
    token = getattr(getattr(config, "model_config", None), "hf_token", None)
    transfer = getattr(config, "kv_transfer_config", None)
    extra = getattr(transfer, "kv_connector_extra_config", None) or {}
    for value in (token, *_secret_values(extra)):
        if isinstance(value, str) and len(value) >= _SECRET_CHARACTERS_MIN:
            yield value


def _secret_values(settings: Mapping[str, object]) -> Iterator[object]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _secret_values(value)
        elif looks_secret(str(name)):
            yield value
