"""Document 002 against the application: every documented route is served, every served route has a section in our
own documentation, and the samples are answered as they are printed."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest

import lmcache.utils
from lmcache.embedded.kv_tensors import KVTensor, KVTensors
from lmcache.errors import ConfigError
from lmcache.testing.embedded_fake import CountingClient, documented_pages
from lmcache.v1.internal_api_server.app import internal_endpoints
from tests.internal_api.asking import Asked, scheduler, worker
from tests.internal_api.document_002 import (
    BESIDES,
    COMMON,
    DOCUMENTED,
    INFO,
    LAYER_0,
    LAYER_DEVICE,
    LAYER_DTYPE,
    LAYER_SHAPE,
    LAYERWISE,
    LAYERWISE_NAMES,
    NUM_LAYERS,
    ON_COUNTING_SCHEDULER,
    ON_SCHEDULER,
    ON_WORKER,
    WITHOUT_FILE,
    Sample,
)

_DOCS = pathlib.Path(__file__).parents[2] / "docs" / "internal_api.md"
_HEADING = re.compile(r"^#{2,3} (.*)$", re.MULTILINE)
_ROUTE = re.compile(r"\b(GET|POST|PUT|DELETE|PATCH) `?(/[^\s,`]*)")


def without_names(routes: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Parameters may bear any name."""
    return {(method, re.sub(r"{[^}]*}", "{}", path)) for method, path in routes}


def sections() -> set[tuple[str, str]]:
    """Method and path of every heading; a checkout has the documentation, an installed package does not."""
    if not _DOCS.exists():
        pytest.skip("there is no documentation beside the package")
    headings = " , ".join(_HEADING.findall(_DOCS.read_text(encoding="utf-8")))
    return {(method, path) for method, path in _ROUTE.findall(headings)}


def served() -> set[tuple[str, str]]:
    return without_names(internal_endpoints().paths())


def test_what_is_served_is_what_is_documented() -> None:
    assert served() == without_names({*DOCUMENTED, *BESIDES})


def test_every_served_route_has_a_section_in_our_documentation() -> None:
    assert without_names(sections()) == served()


def check(asked: Asked, sample: Sample) -> None:
    answer = asked.call(sample.method, sample.target, json=sample.body)
    assert answer.status_code == sample.code, answer.text
    assert answer.headers["content-type"] == sample.content_type
    if isinstance(sample.answer, str):
        assert answer.text == sample.answer
    elif sample.answer is not None:
        assert answer.json() == sample.answer


def test_samples_on_a_worker(subtests: pytest.Subtests) -> None:
    asked = worker()
    for sample in (*ON_WORKER, *COMMON):
        with subtests.test(str(sample)):
            check(asked, sample)


def test_sample_of_a_file_that_is_not_there() -> None:
    asked = worker()
    asked.engine.error = ConfigError("Configuration file not found")
    check(asked, WITHOUT_FILE)


def test_samples_of_pages_as_large_as_the_documents() -> None:
    asked = worker()
    layer = KVTensor(np.broadcast_to(np.uint16(0), LAYER_SHAPE), LAYER_DTYPE, LAYER_DEVICE)
    asked.manager.pages = KVTensors({f"layer_{number}": layer for number in range(NUM_LAYERS)})
    body = asked.json(INFO.method, INFO.target)
    assert {**body, "layers": None} == {"status": "success", "num_layers": 32, "layers": None}
    assert body["layers"] == {f"layer_{number}": LAYER_0 for number in range(NUM_LAYERS)}


def test_sample_of_checksums_by_layer_bears_its_names() -> None:
    asked = worker()
    known = documented_pages().layers
    asked.manager.pages = KVTensors(dict(zip(LAYERWISE_NAMES, known.values(), strict=True)))
    body = asked.json(LAYERWISE.method, LAYERWISE.target)
    assert list(body["chunk_checksums"]) == LAYERWISE_NAMES
    assert [len(checksums) for checksums in body["chunk_checksums"].values()] == [body["num_chunks"]] * 2


def test_samples_on_a_scheduler(subtests: pytest.Subtests) -> None:
    for sample in (*ON_SCHEDULER, *COMMON):
        with subtests.test(str(sample)):
            check(scheduler(), sample)


def test_samples_on_a_scheduler_that_counts_chunks(subtests: pytest.Subtests) -> None:
    asked = scheduler()
    asked.manager.lookups.current = CountingClient()
    for sample in ON_COUNTING_SCHEDULER:
        with subtests.test(str(sample)):
            check(asked, sample)


def test_versions_are_bare_strings() -> None:
    asked = worker()
    assert asked.json("GET", "/version") == lmcache.utils.get_version()
    assert asked.json("GET", "/lmc_version") == lmcache.utils.VERSION
    assert asked.json("GET", "/commit_id") == lmcache.utils.COMMIT_ID


def test_answers_are_indented() -> None:
    asked = worker()
    for target in ("/conf?names=chunk_size", "/meta?names=role", "/freeze/status", "/bypass/list", "/backends"):
        assert asked.call("GET", target).text.startswith('{\n  "')


def test_every_operation_is_described() -> None:
    missing = [
        f"{method.upper()} {path}: {what}"
        for path, operations in worker().app.openapi()["paths"].items()
        for method, operation in operations.items()
        for what in ("summary", "description")
        if not operation.get(what)
    ]
    assert missing == []


def test_load_fs_chunks_has_the_documented_tag() -> None:
    assert worker().app.openapi()["paths"]["/cache/load-fs-chunks"]["post"]["tags"] == ["cache-management"]
