"""Commands on the node itself: init, id, status, shutdown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stnode import config
from stnode.clock import Env
from stnode.errors import Invalid, StnodeError
from stnode.frontends.cli.app import App, pass_app
from stnode.frontends.cli.output import printable, show_json, table
from stnode.node.present import count_text, size_text, span_text
from stnode.node.service import Service
from stnode.node.status import DeviceStatus, FolderStatus, NodeStatus, SiblingStatus, StoreStatus
from stnode.repo.parameters import span_s

if TYPE_CHECKING:
    from stnode.node import setup


class _Span(click.ParamType[int]):
    """A time span such as 12h, as seconds."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds of what was written; the default is a number already."""
        if isinstance(value, int):
            return value
        try:
            return span_s(str(value))
        except StnodeError as exc:
            self.fail(f"{exc.message}; {exc.hint}", param, ctx)


@click.command()
@click.option("--store", "url", default="", help="s3://bucket/prefix or file:///directory; by default the embedded store in the home.")
@click.option(
    "--join",
    default="",
    metavar="STORE_URL",
    help="Become one more node of the store that is there: its folders and devices are known at once.",
)
@click.option("--endpoint-url", default="", help="The S3 server, if not AWS.")
@click.option("--region", default="", help="The S3 region.")
@click.option("--name", default="", help="The node's name for its peers; by default the host's name.")
@click.option("--listen", multiple=True, help="Where devices connect, such as tcp://0.0.0.0:22000.")
@click.option("--api-listen", default="", help="Where the API answers, such as 127.0.0.1:8384.")
@click.option("--orphan-age", type=_Span(), default=0, help="A new store: how long an upload may take to be committed; by default 1d.")
@click.option("--grace", type=_Span(), default=0, help="A new store: how long garbage stays readable before it is deleted; by default 1d.")
@click.option("--single-node", is_flag=True, help="This is the store's only node: lets a server be used that has no conditional writes.")
@click.option("--passphrase-file", default="", help="Holds the passphrase of an encrypted store; a new store is made encrypted.")
@click.option(
    "--identity-in-store", is_flag=True, help="Keep the node's identity in the store, which must be encrypted, by the node's name."
)
@pass_app
def init(
    app: App,
    url: str,
    join: str,
    endpoint_url: str,
    region: str,
    name: str,
    listen: tuple[str, ...],
    api_listen: str,
    orphan_age: int,
    grace: int,
    single_node: bool,
    passphrase_file: str,
    identity_in_store: bool,
) -> None:
    """Make this directory a node's home: identity, config.toml, and the store if it is new (or, with --join, never).

    With a passphrase (--passphrase-file, or STNODE_STORE_PASSPHRASE_FILE or STNODE_STORE_PASSPHRASE) a new store is encrypted: the bucket's
    owner sees neither names nor contents, and nobody can read it without a passphrase.

    Can be run again: what is there stays. Keys of an S3 store come from the environment (STNODE_STORE_ACCESS_KEY_ID and
    STNODE_STORE_SECRET_ACCESS_KEY, or the usual AWS chain) or are written into config.toml afterwards.
    """
    from stnode.node import setup  # with the store, which takes half a second to import; other commands need not wait for it

    if join and (url or orphan_age or grace or single_node):
        raise click.UsageError("--join takes the store as it is: --store, --orphan-age, --grace and --single-node make no sense with it")
    file = str(Path(passphrase_file).absolute()) if passphrase_file else ""
    asked = setup.Asked(
        join or url, endpoint_url, region, name, listen, api_listen, orphan_age, grace, single_node, file, identity_in_store, bool(join)
    )

    async def work(env: Env) -> None:
        done = await setup.initialise(app.home, asked, env, app.environ)
        click.echo(f"home       {app.home.path}{'' if done.new_home else ' (was there)'}")
        told = [word for word, is_so in (("encrypted", done.encrypted), ("was there", not done.new_store)) if is_so]
        click.echo(f"store      {done.store_url}" + (f" ({', '.join(told)})" if told else ""))
        click.echo(f"device ID  {done.device_id}")
        if done.found is not None:
            click.echo(f"found      {_found_text(done.found)}\n{_NEXT}")
        for warning in done.warnings:
            click.echo(f"warning: {warning}", err=True)

    app.run_alone(work)


_NEXT = """
Next: `stnode run`. Folders and devices are known already, and so is this node to the others once it runs. Add its device ID at the
devices that shall connect to it, and share their folders with it there; `stnode status` then says whether all is in sync."""


def _found_text(found: setup.Found) -> str:
    others = f": {', '.join(map(printable, found.siblings))}" if found.siblings else ""
    return (
        f"{count_text(found.folders, 'folder', 'folders')}, {count_text(found.files, 'file', 'files')} ({size_text(found.bytes)}), "
        f"{count_text(found.devices, 'device', 'devices')}, {count_text(len(found.siblings), 'other node', 'other nodes')}{others}"
    )


@click.group("node")
def nodes() -> None:
    """Show the other nodes of the store, or forget one."""


