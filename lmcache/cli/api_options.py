"""What every command that talks to the HTTP API shares: its options, and the question before something is lost."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from lmcache.cli.api_client import APIClient, APIConfig, read_token

DEFAULT_URL = "http://127.0.0.1:8080"

Command = Callable[..., int]

_OPTIONS = (
    click.option("--url", default=DEFAULT_URL, show_default=True, envvar="LMCACHE_HTTP_URL",
                 help="The server's HTTP API (or LMCACHE_HTTP_URL)."),
    click.option("--token-file", envvar="LMCACHE_HTTP_TOKEN_FILE",
                 help="File with a token the server takes (or LMCACHE_HTTP_TOKEN_FILE)."),
    click.option("--cacert", help="File with the certificate authorities to trust, for https."),
    click.option("--insecure", is_flag=True, help="Do not check the server's certificate."),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True,
                 help="Seconds to wait for each answer."),
)  # fmt: skip

# Settings of a command whose answer comes when all is done: a million objects take the server some seconds to clear.
PATIENT = {"default_map": {"timeout": 300.0}}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
adapter_option = click.option("--adapter", help="Type name of the L2 adapter; the first configured one by default.")


def with_api(function: Command) -> Command:
    """Give a command the options above and, in their place, an `api` to talk to."""

    @functools.wraps(function)
    def call(
        *, url: str, token_file: str | None, cacert: str | None, insecure: bool, timeout: float, **rest: Any
    ) -> int:
        token = read_token(token_file, "--token-file") if token_file else ""
        with APIClient(APIConfig(url, token, cacert, not insecure, timeout)) as api:
            return function(api=api, **rest)

    decorated: Command = call
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def confirm(is_agreed: bool, question: str) -> None:
    """Ask before something is lost. Where nobody can answer, `--yes` is needed."""
    if is_agreed:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Pass --yes if so")
    if not click.confirm(question, err=True):
        raise click.exceptions.Exit(1)
