"""vLLM's command lines as `lmcache doctor` reads them: every spelling of a flag, and what is refused."""

from __future__ import annotations

import json
import pathlib

import pytest

from lmcache.cli.doctor.command_line import parse_command, transfer_config
from lmcache.errors import ConfigError

TRANSFER = {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}


@pytest.mark.parametrize(
    "flags",
    [
        ["--tensor-parallel-size", "2", "--block-size=32"],
        ["--tensor_parallel_size=2", "--block_size", "32"],
        ["-tp", "2", "--block-size", "16", "--block-size", "32"],
        ["-tp=2", "--enforce-eager", "--block-size", "32"],
    ],
)
def test_spellings_of_flags(flags: list[str]) -> None:
    command = parse_command(["vllm", "serve", "org/model", *flags, "-pp", "3"])
    assert (command.model, command.num_ranks, command.block_size) == ("org/model", 6, 32)


@pytest.mark.parametrize(
    "words",
    [
        ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", "org/model"],
        ["vllm", "serve", "--model=org/model"],
        ["/opt/venv/bin/vllm", "serve", "org/model", "--enforce-eager"],
    ],
)
def test_model_wherever_it_stands(words: list[str]) -> None:
    command = parse_command(words)
    assert (command.model, command.num_ranks, command.block_size) == ("org/model", 1, None)


def test_variables_in_front_are_those_of_the_process() -> None:
    command = parse_command(["env", "LMCACHE_CHUNK_SIZE=128", "A=b=c", "vllm", "serve", "m"])
    assert command.variables == {"LMCACHE_CHUNK_SIZE": "128", "A": "b=c"}
    assert command.program == "vllm"


def test_negative_numbers_are_values() -> None:
    command = parse_command(["vllm", "serve", "m", "--seed", "-1", "--max-num-seqs", "4"])
    assert command.flags["seed"] == "-1"
    assert command.flags["max-num-seqs"] == "4"


def test_transfer_config_whole_or_by_dots() -> None:
    whole = parse_command(["vllm", "serve", "m", "--kv_transfer_config", json.dumps(TRANSFER)])
    assert transfer_config(whole) == TRANSFER
    dotted = parse_command(
        ["vllm", "serve", "m", "--kv-transfer-config.kv_connector", "LMCacheConnectorV1",
         "--kv-transfer-config.kv_role=kv_both", "--kv-transfer-config.kv_connector_extra_config.use_native", "true"]
    )  # fmt: skip
    assert transfer_config(dotted) == {**TRANSFER, "kv_connector_extra_config": {"use_native": True}}
    assert transfer_config(parse_command(["vllm", "serve", "m"])) is None


def test_the_config_of_vllm_is_read_and_the_command_line_wins(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "vllm.yaml"
    path.write_text(
        "model: org/model\ntensor_parallel_size: 4\nblock-size: 64\n"
        "kv-transfer-config: {kv_connector: LMCacheConnectorV1, kv_role: kv_both}\n"
    )
    command = parse_command(["vllm", "serve", "--config", str(path), "-tp", "2"])
    assert (command.model, command.num_ranks, command.block_size) == ("org/model", 2, 64)
    assert transfer_config(command) == TRANSFER


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["ls", "-l"], "no command line of vLLM"),
        (["vllm", "serve", "m", "--config", "/no/such.yaml"], "/no/such.yaml cannot be read"),
    ],
)
def test_what_cannot_be_read(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_command(words)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{kv_connector:LMCacheConnectorV1", "not valid JSON.*quotes around it"),
        ("[]", "must be a JSON object"),
        ("", "not valid JSON"),
    ],
)
def test_transfer_config_that_is_none(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        transfer_config(parse_command(["vllm", "serve", "m", "--kv-transfer-config", text]))


def test_a_number_that_is_none() -> None:
    with pytest.raises(ConfigError, match="--block-size must be a whole number of at least 1 \\(got 'many'\\)"):
        _ = parse_command(["vllm", "serve", "m", "--block-size", "many"]).block_size
