"""From arguments to a Subject: which connector vLLM is told to use, and with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmcache.cli.doctor.command_line import (
    TRANSFER_FLAG,
    VLLMCommand,
    parse_command,
    parse_transfer_config,
    transfer_config,
)
from lmcache.cli.doctor.subject import CONNECTORS, IN_PROCESS, Host, Subject
from lmcache.errors import ConfigError

_MULTI = "MultiConnector"
_FILE_VARIABLE = "LMCACHE_CONFIG_FILE"


def read_subject(
    words: Sequence[str],
    transfer_text: str | None,
    config_file: str | None,
    environ: Mapping[str, str],
    host: Host,
    http_url: str | None = None,
    http_token: str = "",
) -> Subject:
    """Raises ConfigError where there is nothing to look at, or it cannot be read."""
    command = parse_command(words) if words else VLLMCommand()
    environ = {**environ, **command.variables}
    transfer = parse_transfer_config(transfer_text) if transfer_text else transfer_config(command)
    if transfer is not None:
        transfer = _ours_of_several(transfer)
        connector = str(transfer.get("kv_connector") or "")
    elif words:
        connector = ""
    elif config_file or environ.get(_FILE_VARIABLE):
        connector = IN_PROCESS
    else:
        raise ConfigError(
            f"nothing to look at: give a vLLM command line (`lmcache doctor -- vllm serve ...`), --config FILE or "
            f"--{TRANSFER_FLAG} JSON"
        )
    known = connector if connector in CONNECTORS else ""
    return Subject(command, known, transfer, environ, host, config_file, http_url, http_token)


def _ours_of_several(transfer: dict[str, Any]) -> dict[str, Any]:
    """Of a MultiConnector the one that is ours; `kv_role` is told to each."""
    extra = transfer.get("kv_connector_extra_config")
    if transfer.get("kv_connector") != _MULTI or not isinstance(extra, dict):
        return transfer
    inner = [each for each in extra.get("connectors") or [] if isinstance(each, dict)]
    ours = next((each for each in inner if each.get("kv_connector") in CONNECTORS), None)
    return transfer if ours is None else {"kv_role": transfer.get("kv_role"), **ours}
