"""Must show 5: real Syncthings sync through a store that fails. 5 % errors, 2 % lost answers and 200 ms latency: everything arrives, and the
requests stay within twice the number of the same run without faults."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import FOLDER, StoreChoice, cluster
from tests.support.faultproxy import FaultProxy, Plan, faults
from tests.support.s3servers import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.blocks_loop("commands of the node are waited for")]

LATENCY_S = 0.2
ROUNDS = 30
CALM = Plan(latency_s=LATENCY_S)
FIRE = Plan(reset_before=0.01, busy=0.02, failing=0.01, undecided=0.01, lost=0.02, truncated=0.005, latency_s=LATENCY_S)
"""Errors 5 % (a 409 only where a write has a condition), lost answers 2 %, and half a percent of answers that break off."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run took, from the peers' start to equal trees."""

    seconds: float
    requests: Counter[str]
    faults: Counter[str]

    def line(self, name: str) -> str:
        return f"{name}: {self.requests.total()} requests {dict(self.requests)}, faults {dict(self.faults)}, {self.seconds:.1f} s"


def fill(root: Path) -> None:
    for directory in range(3):
        (root / f"d{directory}").mkdir()
        for number in range(60):
            (root / f"d{directory}" / f"{number}.txt").write_bytes(os.urandom(3000))
    (root / "large.bin").write_bytes(os.urandom(40 << 20))


async def _life(tmp_path: Path, proxy: FaultProxy, name: str) -> Figures:
    """A tree arrives at the other peer, then many small changes from both sides, most of them a commit of their own."""
    options = proxy.server.options
    store = StoreChoice(
        proxy.server.url(name),
        {
            "STNODE_STORE_ENDPOINT_URL": options.endpoint_url,
            "STNODE_STORE_REGION": options.region,
            "STNODE_STORE_ACCESS_KEY_ID": options.access_key_id,
            "STNODE_STORE_SECRET_ACCESS_KEY": options.secret_access_key,
        },
    )
    plan, proxy.plan = proxy.plan, Plan()
    (tmp_path / name).mkdir()
    async with cluster(tmp_path / name, store, fill) as peers:
        proxy.plan = plan
        proxy.reset()
        started = time.monotonic()
        await peers.until_equal(120)
        for number in range(ROUNDS):
            (peers.old_dir / "d0" / f"new-{number}").write_bytes(os.urandom(20_000))
            (peers.new_dir / "d1" / f"{number}.txt").write_bytes(os.urandom(5000))
            (peers.old_dir / "d2" / f"{number}.txt").unlink()
            for peer, _ in peers.peers:
                await peer.scan(FOLDER)
        await peers.until_equal(90)
        figures = Figures(time.monotonic() - started, Counter(proxy.requests), Counter(proxy.faults))
        proxy.plan = Plan()
        assert "0 problems" in peers.node.cli("bucket", "check", "--read-data")
        return figures


async def test_everything_arrives_within_twice_the_requests(tmp_path: Path, seaweedfs_server: S3Server) -> None:
    with faults(seaweedfs_server, CALM) as calm:
        without = await _life(tmp_path, calm, "calm")
    print(without.line("without faults"))
    with faults(seaweedfs_server, FIRE, seed=136) as fire:
        under = await _life(tmp_path, fire, "fire")
    print(under.line("under fire"))
    assert without.faults.total() == 0
    assert under.faults["lost"] > 0
    assert under.faults.total() > 0.04 * under.requests.total(), "the faults were there"
    assert under.requests.total() <= 2 * without.requests.total()
