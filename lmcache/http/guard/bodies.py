"""A bound on request bodies: by what they announce, and by what really arrives."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Message, Receive, Send


class BodyTooLargeError(Exception):
    """Ends the reading of a body inside the application; answered by whoever set the bound."""


def announced_bytes(headers: Mapping[str, str]) -> int:
    """0 where the length is not known before."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


class BodyBound:
    """Stands between server and application for one call. `is_exceeded`: what the application answered is void."""

    def __init__(self, receive: Receive, send: Send, body_bytes_max: int) -> None:
        self._receive = receive
        self._send = send
        self._left = body_bytes_max
        self.is_exceeded = False
        self.has_answered = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.is_exceeded = True
            raise BodyTooLargeError
        return message

    async def send(self, message: Message) -> None:
        """Frameworks turn an error while reading into an answer of their own, which is not the one to give."""
        if self.is_exceeded and not self.has_answered:
            return
        self.has_answered = True
        await self._send(message)
