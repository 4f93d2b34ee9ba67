"""The certificate of the HTTP API, tried before anything listens."""

from __future__ import annotations

import ssl

from lmcache.errors import ConfigError


def check_certificate(certfile: str, keyfile: str | None, cert_setting: str, key_setting: str) -> None:
    """Raises ConfigError, naming the settings, where the HTTP server could not use them. Without `keyfile` the
    key is in `certfile`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key = keyfile or certfile
    for setting, path in ((cert_setting, certfile), (key_setting, key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise ConfigError(f"{setting} {path} cannot be read: {error.strerror}") from error
    try:
        context.load_cert_chain(certfile, key, _refuse_password)
    except (ssl.SSLError, _EncryptedKeyError) as error:
        reason = "the key is encrypted" if isinstance(error, _EncryptedKeyError) else error.reason or str(error)
        raise ConfigError(
            f"{cert_setting} {certfile} and {key_setting} {key} must be a PEM chain and its unencrypted key: {reason}"
        ) from error


class _EncryptedKeyError(Exception):
    """OpenSSL asked for a password, which nobody is there to type."""


def _refuse_password() -> str:
    raise _EncryptedKeyError
