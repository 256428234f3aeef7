"""Records what real Syncthings send on a connection, as golden files: `python -m tests.support.recorder`.

It is a minimal peer with hand-made messages, so that the recordings do not depend on the code that they test. One file per
connection holds the plaintext bytes of one direction, peer to us, from the magic of Hello on.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

import lz4.block

from stnode.clock import Env, system_env
from stnode.net import base, identity
from stnode.net.identity import Identity
from stnode.protocol import deviceid
from tests.support.links import Recorder
from tests.support.syncthing import VERSIONS, SyncthingProcess

HELLO_MAGIC = bytes.fromhex("2ea7d90b")
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "frames"
FOLDER = "golden-folder"
CLUSTER_CONFIG, INDEX, INDEX_UPDATE, REQUEST, RESPONSE, PING = 0, 1, 2, 3, 4, 6


# ------------------------------------------------------------------------------------------------ hand-made messages
def varint(value: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, value: int | bytes | str) -> bytes:
    """One protobuf field: a varint for an int, else bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def frame(kind: int, message: bytes) -> bytes:
    """An uncompressed frame."""
    header = field(1, kind) if kind else b""
    return len(header).to_bytes(2, "big") + header + len(message).to_bytes(4, "big") + message


def hello(name: str) -> bytes:
    """Magic, length, Hello."""
    message = field(1, name) + field(2, "stnode") + field(3, "v0.0.0") + field(4, 1)
    return HELLO_MAGIC + len(message).to_bytes(2, "big") + message


def cluster_config(*folders: bytes) -> bytes:
    """A ClusterConfig frame of encoded folders."""
    return frame(CLUSTER_CONFIG, b"".join(field(1, folder) for folder in folders))


def folder_entry(folder: str, *devices: tuple[bytes, int, int]) -> bytes:
    """A folder of a ClusterConfig with (device ID, max sequence, index ID) each."""
    entries = [
        field(1, device) + (field(6, sequence) if sequence else b"") + (field(8, index) if index else b"")
        for device, sequence, index in devices
    ]
    return field(1, folder) + field(2, folder) + b"".join(field(16, entry) for entry in entries)


def frames(stream: bytes) -> list[tuple[int, bytes]]:
    """Type and uncompressed message of each complete frame behind the Hello."""
    found = []
    at = 6 + int.from_bytes(stream[4:6], "big")
    while at + 2 <= len(stream):
        start = at + 2 + int.from_bytes(stream[at : at + 2], "big")
        end = start + 4 + int.from_bytes(stream[start : start + 4], "big")
        if len(stream) < start + 4 or len(stream) < end:
            break
        header = stream[at + 2 : start]
        values = {header[i] >> 3: header[i + 1] for i in range(0, len(header), 2)}
        body = stream[start + 4 : end]
        if values.get(2, 0) == 1:
            body = lz4.block.decompress(body[4:], uncompressed_size=int.from_bytes(body[:4], "big"))
        found.append((values.get(1, 0), body))
        at = end
    return found


def fields(message: bytes) -> dict[int, int | bytes]:
    """The last value of each top-level varint or bytes field."""
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        value, at = _read_varint(message, at)
        if tag & 7 == 2:
            found[tag >> 3] = message[at : at + value]
            at += value
        else:
            found[tag >> 3] = value
    return found


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


# ------------------------------------------------------------------------------------------------------ the recording
async def record(version: str, target: Path) -> None:
    """Makes all recordings of one version."""
    env = system_env(1)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="stnode-golden-") as name:
        home, tree = Path(name) / "home", Path(name) / "tree"
        async with SyncthingProcess(home, version, name="golden") as peer:
            me = identity.generate(env.clock)
            await peer.add_device(deviceid.format(me.device_id), name="recorder")
            _make_tree(tree)
            await peer.add_folder(FOLDER, tree, [deviceid.format(me.device_id)])
            await peer.scan(FOLDER)
            (tree / "deleted.txt").unlink()
            await peer.scan(FOLDER)
            for kind, compression in (("index", "metadata"), ("index-plain", "never"), ("index-all-compressed", "always")):
                await peer.add_device(deviceid.format(me.device_id), name="recorder", compression=compression)
                recorder = await _connect(env, peer, me)
                await _until_frames(recorder, {CLUSTER_CONFIG: 1, INDEX: 1})
                await _save(recorder, target / f"{kind}.bin")
            await peer.add_device(deviceid.format(me.device_id), name="recorder")
            await _record_update(env, peer, me, tree, target / "update.bin")
            await _record_requests(env, peer, me, target / "requests.bin")
            await _record_responses(env, peer, me, target / "responses.bin")
            await _record_ping(env, peer, me, target / "ping.bin")
    env.close()


def _make_tree(tree: Path) -> None:
    (tree / "directory" / "nested").mkdir(parents=True)
    (tree / "file.txt").write_bytes(b"some text\n")
    (tree / "empty").touch()
    (tree / "blocks.bin").write_bytes(bytes(range(256)) * 1400)  # 3 blocks of 128 KiB, the last one short
    (tree / "directory" / "nested" / "ünïcödé.txt").write_bytes(b"name\n")
    (tree / "directory" / "script.sh").write_bytes(b"#!/bin/sh\n")
    (tree / "directory" / "script.sh").chmod(0o755)
    (tree / "link").symlink_to("file.txt")
    (tree / "deleted.txt").write_bytes(b"soon gone\n")


