"""`lmcache standalone`: the engine of the in-process mode over synthetic pages, until it is told to stop."""

from __future__ import annotations

import os
import queue
import secrets
import signal
from typing import TYPE_CHECKING

import click

from lmcache.config.mp_server import ObservabilityConfig
from lmcache.integration.synthetic.shape import DTYPE_BYTES, ModelShape
from lmcache.logging import LEVELS, set_up_logging

if TYPE_CHECKING:
    from lmcache.integration.standalone.engine import Standalone

_COUNT = click.IntRange(min=1)
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_REFILL_SIGNAL = signal.SIGUSR1


@click.command("standalone")
@click.option(
    "--config", "config_file", metavar="FILE", help="Settings of the in-process mode (or LMCACHE_CONFIG_FILE)."
)
@click.option("--model", default="standalone", show_default=True, help="Name that keys are made of.")
@click.option("--layers", type=_COUNT, default=4, show_default=True, help="Layers of the pages.")
@click.option("--blocks", type=_COUNT, default=256, show_default=True, help="Blocks of the cache.")
@click.option("--block-size", type=_COUNT, default=16, show_default=True, help="Tokens of a block.")
@click.option("--heads", type=_COUNT, default=2, show_default=True, help="KV heads.")
@click.option("--head-size", type=_COUNT, default=64, show_default=True, help="Elements of a head.")
@click.option(
    "--dtype", type=click.Choice(list(DTYPE_BYTES)), default="bfloat16", show_default=True, help="Type of an element."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="What the bytes follow from.")
@click.option("--log-level", type=click.Choice(LEVELS, case_sensitive=False), envvar="LMCACHE_LOG_LEVEL",
              default=ObservabilityConfig().log_level, show_default=True,
              help="What is logged to stderr.")  # fmt: skip
def command(
    config_file: str | None, model: str, layers: int, blocks: int, block_size: int, heads: int, head_size: int,
    dtype: str, seed: int, log_level: str,
) -> int:  # fmt: skip
    """Run the in-process engine without vLLM, over pages of made-up KV, with its internal API.

    It reads LMCACHE_CONFIG_FILE and LMCACHE_* as the in-process mode does. SIGUSR1 fills the pages with other
    bytes; SIGINT and SIGTERM end it cleanly.
    """
    from lmcache.integration.standalone.settings import StandaloneSettings, load_standalone_config

    set_up_logging(log_level.upper())
    settings = StandaloneSettings(ModelShape(layers, heads, head_size, dtype), block_size, blocks, model, seed)
    config, warnings = load_standalone_config(settings, os.environ, config_file)
    for line in warnings:
        click.echo(f"lmcache standalone: {line}", err=True)
    from lmcache.integration.standalone.engine import Standalone  # not before the settings are known to be good

    signals = _queue_signals()
    standalone = Standalone(config, settings, os.environ, f"standalone-{secrets.token_hex(4)}")
    standalone.start()
    try:
        _tell(standalone)
        _serve(standalone, signals)
    finally:
        standalone.close()
    return 0


def _queue_signals() -> queue.SimpleQueue[int]:
    """From now on they wait here, in the order in which they came, also while we start and stop."""
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (*_STOP_SIGNALS, _REFILL_SIGNAL):
        signal.signal(number, lambda number, _: arrived.put(number))
    return arrived


def _tell(standalone: Standalone) -> None:
    from lmcache.utils import get_version

    pages = standalone.pages
    click.echo(
        f"lmcache standalone {get_version()} is up: {standalone.address()}, "
        f"L1 in {standalone.engine.pool.config.folder}, {pages.num_tokens} tokens of pages from seed {pages.seed}"
    )


def _serve(standalone: Standalone, signals: queue.SimpleQueue[int]) -> None:
    while signals.get() == _REFILL_SIGNAL:
        click.echo(f"the pages are filled from seed {standalone.refill()}")
