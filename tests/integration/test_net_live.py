"""Links with real Syncthings: both versions, all kinds of keys on either side, both directions, up to their ClusterConfig."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stnode.clock import system_env
from stnode.net import base, identity
from stnode.net.identity import KeyType
from stnode.protocol import deviceid
from tests.support.links import Recorder
from tests.support.recorder import HELLO_MAGIC, cluster_config, hello
from tests.support.syncthing import VERSIONS, SyncthingProcess

THEIRS = (None, KeyType.ED25519, KeyType.RSA)  # None: what the version makes itself, P-384
OURS = (KeyType.ED25519, KeyType.P384, KeyType.RSA)


@pytest.mark.parametrize("theirs", THEIRS, ids=lambda kind: kind.value if kind else "own")
@pytest.mark.parametrize("version", VERSIONS)
async def test_both_directions_with_every_key(tmp_path: Path, version: str, theirs: KeyType | None) -> None:
    env = system_env(1)
    pair = identity.generate(env.clock, theirs) if theirs else None
    certificate = (pair.certificate_pem(), pair.key_pem()) if pair else None
    async with SyncthingProcess(tmp_path / "home", version, certificate=certificate) as peer:
        peer_id = deviceid.parse(peer.device_id)
        assert pair is None or pair.device_id == peer_id
        for ours in OURS:
            me = identity.generate(env.clock, ours)
            text = deviceid.format(me.device_id)
            await peer.add_device(text, name="stnode")
            dialed = Recorder()
            await base.dial(env, peer.address, me, peer_id, lambda _d, _a, dialed=dialed: dialed)  # type: ignore[misc]
            await _talk(dialed, peer, text)

            guest = Recorder()
            door = await base.listen(env, "tcp://127.0.0.1:0", me, lambda _d, _a, guest=guest: guest)  # type: ignore[misc]
            await peer.add_device(text, door.address, name="stnode")  # a change of addresses makes it dial
            link = await guest.until(deadline_s=30)
            assert link.peer == peer_id
            await _talk(guest, peer, text)
            await door.close()
            await peer.rest("DELETE", f"config/devices/{text}")
    env.close()


async def _talk(recorder: Recorder, peer: SyncthingProcess, own: str) -> None:
    """Hello and ClusterConfig both ways, then an orderly end."""
    link = await recorder.until()
    link.write([hello("stnode"), cluster_config()])
    await recorder.until(size=6)
    assert recorder.received.startswith(HELLO_MAGIC)
    after_hello = 6 + int.from_bytes(recorder.received[4:6], "big")
    await recorder.until(size=after_hello + 2, deadline_s=20)  # their ClusterConfig comes up to a second later
    await peer.wait_connected(own)
    link.close()
    async with asyncio.timeout(10):
        assert await recorder.lost is None
