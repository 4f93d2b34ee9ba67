"""What a lookup server answers to a question, whichever way it came: failures are answers too."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import msgspec

from lmcache.embedded.jobs import Prompt
from lmcache.embedded.lookup import messages as m
from lmcache.embedded.lookup.base import LookupTarget
from lmcache.errors import DeclinedError, LMCacheError
from lmcache.protocol.blobs import split_digests

logger = logging.getLogger(__name__)

A = TypeVar("A")

encode: Callable[[m.Answer], bytes] = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(m.Question).decode


def answer(frame: bytes, answer_question: Callable[[m.Question], A]) -> A | m.Answer:
    """What `answer_question` says to the question in this frame, or why it could not."""
    try:
        question = _decode(frame)
    except msgspec.MsgspecError as error:
        return m.Failed(str(error))
    return answer_to(question, answer_question)


def answer_to(question: m.Question, answer_question: Callable[[m.Question], A]) -> A | m.Answer:
    try:
        return answer_question(question)
    except DeclinedError as error:
        return m.Declined(str(error))
    except LMCacheError as error:
        return m.Failed(str(error))
    except Exception as error:  # the root of a thread: log, answer, go on
        logger.exception("a lookup failed")
        return m.Failed(f"{type(error).__name__}: {error}")


def answer_now(target: LookupTarget, question: m.Question) -> m.Answer:
    if isinstance(question, m.Hello):
        return m.Introduction(msgspec.json.encode(target.introduce()))
    if isinstance(question, m.Release):
        return m.Released(target.release(question.lookup_ids))
    return m.Found(target.lookup(question.lookup_id, prompt_of(question), question.wait_s))


def prompt_of(question: m.Lookup) -> Prompt:
    """Raises ProtocolError."""
    digests = tuple(split_digests(question.digests))
    return Prompt(question.root, question.cache_salt, digests, question.tail_blocks)
