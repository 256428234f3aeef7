"""Mutated frames of known devices against whole sessions: whatever arrives, the node goes on, keeps nothing of it and forgets nothing.

The folder is send-only: well-formed items among the mutants are stored in the index, and must not change the store.
"""

from __future__ import annotations

import gc
import os
import random
import tracemalloc
from collections.abc import Sequence

import pytest

from stnode.node.session import Session
from stnode.protocol import codec
from stnode.protocol.fileinfo import blocks_hash
from stnode.protocol.framing import frame, frame_hello
from stnode.protocol.messages import ClusterConfig, ClusterDevice, ClusterFolder, FolderID, MessageType, Request
from stnode.repo import state
from tests.fuzz.test_decoder import corpus, mutate
from tests.support.bep import HELLO, file_message, index_frame
from tests.support.fakepeer import FakePeer, content
from tests.support.world import World, simulated

FRAMES = int(os.environ.get("FUZZ_FRAMES", "30000"))
DEVICES = 50
FOLDER = "default"  # as in the recordings


class Pipe:
    """A link that takes what is written and keeps nothing."""

    kind, local_address, remote_address = "memory", "here", "there"

    def __init__(self, session: Session, world: World) -> None:
        self.peer = session.device_id
        self.session, self.world = session, world
        self.bytes_in = self.bytes_out = 0
        self.reading = True
        self.open = True

    def write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        self.bytes_out += sum(map(len, buffers))

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        if self.open:
            self.open = False
            self.world.soon(self.session.link_lost, None)

    abort = close

    def feed(self, data: bytes) -> None:
        """As a transport does: pieces as large as the buffer, until the session wants no more."""
        rest = memoryview(data)
        while rest and self.open:
            target = self.session.get_buffer()
            count = min(len(target), len(rest))
            target[:count] = rest[:count]
            rest = rest[count:]
            self.bytes_in += count
            self.session.buffer_updated(count)


def greeting(peer: FakePeer, node: ClusterDevice) -> bytes:
    """Hello and a ClusterConfig that shares the folder."""
    folder = ClusterFolder(FolderID(FOLDER), devices=(node, ClusterDevice(peer.device, index_id=7, max_sequence=100)))
    return frame_hello(HELLO) + frame(MessageType.CLUSTER_CONFIG, codec.encode_cluster_config(ClusterConfig((folder,))), pack=False)


def requests(data: bytes) -> list[bytes]:
    """Frames of Requests for what the node has."""
    digest = blocks_hash(data)
    made = [
        Request(1, FolderID(FOLDER), "ours", 0, 100, digest),
        Request(2, FolderID(FOLDER), "ours", 0, 100, b"\1" * 32),
        Request(3, FolderID(FOLDER), "dir/x", 131072, 131072, digest),
    ]
    return [frame(MessageType.REQUEST, codec.encode_request(each, codec.request_folder(each.folder)), pack=False) for each in made]


async def one_round(world: World, peers: Sequence[FakePeer], rng: random.Random, pieces: list[bytes], valid: list[bytes]) -> int:
    """A session of every device, fed until it is closed or has had enough; how many mutants were fed."""
    node = ClusterDevice(world.device, index_id=1)
    fed = 0
    pipes: list[Pipe] = []
    for peer in peers:
        session = world.node.connections._accept(peer.device, "there")
        assert isinstance(session, Session)
        pipe = Pipe(session, world)
        session.link_made(pipe, peer.device)
        pipe.feed(greeting(peer, node))
        pipes.append(pipe)
    await world.until(lambda: all(pipe.session.folders for pipe in pipes))
    for _ in range(12):
        for pipe in pipes:
            if pipe.open and pipe.reading:
                if rng.random() < 0.2:
                    pipe.feed(rng.choice(valid))
                pipe.feed(mutate(rng, pieces))
                fed += 1
        await world.turns(3)
    await world.pause(1)
    for pipe in pipes:
        pipe.close()
    await world.turns(5)
    return fed


@pytest.mark.timeout(600)  # `make soak` has two minutes of work here, on a machine that other tests share
@simulated
async def test_mutated_frames_change_nothing() -> None:
    async with World() as world:
        peers = [world.peer(f"p{number}") for number in range(DEVICES)]
        await world.share(*peers, folder=FOLDER)
        data = content("ours", 100)
        giver = peers[0]
        await giver.connect()
        giver.write("ours", data, FOLDER)
        await world.until(lambda: world.record("ours", FOLDER))
        giver.disconnect()
        await world.share(*peers, folder=FOLDER, type="sendonly")
        await world.pause(5)
        conn = world.db._connect()
        before = (state.head(conn), state.state_hash(conn), set(world.bucket.snapshot()))
        tasks = {task.get_name() for task in world.env.tasks}
        rng = random.Random("sessions")
        pieces = [*corpus(), *requests(data)]
        valid = [*requests(data), index_frame(*[file_message(f"v{number}", sequence=number + 1) for number in range(5)])]
        fed = 0
        kept = 0
        try:
            while fed < FRAMES:
                fed += await one_round(world, peers, rng, pieces, valid)
                assert {task.get_name() for task in world.env.tasks} <= tasks, "a task is left"
                if fed >= 0.8 * FRAMES:
                    gc.collect()  # ended sessions are cycles
                    if not tracemalloc.is_tracing():
                        tracemalloc.start()
                if fed >= 0.9 * FRAMES and not kept:
                    kept = tracemalloc.get_traced_memory()[0]
            grown, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert grown < kept + (2 << 20), f"{grown - kept} bytes were kept"
        assert most < kept + (32 << 20), f"{most} bytes at once"
        await world.node.store.follow_to_head()
        assert (state.head(conn), state.state_hash(conn), set(world.bucket.snapshot())) == before
        assert world.live(FOLDER) == ["ours"]
        assert not [known for known in world.node.connections.states.values() if known.session is not None]
