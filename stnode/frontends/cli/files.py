"""Commands on files: ls, cat, get, put, rm, mv, mkdir."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from stnode import config
from stnode.clock import Env
from stnode.errors import Invalid, NotFound, Refused, StnodeError
from stnode.frontends.cli.app import App, Failures, pass_app
from stnode.frontends.cli.download import Download
from stnode.frontends.cli.output import JsonArray, Progress, long_line, short_line
from stnode.frontends.cli.upload import PIECE, Upload
from stnode.node.present import count_text, size_text
from stnode.node.service import Entry, Files, SealedFiles, Service

T = TypeVar("T")
PATH = "FOLDER/PATH"
TIME_HELP = "2026-11-20T18:30, 2h (ago), 3d, or a version's number from `stnode history`"
_HELD_BACK_S = 1.0


at_option = click.option("--at", metavar="TIME", default="", help=f"As it was then: {TIME_HELP}.")
password_option = click.option(
    "--password-file", default="", help="Holds the password of a receive-encrypted folder: decrypt it here; - reads it from standard input."
)


async def readable(service: SealedFiles, env: Env, path: str, source: str) -> Files:
    """What the paths of a command are read from: the service itself, or, with a password file ("-": standard input), the plain side
    of the path's encrypted folder."""
    if not source:
        return service
    if not path:
        raise click.UsageError("--password-file belongs to one folder: name it")
    password = config.password(sys.stdin.read()) if source == "-" else config.read_password(source)
    from stnode.node.unsealed import unseal  # cryptography takes a while to import, and few commands need it

    return await unseal(service, env, path, password)


async def tell_broken(files: Files, at: str, failures: Failures) -> None:
    """Tells which items could not be shown, for their names do not decrypt."""
    from stnode.node.unsealed import Unsealed

    if isinstance(files, Unsealed):
        for path, error in await files.broken(at):
            failures.add(path, error)


async def listed(service: Files, path: str, recursive: bool = False, at: str = "") -> AsyncIterator[tuple[Entry, ...]]:
    """All pages of a listing."""
    after: str | None = None
    while True:
        page = await service.ls(path, recursive, after, at)
        yield page.entries
        if page.next is None:
            return
        after = page.next


@click.command()
@click.argument("path", metavar=f"[{PATH}]", default="")
@click.option("-l", "long", is_flag=True, help="Show mode, size and time.")
@click.option("-R", "recursive", is_flag=True, help="Show everything below.")
@click.option("--json", "as_json", is_flag=True, help="Show a JSON array.")
@at_option
@password_option
@pass_app
def ls(app: App, path: str, long: bool, recursive: bool, as_json: bool, at: str, password_file: str) -> None:
    """List folders, or what is in a directory of one.

    Of a receive-encrypted folder the encrypted names are shown, or, with its password, the plain ones.
    """

    async def work(service: Service, env: Env) -> None:
        files = await readable(service, env, path, password_file)
        await shown(files, path, recursive, await fixed(files, at), long=long, as_json=as_json)

    app.run(work)


async def shown(files: Files, path: str, recursive: bool, moment: str, *, long: bool, as_json: bool) -> None:
    """Prints a listing."""
    array, failures = JsonArray(), Failures()
    async for entries in listed(files, path, recursive, moment):
        if as_json:
            array.add(entries)
            continue
        lines = []
        for entry in entries:
            name = entry.path.split("/", path.rstrip("/").count("/") + 1)[-1] if recursive else entry.name
            lines.append(long_line(entry, name) if long else short_line(entry, name))
        if lines:
            click.echo("\n".join(lines))
    if as_json:
        array.end()
    await tell_broken(files, moment, failures)
    failures.finish()


