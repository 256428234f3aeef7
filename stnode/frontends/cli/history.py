"""Commands on what was: history, restore."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import click

from stnode.clock import Env
from stnode.errors import Conflict
from stnode.frontends.cli.app import App, Failures, pass_app
from stnode.frontends.cli.files import PATH, TIME_HELP, fetched, fixed, let_go, require_plain
from stnode.frontends.cli.output import JsonArray, Progress, printable, show_json, table
from stnode.node.present import count_text, size_text
from stnode.node.service import History, ItemVersion, RestoreChange, RestoreStep, Service

_SIGNS = {"create": "+", "change": "~", "delete": "-"}


@click.command()
@click.argument("path", metavar=f"FOLDER|{PATH}")
@click.option("-R", "recursive", is_flag=True, help="Of a directory: what was deleted anywhere below it.")
@click.option("--json", "as_json", is_flag=True, help="Show a JSON array.")
@pass_app
def history(app: App, path: str, recursive: bool, as_json: bool) -> None:
    """Show the versions of a file that are kept; of a directory or folder what was deleted in it.

    The number of a version is a TIME for `--at` of other commands, and shows just that version.
    """

    async def work(service: Service, _: Env) -> None:
        array = JsonArray()
        found = False
        async for page in _pages(service, path, recursive):
            if as_json:
                array.add(page.versions)
            elif page.versions:
                click.echo(_deleted(page, path) if page.directory else _versions(page))
            found = found or bool(page.versions)
        if as_json:
            array.end()
        elif not found:
            click.echo("nothing that is kept was deleted here")

    app.run(work)


async def _pages(service: Service, path: str, recursive: bool) -> AsyncIterator[History]:
    after: str | None = None
    while True:
        page = await service.history(path, recursive, after)
        yield page
        if page.next is None:
            return
        after = page.next


def _versions(page: History) -> str:
    rows = [("VERSION", "CHANGED", "BY", "SIZE", "")]
    for version in page.versions:
        size = "" if version.deleted else f"{version.entry.size:,}"
        rows.append((str(version.since_us), _time(version.since_us), printable(version.changed_by), size, _end(version)))
    return table(rows, frozenset({3}))


def _end(version: ItemVersion) -> str:
    if version.deleted:
        return "deleted"
    if version.until_us is None:
        return "present"
    by = f" by {printable(version.ended_by)}" if version.ended_by else ""
    return f"until {_time(version.until_us)}{by}"


def _deleted(page: History, path: str) -> str:
    """One line for each item; the number is that of its last version, none where that is not kept any more."""
    rows = [("DELETED", "BY", "SIZE", "VERSION", "PATH")]
    for version in page.versions:
        entry = version.entry
        name = printable(entry.path.split("/", path.rstrip("/").count("/") + 1)[-1]) + ("/" if entry.type == "directory" else "")
        if version.deleted:
            rows.append((_time(version.since_us), printable(version.changed_by), "", "", name))
        else:
            until = version.until_us or version.since_us
            rows.append((_time(until), printable(version.ended_by), f"{entry.size:,}", str(version.since_us), name))
    return table(rows, frozenset({2}))


def _time(us: int) -> str:
    return datetime.fromtimestamp(us // 1_000_000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


@click.command()
@click.argument("path", metavar=f"FOLDER|{PATH}")
@click.option("--at", metavar="TIME", required=True, help=f"When it was as it shall be again: {TIME_HELP}.")
@click.option("--to", "local", type=click.Path(path_type=Path), help="Copy it to this local directory, and change nothing in the folder.")
@click.option("--exact", is_flag=True, help="Also delete what came since.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, change nothing.")
@click.option("--yes", is_flag=True, help="With --exact: do not ask before deleting more than half of a large folder.")
@click.option("--json", "as_json", is_flag=True, help="Show the counts as JSON, with --dry-run the changes too.")
@pass_app
def restore(app: App, path: str, at: str, local: Path | None, exact: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Bring a file, a directory with everything in it, or a whole folder back as it was.

    In place no data is moved, and what replaces something is a version like any other: it can be undone the same way. What did not exist then
    is left alone. With --to the folder is not touched; running it again goes on where it stopped.
    """
    if local is not None:
        if exact or dry_run or as_json:
            raise click.UsageError("--to goes without --exact, --dry-run and --json; `stnode ls -R --at` shows what there is")

        async def fetch(service: Service, env: Env) -> None:
            await require_plain(service, path, at)
            await fetched(service, env, path, local, at)

        app.run(fetch)
        return

    async def work(service: Service, env: Env) -> RestoreStep:
        moment = await fixed(service, at)
        progress = Progress(env.clock, "restored")
        failures = Failures()
        try:
            restoring = _restored(service, path, moment, exact, dry_run, as_json, progress, failures)
            done = await let_go(service, env, path.partition("/")[0], restoring, yes)
        finally:
            progress.end()
        if as_json:
            show_json(done)
        else:
            click.echo(_summary(done, dry_run), err=not dry_run)
        failures.finish()
        return done

    app.run(work)


async def _restored(
    service: Service, path: str, at: str, exact: bool, dry_run: bool, as_json: bool, progress: Progress, failures: Failures
) -> RestoreStep:
    """Tells of the changes while they come; as JSON they are in what is returned."""
    last, changes = RestoreStep(), list[RestoreChange]()
    async with aclosing(cast("Any", service.restore(path, at, exact, dry_run))) as steps:
        async for step in steps:
            last = step
            for change in step.changes:
                if change.reason:
                    failures.add(change.path, Conflict(f"{change.path}: {change.reason}", hint="look at what is there now, then try again"))
                elif as_json:
                    changes.append(change)
                else:
                    click.echo(printable(f"{_SIGNS[change.action]} {change.path}"))
            progress.note(f"restored {step.files + step.directories + step.symlinks:,} items, {size_text(step.bytes)}")
    return replace(last, changes=tuple(changes))


def _summary(done: RestoreStep, dry_run: bool) -> str:
    parts = [f"{count_text(done.files, 'file', 'files')} ({size_text(done.bytes)})"]
    parts += [count_text(done.directories, "directory", "directories")] if done.directories else []
    parts += [count_text(done.symlinks, "link", "links")] if done.symlinks else []
    text = f"{'would restore' if dry_run else 'restored'} {', '.join(parts)}"
    text += f", {'delete' if dry_run else 'deleted'} {count_text(done.deleted, 'item', 'items')}" if done.deleted else ""
    return text + (f"; {done.unchanged:,} are as they were" if done.unchanged else "")


COMMANDS: tuple[click.Command, ...] = (history, restore)
