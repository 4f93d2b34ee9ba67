"""The `lmcache` command. A command's module is imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from lmcache.errors import APIRefusedError, DeclinedError, LMCacheError, RequestRefusedError, ServerUnavailableError

_EXIT_REFUSED = 1
_EXIT_BAD_USE = 2
_EXIT_UNREACHABLE = 3
_EXIT_INTERRUPTED = 130

# Name, module with a `command`, and what the help says of it.
_COMMANDS = {
    "server": ("lmcache.cli.server", "Run the cache server that vLLM connects to."),
    "standalone": ("lmcache.cli.standalone", "Run the in-process engine without vLLM, over synthetic pages."),
    "pool": ("lmcache.cli.pool", "List and remove the shared-memory pools of this user."),
    "doctor": ("lmcache.cli.doctor.command", "Name what does not fit in a vLLM command line or its settings."),
    "ping": ("lmcache.cli.ping", "Is the server up and ready?"),
    "status": ("lmcache.cli.status", "Show health, L1, workers, L2 adapters and controllers."),
    "conf": ("lmcache.cli.conf", "Show the settings in force."),
    "metrics": ("lmcache.cli.metrics", "Print or reset metrics."),
    "clear": ("lmcache.cli.clear", "Empty L1."),
    "keys": ("lmcache.cli.keys", "List the keys that L2 holds."),
    "delete": ("lmcache.cli.delete", "Delete objects from L2, by key."),
    "quota": ("lmcache.cli.quota", "Show and set quotas per tenant."),
    "adapters": ("lmcache.cli.adapters", "List L2 adapters."),
    "reconfigure": ("lmcache.cli.reconfigure", "Change an L2 adapter at run time."),
    "bench": ("lmcache.cli.bench", "Drive a server with synthetic KV, and check every byte."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS:
            ctx.fail(f"no command {args[0]!r}; there are: {', '.join(_COMMANDS)}")
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, _: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        from lmcache.utils import get_version

        click.echo(get_version())
        ctx.exit()


@click.group(cls=_LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
              help="Show version and commit, and exit.")  # fmt: skip
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A KV cache for LLM inference that lives outside the engine."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. Whatever was wrong is said in one line."""
    try:
        result = cli.main(arguments, prog_name="lmcache", standalone_mode=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        who = context.command_path if context is not None else "lmcache"
        return _refuse(who, error.format_message(), _EXIT_BAD_USE)
    except LMCacheError as error:
        return _refuse("lmcache", str(error), _exit_code(error))
    except (click.Abort, KeyboardInterrupt):
        return _EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def _exit_code(error: LMCacheError) -> int:
    """A server that said no, one that did not answer, or what we were asked cannot be done."""
    if isinstance(error, APIRefusedError | RequestRefusedError | DeclinedError):
        return _EXIT_REFUSED
    return _EXIT_UNREACHABLE if isinstance(error, ServerUnavailableError) else _EXIT_BAD_USE


def _refuse(who: str, text: str, code: int) -> int:
    print(f"{who}: {' '.join(text.split())}", file=sys.stderr)
    return code
