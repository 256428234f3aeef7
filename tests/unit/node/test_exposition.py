"""`/metrics` shows what is so."""

from __future__ import annotations

from pathlib import Path

from stnode import config
from stnode.clock import system_env
from stnode.node import setup
from stnode.node.home import Home
from stnode.node.node import Node
from stnode.node.operations import NodeService
from tests.support.fakepeer import FOLDER, content
from tests.support.world import World, simulated


def values(text: bytes) -> dict[str, float]:
    """Metric with labels -> value."""
    lines = [line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


@simulated
async def test_what_was_pulled_and_served() -> None:
    async with World() as world:
        a, size = await world.connected("a", "b"), 300_000
        a.write("x", content("x", size))
        await world.until(lambda: world.live() == ["x"])
        b = world.peers["b"]
        await world.until(lambda: b.folder().heard)
        await b.ask("x", 0, 131072)
        service = NodeService(world.node, Path())
        shown = values(await service.metrics())
        folder = f'{{folder="{FOLDER}"}}'
        assert shown["stnode_connections"] == 2
        assert shown[f"stnode_pulled_bytes_total{folder}"] == size
        assert shown[f"stnode_served_bytes_total{folder}"] == 131072
        assert shown[f"stnode_folder_files{folder}"] == 1
        assert shown[f"stnode_folder_bytes{folder}"] == size
        assert shown[f"stnode_folder_need_bytes{folder}"] == 0
        assert shown["stnode_journal_head"] == shown['stnode_commits_total{outcome="won"}'] > 0
        assert shown['stnode_net_bytes_total{direction="in"}'] > size
        assert shown['stnode_net_bytes_total{direction="out"}'] > 131072
        for peer in (a, b):
            peer.disconnect()
        await world.until(lambda: not any(device.session for device in world.node.connections.states.values()))
        after = values(await service.metrics())
        assert after["stnode_connections"] == 0
        for direction in ("in", "out"):
            name = f'stnode_net_bytes_total{{direction="{direction}"}}'
            assert after[name] >= shown[name]


async def test_requests_to_the_store_are_counted_from_the_first_on(tmp_path: Path) -> None:
    env = system_env()
    try:
        await setup.initialise(Home(tmp_path), setup.Asked(), env, {})
        node = await Node.open(tmp_path, config.load(tmp_path / "config.toml", {}), env)
        try:
            shown = values(await NodeService(node, tmp_path).metrics())
            counted = node.objects.metrics.snapshot()
            assert shown['stnode_store_requests_total{kind="get",outcome="ok"}'] == counted.count("get", "ok") > 0
            assert shown['stnode_store_seconds_count{kind="get"}'] == counted.count("get")
            assert shown['stnode_store_bytes_total{direction="in"}'] == counted.bytes_in > 0
        finally:
            await node.stop()
    finally:
        env.close()
