"""Commands that treat a daemon otherwise than a node of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stnode.clock import system_env
from stnode.config import ApiSection
from stnode.errors import Refused
from stnode.frontends.api import ApiServer
from stnode.node import connect
from stnode.node.home import Holder, Home
from stnode.node.service import RepairPlan, RepairReport, RepairWish
from tests.support.fake_service import FakeService


class Daemon(FakeService):
    """Counts its repairs."""

    repairs = 0

    async def bucket_repair(self) -> RepairReport:
        self.repairs += 1
        return await super().bucket_repair()


@pytest.fixture
async def daemon(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Daemon]:
    """A daemon that runs on every home."""
    service = Daemon()

    async def metrics() -> bytes:
        return b""

    server = ApiServer(service, ApiSection(listen="127.0.0.1:0", api_key="key"), metrics)
    holder = Holder(1, "daemon", await server.start(), "key")

    async def found(*_given: object) -> Holder:
        return holder

    monkeypatch.setattr(connect, "lock_or_daemon", found)
    yield service
    await server.stop()


async def test_a_daemon_repairs_nothing_before_the_plan_is_confirmed(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    plans: list[RepairPlan] = []

    async def repair(wish: RepairWish, *, yes: bool) -> RepairReport:
        def confirm(plan: RepairPlan) -> bool:
            plans.append(plan)
            return yes

        return await connect.repair_store(Home(tmp_path), system_env(), {}, wish, confirm)

    looked = await repair(RepairWish(), yes=False)
    assert (looked.done, looked.plan, daemon.repairs) == (False, plans[0], 0)
    assert "checkpoint" in plans[0].steps[0]
    await repair(RepairWish(), yes=True)
    assert daemon.repairs == 1
    for wish in (RepairWish(5), RepairWish(rebuild=True)):
        with pytest.raises(Refused, match="a daemon runs here"):
            await repair(wish, yes=True)
    assert daemon.repairs == 1
