"""Commands on receive-encrypted folders, from the bucket alone, without any node: decrypt, export."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from stnode.clock import Env
from stnode.errors import Conflict, Internal, StnodeError, Unavailable
from stnode.frontends.cli.app import App, Failures, pass_app
from stnode.frontends.cli.download import local_error
from stnode.frontends.cli.files import PATH, at_option, copied, fixed, listed, readable, shown, summary, tell_broken
from stnode.frontends.cli.output import Progress, show_json
from stnode.node.service import Entry, Files, SealedFiles

F = TypeVar("F", bound=Callable[..., object])
_AT_ONCE = 16


def _store_options(command: F) -> F:
    """Which store: the same options on both commands."""
    for option in (
        click.option("--passphrase-file", default="", help="Holds the passphrase of a store that is encrypted itself."),
        click.option("--region", default="", help="The S3 region."),
        click.option("--endpoint-url", default="", help="The S3 server, if not AWS."),
        click.option(
            "--store",
            "url",
            default="",
            help="s3://bucket/prefix or file:///directory; by default that of config.toml or STNODE_STORE_URL.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("path", metavar=f"FOLDER|{PATH}")
@click.option("--password-file", required=True, help="Holds the folder's password; - reads it from standard input.")
@click.option("--to", type=click.Path(path_type=Path), help="Restore to this path; a directory's content goes into it.")
@click.option("--list", "as_list", is_flag=True, help="Show everything that is there.")
@click.option("--verify", is_flag=True, help="Decrypt and check everything, and write nothing.")
@click.option("-l", "long", is_flag=True, help="With --list: show mode, size and time.")
@click.option("--json", "as_json", is_flag=True, help="Show the list, or a summary, as JSON.")
@at_option
@_store_options
@pass_app
def decrypt(
    app: App,
    path: str,
    password_file: str,
    to: Path | None,
    as_list: bool,
    verify: bool,
    long: bool,
    as_json: bool,
    at: str,
    url: str,
    endpoint_url: str,
    region: str,
    passphrase_file: str,
) -> None:
    """Decrypt a receive-encrypted folder with its password, from the bucket alone.

    No node, home or identity is needed, and rights to read the bucket are enough: nothing is written there. What does not decrypt, or is not
    what its hash says, is named, and the rest goes on. Running it again goes on where it stopped: what is there with the same size and time
    stays.

    With --store config.toml is not read; keys of an S3 store then come from the environment.
    """
    if [to is not None, as_list, verify].count(True) != 1:
        raise click.UsageError("say one of --to, --list and --verify")

    async def work(env: Env) -> None:
        async with _opened(app, env, url, endpoint_url, region, passphrase_file) as store:
            files = await readable(store, env, path, password_file)
            if as_list:
                await shown(files, path, True, await fixed(files, at), long=long, as_json=as_json)
            elif to is None:
                _finish("verified", *await _verified(files, env, path, at), as_json)
            else:
                _finish("decrypted", *await copied(files, env, path, to, at, "decrypted"), as_json)

    with _ending_orderly():
        app.run_alone(work)


@click.command()
@click.argument("folder", metavar="FOLDER")
@click.option("--format", "kind", type=click.Choice(["syncthing"]), required=True, help="syncthing: as it stores encrypted folders.")
@click.option("--to", type=click.Path(path_type=Path), required=True, help="The directory, best an empty one.")
@click.option("--json", "as_json", is_flag=True, help="Show a summary as JSON.")
@at_option
@_store_options
@pass_app
def export(
    app: App, folder: str, kind: str, to: Path, as_json: bool, at: str, url: str, endpoint_url: str, region: str, passphrase_file: str
) -> None:
    """Copy a receive-encrypted folder, encrypted as it is, to a directory that `syncthing decrypt` reads.

    No password is needed, and no node; see `stnode decrypt` for the store. Only files have what they are beside them: directories and
    symlinks come as directories with encrypted names.
    """
    del kind

    async def work(env: Env) -> None:
        from stnode.node.exporting import TOKEN_FILE, syncthing_form

        async with _opened(app, env, url, endpoint_url, region, passphrase_file) as store:
            form = await syncthing_form(store, folder)
            done, failures = await copied(form, env, form.folder, to, at, "exported")
            try:
                await env.threads.run(_write_token, to / TOKEN_FILE, form.token_file)
            except OSError as exc:
                raise local_error(to / TOKEN_FILE, exc) from exc
            _finish("exported", done, failures, as_json)

    with _ending_orderly():
        app.run_alone(work)


def _opened(app: App, env: Env, *where: str) -> AbstractAsyncContextManager[SealedFiles]:
    from stnode.node.offline import Where, offline  # takes half a second to import, which other commands need not wait for

    return offline(app.home, env, app.environ, Where(*where))


def _write_token(path: Path, text: str) -> None:
    if path.parent.is_symlink() or path.is_symlink():
        raise Conflict(f"{path} is behind a symlink here", hint="move it away and run the command again")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


async def _verified(files: Files, env: Env, path: str, at: str) -> tuple[Progress, Failures]:
    """Reads everything at or below a path."""
    moment = await fixed(files, at)
    progress, failures = Progress(env.clock, "verified"), Failures()
    queue: asyncio.Queue[Entry | None] = asyncio.Queue(_AT_ONCE)

    async def worker() -> None:
        while (entry := await queue.get()) is not None:
            try:
                async with aclosing(cast("Any", files.read(entry.path, 0, None, entry.revision, moment))) as pieces:
                    async for piece in pieces:
                        progress.moved(len(piece))
            except (Unavailable, Internal):
                raise  # the next one would fare no better
            except StnodeError as exc:
                failures.add(entry.path, exc)
            else:
                progress.files += 1

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(worker())
            async for entries in listed(files, path, recursive=True, at=moment):
                for entry in entries:
                    if entry.type == "file":
                        await queue.put(entry)
            for _ in range(_AT_ONCE):
                await queue.put(None)
    finally:
        progress.end()
    await tell_broken(files, moment, failures)
    return progress, failures


def _finish(verb: str, done: Progress, failures: Failures, as_json: bool) -> None:
    """Says what was done, and fails the command if not all was."""
    if as_json:
        show_json({"files": done.files, "bytes": done.bytes, "skipped": done.skipped, "failed": failures.count})
    else:
        summary(verb, done)
        if failures.count:
            click.echo(f"failed: {failures.count:,}", err=True)
    failures.finish()


@contextmanager
def _ending_orderly() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, so that its temporary directory goes, too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


COMMANDS: tuple[click.Command, ...] = (decrypt, export)
