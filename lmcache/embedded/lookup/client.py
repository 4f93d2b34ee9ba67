"""The synchronous lookup client: asks all ranks at once, answers their minimum, within a deadline.

A rank that does not answer costs one deadline, once, and one that died costs nothing. From then on lookups
miss at once, until it gives a sign of life.
"""

from __future__ import annotations

from functools import partial

from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup import here
from lmcache.embedded.lookup import messages as m
from lmcache.embedded.lookup.answers import answer_now, answer_to
from lmcache.embedded.lookup.rank_client import RankLookupClient


class LMCacheLookupClient(RankLookupClient):
    """A `LookupClient`. The only rank is asked without a socket where its server is in this process."""

    def lookup(self, lookup_id: str, prompt: Prompt, may_wait: bool = True) -> int:
        target = here.find(self._urls[self._asked[0]]) if len(self._asked) == 1 else None
        if target is None and self._links.are_silent(self._asked):
            return 0
        timeout_s = self._timeout_s
        question = self._question(lookup_id, prompt, timeout_s, may_wait)
        if target is not None:
            return self._least([answer_to(question, partial(answer_now, target))])
        answers = self._links.ask(question, self._asked, timeout_s)
        if answers is None:
            # What is found too late is nobody's.
            self._links.tell(m.Release((lookup_id,)), self._asked)
            return 0
        return self._least(answers)

    def forget(self, lookup_id: str) -> None:
        """Every lookup is over when it returns."""

    def end_lookups(self) -> None:
        """The same."""
