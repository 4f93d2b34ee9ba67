"""The one error tree of the project.

Libraries' errors are translated into these at the border where they appear. The text of
an error says what was wrong and what is allowed, fit to be shown to an operator as it is.
"""

from __future__ import annotations


class LMCacheError(Exception):
    """Root of everything this package raises on purpose."""


class ConfigError(LMCacheError):
    """A setting, or a combination of settings, that cannot be honoured."""


class ConfigChangeError(ConfigError):
    """A change at run time that was refused. `reason` is the documented text for it."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class EndpointError(LMCacheError):
    """A module of HTTP endpoints that cannot be served."""


class KeyFormatError(LMCacheError, ValueError):
    """A field of an object key breaks the key invariants."""


class TokenRangeError(LMCacheError, ValueError):
    """A token id that does not fit the 32-bit unsigned form that is hashed."""


class BlockRangeError(LMCacheError, ValueError):
    """Block ids that cannot be read, or that the engine's cache does not have."""


class NoInstanceError(LMCacheError):
    """No worker is registered under this instance id."""


class NoKVError(LMCacheError):
    """A worker is registered, but has no KV memory to ask about."""


class UnsupportedFormatError(LMCacheError):
    """What was asked for does not exist for this engine's KV format."""


class InstanceError(LMCacheError):
    """A worker could not answer a question, or did not in time."""


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


class QuotaFileError(LMCacheError):
    """Quotas cannot be written where they must survive a restart."""


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


class APIRefusedError(LMCacheError):
    """The HTTP API of a server answered no. `status` is that of the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class DeclinedError(LMCacheError):
    """This set-up cannot be served; the text names the reason and the remedy."""


class L2Error(LMCacheError):
    """What an L2 adapter raises; libraries' errors are translated into these inside its folder."""


class BackendError(L2Error):
    """The backend could not be reached or refused: trying again later may help."""


class BreakerOpenError(BackendError):
    """The backend failed so often that it is left alone for a while."""


class BackendFullError(L2Error):
    """The backend has no room, and nothing may be evicted."""


class ObjectMissingError(L2Error):
    """The backend does not hold this object."""


class CorruptObjectError(L2Error):
    """What the backend holds under this key is torn, rotten or of another kind."""


class ListingUnsupportedError(L2Error):
    """This adapter cannot list what it holds."""


class PageTokenError(L2Error, ValueError):
    """A page token that this adapter never gave out."""


class AdapterNotFoundError(L2Error):
    """No such adapter is configured."""


class UnknownBackendError(LMCacheError):
    """The embedded engine has no backend of this name."""


class LookupSwitchError(LMCacheError):
    """There is no lookup client or server to be changed; the text is the documented one."""


class ReconfigureError(L2Error):
    """A reconfiguration that was refused. `status` is the HTTP code that says why; `details` goes into the answer,
    and is all of it where the text is empty."""

    def __init__(self, status: int, text: str, details: dict[str, object] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.details = details or {}
