"""The documents against the server: every documented route is served, every served route has a section in our
own documentation, and the samples are answered as they are printed."""

from __future__ import annotations

import pathlib
import re

import httpx
import pytest

import lmcache.utils
from lmcache.cli.server import ENDPOINTS_PACKAGE
from lmcache.http.registry import HTTPAPIRegistry
from tests.http.document_000 import DOCUMENTED, LATER_NAMES, REGARDLESS_OF_ENGINE, SAMPLES, Sample

_DOCS = pathlib.Path(__file__).parents[2] / "docs" / "http_api.md"
_HEADING = re.compile(r"^#{2,3} (.*)$", re.MULTILINE)
_ROUTE = re.compile(r"\b(GET|POST|PUT|DELETE|PATCH) `?(/[^\s,`]*)")


@pytest.fixture(scope="module")
def served() -> set[tuple[str, str]]:
    return HTTPAPIRegistry(ENDPOINTS_PACKAGE).paths()


def sections() -> set[tuple[str, str]]:
    """Method and path of every heading; a checkout has the documentation, an installed package does not."""
    if not _DOCS.exists():
        pytest.skip("there is no documentation beside the package")
    headings = " , ".join(_HEADING.findall(_DOCS.read_text(encoding="utf-8")))
    return {(method, path) for method, path in _ROUTE.findall(headings)}


def without_names(routes: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Parameters may bear any name."""
    return {(method, re.sub(r"{[^}]*}", "{}", path)) for method, path in routes}


@pytest.mark.parametrize("route", [*DOCUMENTED, *LATER_NAMES], ids=" ".join)
def test_documented_route_is_served(route: tuple[str, str], served: set[tuple[str, str]]) -> None:
    assert without_names({route}) <= without_names(served)


def test_every_served_route_has_a_section_in_our_documentation(served: set[tuple[str, str]]) -> None:
    assert without_names(served) - without_names(sections()) == set()


def test_every_section_is_of_a_route_that_is_served(served: set[tuple[str, str]]) -> None:
    assert without_names(sections()) - without_names(served) == set()


def check_sample(http: httpx.Client, sample: Sample) -> None:
    answer = http.request(sample.method, sample.target, json=sample.body)
    assert answer.status_code == sample.code, answer.text
    assert answer.headers["content-type"] == sample.content_type
    if sample.answer is None:
        return
    if isinstance(sample.answer, str):
        assert answer.text == sample.answer
    else:
        assert answer.json() == sample.answer


# In the order of the document: the samples of the quotas build on each other.
def test_samples_are_answered_as_printed(http: httpx.Client, subtests: pytest.Subtests) -> None:
    for sample in SAMPLES:
        with subtests.test(str(sample)):
            check_sample(http, sample)


@pytest.mark.parametrize("sample", REGARDLESS_OF_ENGINE, ids=str)
def test_answers_that_do_not_depend_on_the_engine(http: httpx.Client, sample: Sample) -> None:
    check_sample(http, sample)


def test_versions_are_bare_strings(http: httpx.Client) -> None:
    assert http.get("/version").json() == lmcache.utils.get_version()
    assert http.get("/lmc_version").json() == lmcache.utils.VERSION
    assert http.get("/commit_id").json() == lmcache.utils.COMMIT_ID


def test_application_is_what_the_documents_call_it(http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()
    assert described["info"] == {"title": "LMCache HTTP API", "version": "1.0.0"}
    for page in ("/docs", "/redoc"):
        assert http.get(page).status_code == 200


def test_every_operation_is_described(http: httpx.Client) -> None:
    missing = [
        f"{method.upper()} {path}: {what}"
        for path, operations in http.get("/openapi.json").json()["paths"].items()
        for method, operation in operations.items()
        for what in ("summary", "description")
        if not operation.get(what)
    ]
    assert missing == []
