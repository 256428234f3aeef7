"""Whole nodes on one bucket between devices, with the witness at the bucket: seeded lives, afterwards everybody has the same.

Each device is connected with one node; what it edits reaches the others through the bucket alone. Cut off at random: a device from its
node, a node from the bucket, nodes from each other. Nodes crash with or without their database, clocks are wrong and jump, the bucket
is put back to a backup. What a device hears is compared with the journal as it is heard, each block with its hash as it is read.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random

from stnode.clock import Env, InlineThreads, SeededRandomness
from stnode.errors import StnodeError
from stnode.objectstore.faulty import FaultPlan
from stnode.protocol.fileinfo import FileInfo
from tests.sim.loop import Deadlock, run
from tests.sim.witness import SimBucket, Truth, Violation, Watch
from tests.support.cipherpeers import TrustedPeer
from tests.support.fakepeer import FakePeer, content
from tests.support.sealed import Sealed
from tests.support.world import VirtualClock, World

BLOCK = 128 << 10
ENCRYPTED_EACH = 7
"""Of so many seeds one is on an encrypted store."""
UNREADABLE_EACH = 11
"""Of so many seeds in one the nodes are untrusted devices: their folder holds what the devices encrypt."""
NAMES = ("x", "y.txt", "d/x", "d/y", "d/e/x", "z")
CALM = FaultPlan()
DARK = FaultPlan(unreachable=1.0)
TROUBLES = (
    CALM,
    FaultPlan(lost_request=0.2, lost_response=0.2),
    FaultPlan(busy=0.4, retry_after_s=(0.1, 2.0)),
    FaultPlan(undecided=0.3, unreachable=0.1, truncated=0.1),
    FaultPlan(bit_flip=0.05, latency_s=(0.01, 0.2)),
    DARK,
    FaultPlan(late_write=0.3, latency_s=(0.01, 0.5), late_s=(0.5, 5.0)),
)


@dataclass(eq=False)
class Cluster:
    """Nodes (`worlds`) and devices (`peers`), each with the node that it connects to."""

    seed: int
    worlds: list[World] = field(default_factory=list)
    peers: list[FakePeer] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = Random(f"cluster {self.seed}")
        self.clock = VirtualClock()
        self.bucket = SimBucket(Env(self.clock, SeededRandomness(f"bucket {self.seed}"), InlineThreads()))
        self.truth = Truth(self.bucket, self.violate)
        self.bucket.on_restore = self.truth.rewind
        self.unreadable = self.seed % UNREADABLE_EACH == UNREADABLE_EACH - 1
        self._violated = asyncio.Event()

    def violate(self, invariant: str, message: str) -> None:
        self.note(f"VIOLATION {invariant}: {message}")
        self.violations.append(Violation(invariant, message))
        self._violated.set()

    def note(self, line: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():.6f} {line}")

    # ---- making it

    async def open(self, stack: AsyncExitStack) -> None:
        """One to three nodes, two or three devices, one folder."""
        for number in range(1 + self.seed % 3):
            if number == 0:
                world = World(self.seed, bucket=self.bucket)
                world.reached = Watch(self.bucket, self.truth)
                if self.seed % ENCRYPTED_EACH == ENCRYPTED_EACH - 1:
                    world.sealed = Sealed(world.reached)
            else:
                world = World(self.seed, name=f"node{number}", beside=self.worlds[0])
                world.clock.skew_s = self.random.uniform(-9000, 9000)
            self.worlds.append(await stack.enter_async_context(world))
        count = max(len(self.worlds), self.random.choice((2, 3)))
        for number in range(count):
            kind = TrustedPeer if self.unreadable else FakePeer
            peer = self.worlds[number % len(self.worlds)].peer_of(kind, "abc"[number], follows=True)
            peer.committed = self._committed
            self.peers.append(peer)
        await self.worlds[0].share(*self.peers, type="receiveencrypted" if self.unreadable else "sendreceive")
        for world in self.worlds[1:]:
            await world.node.store.follow_to_head()
            await world.node.load_settings()
        for peer in self.peers:
            await self._connect(peer)

    def _committed(self, folder: str, info: FileInfo) -> bool:
        """Invariants 1 and 7, as the device hears them: the number is a commit's, for this name and version."""
        row = self.truth.conn.execute("SELECT fkey FROM folders WHERE folder_id = ? AND removed = 0", (folder,)).fetchone()
        meaning = self.truth.meaning(row[0], info.sequence) if row else None
        same = meaning is not None and meaning[0] == info.name and (info.invalid or meaning[1] == info.version)
        if not same:
            self.violate("announced", f"{info.name} {info.version} is announced as number {info.sequence}, which commits gave to {meaning}")
        if info.deleted and info.name not in self.truth.may_be_deleted:
            self.violate("invented", f"{info.name} is announced as deleted, which nobody has done")
        return True

    async def _connect(self, peer: FakePeer) -> None:
        """Tries until it stands: the node may still have the connection of before, or be off line."""
        for _ in range(300):
            if peer.connected:
                return
            try:
                await peer.connect()
            except Exception:  # noqa: BLE001 - a refused connection is tried again, as devices do
                await asyncio.sleep(5)

    # ---- living

    async def live(self) -> None:
        """Some steps of everything."""
        for step in range(self.random.randrange(25, 60)):
            world, peer = self.random.choice(self.worlds), self.random.choice(self.peers)
            await self._step(world, peer, step)
            await asyncio.sleep(self.random.choice((0, 0, 0.01, 0.3, 2)))

    async def _step(self, world: World, peer: FakePeer, step: int) -> None:
        rng = self.random
        match rng.randrange(26):
            case 0:
                peer.disconnect()
            case 1:
                await self._connect(peer)
            case 2 | 3:
                world.faulty.plan = rng.choice(TROUBLES)
            case 4:
                await self._crash(world, keep_cache=rng.random() < 0.5)
            case 5:
                lies = lambda request: (b"\1" * request.size, 0)  # noqa: E731
                # What a trusted device makes up an untrusted node has to believe.
                peer.answers = rng.choice((peer.answer, lambda _request: (b"", 1), peer.answer if self.unreadable else lies))
            case 6:
                await asyncio.sleep(rng.choice((1, 10, 100)))
            case 7:
                world.clock.skew_s += rng.choice((-7200, 60, 86_400 * 3))
            case 8:
                self._part(world)
            case _:
                self._edit(peer, step)

    async def _crash(self, world: World, *, keep_cache: bool) -> None:
        """The process is gone, its late writes land; then a new one, as soon as the store lets it."""
        self.note(f"{world.name} crashes, cache kept: {keep_cache}")
        await world.faulty.settle()
        await world.crash()
        plan = world.faulty.plan
        for _ in range(100):
            try:
                await world.start(keep_cache=keep_cache, plan=plan)
            except StnodeError:
                plan = CALM
                for task in tuple(world.env.tasks):
                    task.cancel()
                await asyncio.sleep(1)
            else:
                return

    def _part(self, world: World) -> None:
        """Cuts the node off from its siblings and devices, without a word to anybody; they dial again by themselves."""
        self.note(f"{world.name} is cut off")
        for known in world.node.connections.states.values() if world.alive else ():
            if known.session is not None and known.session.link is not None:
                known.session.link.abort()

    def _edit(self, peer: FakePeer, step: int) -> None:
        """One change of a user, by what the device has. Through untrusted nodes devices change different files: of versions made at once
        those keep the one with the greater sum of counters, whatever the devices think (ADR 0035)."""
        rng, files = self.random, peer.folder().files
        own = f"{peer.name} " if self.unreadable else ""
        live = sorted(name for name, held in files.items() if held.live and held.info.type.name == "FILE")
        live = [name for name in live if name.startswith((own, f"renamed {own}"))]
        name = own + rng.choice(NAMES)
        peer.now_s += rng.randrange(3)
        match rng.randrange(8):
            case 0 | 1 | 2:
                for at in range(name.count("/")):
                    parent = "/".join(name.split("/")[: at + 1])
                    if parent not in files or not files[parent].live:
                        peer.mkdir(parent)
                size = rng.choice((0, 10, 1000, BLOCK, 3 * BLOCK + 5, 12 * BLOCK))
                peer.write(name, content(f"{peer.name} {step}", size))
            case 3 if live:
                self._delete(peer, rng.choice(live))
            case 4 if live:
                old = rng.choice(live)
                self.truth.may_be_deleted.add(peer.stored_name(old))
                peer.rename(old, f"renamed {peer.name} {step % 5}")
            case 5 if live:
                old = rng.choice(live)
                peer.write(old, files[old].data, permissions=rng.choice((0o600, 0o644, 0o755)))
            case 6 if live:
                old = rng.choice(live)
                peer.write(old, files[old].data + content(f"{peer.name} {step}", 100))
            case _:
                peer.symlink(f"{own}link {rng.randrange(2)}", f"{peer.name} {step}")

    def _delete(self, peer: FakePeer, name: str) -> None:
        self.truth.may_be_deleted.add(peer.stored_name(name))
        peer.delete(name)

    # ---- ending

    async def put_back(self) -> None:
        """The bucket goes back to where it was some edits ago, while no node reaches it."""
        backup = self.bucket.snapshot()
        for step in range(3):
            self._edit(self.peers[0], 100 + step)
            await asyncio.sleep(5)
        await self.settle()
        for world in self.worlds:
            world.faulty.plan = DARK
        await asyncio.sleep(200)
        self.bucket.restore(backup)
        self.note("the bucket is put back")
        before = self.peers[0].folder().live()
        await self.settle()
        after = self.peers[0].folder().live()
        lost = before.keys() - after.keys()
        if lost:
            self.violate("invented", f"putting the bucket back has deleted {sorted(lost)} on the devices")

    async def settle(self) -> None:
        """Heals everything; returns when all have the same and nothing is under way."""
        for world in self.worlds:
            world.faulty.plan = CALM
            await world.faulty.settle()
        for peer in self.peers:
            peer.answers = peer.answer
            peer.disconnect()
        await asyncio.sleep(10)
        for peer in self.peers:
            await self._connect(peer)
        await self.worlds[0].until(self._same, 40_000)
        await asyncio.sleep(60)
        await self.worlds[0].until(self._same, 40_000)

    def _same(self) -> bool:
        live = self.peers[0].folder().live()
        stored = sorted(map(self.peers[0].stored_name, live))
        idle = all(world.runner().state == "idle" and world.live() == stored for world in self.worlds)
        return idle and all(peer.folder().live() == live for peer in self.peers)

    async def check(self) -> None:
        """Every device has the committed versions, and the bucket their contents."""
        for peer in self.peers:
            for name, held in peer.folder().files.items():
                for world in self.worlds:
                    stored = world.version(peer.stored_name(name))
                    if held.live and stored != peer.stored_version(held.info):
                        self.violate("state", f"{peer.name} has {name} {held.info.version}, {world.name} {stored}")
        peer = self.peers[0]
        for name, (kind, data) in peer.folder().live().items():
            for world in self.worlds:
                if kind == "FILE" and peer.plain_content(name, await world.content(peer.stored_name(name))) != data:
                    self.violate("content", f"{world.name} has another content of {name} than the devices")


