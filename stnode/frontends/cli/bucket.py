"""Commands on the store itself: bucket check, bucket stats."""

from __future__ import annotations

import click

from stnode.clock import Env
from stnode.errors import Corrupt, Internal
from stnode.frontends.cli.app import App, pass_app, tell_error
from stnode.frontends.cli.output import Progress, printable, show_json, table
from stnode.node.present import count_text, size_text
from stnode.node.service import CheckReport

_json = click.option("--json", "as_json", is_flag=True, help="Show JSON.")


@click.group()
def bucket() -> None:
    """The store that holds everything."""


@bucket.command()
@click.option("--read-data", is_flag=True, help="Also read all data and verify every block. That costs a full read of the store.")
@_json
@pass_app
def check(app: App, read_data: bool, as_json: bool) -> None:
    """Check everything stored against everything else: journal, checkpoints, packs, records."""

    async def work(env: Env) -> CheckReport:
        progress = Progress(env.clock, "check")
        try:
            report: CheckReport | None = None
            async for step in app.check_store(app.home, env, app.environ, read_data):
                progress.note(f"{step.phase}: {step.done:,} of {step.total:,}")
                report = step.report
        finally:
            progress.end()
        if report is None:
            raise Internal("the check ended without a report")
        return report

    report = app.run_alone(work)
    if as_json:
        show_json(report)
    else:
        for problem in report.problems:
            tell_error(printable(f"{problem.key}: {problem.message}"))
            for path in problem.lost:
                click.echo(f"  lost: {printable(path)}", err=True)
        read = f", read {report.blocks_read:,} blocks ({size_text(report.bytes_read)})" if read_data else ""
        click.echo(
            f"checked {report.slots:,} slots, {report.manifests:,} manifests, {report.runs:,} runs, "
            f"{report.packs:,} packs, {report.records:,} records{read}: {count_text(len(report.problems), 'problem', 'problems')}"
        )
    if report.problems:
        raise click.exceptions.Exit(Corrupt.exit_code)


@bucket.command()
@_json
@pass_app
def stats(app: App, as_json: bool) -> None:
    """Show what the store holds, by kind of object and by folder."""
    found = app.run(lambda service, _: service.bucket_stats())
    if as_json:
        show_json(found)
        return
    click.echo(f"Store  {found.url}\nID     {found.store_id}\nHead   commit {found.head}\n")
    kinds = [(k.kind, f"{k.objects:,}", size_text(k.bytes)) for k in found.kinds]
    total = ("total", f"{sum(k.objects for k in found.kinds):,}", size_text(sum(k.bytes for k in found.kinds)))
    click.echo(table([("KIND", "OBJECTS", "SIZE"), *kinds, total], right=frozenset({1, 2})))
    if found.folders:
        rows = [
            (printable(f.label or f.id), f"{f.files:,}", size_text(f.bytes), f"{f.packs:,}", size_text(f.pack_bytes)) for f in found.folders
        ]
        click.echo("\n" + table([("FOLDER", "FILES", "SIZE", "PACKS", "STORED"), *rows], right=frozenset({1, 2, 3, 4})))


COMMANDS: tuple[click.Command, ...] = (bucket,)
