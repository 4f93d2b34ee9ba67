"""A whole measurement: look at the server and at the room there is, register, run, unregister."""

from __future__ import annotations

from dataclasses import dataclass, field

from lmcache.cli.api_client import APIClient, APIConfig
from lmcache.cli.bench_server import connect
from lmcache.cli.bench_server.page_check import PageCheck
from lmcache.cli.bench_server.report import RunReport
from lmcache.cli.bench_server.run import BenchRun, RunPlan, facts_of
from lmcache.errors import ConfigError
from lmcache.integration.synthetic.engine import SyntheticConfig, SyntheticEngine
from lmcache.integration.synthetic.shape import ModelShape
from lmcache.telemetry.steps import NO_STEPS, StepObserver

_HELLO_S = 5.0


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What the flags say, but for the shape of the model. `http` None: no checksums are compared."""

    url: str
    zmq_token: str = field(repr=False)
    http: APIConfig | None
    model_name: str
    block_size: int
    num_tokens: int
    num_requests: int
    num_warm_up: int
    num_lookups: int
    num_threads: int
    seed: int


def measure(settings: BenchSettings, model: ModelShape, steps: StepObserver = NO_STEPS) -> RunReport:
    """Register, run, unregister. `steps` may meddle."""
    url = connect.full_url(settings.url)
    welcome = connect.say_hello(url, settings.zmq_token, _HELLO_S)
    if welcome.chunk_size % settings.block_size:
        raise ConfigError(f"--block-size must divide the server's chunk size of {welcome.chunk_size} tokens")
    num_tokens = settings.num_tokens // welcome.chunk_size * welcome.chunk_size
    if not num_tokens:
        raise ConfigError(f"--tokens must be at least one chunk of the server, {welcome.chunk_size} tokens")
    request_bytes = num_tokens * model.bytes_per_token
    connect.check_own_memory(2 * request_bytes)
    config = SyntheticConfig(
        url, model, settings.block_size, 2 * num_tokens // settings.block_size, settings.model_name,
        settings.zmq_token, settings.num_threads,
    )  # fmt: skip
    with SyntheticEngine(config, steps) as engine:
        connect.check_pool(engine, request_bytes)
        plan = RunPlan(settings.num_requests, settings.num_warm_up, settings.num_lookups, settings.seed)
        facts = facts_of(engine, num_tokens, welcome)
        if settings.http is None:
            return BenchRun(engine, plan, facts, None, steps).run()
        with APIClient(settings.http) as api:
            blocks_per_chunk = welcome.chunk_size // settings.block_size
            check = PageCheck(api, engine.instance_id, blocks_per_chunk, settings.model_name)
            return BenchRun(engine, plan, facts, check, steps).run()