async def _whole(cluster: Cluster) -> None:
    async with AsyncExitStack() as stack:
        await cluster.open(stack)
        await cluster.live()
        await cluster.settle()
        if cluster.seed % 4 == 0:
            await cluster.put_back()
        await cluster.check()


async def _run(cluster: Cluster) -> None:
    """To the end or the first violation; errors that follow from one are not raised."""
    task = asyncio.ensure_future(_whole(cluster))
    end = asyncio.ensure_future(cluster._violated.wait())
    await asyncio.wait((task, end), return_when=asyncio.FIRST_COMPLETED)
    end.cancel()
    if not task.done():
        task.cancel()
    [result] = await asyncio.gather(task, return_exceptions=True)
    if cluster.violations:
        raise cluster.violations[0] from (result if isinstance(result, Exception) else None)
    if isinstance(result, (StnodeError, TimeoutError, Deadlock)):
        raise Violation("stuck", repr(result)) from result
    if isinstance(result, BaseException):
        raise result


def clustered(seed: int, *, quiet: bool = False) -> Cluster:
    """The cluster of a seed after its life; see `actors.lived`."""

    made: list[Cluster] = []

    async def main() -> None:
        made.append(Cluster(seed))
        await _run(made[0])

    try:
        run(main())
    except BaseException:
        if not quiet:
            print(f"seed {seed}", *(made[0].trace[-80:] if made else ()), sep="\n")
        raise
    finally:
        for cluster in made:
            cluster.truth.close()
    return made[0]
