"""The command line in this process, against a fake node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from stnode.clock import Env, system_env
from stnode.frontends.cli.app import App
from stnode.frontends.cli.main import run_cli
from stnode.node.home import Home
from stnode.node.service import RepairPlan, RepairReport, RepairWish, Service
from tests.support.fake_service import FakeService


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def fake() -> FakeService:
    return FakeService()


@pytest.fixture
def cli(fake: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`cli("ls", "docs")` runs a command on the fake."""

    @asynccontextmanager
    async def connect(home: Home, env: Env, environ: Mapping[str, str]) -> AsyncIterator[Service]:
        yield fake

    async def repair_store(
        _home: Home, _env: Env, _environ: object, wish: RepairWish, confirm: Callable[[RepairPlan], bool]
    ) -> RepairReport:
        fake.repair_wish = wish
        return RepairReport(fake.repair_plan, done=confirm(fake.repair_plan), commit=8, lost=("docs/gone",), advice=("start the nodes",))

    def call(*arguments: str | Path, environ: Mapping[str, str] | None = None) -> Result:
        capsys.readouterr()
        app = App(
            connect,
            lambda *given: fake.bucket_check(*given[3:]),
            repair_store,
            system_env,
            environ or {"STNODE_HOME": str(tmp_path / "home")},
            Home(tmp_path),
        )
        code = run_cli(app, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call
