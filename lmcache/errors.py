"""The one error tree of the project.

Libraries' errors are translated into these at the border where they appear. The text of
an error says what was wrong and what is allowed, fit to be shown to an operator as it is.
"""

from __future__ import annotations


class LMCacheError(Exception):
    """Root of everything this package raises on purpose."""


class ConfigError(LMCacheError):
    """A setting, or a combination of settings, that cannot be honoured."""


class EndpointError(LMCacheError):
    """A module of HTTP endpoints that cannot be served."""


class KeyFormatError(LMCacheError, ValueError):
    """A field of an object key breaks the key invariants."""


class TokenRangeError(LMCacheError, ValueError):
    """A token id that does not fit the 32-bit unsigned form that is hashed."""


class IntegrityError(LMCacheError):
    """An internal invariant does not hold; whoever sees it must stop trusting the state."""


class PoolError(LMCacheError):
    """The pool folder, its files or the memory behind them cannot be used."""


class PoolInUseError(PoolError):
    """Another live server holds the pool."""


class NoRoomError(PoolError):
    """The memory asked for is not there."""


class PoolLostError(PoolError):
    """The files of an open pool were removed by someone else."""


class ProtocolError(LMCacheError):
    """A frame or message that does not follow the wire protocol."""


class ServerUnavailableError(LMCacheError):
    """No answer from the server: absent, dead, restarted or too slow."""


class DeadlineExceededError(ServerUnavailableError):
    """The server did not answer in time."""


class StaleBootError(ServerUnavailableError):
    """The server restarted since this client registered; register again."""


class RequestRefusedError(LMCacheError):
    """The server answered with an error. `code` is one of `protocol.messages.ErrorCode`."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class DeclinedError(LMCacheError):
    """This set-up cannot be served; the text names the reason and the remedy."""
