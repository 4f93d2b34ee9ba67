"""`lmcache ping`: is the server up and its engine ready, now or within some seconds?"""

from __future__ import annotations

import json
import time

import click

from lmcache.cli.api_client import APIAnswer, APIClient
from lmcache.cli.api_options import json_option, with_api
from lmcache.errors import ServerUnavailableError

_RETRY_S = 0.2


@click.command("ping")
@with_api
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS",
              help="Try again for so long, until it is ready.")  # fmt: skip
@json_option
def command(api: APIClient, wait_s: float, as_json: bool) -> int:
    """Ask /healthcheck. Exit code 0: ready; 1: not ready; 3: nobody answers."""
    deadline_s = time.monotonic() + wait_s
    while True:
        begun_s = time.monotonic()
        try:
            answer = api.ask("GET", "/healthcheck")
        except ServerUnavailableError:
            if time.monotonic() >= deadline_s:
                raise
        else:
            if answer.status == 200 or answer.status != 503 or time.monotonic() >= deadline_s:
                return _tell(api, answer, time.monotonic() - begun_s, as_json)
        time.sleep(max(0.0, min(_RETRY_S, deadline_s - time.monotonic())))


def _tell(api: APIClient, answer: APIAnswer, took_s: float, as_json: bool) -> int:
    """Anything but 200 and 503 is no answer of a health check: raises APIRefusedError."""
    if answer.status not in (200, 503):
        api.call("GET", "/healthcheck")
    report = answer.object("status")
    is_ready = answer.status == 200
    if as_json:
        click.echo(json.dumps({**report, "url": api.url, "latency_ms": round(took_s * 1000, 3)}))
    elif is_ready:
        click.echo(f"{api.url} is ready ({took_s * 1000:.1f} ms)")
    else:
        click.echo(f"lmcache ping: {api.url} is not ready: {answer.reason()}", err=True)
    return 0 if is_ready else 1
