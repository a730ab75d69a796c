"""The command line: ``tally``, ``tallystick``, ``python -m tallystick``.

This module knows the names of the commands and their one-line helps; each command's module is imported when it is
called, so that ``tally --help`` is quick. What a command raises becomes one line on standard error and an exit code
here (STORAGE rule 21): 2 usage or I/O, 4 malformed input handed in, 6 altered, 130 interrupted; never 1, never a
traceback (``TALLY_DEBUG=1`` shows it).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

USAGE, MALFORMED, ALTERED, INTERRUPTED, PIPE_CLOSED = 2, 4, 6, 130, 141

COMMANDS = {
    "init": "Make a new log.",
    "record": "Record one event from flags, or many from piped JSON lines.",
    "query": "Find entries.",
    "show": "One entry with everything that is known of it.",
    "verify": "Prove that nothing was altered: a log, a .tlog-proof, an archive.",
    "prove": "Hand out a proof that an entry is in the log.",
    "pack": "Make an evidence file that a stranger can check: entries, proofs, keys, a checker.",
    "checkpoint": "Print the signed head of the log, to be kept elsewhere.",
    "witness": "Be a witness of logs, or have some for a log.",
    "anchor": "Send checkpoints by e-mail, to a folder elsewhere, to a timestamp authority.",
    "publish": "Hand the current checkpoint to witnesses and anchors now.",
    "proxy": "Record every call to a model that passes, by any client.",
    "ai": "Calls to models, and what became of their answers.",
    "outcome": "Say what became of an answer.",
    "approve": "Say who decided about an answer or an action.",
    "trace": "One case from the first request to the last effect.",
    "report": "A report over a period: full, security, data_access or ai_usage.",
    "heartbeat": "A sign of life of the log, for cron.",
    "archive": "Move entries that are old enough into compressed files.",
    "backup": "A verified copy of the log while it is written to, or of everything as evidence.",
    "resume": "Go on after a restored backup or lost keys, on the record.",
    "incident": "After a break-in: what still stands, and on what.",
    "export": "The stored lines as they are.",
    "key": "The log's keys: print the public one, change the signing one.",
    "keyd": "Keep the epoch keys in a process of another user.",
    "trust": "Trust a log's key on this machine, or forget it.",
    "status": "How the log is doing (the same as tally alone).",
    "demo": "A real automation on a real model, its log, and an attacker.",
}
ALIASES = {"log": "record"}


class Tally(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """In the order in which one needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """``cli/<name>.py`` has it as ``command``."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f".{name}", __name__).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:  # fmt: skip
        """``tally FOLDER`` is the status of that log."""
        name = args[0] if args else ""
        if name not in COMMANDS and name not in ALIASES and not name.startswith("-") and os.path.isdir(name):
            return "status", self.get_command(ctx, "status"), args
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run and exit."""
        sys.exit(run(args))


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from .. import __version__

        click.echo(f"tallystick {__version__}")
        ctx.exit(0)


@click.group(
    cls=Tally, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Example:
  tally init audit_log
  tally record --actor ana --action "read customer" --resource crm
  tally query --on today
  tally verify
\b
LOG is a folder: the first argument, else $TALLY_LOG, else ./audit_log.
Exit codes: 0 proven or done, 2 usage or I/O, 3 cannot judge, 4 malformed input,
5 stale, 6 altered, missing or rolled back; 1 is never a verdict.""",
)  # fmt: skip
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version.")
@click.pass_context
def cli(ctx: click.Context) -> int | None:
    """A tamper-evident audit log. Without a command: how the log is doing."""
    if ctx.invoked_subcommand is not None:
        return None
    from .status import command

    result: int | None = ctx.invoke(command)
    return result


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The entry point."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code and raises nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
            continue
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if args is None else args)
    try:
        code = _invoke(given)
        sys.stdout.flush()
        return code
    except BaseException as e:  # noqa: BLE001  # the one place where everything ends
        if os.environ.get("TALLY_DEBUG"):
            import traceback

            traceback.print_exc()
        return _failed(e)


def _invoke(args: list[str]) -> int:
    if "_TALLY_COMPLETE" in os.environ or "_TALLYSTICK_COMPLETE" in os.environ:
        click.Group.main(cli, args, prog_name="tally")
    with cli.make_context("tally", args) as ctx:
        result = cli.invoke(ctx)
    return result if isinstance(result, int) else 0


def _failed(error: BaseException) -> int:
    """Say it in one line; the exit code."""
    if isinstance(error, click.exceptions.Exit):
        return int(error.exit_code) if error.exit_code != 1 else USAGE
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) and error.code != 1 else USAGE
    if isinstance(error, KeyboardInterrupt | click.Abort | EOFError):
        _say("interrupted")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        with contextlib.suppress(OSError, ValueError):  # nobody reads; say nothing at exit either
            if sys.stdout.fileno() == 1:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return PIPE_CLOSED
    if isinstance(error, click.ClickException):
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f"   ({error.ctx.command_path} --help)"
        _say(error.format_message() + hint)
        return USAGE
    return _known(error)


def _known(error: BaseException) -> int:
    from ..core.errors import AuditError, Malformed, VerificationError
    from .common import Damaged

    if isinstance(error, Damaged | VerificationError):
        code = ALTERED
    elif isinstance(error, Malformed):
        code = MALFORMED
    elif isinstance(error, AuditError):
        code = USAGE
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{where}{error.strerror or error}")
        return USAGE
    else:
        _say(f"internal error: {type(error).__name__}: {error}. Please report it; TALLY_DEBUG=1 shows where.")
        return USAGE
    _say(str(error))
    return code


def _say(text: str) -> None:
    from .common import clean

    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        print("tally: " + "\n  ".join(clean(line) for line in text.splitlines()), file=sys.stderr)


__all__ = ["cli", "main", "run"]