@nodes.command("list")
@click.option("--json", "as_json", is_flag=True, help="Show JSON.")
@pass_app
def node_list(app: App, as_json: bool) -> None:
    """List the other nodes of the store."""
    found = app.run(lambda service, _: service.status()).siblings
    if as_json:
        show_json(found)
    elif found:
        click.echo(table([_SIBLING_HEAD, *map(_sibling, found)], right=frozenset({3})))


@nodes.command("remove")
@click.argument("node", metavar="NAME|ID")
@pass_app
def node_remove(app: App, node: str) -> None:
    """Forget a node that is gone: its siblings do not let it in any more. One that still runs and may write the store comes back."""
    app.run(lambda service, _: service.node_remove(node))


@click.command("id")
@pass_app
def show_id(app: App) -> None:
    """Show this node's device ID."""
    from stnode.net import identity
    from stnode.node.identities import in_store
    from stnode.protocol import deviceid

    app.home.require(app.environ)
    if in_store(config.load(app.home.config, app.environ)):
        click.echo(app.run(lambda service, _: service.id()))
    else:
        click.echo(deviceid.format(identity.load(app.home.path).device_id))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Show JSON.")
@pass_app
def status(app: App, as_json: bool) -> None:
    """Show the state of the node, its store, folders and devices."""

    async def work(service: Service, env: Env) -> None:
        found = await service.status()
        if as_json:
            show_json(found)
        else:
            click.echo(status_text(found, env.clock.now_ns() / 1e9))

    app.run(work)


@click.command()
@pass_app
def shutdown(app: App) -> None:
    """Stop the daemon of this home."""

    async def work(service: Service, _: Env) -> None:
        if not (await service.status()).running:
            raise Invalid(f"no daemon runs on {app.home.path}")
        await service.shutdown()

    app.run(work)


def status_text(status: NodeStatus, now_s: float) -> str:
    """The whole status for people. `now_s` is Unix time."""
    state = f"running, up {span_text(status.uptime_s)}" if status.running else "no daemon is running"
    head = [
        ("Node", f"{printable(status.name)} ({state})"),
        ("Device ID", status.device_id),
        *((("Listening", ", ".join(status.listen)),) if status.running else ()),
        *((("", f"warning: {printable(status.given_way)}"),) if status.given_way else ()),
        *_store(status.store, now_s),
        *((("Sync", _sync(status)),) if status.running else ()),
    ]
    parts = [table(head)]
    if status.folders:
        parts.append(table([_FOLDER_HEAD, *map(_folder, status.folders)], right=frozenset({3, 4})) + _folder_lines(status, now_s))
    if status.devices:
        parts.append(table([_DEVICE_HEAD, *(_device(device, now_s) for device in status.devices)], right=frozenset({4, 5})))
    if status.siblings:
        parts.append(table([_SIBLING_HEAD, *map(_sibling, status.siblings)], right=frozenset({3})))
    if waiting := _pending(status):
        parts.append("\n".join(waiting))
    return "\n\n".join(parts)


def _sync(status: NodeStatus) -> str:
    """One line that says whether there is anything to be done."""
    received = f"{size_text(status.received_bytes)} of files received since the start"
    if status.in_sync:
        return f"in sync, {received}"
    files, size = sum(folder.need_files for folder in status.folders), sum(folder.need_bytes for folder in status.folders)
    deletions = sum(folder.need_deletes for folder in status.folders)
    if files or deletions:
        parts = [f"{count_text(files, 'file', 'files')}, {size_text(size)}"] if files else []
        parts += [count_text(deletions, "deletion", "deletions")] if deletions else []
        return f"{', '.join(parts)} needed, {received}"
    return f"not in sync: {'the store does not answer' if status.store.unavailable_since_s is not None else 'see the folders below'}"


def _pending(status: NodeStatus) -> list[str]:
    """What other devices ask for and nobody has answered."""
    names = {device.id: device.name or device.id[:7] for device in status.devices}
    asked = [f"{d.id} tried to connect from {d.address}: `stnode device add {d.id}`" for d in status.pending_devices]
    for folder in status.pending_folders:
        what = f"{folder.id} ({folder.label})" if folder.label else folder.id
        encrypted, kind = (" encrypted", " --type receiveencrypted") if folder.encrypted else ("", "")
        asked.append(
            f"{names.get(folder.device, folder.device[:7])} offers the folder {what}{encrypted}: "
            f"`stnode folder add{kind}` it, or `folder set --add-device`"
        )
    return [printable(line) for line in asked]


