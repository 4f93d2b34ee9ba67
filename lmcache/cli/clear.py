"""`lmcache clear`: empty L1 of a running server."""

from __future__ import annotations

import click

from lmcache.cli.api_client import APIClient
from lmcache.cli.api_options import PATIENT, confirm, json_option, with_api, yes_option
from lmcache.cli.tables import print_json


@click.command("clear", context_settings=PATIENT)
@with_api
@click.option("--keep-locked", is_flag=True, help="Leave what is being read or written.")
@yes_option
@json_option
def command(api: APIClient, keep_locked: bool, yes: bool, as_json: bool) -> int:
    """Empty L1 (CPU memory). L2, sessions and registrations stay.

    Without --keep-locked the objects in use go too: loads under way fail and are recomputed.
    """
    what = "every object that is not in use" if keep_locked else "every object, those in use too,"
    confirm(yes, f"Remove {what} from L1 of {api.url}?")
    if keep_locked:
        answer = api.call("POST", "/cache/clear", body={"tier": "l1", "force": False})
    else:
        answer = api.call("POST", "/clear-cache")
    if as_json:
        print_json(answer.object("status"))
    else:
        click.echo(f"L1 of {api.url} is cleared")
    return 0
