"""A vLLM command line as far as the checks need it. Knows a few flags of vLLM, and lets all others pass."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from lmcache.errors import ConfigError

TRANSFER_FLAG = "kv-transfer-config"
_SHORT = {
    "-tp": "tensor-parallel-size",
    "-pp": "pipeline-parallel-size",
    "-dp": "data-parallel-size",
    "-dcp": "decode-context-parallel-size",
    "-pcp": "prefill-context-parallel-size",
    "-n": "nnodes",
    "-q": "quantization",
}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
# What may stand before the program: it does not change what the program is told.
_WRAPPERS = ("env", "nohup", "time", "exec")


@dataclass(frozen=True, slots=True)
class VLLMCommand:
    """`flags`: by name with dashes, the last of a name; "" where no value follows. `variables`: those set in front."""

    program: str = ""
    model: str = ""
    flags: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    def number(self, *names: str, default: int = 1) -> int:
        """Of the first of these flags that is given. Raises ConfigError."""
        text = next((self.flags[name] for name in names if name in self.flags), None)
        if text is None:
            return default
        try:
            value = int(text)
        except ValueError:
            value = 0
        if value < 1:
            raise ConfigError(f"--{names[0]} must be a whole number of at least 1 (got {text!r})")
        return value

    @property
    def num_ranks(self) -> int:
        """Of one engine: its tensor and pipeline ranks. Raises ConfigError."""
        return self.number("tensor-parallel-size") * self.number("pipeline-parallel-size")

    @property
    def num_local_engines(self) -> int:
        """Raises ConfigError."""
        return self.number("data-parallel-size-local", "data-parallel-size")

    @property
    def block_size(self) -> int | None:
        """None: vLLM's own default. Raises ConfigError."""
        return self.number("block-size") if "block-size" in self.flags else None


def parse_command(words: Sequence[str]) -> VLLMCommand:
    """Raises ConfigError where this is no command of vLLM, or a file it names cannot be read."""
    rest = list(words)
    variables: dict[str, str] = {}
    while rest and (rest[0] in _WRAPPERS or _VARIABLE.fullmatch(rest[0])):
        name, has_value, value = rest.pop(0).partition("=")
        if has_value:
            variables[name] = value
    if not any("vllm" in word for word in rest):
        raise ConfigError(f"this is no command line of vLLM, such as `vllm serve MODEL ...` (got {' '.join(words)!r})")
    flags = _flags(rest[1:])
    if "config" in flags:
        flags = _read_vllm_config(flags["config"]) | flags
    return VLLMCommand(rest[0], _model(rest) or flags.get("model", ""), flags, variables)


def _flags(words: Sequence[str]) -> dict[str, str]:
    """Both `--flag value` and `--flag=value`; underscores are dashes. A word after a flag may be its value."""
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        if not word.startswith("-") or _is_number(word):
            continue
        name, has_value, value = word.partition("=")
        name = _SHORT.get(name, name)
        following = words[index + 1] if index + 1 < len(words) else ""
        if not has_value and (not following.startswith("-") or _is_number(following)):
            value = following
        found[_canonical(name)] = value
    return found


def _canonical(name: str) -> str:
    """Below a dot are keys of JSON, whose underscores stay."""
    head, dot, tail = name.lstrip("-").partition(".")
    return head.replace("_", "-") + dot + tail


def _is_number(word: str) -> bool:
    return word[1:].replace(".", "", 1).isdecimal()


def _model(words: Sequence[str]) -> str:
    """The word after `serve`, unless a flag follows it: which flags take a value is vLLM's to know."""
    if "serve" in words:
        following = words[words.index("serve") + 1 :]
        if following and not following[0].startswith("-"):
            return following[0]
    return ""


def _read_vllm_config(path: str) -> dict[str, str]:
    """vLLM's own `--config` holds flags as keys; what the command line says wins."""
    try:
        found = yaml.safe_load(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"vLLM's --config {path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"vLLM's --config {path} is not valid YAML") from error
    if not isinstance(found, dict):
        raise ConfigError(f"vLLM's --config {path} must hold flags and their values")
    return {_canonical(str(name)): _as_word(value) for name, value in found.items()}


def _as_word(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict | list | bool) else str(value)


def transfer_config(command: VLLMCommand) -> dict[str, Any] | None:
    """What `--kv-transfer-config` says, whole or by dotted keys; None without one. Raises ConfigError."""
    dotted = {name: value for name, value in command.flags.items() if name.startswith(f"{TRANSFER_FLAG}.")}
    if TRANSFER_FLAG not in command.flags and not dotted:
        return None
    found = parse_transfer_config(command.flags[TRANSFER_FLAG]) if TRANSFER_FLAG in command.flags else {}
    for name, value in dotted.items():
        _put(found, name.split(".")[1:], value)
    return found


def parse_transfer_config(text: str) -> dict[str, Any]:
    """Raises ConfigError."""
    try:
        found = json.loads(text)
    except ValueError as error:
        hint = "; the shell takes it apart without quotes around it" if not text.endswith("}") else ""
        raise ConfigError(f"--{TRANSFER_FLAG} is not valid JSON: {error}{hint}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--{TRANSFER_FLAG} must be a JSON object (got {text!r})")
    return found


def _put(target: dict[str, Any], path: Sequence[str], value: str) -> None:
    """vLLM's dotted flags: a value that reads as JSON is that, anything else text."""
    for name in path[:-1]:
        inner = target.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--{TRANSFER_FLAG}.{'.'.join(path)} goes below {name}, which is no object")
        target = inner
    try:
        target[path[-1]] = json.loads(value)
    except ValueError:
        target[path[-1]] = value
