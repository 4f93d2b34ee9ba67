"""`lmcache doctor`: options to a Subject, findings to the terminal."""

from __future__ import annotations

import os

import click

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


@click.command("doctor", context_settings={"allow_interspersed_args": False})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- vllm serve ...]")
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="Settings of the in-process mode (YAML), as LMCACHE_CONFIG_FILE names them.",
)
@click.option("--kv-transfer-config", "transfer", metavar="JSON", help="In place of that of the command line.")
@click.option(
    "--server",
    "http_url",
    metavar="URL",
    help="The server's HTTP API, to compare with the engines that are registered; the usual one by default.",
)
@click.option(
    "--server-token-file",
    envvar="LMCACHE_HTTP_TOKEN_FILE",
    metavar="FILE",
    help="File with a token of that API (or LMCACHE_HTTP_TOKEN_FILE).",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds to wait for each answer of a server.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, for scripts.")  # fmt: skip
def command(
    words: tuple[str, ...], config_file: str | None, transfer: str | None, http_url: str | None,
    server_token_file: str | None, timeout: float, as_json: bool,
) -> int:  # fmt: skip
    """Name what does not fit between a vLLM command line, its settings, this host and a server.

    Run it where vLLM will run, as its user and with its environment. Nothing is started or changed.
    Exit code 1 where vLLM would not start, or run without cache.
    """
    from lmcache.cli.api_client import read_token
    from lmcache.cli.doctor.checks_install import find_vllm
    from lmcache.cli.doctor.diagnosis import examine
    from lmcache.cli.doctor.findings import Level
    from lmcache.cli.doctor.reading import read_subject
    from lmcache.cli.doctor.subject import Host
    from lmcache.cli.tables import print_json

    token = read_token(server_token_file, "--server-token-file") if server_token_file else ""
    host = Host(find_vllm, timeout_s=timeout)
    findings = examine(read_subject(words, transfer, config_file, os.environ, host, http_url, token))
    if as_json:
        print_json([finding.as_json() for finding in findings])
    else:
        for finding in findings:
            _print_finding(finding.level.value, finding.what, finding.why, finding.remedy)
        if not findings:
            click.echo("nothing found that does not fit")
    return 1 if any(finding.level is Level.ERROR for finding in findings) else 0


def _print_finding(level: str, what: str, why: str, remedy: str) -> None:
    click.echo(f"{click.style(level, fg=_COLOURS[level], bold=True)}: {what}")
    for name, text in (("why", why), ("remedy", remedy)):
        if text:
            click.echo(f"    {name}: {text}")
