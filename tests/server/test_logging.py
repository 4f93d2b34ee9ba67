"""Logging: ours to stderr at our level, in our process and in one that has set up its own."""

from __future__ import annotations

from tests.conftest import StartChild

_IN_ANOTHER_PROCESS = """
import logging, sys
if "root" in sys.argv:
    logging.basicConfig(stream=sys.stdout, format="root %(message)s")
else:
    sys.stderr = sys.stdout
from lmcache.utils import init_logger
logger = init_logger("lmcache.integration")
logger.debug("detail")
logger.info("fact")
logging.getLogger("lmcache.engine").warning("warned")
print("end", flush=True)
"""


def lines(start_child: StartChild, *arguments: str, **env: str) -> list[str]:
    child = start_child(_IN_ANOTHER_PROCESS, *arguments, **env)
    found = []
    while (line := child.read_line()) != "end":
        found.append(line)
    return found


def test_process_without_logging_gets_one_line_each(start_child: StartChild) -> None:
    fact, warned = lines(start_child)
    assert fact.endswith("INFO lmcache.integration: fact")
    assert warned.endswith("WARNING lmcache.engine: warned")


def test_level_comes_from_the_environment(start_child: StartChild) -> None:
    assert len(lines(start_child, LMCACHE_LOG_LEVEL="debug")) == 3
    assert len(lines(start_child, LMCACHE_LOG_LEVEL="WARNING")) == 1
    assert len(lines(start_child, LMCACHE_LOG_LEVEL="no such level")) == 2


def test_process_with_logging_of_its_own_writes_each_line_once(start_child: StartChild) -> None:
    assert lines(start_child, "root") == ["root fact", "root warned"]
