"""All checks of one subject, in the order in which a start meets what they look at."""

from __future__ import annotations

from collections.abc import Iterator

from lmcache.cli.api_options import DEFAULT_URL
from lmcache.cli.doctor.checks_engine import check_chunk_size, check_tiers, load_settings
from lmcache.cli.doctor.checks_install import check_engine_shape, check_install
from lmcache.cli.doctor.checks_mode import check_mode
from lmcache.cli.doctor.checks_room import check_folders, check_internal_api, check_lookup_sockets, check_shared_memory
from lmcache.cli.doctor.checks_server import check_pool_is_seen, check_welcome, load_mp_settings, say_hello
from lmcache.cli.doctor.checks_status import check_contexts, check_health, is_of_pool, read_status
from lmcache.cli.doctor.checks_transfer import check_transfer
from lmcache.cli.doctor.findings import Finding, error, sort_findings, warning
from lmcache.cli.doctor.subject import IN_PROCESS, SERVER, Subject
from lmcache.errors import ConfigError

_URL_VARIABLE = "LMCACHE_HTTP_URL"


def examine(subject: Subject) -> list[Finding]:
    """The worst first. Raises ConfigError where an option of ours cannot be used."""
    found = [*check_install(subject), *check_transfer(subject), *check_mode(subject)]
    try:
        found += check_engine_shape(subject)
        _ = subject.command.block_size, subject.command.num_local_engines
    except ConfigError as refusal:
        return sort_findings([*found, error(str(refusal), "vLLM does not start with it")])
    if subject.connector == IN_PROCESS:
        found += _examine_in_process(subject)
    elif subject.connector == SERVER:
        found += _examine_server(subject)
    return sort_findings(found)


def _examine_in_process(subject: Subject) -> Iterator[Finding]:
    config, found = load_settings(subject)
    yield from found
    yield from check_lookup_sockets(subject)
    if config is None:
        return
    bad_tiers = list(check_tiers(config))
    yield from bad_tiers
    yield from check_chunk_size(subject, config.chunk_size, "chunk_size", "set chunk_size to {}")
    yield from check_shared_memory(config, subject)
    yield from check_internal_api(config, subject)
    if not bad_tiers:
        yield from check_folders(config)


def _examine_server(subject: Subject) -> Iterator[Finding]:
    config, found = load_mp_settings(subject)
    yield from found
    if config is None:
        return
    welcome, found = say_hello(config, subject.host.timeout_s)
    yield from found
    if welcome is not None:
        yield from check_pool_is_seen(welcome)
        yield from check_welcome(subject, config, welcome)
    yield from _examine_status(subject, welcome.pool_folder if welcome is not None else None)


def _examine_status(subject: Subject, pool_folder: str | None) -> Iterator[Finding]:
    """Of the HTTP API that was named, or of one at the usual place if it is that server's."""
    is_asked_for = subject.http_url is not None
    if not is_asked_for and pool_folder is None:
        return
    url = subject.http_url or subject.environ.get(_URL_VARIABLE) or DEFAULT_URL
    report, found = read_status(subject, url, is_asked_for)
    yield from found
    if report is None:
        return
    if pool_folder is not None and not is_of_pool(report, pool_folder):
        if is_asked_for:
            yield warning(
                f"{url} is the HTTP API of another server", f"the ZMQ socket is that of the pool {pool_folder}",
                "name the HTTP API of the server that vLLM is pointed at",
            )  # fmt: skip
        return
    yield from check_health(report)
    yield from check_contexts(subject, report)
