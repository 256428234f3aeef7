"""What every command shares: which home, how to reach the node, how to run and to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from stnode.clock import Env
from stnode.errors import StnodeError
from stnode.node.home import Home
from stnode.node.service import CheckStep, RepairPlan, RepairReport, RepairWish, Service

T = TypeVar("T")
Connect = Callable[[Home, Env, Mapping[str, str]], AbstractAsyncContextManager[Service]]
CheckStore = Callable[[Home, Env, Mapping[str, str], bool, float, bool], AsyncIterator[CheckStep]]
RepairStore = Callable[[Home, Env, Mapping[str, str], RepairWish, Callable[[RepairPlan], bool]], Coroutine[Any, Any, RepairReport]]


@dataclass(frozen=True, slots=True)
class App:
    """Made once per process, before the arguments are read; `home` is known after that."""

    connect: Connect
    check_store: CheckStore
    repair_store: RepairStore
    make_env: Callable[[], Env]
    environ: Mapping[str, str]
    home: Home

    def run(self, work: Callable[[Service, Env], Coroutine[Any, Any, T]]) -> T:
        """Runs a command's work against the node, and lets go of it."""

        async def connected(env: Env) -> T:
            async with self.connect(self.home, env, self.environ) as service:
                return await work(service, env)

        return self.run_alone(connected)

    def run_alone(self, work: Callable[[Env], Coroutine[Any, Any, T]]) -> T:
        """Runs work that needs no node."""
        env = self.make_env()
        try:
            return asyncio.run(work(env))
        finally:
            env.close()


class Failures:
    """Counts the paths that a command could not do, tells each at once, and makes the command fail at its end."""

    def __init__(self) -> None:
        self.exit_code = 0
        self.count = 0
        self._hints: set[str] = set()

    def add(self, path: str, error: StnodeError) -> None:
        """Tells of one path, and each hint once. The first error's exit code is the command's."""
        self.count += 1
        self.exit_code = self.exit_code or error.exit_code
        message = error.message if path in error.message else f"{path}: {error.message}"
        tell_error(message, "" if error.hint in self._hints else error.hint)
        self._hints.add(error.hint)

    def finish(self) -> None:
        """Ends the command if anything failed."""
        if self.count:
            raise click.exceptions.Exit(self.exit_code)


def tell_error(message: str, hint: str = "") -> None:
    """An error as all commands show it."""
    click.echo(f"stnode: error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)


pass_app = click.make_pass_decorator(App)
