"""Commands on the store's settings: device, folder, apply."""

from __future__ import annotations

import sys

import click

from stnode import config
from stnode.clock import Env
from stnode.errors import Invalid, Refused
from stnode.frontends.cli.app import App, pass_app
from stnode.frontends.cli.output import printable, show_json, table
from stnode.node.present import count_text
from stnode.node.service import DevicePassword, DeviceSettings, FolderChange, FolderSettings, FolderTypeName, Service, SettingsChange

_TYPES = click.Choice(["sendreceive", "sendonly", "receiveonly", "receiveencrypted"])
_json = click.option("--json", "as_json", is_flag=True, help="Show JSON.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_HISTORY_HELP = "What replaced and deleted versions are kept: 30d, 0, all, simple:5, simple:5,30d, trashcan:30d, staggered:365d."
_FLOOR_HELP = "Younger versions are kept whatever --history says, such as 1d or 0; 7 days without it."
_ENCRYPT_HELP = (
    "Share it with this device (name or ID) encrypted, with the password in the file; - reads it from standard input. "
    "Give Syncthing devices that may read the folder the same password for that device."
)
_GUARD_HELP = "Share of files, such as 0.3, whose deletion within an hour waits for a word; off: none; half of them without it."


def _confirm(question: str, yes: bool) -> None:
    """Asks on a terminal; elsewhere only --yes will do."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused(f"{question} Nobody is there to answer", hint="add --yes if that is what you want")
    click.confirm(question, abort=True, err=True)


@click.group()
def device() -> None:
    """The devices that this store syncs with."""


@device.command("add")
@click.argument("id", metavar="DEVICE-ID")
@click.option("--name", default="", help="A name to call it by.")
@click.option(
    "--address", "addresses", multiple=True, help="Where to dial it, such as tcp://192.0.2.7:22000; without one it has to connect."
)
@click.option(
    "--untrusted", is_flag=True, help="It must get nothing that is not encrypted: folders are shared with it by --encrypt-for only."
)
@pass_app
def device_add(app: App, id: str, name: str, addresses: tuple[str, ...], untrusted: bool) -> None:  # noqa: A002 - click names the parameter
    """Add a device, by the ID that it shows of itself."""

    async def work(service: Service, _: Env) -> None:
        made = await service.device_add(DeviceSettings(id, name, addresses or ("dynamic",), untrusted))
        click.echo(f"added {made.id}\nIt also has to be told of this node: {await service.id()}")

    app.run(work)


@device.command("remove")
@click.argument("device", metavar="DEVICE")
@pass_app
def device_remove(app: App, device: str) -> None:
    """Remove a device, by name or ID. It keeps what it has."""
    app.run(lambda service, _: service.device_remove(device))


@device.command("list")
@_json
@pass_app
def device_list(app: App, as_json: bool) -> None:
    """Show the devices."""
    devices = app.run(lambda service, _: service.device_list())
    if as_json:
        show_json(devices)
    elif devices:
        rows = [(printable(_marked(d.name, "untrusted", d.untrusted)), d.id, " ".join(d.addresses)) for d in devices]
        click.echo(table([("NAME", "ID", "ADDRESSES"), *rows]))


def _marked(name: str, mark: str, is_so: bool) -> str:
    return f"{name} ({mark})".lstrip() if is_so else name


def _passwords(wanted: tuple[str, ...]) -> tuple[DevicePassword, ...]:
    """What `--encrypt-for DEVICE=PASSWORD-FILE` asks for."""
    found: list[DevicePassword] = []
    files: list[str] = []
    for each in wanted:
        device, _, file = each.partition("=")
        if not device or not file:
            raise click.UsageError("--encrypt-for takes DEVICE=PASSWORD-FILE")
        files.append(file)
        if files.count("-") > 1:
            raise click.UsageError("only one password can come from standard input")
        found.append(DevicePassword(device, config.password(sys.stdin.read()) if file == "-" else config.read_password(file)))
    return tuple(found)


@click.group()
def folder() -> None:
    """The folders in this store."""


@folder.command("add")
@click.argument("id", metavar="FOLDER-ID")
@click.option("--label", default="", help="A name for people.")
@click.option("--type", "kind", type=_TYPES, default="sendreceive", show_default=True)
@click.option("--device", "devices", multiple=True, help="Share it with this device (name or ID).")
@click.option("--encrypt-for", multiple=True, metavar="DEVICE=PASSWORD-FILE", help=_ENCRYPT_HELP)
@click.option(
    "--ignore",
    multiple=True,
    help="A line of ignore patterns, as in .stignore; `#include FILE` takes those of a file in the folder, as it is now.",
)
@click.option("--ignore-permissions", is_flag=True, help="Neither store nor send permissions.")
@click.option("--history", default="30d", show_default=True, help=_HISTORY_HELP)
@click.option("--history-floor", default="", help=_FLOOR_HELP)
@click.option("--delete-guard", default="", help=_GUARD_HELP)
@pass_app
def folder_add(
    app: App,
    id: str,  # noqa: A002 - click names the parameter
    label: str,
    kind: FolderTypeName,
    devices: tuple[str, ...],
    encrypt_for: tuple[str, ...],
    ignore: tuple[str, ...],
    ignore_permissions: bool,
    history: str,
    history_floor: str,
    delete_guard: str,
) -> None:
    """Add a folder. Its ID must be the one that the other devices use.

    The type receiveencrypted is for a store that shall not be able to read the folder: the devices that share it with this node have a
    password for it, and what comes from them is stored and passed on as it comes.
    """
    passwords = _passwords(encrypt_for)
    settings = FolderSettings(
        id, label, kind, devices, ignore, ignore_permissions, history, history_floor, delete_guard, passwords=passwords
    )

    async def work(service: Service, _: Env) -> None:
        made = await service.folder_add(settings)
        click.echo(f"added {printable(made.id)}, shared with {count_text(len(made.devices), 'device', 'devices')}")

    app.run(work)


@folder.command("remove")
@click.argument("folder", metavar="FOLDER")
@_yes
@pass_app
def folder_remove(app: App, folder: str, yes: bool) -> None:
    """Remove a folder, for all nodes of the store. Other devices keep what they have.

    Its files and their old versions cannot be reached here any more, also when the folder is added again. What the bucket holds of them is
    garbage from then on.
    """
    _confirm(f"Remove the folder {folder}? Its files and their old versions cannot be reached in this store any more.", yes)
    app.run(lambda service, _: service.folder_remove(folder))


@folder.command("list")
@_json
@pass_app
def folder_list(app: App, as_json: bool) -> None:
    """Show the folders."""

    async def work(service: Service, _: Env) -> tuple[tuple[FolderSettings, ...], dict[str, str]]:
        return await service.folder_list(), {d.id: d.name or d.id[:7] for d in await service.device_list()}

    folders, names = app.run(work)
    if as_json:
        show_json(folders)
    elif folders:
        rows = [
            (printable(f.id), printable(f.label), f.type, ", ".join(printable(_shared(f, d, names)) for d in f.devices)) for f in folders
        ]
        click.echo(table([("ID", "LABEL", "TYPE", "DEVICES"), *rows]))


def _shared(folder: FolderSettings, device: str, names: dict[str, str]) -> str:
    return _marked(names.get(device, device[:7]), "encrypted", device in folder.encrypted_for)


@folder.command("set")
@click.argument("folder", metavar="FOLDER")
@click.option("--label", help="A name for people.")
@click.option("--type", "kind", type=_TYPES)
@click.option("--add-device", "add_devices", multiple=True, help="Share it with this device too (name or ID).")
@click.option("--remove-device", "remove_devices", multiple=True, help="Share it with this device no longer.")
@click.option(
    "--encrypt-for",
    multiple=True,
    metavar="DEVICE=PASSWORD-FILE",
    help=f"{_ENCRYPT_HELP} For a device that has another password already the folder begins anew.",
)
@click.option(
    "--ignore",
    multiple=True,
    help="A line of ignore patterns; those given replace all there are. `#include FILE` takes those of a file in the folder, as it is now.",
)
@click.option("--no-ignore", is_flag=True, help="Take all ignore patterns away.")
@click.option("--ignore-permissions/--keep-permissions", default=None, help="Whether permissions are left alone.")
@click.option("--history", help=_HISTORY_HELP)
@click.option("--history-floor", help=_FLOOR_HELP)
@click.option("--delete-guard", help=_GUARD_HELP)
@pass_app
def folder_set(
    app: App,
    folder: str,
    label: str | None,
    kind: FolderTypeName | None,
    add_devices: tuple[str, ...],
    remove_devices: tuple[str, ...],
    encrypt_for: tuple[str, ...],
    ignore: tuple[str, ...],
    no_ignore: bool,
    ignore_permissions: bool | None,
    history: str | None,
    history_floor: str | None,
    delete_guard: str | None,
) -> None:
    """Change a folder's settings, for all nodes of the store."""
    if ignore and no_ignore:
        raise click.UsageError("--ignore and --no-ignore exclude each other")
    patterns = () if no_ignore else ignore or None
    passwords = _passwords(encrypt_for)
    change = FolderChange(
        label, kind, add_devices, remove_devices, patterns, ignore_permissions, history, history_floor, delete_guard, passwords
    )
    if change == FolderChange():
        raise click.UsageError("nothing to change was named")
    app.run(lambda service, _: service.folder_set(folder, change))


@folder.command("override")
@click.argument("folder", metavar="FOLDER")
@pass_app
def folder_override(app: App, folder: str) -> None:
    """Make a send-only folder's content here the newest everywhere, over what other devices changed."""
    count = app.run(lambda service, _: service.folder_override(folder))
    click.echo(f"overrode {count_text(count, 'item', 'items')}")


@folder.command("revert")
@click.argument("folder", metavar="FOLDER")
@pass_app
def folder_revert(app: App, folder: str) -> None:
    """Undo what was changed here in a receive-only folder."""
    count = app.run(lambda service, _: service.folder_revert(folder))
    click.echo(f"reverted {count_text(count, 'item', 'items')}")


@folder.command("confirm-deletions")
@click.argument("folder", metavar="FOLDER")
@pass_app
def confirm_deletions(app: App, folder: str) -> None:
    """Let a mass deletion go on that waits for an answer."""
    count = app.run(lambda service, _: service.confirm_deletions(folder))
    click.echo(f"deleting {count_text(count, 'file', 'files')}")


@folder.command("reject-deletions")
@click.argument("folder", metavar="FOLDER")
@pass_app
def reject_deletions(app: App, folder: str) -> None:
    """Give a mass deletion up that waits for an answer.

    What is here is announced anew, over the deletions: the devices that deleted it, or believed them, get it back.
    """
    count = app.run(lambda service, _: service.reject_deletions(folder))
    click.echo(f"kept {count_text(count, 'file', 'files')}")


@click.command()
@click.option("--dry-run", is_flag=True, help="Show the differences, change nothing.")
@click.option("--prune", is_flag=True, help="Also remove devices and folders that config.toml does not name.")
@_yes
@pass_app
def apply(app: App, dry_run: bool, prune: bool, yes: bool) -> None:
    """Make the store's devices and folders what config.toml asks for, showing the differences."""
    devices, folders = wishes(config.load(app.home.config, app.environ))
    if prune and not devices and not folders:
        raise Invalid(
            f"{app.home.config} names no device and no folder: with --prune all those of the store would go, for all its nodes",
            hint="write down what is to stay, or remove them one by one with `stnode folder remove` and `stnode device remove`",
        )

    async def work(service: Service, _: Env) -> None:
        planned = await service.settings_plan(devices, folders, prune)
        click.echo("\n".join(map(change_line, planned)) or "the store is as config.toml asks")
        if not planned or dry_run:
            return
        if removed := [change for change in planned if change.action == "remove"]:
            _confirm(f"Remove {', '.join(f'{change.kind} {change.id}' for change in removed)}?", yes)
        await service.settings_apply(devices, folders, prune)
        click.echo(f"applied {count_text(len(planned), 'change', 'changes')}")

    app.run(work)


def wishes(asked: config.Config) -> tuple[tuple[DeviceSettings, ...], tuple[FolderSettings, ...]]:
    """The devices and folders of a configuration as settings."""
    devices = tuple(DeviceSettings(d.id, d.name, d.addresses, d.untrusted) for d in asked.device)
    return devices, tuple(map(_wish, asked.folder))


def _wish(folder: config.FolderWish) -> FolderSettings:
    return FolderSettings(
        folder.id,
        folder.label,
        folder.type,
        tuple(device.name for device in folder.devices if device.encryption_password is None),
        folder.ignore,
        folder.ignore_permissions,
        folder.history,
        folder.history_floor,
        folder.delete_guard,
        passwords=tuple(
            DevicePassword(device.name, device.encryption_password) for device in folder.devices if device.encryption_password is not None
        ),
    )


def change_line(change: SettingsChange) -> str:
    """A difference on one line."""
    sign = {"add": "+", "change": "~", "remove": "-"}[change.action]
    return printable(f"{sign} {change.kind} {change.id}{': ' if change.detail else ''}{change.detail}")


COMMANDS: tuple[click.Command, ...] = (device, folder, apply)