async def _connect(env: Env, peer: SyncthingProcess, me: Identity, *, index_id: int = 0) -> Recorder:
    recorder = Recorder()
    peer_id = deviceid.parse(peer.device_id)
    link = await base.dial(env, peer.address, me, peer_id, lambda _device, _address: recorder)
    shared = folder_entry(FOLDER, (me.device_id, 1 if index_id else 0, index_id), (peer_id, 0, 0))
    link.write([hello("recorder"), cluster_config(shared)])
    return recorder


async def _until_frames(recorder: Recorder, wanted: dict[int, int], deadline_s: float = 30) -> list[tuple[int, bytes]]:
    async with asyncio.timeout(deadline_s):
        while True:
            found = frames(bytes(recorder.received)) if len(recorder.received) > 6 else []
            if all(sum(kind == one for kind, _ in found) >= count for one, count in wanted.items()):
                return found
            if recorder.lost.done():
                raise AssertionError(f"the peer went away after {[kind for kind, _ in found]}")
            await asyncio.sleep(0.01)


async def _save(recorder: Recorder, path: Path) -> None:
    assert recorder.link is not None
    recorder.link.close()
    await recorder.lost
    path.write_bytes(recorder.received)
    print(f"{path.relative_to(GOLDEN)}: {len(recorder.received)} bytes, frames {[kind for kind, _ in frames(bytes(recorder.received))]}")


async def _record_update(env: Env, peer: SyncthingProcess, me: Identity, tree: Path, path: Path) -> None:
    """An Index, then IndexUpdates for a changed, a new and a deleted file."""
    recorder = await _connect(env, peer, me)
    await _until_frames(recorder, {INDEX: 1})
    for number, (name, content) in enumerate((("file.txt", b"other text, longer\n"), ("new.txt", b"new\n"), ("new.txt", None)), 1):
        if content is None:
            (tree / name).unlink()
        else:
            (tree / name).write_bytes(content)
        await peer.scan(FOLDER)
        await _until_frames(recorder, {INDEX_UPDATE: number})
    await _save(recorder, path)


async def _record_requests(env: Env, peer: SyncthingProcess, me: Identity, path: Path) -> None:
    """Requests for a file of two blocks that we announce; they are answered by an error, so that it asks for all and then gives up."""
    recorder = await _connect(env, peer, me, index_id=4711)
    await _until_frames(recorder, {CLUSTER_CONFIG: 1})
    hashes = [bytes([number]) * 32 for number in (1, 2)]
    blocks = field(16, field(2, 131072) + field(3, hashes[0])) + field(16, field(1, 131072) + field(2, 1000) + field(3, hashes[1]))
    short = deviceid.short_id(me.device_id)
    version = field(9, field(1, field(1, short) + field(2, int(time.time()))))
    item = (
        field(1, "wanted.bin")
        + field(3, 132072)
        + field(4, 0o644)
        + field(5, 1_700_000_000)
        + version
        + field(10, 1)
        + field(12, short)
        + field(13, 131072)
    )
    assert recorder.link is not None
    recorder.link.write([frame(INDEX, field(1, FOLDER) + field(2, item + blocks) + (field(3, 1)))])
    found = await _until_frames(recorder, {REQUEST: 2})
    ids = [fields(message).get(1, 0) for kind, message in found if kind == REQUEST]
    for one in ids:
        assert isinstance(one, int)
        recorder.link.write([frame(RESPONSE, (field(1, one) if one else b"") + field(3, 2))])
    await _save(recorder, path)


async def _record_responses(env: Env, peer: SyncthingProcess, me: Identity, path: Path) -> None:
    """Answers to our Requests: a whole block, the short last one, a file that is not there."""
    recorder = await _connect(env, peer, me)
    await _until_frames(recorder, {INDEX: 1})
    assert recorder.link is not None
    for number, (name, offset, size) in enumerate((("blocks.bin", 0, 131072), ("blocks.bin", 262144, 96256), ("missing", 0, 100)), 1):
        message = field(1, number) + field(2, FOLDER) + field(3, name) + (field(4, offset) if offset else b"") + field(5, size)
        recorder.link.write([frame(REQUEST, message)])
    await _until_frames(recorder, {RESPONSE: 3})
    await _save(recorder, path)


async def _record_ping(env: Env, peer: SyncthingProcess, me: Identity, path: Path) -> None:
    """A connection left alone until the peer pings (45 to 90 seconds)."""
    recorder = await _connect(env, peer, me)
    await _until_frames(recorder, {PING: 1}, 120)
    await _save(recorder, path)


def main() -> None:
    """Records the versions named on the command line, or all."""
    for version in sys.argv[1:] or VERSIONS:
        shutil.rmtree(GOLDEN / version, ignore_errors=True)
        asyncio.run(record(version, GOLDEN / version))


if __name__ == "__main__":
    main()