@click.command()
@click.argument("paths", metavar=f"{PATH}...", nargs=-1, required=True)
@at_option
@password_option
@pass_app
def cat(app: App, paths: tuple[str, ...], at: str, password_file: str) -> None:
    """Write files to standard output."""

    async def work(service: Service, env: Env) -> None:
        out = sys.stdout.buffer
        moment = await fixed(service, at)
        readers: dict[str, Files] = {}
        for path in paths:
            folder = path.partition("/")[0]
            if folder not in readers:
                readers[folder] = await readable(service, env, path, password_file)
            async with aclosing(cast("Any", readers[folder].read(path, at=moment))) as pieces:
                async for piece in pieces:
                    await env.threads.run(out.write, piece)
        await env.threads.run(out.flush)

    app.run(work)


@click.command()
@click.argument("path", metavar=PATH)
@click.argument("local", metavar="[LOCAL]", required=False, type=click.Path(path_type=Path))
@at_option
@password_option
@pass_app
def get(app: App, path: str, local: Path | None, at: str, password_file: str) -> None:
    """Copy a file, or a directory with everything in it, to a local path.

    A directory's content goes into LOCAL. Running it again goes on where it stopped: what is there with the same size and time stays.
    """

    async def work(service: Service, env: Env) -> None:
        if not password_file:
            await require_plain(service, path, at)
        await fetched(await readable(service, env, path, password_file), env, path, local, at)

    app.run(work)


async def require_plain(service: Service, path: str, at: str) -> None:
    """Raises Refused for a directory of a receive-encrypted folder: its tree is only there for who has the password."""
    top = await service.stat(path, at)
    folder = top.path.partition("/")[0]
    if top.type == "directory" and any(each.id == folder and each.type == "receiveencrypted" for each in await service.folder_list()):
        raise Refused(
            f"folder {folder!r} is encrypted: what it holds has no names here",
            hint="give its password with --password-file; `stnode export` copies it as Syncthing stores encrypted folders",
        )


async def fetched(files: Files, env: Env, path: str, local: Path | None, at: str) -> None:
    """Copies what was at `path` to a local path (None: here, under its own name), and says what it did."""
    done, failures = await copied(files, env, path, local, at, "got")
    summary("got", done)
    failures.finish()


async def copied(files: Files, env: Env, path: str, local: Path | None, at: str, verb: str) -> tuple[Progress, Failures]:
    """As `fetched`, and leaves it to the caller to say so."""
    moment = await fixed(files, at)
    top = await files.stat(path, moment)
    failures, progress = Failures(), Progress(env.clock, verb)
    download = Download(files, env, failures, progress, moment)
    try:
        if top.type == "directory":
            await download.tree(top, listed(files, top.path, recursive=True, at=moment), local or Path(top.name))
        else:
            target = local or Path(top.name)
            await download.single(top, target / top.name if target.is_dir() and not target.is_symlink() else target)
    finally:
        progress.end()
    await tell_broken(files, moment, failures)
    return progress, failures


async def fixed(service: Files, at: str) -> str:
    """A moment as one that stays the same while the command asks again and again; "" is now."""
    return str(await service.time_of(at)) if at else ""


@click.command()
@click.argument("local", metavar="LOCAL|-", type=click.Path(path_type=Path, allow_dash=True))
@click.argument("path", metavar=PATH)
@pass_app
def put(app: App, local: Path, path: str) -> None:
    """Copy a local file, a directory with everything in it, or standard input (-) into a folder.

    A directory's content goes into PATH; a file goes into PATH if that is a directory. Running it again sends only what differs.
    """

    is_directory = local.is_dir()

    async def work(service: Service, env: Env) -> None:
        if str(local) == "-":
            await service.write(path, _standard_input(env))
            return
        failures, progress = Failures(), Progress(env.clock, "put")
        upload = Upload(service, env, failures, progress)
        try:
            if is_directory:
                await upload.tree(local, path.rstrip("/"))
            else:
                await upload.single(local, await _inside(service, path, local.name))
        finally:
            progress.end()
        summary("put", progress)
        failures.finish()

    app.run(work)


async def _standard_input(env: Env) -> AsyncIterator[bytes]:
    while piece := await env.threads.run(sys.stdin.buffer.read, PIECE):
        yield piece


