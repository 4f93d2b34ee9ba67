"""`lmcache metrics`: what a server counts and measures, raw or as a table; and its reset."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import click

from lmcache.cli.api_client import APIClient
from lmcache.cli.api_options import json_option, with_api
from lmcache.cli.tables import print_json, print_table
from lmcache.errors import APIRefusedError


@click.command("metrics")
@with_api
@click.option("--filter", "text", metavar="TEXT", help="A table of the series whose name contains TEXT.")
@click.option("--reset", is_flag=True, help="Set all counters and histograms of the server to 0 instead.")
@json_option
def command(api: APIClient, text: str | None, reset: bool, as_json: bool) -> int:
    """Print /metrics, in the format of Prometheus, or what --filter selects of it."""
    if reset:
        if text is not None:
            raise click.UsageError("--reset resets all metrics and takes no --filter")
        return _reset(api, as_json)
    exposition = api.call("GET", "/metrics").text
    if text is None and not as_json:
        click.echo(exposition, nl=False)
        return 0
    samples = [sample for sample in _samples(exposition) if (text or "").lower() in sample["name"].lower()]
    if as_json:
        print_json(samples)
    elif samples:
        print_table([("NAME", "LABELS", "VALUE"), *(_row(sample) for sample in samples)])
    else:
        click.echo(f"lmcache metrics: {api.url} has no series whose name contains {text!r}", err=True)
    return 0 if samples else 1


def _reset(api: APIClient, as_json: bool) -> int:
    answer = api.call("POST", "/metrics/reset")
    if as_json:
        print_json({"status": answer.text.strip()})
    else:
        click.echo(f"metrics of {api.url} are reset")
    return 0


def _samples(exposition: str) -> Iterator[dict[str, Any]]:
    """Values that JSON has no number for become text. Raises APIRefusedError for what is no exposition."""
    from prometheus_client.parser import text_string_to_metric_families  # slow to import, and not always needed

    try:
        for family in text_string_to_metric_families(exposition):
            for sample in family.samples:
                value = sample.value if math.isfinite(sample.value) else str(sample.value)
                yield {"name": sample.name, "labels": dict(sample.labels), "value": value}
    except (ValueError, KeyError, IndexError) as error:
        raise APIRefusedError(200, f"the metrics cannot be read: {error}") from error


def _row(sample: dict[str, Any]) -> tuple[str, str, str]:
    labels = ",".join(f"{name}={value}" for name, value in sample["labels"].items())
    value = sample["value"]
    return sample["name"], labels, value if isinstance(value, str) else f"{value:.10g}"
