"""Commands on the store itself: bucket check, bucket repair, bucket stats, bucket gc; those on its passphrases are in `keys.py`."""

from __future__ import annotations

import sys

import click

from stnode import config
from stnode.clock import Clock, Env
from stnode.errors import Corrupt, Internal, Refused
from stnode.frontends.cli.app import App, pass_app, tell_error
from stnode.frontends.cli.keys import key
from stnode.frontends.cli.output import Progress, printable, show_json, table
from stnode.frontends.cli.settings import wishes
from stnode.node.present import count_text, size_text, span_text
from stnode.node.service import CheckReport, CheckStep, GcReport, RepairPlan, RepairReport, RepairWish, Service


class Share(click.ParamType[float]):
    """A part of everything: `5%` or `0.05`."""

    name = "PART"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            self.fail(f"{text!r} is no part: write 5%", param, ctx)
        if not 0 < share <= 1:
            self.fail(f"{text} is not more than 0% and at most 100%", param, ctx)
        return share


_json = click.option("--json", "as_json", is_flag=True, help="Show JSON.")


@click.group()
def bucket() -> None:
    """The store that holds everything."""


@bucket.command()
@click.option("--read-data", is_flag=True, help="Also read all data and verify every block. That costs a full read of the store.")
@click.option("--sample", type=Share(), help="With --read-data: read only this part, another one each day (5% a day is all in 20 days).")
@click.option(
    "--repair", is_flag=True, help="Repair what can be: damaged content is pulled again from connected devices by a running node."
)
@_json
@pass_app
def check(app: App, read_data: bool, sample: float | None, repair: bool, as_json: bool) -> None:
    """Check everything stored against everything else: journal, checkpoints, packs, records."""
    if sample is not None and not read_data:
        raise click.UsageError("--sample says how much --read-data reads")

    async def work(env: Env) -> CheckReport:
        progress, eta = Progress(env.clock, "check"), _Eta(env.clock)
        try:
            report: CheckReport | None = None
            async for step in app.check_store(app.home, env, app.environ, read_data, sample or 1.0, repair):
                progress.note(eta.text(step))
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
        _show_report(report, read_data)
    if report.problems:
        raise click.exceptions.Exit(Corrupt.exit_code)


def _show_report(report: CheckReport, read_data: bool) -> None:
    for problem in report.repaired:
        click.echo(printable(f"repaired: {problem.key}: {problem.message}"))
    for note in report.notes:
        click.echo(printable(f"note: {note}"))
    for problem in report.problems:
        tell_error(printable(f"{problem.key}: {problem.message}"))
        for path in problem.lost:
            click.echo(f"  lost: {printable(path)}", err=True)
        for path in problem.lost_versions:
            click.echo(f"  lost, an old version: {printable(path)}", err=True)
    if report.problems and report.advice:
        click.echo(f"hint: {report.advice}", err=True)
    read = f", read {report.blocks_read:,} blocks ({size_text(report.bytes_read)})" if read_data else ""
    click.echo(
        f"checked {report.slots:,} slots, {report.manifests:,} manifests, {report.runs:,} runs, "
        f"{report.packs:,} packs, {report.records:,} records{read}: {count_text(len(report.problems), 'problem', 'problems')}"
    )


class _Eta:
    """What a step of the check looks like, with the time that the phase will still take at the pace it has had."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._phase = ""
        self._began_s = 0.0

    def text(self, step: CheckStep) -> str:
        now_s = self._clock.monotonic()
        if step.phase != self._phase:
            self._phase, self._began_s = step.phase, now_s
        shown = size_text if step.phase == "data" else "{:,}".format
        text = f"{step.phase}: {shown(step.done)} of {shown(step.total)}"
        if 0 < step.done < step.total:
            text += f", {span_text((now_s - self._began_s) * (step.total - step.done) / step.done)} left"
        return text


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


@bucket.command()
@click.option("--void", type=click.IntRange(min=1), metavar="N", help="Step over commit N, which cannot be read, and all that follows it.")
@click.option("--rebuild", is_flag=True, help="Make a new journal of the packs alone, where nothing of the old one can be used.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--yes", is_flag=True, help="Do it without asking.")
@_json
@pass_app
def repair(app: App, void: int | None, rebuild: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Repair a journal that is damaged, has gaps, or is gone.

    Without options it says what is wrong and what can be done. Nothing is deleted: what cannot be used is set aside. Run it on a node
    that has its state directory, if there is one: what such a node has applied is not lost."""
    plans: list[RepairPlan] = []

    def confirm(plan: RepairPlan) -> bool:
        plans.append(plan)
        if not as_json:
            _show_plan(plan)
        return not dry_run and (yes or (sys.stdin.isatty() and click.confirm("Do this?", err=True)))

    devices, folders = wishes(config.load(app.home.config, app.environ))
    wish = RepairWish(void, rebuild, devices, folders)
    report = app.run_alone(lambda env: app.repair_store(app.home, env, app.environ, wish, confirm))
    if as_json:
        show_json(report)
    else:
        _show_repair(report)
    if plans and not report.done and not dry_run:
        raise Refused("nothing was done", hint="add --yes to do it, or --dry-run to only look")


