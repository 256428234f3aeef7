"""The `stnode` command: global options, the list of commands, and how errors end the process.

Every error is `stnode: error: …` and, where there is one, `hint: …` on standard error; the exit code is the error's (sysexits).
STNODE_DEBUG=1 shows tracebacks.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from stnode import __version__
from stnode.errors import Full, Internal, Invalid, Refused, StnodeError, Unavailable
from stnode.frontends.cli import bucket, decrypt, files, history, node, settings
from stnode.frontends.cli.app import App, tell_error
from stnode.node.home import Home, default_home

INTERRUPTED = 130
_OURS = (*node.COMMANDS, *settings.COMMANDS, *files.COMMANDS, *history.COMMANDS, *bucket.COMMANDS, *decrypt.COMMANDS)


def make_cli(more: Sequence[click.Command] = ()) -> click.Group:
    """The whole command line; `more` are commands of the layer above."""

    @click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
    @click.option(
        "--home", type=click.Path(path_type=Path), help="The node's home directory; default $STNODE_HOME or ~/.local/share/stnode."
    )
    @click.version_option(__version__, prog_name="stnode")
    @click.pass_context
    def cli(context: click.Context, home: Path | None) -> None:
        """A Syncthing-compatible node whose folders live in an S3 bucket."""
        app = context.find_object(App)
        assert app is not None
        context.obj = replace(app, home=Home((home or default_home(app.environ)).expanduser().absolute()))

    for command in (*more, *_OURS):
        cli.add_command(command)
    return cli


def run_cli(app: App, arguments: Sequence[str], more: Sequence[click.Command] = ()) -> int:
    """Runs one command line; the exit code."""
    try:
        result = make_cli(more).main(list(arguments), prog_name="stnode", standalone_mode=False, obj=app)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except click.UsageError as exc:
        command = exc.ctx.command_path if exc.ctx else "stnode"
        tell_error(exc.format_message(), f"`{command} --help` shows how it is used")
        return Invalid.exit_code
    except click.ClickException as exc:
        tell_error(exc.format_message())
        return Invalid.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone; nothing more can be said to it.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - stays open until the process ends
        return 141
    except BaseException as exc:  # noqa: BLE001 - the last door: everything becomes a message and an exit code
        return _tell(exc, debug=bool(app.environ.get("STNODE_DEBUG")))


def _tell(exc: BaseException, debug: bool) -> int:
    if debug:
        traceback.print_exception(exc)
    leaves = list(_leaves(exc))
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        return INTERRUPTED
    error = next((leaf for leaf in leaves if isinstance(leaf, StnodeError)), None) or _foreign(leaves[0])
    tell_error(error.message, error.hint)
    return error.exit_code


def _foreign(exc: BaseException) -> StnodeError:
    """An exception that no module mapped: an environment that fails us, or a bug."""
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return Full(f"no space left: {exc.filename or exc.strerror}", hint="free some space and run the command again")
    if isinstance(exc, PermissionError):
        return Refused(f"{exc.filename or 'a file'}: {exc.strerror}", hint="run as the owner of the home directory")
    if isinstance(exc, OSError) and exc.errno in (errno.EMFILE, errno.ENFILE):
        return Unavailable("too many open files", hint="raise the limit (`ulimit -n`)")
    return Internal(f"{type(exc).__name__}: {exc}", hint="this is a bug in stnode; STNODE_DEBUG=1 shows where, please report it")


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    """The exceptions inside groups."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc
