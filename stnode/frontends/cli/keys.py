"""Commands on the passphrases of an encrypted store: bucket key list, add, remove, change. Passphrases come from files, the environment
or a prompt, never as arguments, which other users of the machine could see."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stnode.clock import Env
from stnode.errors import Refused
from stnode.frontends.cli.app import App, pass_app
from stnode.frontends.cli.output import printable, show_json, table

if TYPE_CHECKING:
    from stnode.node.keys import KeyRing, KeySlot

T = TypeVar("T")
_ID_SHOWN = 12

_passphrase_file = click.option(
    "--passphrase-file", default="", help="Holds a passphrase that opens the store; by default the node's own, else it is asked for."
)
_new_passphrase_file = click.option("--new-passphrase-file", default="", help="Holds the new passphrase; by default it is asked for.")


@click.group()
def key() -> None:
    """The passphrases that open an encrypted store. Data is never written anew for them."""


@key.command("list")
@_passphrase_file
@click.option("--json", "as_json", is_flag=True, help="Show JSON.")
@pass_app
def list_(app: App, passphrase_file: str, as_json: bool) -> None:
    """Show the key slots; * marks the one that the given passphrase opens."""
    found = _with_ring(app, passphrase_file, lambda ring: ring.list())
    if as_json:
        show_json(found)
        return
    click.echo(table([("ID", "LABEL", "CREATED", ""), *(_row(slot) for slot in found)]))


@key.command()
@click.option("--label", default="", help="What the passphrase is for; at most 64 bytes. Only who can open the store sees it.")
@_passphrase_file
@_new_passphrase_file
@pass_app
def add(app: App, label: str, passphrase_file: str, new_passphrase_file: str) -> None:
    """Add a passphrase. Those that are there stay."""
    old = _given(app, passphrase_file)
    new = _new(new_passphrase_file)
    made = _with_ring(app, old, lambda ring: ring.add(new, label), known=True)
    click.echo(f"added key slot {made.id[:_ID_SHOWN]}")


@key.command()
@click.argument("slot")
@_passphrase_file
@pass_app
def remove(app: App, slot: str, passphrase_file: str) -> None:
    """Remove the passphrase of SLOT (id or label).

    The one that opens the store for this command cannot go. Who kept a copy of the bucket's keys/ and knows the passphrase can still read
    the store: after a leak, make a new store.
    """
    gone = _with_ring(app, passphrase_file, lambda ring: ring.remove(slot))
    click.echo(f"removed key slot {gone.id[:_ID_SHOWN]}")


@key.command()
@_passphrase_file
@_new_passphrase_file
@pass_app
def change(app: App, passphrase_file: str, new_passphrase_file: str) -> None:
    """Replace a passphrase by a new one; other key slots stay."""
    old = _given(app, passphrase_file)
    new = _new(new_passphrase_file)
    made = _with_ring(app, old, lambda ring: ring.change(new), known=True)
    click.echo(f"changed: key slot {made.id[:_ID_SHOWN]}. Nodes that start with the old passphrase need the new one now.")


def _with_ring(app: App, passphrase: str, work: Callable[[KeyRing], Coroutine[Any, Any, T]], *, known: bool = False) -> T:
    """Runs `work` on the slots; `passphrase` is a file's name unless `known`."""
    from stnode.node.keys import key_ring  # with the store, which takes half a second to import; other commands need not wait for it

    given = passphrase if known else _given(app, passphrase)

    async def opened(env: Env) -> T:
        async with key_ring(app.home, env, app.environ, given) as ring:
            return await work(ring)

    return app.run_alone(opened)


def _given(app: App, file: str) -> str:
    """A passphrase that opens the store."""
    from stnode.node.keys import configured_passphrase, read_passphrase

    configured = configured_passphrase(app.home, app.environ)
    if file:
        return read_passphrase(file)
    return configured if configured is not None else _ask("Passphrase of the store", confirm=False)


def _new(file: str) -> str:
    from stnode.node.keys import read_passphrase

    return read_passphrase(file) if file else _ask("New passphrase", confirm=True)


def _ask(what: str, *, confirm: bool) -> str:
    if not sys.stdin.isatty():
        raise Refused(
            "a passphrase is needed and there is no terminal to ask for it",
            hint="give it in a file: --passphrase-file, --new-passphrase-file",
        )
    answer: object = click.prompt(what, hide_input=True, confirmation_prompt=confirm, err=True)
    return str(answer)


def _row(slot: KeySlot) -> tuple[str, ...]:
    created = datetime.fromtimestamp(slot.created_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (slot.id[:_ID_SHOWN], printable(slot.label) or "-", created, "*" if slot.opened else "")
