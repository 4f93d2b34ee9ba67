"""`lmcache bench`: measurements against a running server."""

from __future__ import annotations

import json
import secrets

import click

from lmcache.cli.api_client import APIConfig, read_token
from lmcache.cli.bench_server.report import RunReport
from lmcache.cli.bench_server.shapes import DEFAULT_SHAPE, SHAPES
from lmcache.integration.synthetic.shape import DTYPE_BYTES, ModelShape

# Checksums of many blocks take the worker a while.
_HTTP_TIMEOUT_S = 60.0
_COUNT = click.IntRange(min=1)
_COUNT_OR_NONE = click.IntRange(min=0)


@click.group("bench", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Measurements against a running server."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command("server")
@click.option("--url", default="tcp://localhost:5555", show_default=True, help="The server's ZMQ socket.")
@click.option("--zmq-token-file", help="File with the token of the server's --zmq-token-file.")
@click.option("--http-url", help="Its HTTP API: compare /kvcache/check of the pages before and after, too.")
@click.option("--http-token-file", envvar="LMCACHE_HTTP_TOKEN_FILE", help="File with a token of the HTTP API.")
@click.option("--http-cacert", help="File with the certificate authorities to trust, for https.")
@click.option("--http-insecure", is_flag=True, help="Do not check the HTTP API's certificate.")
@click.option(
    "--shape", type=click.Choice(list(SHAPES)), default=DEFAULT_SHAPE, show_default=True, help="Shape of a model."
)
@click.option("--layers", type=_COUNT, help="Layers, in place of the shape's.")
@click.option("--kv-heads", type=_COUNT, help="KV heads, in place of the shape's.")
@click.option("--head-size", type=_COUNT, help="Elements of a head, in place of the shape's.")
@click.option("--dtype", type=click.Choice(list(DTYPE_BYTES)), help="Type of an element, in place of the shape's.")
@click.option("--block-size", type=_COUNT, default=16, show_default=True, help="Tokens of an engine's block.")
@click.option(
    "--tokens",
    "num_tokens",
    type=_COUNT,
    default=4096,
    show_default=True,
    help="Tokens of a request, rounded down to whole chunks of the server.",
)
@click.option("--requests", "num_requests", type=_COUNT, default=5, show_default=True, help="Requests to measure.")
@click.option(
    "--warm-up",
    "num_warm_up",
    type=_COUNT_OR_NONE,
    default=2,
    show_default=True,
    help="Requests before them, checked but not measured.",
)
@click.option(
    "--lookups",
    "num_lookups",
    type=_COUNT_OR_NONE,
    default=200,
    show_default=True,
    help="Lookups of a stored request to measure.",
)
@click.option("--threads", "num_threads", type=_COUNT, default=1, show_default=True, help="Threads that copy.")
@click.option(
    "--model-name",
    default="lmcache-bench",
    show_default=True,
    help="Name to register under; a suffix keeps runs apart.",
)
@click.option("--seed", type=_COUNT_OR_NONE, help="Of tokens, bytes and the order of blocks; a random one by default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def bench_server(
    url: str, zmq_token_file: str | None, http_url: str | None, http_token_file: str | None,
    http_cacert: str | None, http_insecure: bool, shape: str,
    layers: int | None, kv_heads: int | None, head_size: int | None, dtype: str | None, block_size: int,
    num_tokens: int, num_requests: int, num_warm_up: int, num_lookups: int, num_threads: int, model_name: str,
    seed: int | None, as_json: bool,
) -> int:  # fmt: skip
    """Store, look up and retrieve synthetic KV through a running server on this host, and check every byte.

    Speeds are shown beside that of one memmove of the same bytes in the same run. Exit code 1 if a byte
    differs, or if not all could be stored and found again. What was stored stays until it is evicted.
    """
    from lmcache.cli.bench_server.measure import BenchSettings, measure  # numpy and zmq, which --help does not need

    preset = SHAPES[shape]
    model = ModelShape(
        layers or preset.num_layers, kv_heads or preset.num_kv_heads, head_size or preset.head_size,
        dtype or preset.dtype,
    )  # fmt: skip
    zmq_token = read_token(zmq_token_file, "--zmq-token-file") if zmq_token_file else ""
    http_token = read_token(http_token_file, "--http-token-file") if http_token_file and http_url else ""
    http = None
    if http_url:
        http = APIConfig(http_url, http_token, http_cacert, not http_insecure, _HTTP_TIMEOUT_S, "http-")
    settings = BenchSettings(
        url, zmq_token, http, f"{model_name}-{secrets.token_hex(4)}", block_size, num_tokens, num_requests,
        num_warm_up, num_lookups, num_threads, secrets.randbits(32) if seed is None else seed,
    )  # fmt: skip
    return tell(measure(settings, model), as_json)


def tell(report: RunReport, as_json: bool) -> int:
    """The exit code of the command."""
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else "\n".join(report.lines()))
    return 0 if report.is_ok else 1
