"""What `lmcache doctor` makes of a command line is what vLLM makes of it: no difference is told where there is none."""

from __future__ import annotations

import json
import pathlib

import pytest

from lmcache.cli.doctor.checks_identity import differences
from lmcache.core.identity import short_digest
from lmcache.engine.identities import told_facts
from tests.cli.doctor_site import SERVER, host_of, transfer_of
from tests.vllm_identity.conftest import MakeConfig, write_model, write_weights


def told(model: str, make_config: MakeConfig, *flags: str, **arguments: object) -> list[str]:
    """The differences between a registered engine of these arguments and a command line of these flags."""
    from lmcache.cli.doctor.reading import read_subject
    from lmcache.integration.vllm.model_facts import model_facts

    facts = json.loads(json.dumps(model_facts(make_config(model=model, **arguments), None)))
    digests = {name: short_digest(fact) for name, fact in facts.items()}
    words = ["vllm", "serve", model, "--kv-transfer-config", transfer_of(SERVER), *flags]
    subject = read_subject(words, None, None, {}, host_of(), None)
    return list(differences(subject, {"facts": told_facts(facts), "digests": digests}))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_model(tmp_path_factory.mktemp("weighty-llama"))
    write_weights(folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ((), {"load_format": "auto"}),
        (("--load-format", "safetensors"), {"load_format": "safetensors"}),
        (("--load-format=dummy", "--seed=7"), {"load_format": "dummy", "seed": 7}),
        (("--revision", "v2"), {"load_format": "auto", "revision": "v2"}),
        (("-tp", "2"), {"load_format": "auto", "tensor_parallel_size": 2}),
        (("-pp", "2"), {"load_format": "auto", "pipeline_parallel_size": 2}),
        (("--dtype", "float32"), {"load_format": "auto", "dtype": "float32"}),
    ],
)
def test_same_arguments_make_no_difference(
    model: str, make_config: MakeConfig, flags: tuple[str, ...], arguments: dict[str, object]
) -> None:
    assert told(model, make_config, *flags, **arguments) == []


def test_other_arguments_are_told(model: str, make_config: MakeConfig, tmp_path: pathlib.Path) -> None:
    assert told(model, make_config, "-tp", "2", load_format="auto", pipeline_parallel_size=2) == [
        "tensor_parallel_size 1 (not 2)", "pipeline_parallel_size 2 (not 1)",
    ]  # fmt: skip
    assert told(model, make_config, load_format="auto", revision="v2") == ["revision v2 (not none)"]
    assert told(model, make_config, load_format="dummy") == ["other weights"]