def _show_plan(plan: RepairPlan) -> None:
    if plan.fault:
        click.echo(printable(f"wrong: {plan.fault}"))
    for step in plan.steps:
        click.echo(printable(f"  - {step}"))
    if plan.set_aside:
        click.echo(
            f"{count_text(plan.set_aside, 'commit is', 'commits are')} set aside, with what they say of these files as far as it can be read:"
        )
        for path in plan.files:
            click.echo(f"  {printable(path)}")
    if plan.void:
        click.echo(
            f"needs: --void {plan.first}. A node that has applied commit {plan.first}, or a copy of the bucket that has it, is better"
        )
    if plan.rebuild:
        click.echo("needs: --rebuild. A backup of the journal, or a node with its state directory, is better")


def _show_repair(report: RepairReport) -> None:
    if report.done:
        click.echo(f"done: everybody goes on from commit {report.commit}")
    if report.packs or report.records:
        click.echo(
            f"registered {count_text(report.packs, 'pack', 'packs')} ({size_text(report.pack_bytes)}), "
            f"committed {count_text(report.records, 'record', 'records')} again"
        )
    if report.unreadable:
        click.echo(
            f"nothing is known of {count_text(len(report.unreadable), 'commit', 'commits')}: {', '.join(map(str, report.unreadable[:20]))}"
        )
    for path in report.lost:
        click.echo(f"lost unless a device has it: {printable(path)}")
    for pack in report.skipped:
        click.echo(printable(f"left where it is: {pack}"))
    for line in report.advice:
        click.echo(f"next: {line}")


bucket.add_command(key)


@bucket.command()
@click.option("--dry-run", is_flag=True, help="Only say what there is and what would be done.")
@_json
@pass_app
def gc(app: App, dry_run: bool, as_json: bool) -> None:
    """Collect garbage now. A running daemon does it by itself.

    What nothing refers to is condemned first and deleted when the store's grace (a day) is over, so that a second run later frees it.
    """

    async def work(service: Service, env: Env) -> tuple[GcReport, float]:
        return await service.bucket_gc(dry_run), env.clock.now_ns() / 1e9

    report, now_s = app.run(work)
    if as_json:
        show_json(report)
    else:
        click.echo(gc_text(report, now_s))
    for problem in report.problems:
        tell_error(printable(problem))
    if report.problems:
        raise click.exceptions.Exit(Refused.exit_code)


def gc_text(report: GcReport, now_s: float) -> str:
    """What a pass found and did, for people. `now_s` is Unix time."""
    due = "" if report.next_deletion_s is None else f", the first in {span_text(report.next_deletion_s - now_s)}"
    rows = [
        ("live", "", size_text(report.live_bytes), "current versions and partial files"),
        ("history", "", size_text(report.history_bytes), "old versions that are kept"),
        ("dead", "", size_text(report.dead_bytes), f"{count_text(report.repack_packs, 'pack', 'packs')} worth repacking"),
        ("condemned", f"{report.condemned_packs + report.condemned_objects:,}", size_text(report.condemned_bytes), f"to be deleted{due}"),
        ("orphans", f"{report.orphans:,}", size_text(report.orphan_bytes), "in no commit (yet)"),
    ]
    if report.dry_run:
        done = (
            f"would condemn {count_text(report.unwanted_packs, 'pack', 'packs')} ({size_text(report.unwanted_bytes)}) "
            f"and repack {report.repack_packs:,} (frees {size_text(report.repack_frees_bytes)})"
        )
    else:
        done = (
            f"condemned {count_text(report.packs_condemned, 'pack', 'packs')}, repacked {report.packs_repacked:,}, "
            f"deleted {count_text(report.objects_deleted, 'object', 'objects')}: {size_text(report.bytes_freed)} freed"
        )
    return table([("WHAT", "OBJECTS", "SIZE", ""), *rows], right=frozenset({1, 2})) + f"\n\n{done}"


COMMANDS: tuple[click.Command, ...] = (bucket,)
