"""One nursery for all tests of the fence, a site per test."""

import pytest

from lmcache.testing.nursery import Nursery
from lmcache.testing.site import Site


@pytest.fixture(scope="session")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def site(nursery):
    with Site(nursery) as site:
        yield site