async def _inside(service: Service, path: str, name: str) -> str:
    """Where a file named `name` goes when `path` may be a directory."""
    try:
        is_directory = (await service.stat(path)).type == "directory"
    except NotFound:
        if "/" not in path.rstrip("/"):
            raise
        is_directory = path.endswith("/")
    return f"{path.rstrip('/')}/{name}" if is_directory else path


def summary(verb: str, progress: Progress) -> None:
    """One line on standard error of what a command has copied."""
    same = f", {progress.skipped:,} were there already" if progress.skipped else ""
    click.echo(f"{verb} {count_text(progress.files, 'file', 'files')}, {size_text(progress.bytes)}{same}", err=True)


@click.command()
@click.argument("paths", metavar=f"{PATH}...", nargs=-1, required=True)
@click.option("-r", "recursive", is_flag=True, help="Remove directories with everything in them.")
@click.option("--yes", is_flag=True, help="Do not ask before removing more than half of a large folder.")
@pass_app
def rm(app: App, paths: tuple[str, ...], recursive: bool, yes: bool) -> None:
    """Remove files and directories.

    Removing more than half of a folder of a thousand files or more waits for an answer, or for an hour.
    """

    async def work(service: Service, env: Env) -> None:
        failures = Failures()
        for path in paths:
            try:
                await _remove(service, env, path, recursive, yes)
            except StnodeError as exc:
                failures.add(path, exc)
        failures.finish()

    app.run(work)


async def _remove(service: Service, env: Env, path: str, recursive: bool, yes: bool) -> None:
    await let_go(service, env, path.partition("/")[0], service.rm(path, recursive), yes)


async def let_go(service: Service, env: Env, folder: str, work: Coroutine[Any, Any, T], yes: bool) -> T:
    """Does what may delete much of a folder. If the deletions are held back, lets them go, asks, or says what they wait for."""
    told = False
    removal = env.spawn(work, "deletion")
    try:
        while not (await asyncio.wait({removal}, timeout=_HELD_BACK_S))[0]:
            folder = (await service.stat(folder)).path
            held = next((f.pending_deletions for f in (await service.status()).folders if f.id == folder), None)
            if held is None or told:
                continue
            what = f"{held.files:,} of the {held.total:,} files of {folder} are to be deleted"
            if yes or (sys.stdin.isatty() and await env.threads.run(partial(click.confirm, f"{what}. Go on?", err=True))):
                with suppress(NotFound):  # they went on by themselves meanwhile
                    await service.confirm_deletions(folder)
            else:
                told = True
                click.echo(f"{what}; they wait for an hour, or for `stnode folder confirm-deletions {folder}`", err=True)
        return await removal
    finally:
        removal.cancel()


@click.command()
@click.argument("source", metavar=PATH)
@click.argument("target", metavar=PATH)
@pass_app
def mv(app: App, source: str, target: str) -> None:
    """Rename a file or directory; into a directory if the target is one. No data is copied."""

    async def work(service: Service, _: Env) -> None:
        entry = await service.stat(source)
        if "/" not in entry.path:
            raise Invalid(f"{entry.path} is a folder, not a file in one", hint="a folder's label is changed with `stnode folder set`")
        await service.mv(entry.path, await _inside(service, target, entry.name))

    app.run(work)


@click.command()
@click.argument("paths", metavar=f"{PATH}...", nargs=-1, required=True)
@click.option("-p", "parents", is_flag=True, help="Make missing parents too; an existing directory is no error.")
@pass_app
def mkdir(app: App, paths: tuple[str, ...], parents: bool) -> None:
    """Make directories."""

    async def work(service: Service, _: Env) -> None:
        failures = Failures()
        for path in paths:
            try:
                await service.mkdir(path, parents)
            except StnodeError as exc:
                failures.add(path, exc)
        failures.finish()

    app.run(work)


COMMANDS: tuple[click.Command, ...] = (ls, cat, get, put, rm, mv, mkdir)
