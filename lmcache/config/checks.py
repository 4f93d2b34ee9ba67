"""Checks of single settings: what was wrong, and what is allowed, in one line."""

from __future__ import annotations

import ipaddress
import keyword
import math

from lmcache.errors import ConfigError


def check_that(is_allowed: bool, flag: str, value: object, allowed: str) -> None:
    if not is_allowed:
        raise ConfigError(f"{flag} must be {allowed} (got {value})")


def check_positive(flag: str, value: float) -> None:
    check_that(math.isfinite(value) and value > 0, flag, value, "a number greater than 0")


def check_fraction(flag: str, value: float) -> None:
    check_that(0 < value <= 1, flag, value, "greater than 0 and at most 1")


def check_port(flag: str, value: int) -> None:
    check_that(0 <= value <= 65535, flag, value, "a port from 0 to 65535")


def check_module_name(flag: str, value: str) -> None:
    is_name = all(part.isidentifier() and not keyword.iskeyword(part) for part in value.split("."))
    check_that(is_name, flag, repr(value), "the dotted name of a module")


def is_loopback(host: str) -> bool:
    """Whether only this host can reach what listens there. A name other than localhost could be anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