def _store(store: StoreStatus, now_s: float) -> list[tuple[str, str]]:
    lag = "" if store.lag_s is None else f", seen {span_text(store.lag_s)} ago"
    rows = [("Store", store.url), ("", f"commit {store.head}{lag}; {count_text(store.objects, 'pack', 'packs')}, {size_text(store.bytes)}")]
    if store.unavailable_since_s is not None:
        rows.append(("", f"does not answer since {span_text(now_s - store.unavailable_since_s)}: {printable(store.unavailable_reason)}"))
    if store.spooled_bytes:
        oldest = f", the oldest pack for {span_text(store.queued_age_s)}" if store.queued_packs else ""
        spool = f"; {count_text(store.spool_packs, 'pack', 'packs')} of it in the spool" if store.spool_packs else ""
        full = ", which is full: pulling waits" if store.spool_full else ""
        rows.append(("", f"{size_text(store.spooled_bytes)} wait to be stored{oldest}{spool}{full}"))
    if store.uploads_mended:
        rows.append(("", f"warning: the store had lost {count_text(store.uploads_mended, 'upload', 'uploads')}; they were stored again"))
    collection = store.collection
    if collection.left_to:
        rows.append(("", f"garbage is collected by {printable(collection.left_to)}"))
    elif collection.last_pass_s is not None:
        waiting = f", {size_text(collection.waiting_bytes)} wait to be deleted" if collection.waiting_bytes else ""
        freed = (
            f"garbage collected {span_text(now_s - collection.last_pass_s)} ago: {size_text(collection.freed_bytes)} freed since the start"
        )
        rows.append(("", freed + waiting))
    if collection.tombstones_held_by:
        rows.append(("", f"old deletions are remembered for {printable(collection.tombstones_held_by)}, which has been away for long"))
    return rows + [("", f"warning: {printable(warning)}") for warning in store.warnings]


_FOLDER_HEAD = ("FOLDER", "TYPE", "STATE", "FILES", "SIZE", "NEEDED")


def _folder(folder: FolderStatus) -> tuple[str, ...]:
    needed = []
    if folder.need_files or folder.need_bytes:
        needed.append(f"{count_text(folder.need_files, 'file', 'files')}, {size_text(folder.need_bytes)}")
    if folder.need_deletes:
        needed.append(count_text(folder.need_deletes, "deletion", "deletions"))
    if needed and folder.left_to_siblings:
        needed.append(f"{folder.left_to_siblings:,} of it left to other nodes")
    shown = f"{folder.label} ({folder.id})" if folder.label else folder.id
    return (printable(shown), folder.type, folder.state, f"{folder.files:,}", size_text(folder.bytes), ", ".join(needed) or "-")


def _history(folder: FolderStatus, now_s: float) -> str:
    oldest = "" if folder.history_oldest_s is None else f", back to {span_text(now_s - folder.history_oldest_s)} ago"
    kept = f"{count_text(folder.history_versions, 'old version', 'old versions')}, {size_text(folder.history_bytes)}{oldest}"
    return f"{folder.id}: {kept}; kept is {folder.history_words} ({folder.history})"


def _folder_lines(status: NodeStatus, now_s: float) -> str:
    """Lines below the table: what the history holds, and what needs somebody's attention."""
    lines = []
    for folder in status.folders:
        if folder.history:
            lines.append(_history(folder, now_s))
        if folder.reason:
            lines.append(f"{folder.id}: {folder.reason}")
        lines += [f"{folder.id}: {error.path}: {error.message}" for error in folder.errors]
        if folder.error_count > len(folder.errors):
            lines.append(f"{folder.id}: {folder.error_count - len(folder.errors):,} more errors")
        lines += [f"{folder.id}: {path}: its content is lost; it is pulled again as soon as a device has it" for path in folder.lost]
        if folder.lost_count > len(folder.lost):
            lines.append(f"{folder.id}: {folder.lost_count - len(folder.lost):,} more files with lost content")
        if (waiting := folder.pending_deletions) is not None:
            lines.append(
                f"{folder.id}: the deletion of {waiting.files:,} of {waiting.total:,} files waits for {span_text(waiting.until_s - now_s)}, "
                f"or for `stnode folder confirm-deletions {folder.id}` (or `reject-deletions`)"
            )
    return "".join(f"\n  {printable(line)}" for line in lines)


_SIBLING_HEAD = ("OTHER NODE", "STATE", "HEARTBEAT", "COMMIT", "VERSION")


def _sibling(sibling: SiblingStatus) -> tuple[str, ...]:
    if sibling.connected:
        state = f"connected, {sibling.address}"
    else:
        state = "stopped" if sibling.stopped else sibling.last_error or "not connected"
    name = sibling.name or sibling.id[:7]
    return (printable(name), printable(state), f"{span_text(sibling.heartbeat_age_s)} ago", str(sibling.head), printable(sibling.version))


_DEVICE_HEAD = ("DEVICE", "STATE", "ADDRESS", "SYNCED", "IN", "OUT")


def _device(device: DeviceStatus, now_s: float) -> tuple[str, ...]:
    if device.connected:
        state = f"connected, {device.client}"
    elif device.last_error:
        state = device.last_error
    else:
        state = "never seen" if device.last_seen_s is None else f"seen {span_text(now_s - device.last_seen_s)} ago"
    synced = min(device.completion.values(), default=1.0) if device.completion else None
    return (
        printable((device.name or device.id[:7]) + (" (untrusted)" if device.untrusted else "")),
        printable(state),
        device.address or "-",
        "-" if synced is None else f"{int(synced * 100)} %",
        f"{size_text(device.in_bytes_per_s)}/s" if device.connected else "-",
        f"{size_text(device.out_bytes_per_s)}/s" if device.connected else "-",
    )


COMMANDS: tuple[click.Command, ...] = (init, show_id, status, nodes, shutdown)
