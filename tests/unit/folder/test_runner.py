"""Pulling: what a peer announces comes into the store, with as few bytes as may be, in the right order."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest

from stnode.objectstore.faulty import FaultPlan
from stnode.protocol import fileinfo, vector
from stnode.protocol.fileinfo import FileType
from stnode.protocol.messages import Request
from stnode.repo.packer import PackerOptions
from tests.support.fakepeer import Answer, FakePeer, Held, content
from tests.support.world import World, simulated

BLOCK = 128 << 10


def refusing(peer: FakePeer, code: int = 2) -> None:
    peer.answers = lambda _request: (b"", code)


def silent(peer: FakePeer) -> None:
    peer.answers = lambda _request: None


# --- what a pull costs


@simulated
async def test_a_new_file_is_pulled_and_committed() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.write("x", content("x", 3 * BLOCK + 5))
        await world.until(lambda: world.record("x"))
        assert await world.content("x") == content("x", 3 * BLOCK + 5)
        assert len(a.requests) == 4
        record = world.record("x")
        assert record is not None
        assert record.info.version == a.folder().files["x"].info.version
        assert record.info.modified_by == a.short


@simulated
async def test_of_a_changed_file_only_changed_blocks_are_pulled() -> None:
    async with World() as world:
        a = await world.connected("a")
        before = content("x", 20 * BLOCK)
        a.write("x", before)
        await world.until(lambda: world.record("x"))
        a.requests.clear()
        after = before[: 10 * BLOCK] + content("other", BLOCK) + before[11 * BLOCK :]
        version = a.write("x", after).info.version
        await world.until(lambda: world.version("x") == version)
        assert [request.block_no for request in a.requests] == [10]
        assert await world.content("x") == after


@simulated
async def test_a_rename_costs_no_request_and_is_announced_in_one_message() -> None:
    async with World() as world:
        a = await world.connected("a", "b")
        a.write("old", content("x", 2 * BLOCK))
        await world.until(lambda: "old" in world.peers["b"].folder().heard)
        a.requests.clear()
        a.rename("old", "new")
        await world.until(lambda: world.live() == ["new"])
        assert not a.requests
        b = world.peers["b"]
        await world.until(lambda: b.folder().heard.get("old") and b.folder().heard["old"].deleted)
        last = b.folder().messages[-1]
        assert [(info.name, info.deleted) for info in last.files] == [("new", False), ("old", True)]


@simulated
async def test_items_without_blocks_need_no_request() -> None:
    async with World() as world:
        a = await world.connected("a")
        with a.batch():
            a.mkdir("d")
            a.mkdir("d/e")
            a.write("d/empty", b"")
            a.symlink("d/link", "e")
            a.write("zeros", bytes(5 * BLOCK))
        await world.until(lambda: len(world.live()) == 5)
        assert not a.requests
        assert await world.content("zeros") == bytes(5 * BLOCK)
        link = world.record("d/link")
        assert link is not None
        assert (link.info.type, link.info.symlink_target) == (FileType.SYMLINK, b"e")


@simulated
async def test_zero_blocks_inside_a_file_are_not_requested() -> None:
    async with World() as world:
        a = await world.connected("a")
        data = content("x", 2 * BLOCK) + bytes(3 * BLOCK) + content("y", 10)
        a.write("x", data)
        await world.until(lambda: world.record("x"))
        assert sorted(request.block_no for request in a.requests) == [0, 1, 5]
        assert await world.content("x") == data


@pytest.mark.parametrize("forgets", [False, True])
def test_a_change_of_metadata_costs_no_request(forgets: bool) -> None:
    @simulated
    async def scenario() -> None:
        async with World() as world:
            a = await world.connected("a")
            a.write("x", content("x", 5 * BLOCK))
            await world.until(lambda: world.record("x"))
            if forgets:
                await world.crash()
                await world.start()
                await a.connect()
                await world.until(lambda: len(a.configs) == 2)
            a.requests.clear()
            version = a.write("x", content("x", 5 * BLOCK), permissions=0o600).info.version
            await world.until(lambda: world.version("x") == version)
            assert not a.requests
            record = world.record("x")
            assert record is not None
            assert record.info.permissions == 0o600

    scenario()


@simulated
async def test_the_same_content_under_another_name_costs_no_request() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.write("x", content("x", 5 * BLOCK))
        await world.until(lambda: world.record("x"))
        a.requests.clear()
        a.write("copy", content("x", 5 * BLOCK))
        await world.until(lambda: world.record("copy"))
        assert not a.requests


@simulated
async def test_small_files_come_in_one_pack() -> None:
    async with World() as world:
        a = await world.connected("a")
        with a.batch():
            for number in range(300):
                a.write(f"f{number}", content(f"f{number}", 100 + number))
        await world.until(lambda: len(world.live()) == 300)
        packs = {extent[0] for record in world.records().values() for extent in record.extents}
        assert len(packs) <= 3


@simulated
async def test_a_single_small_change_is_not_held_back() -> None:
    """With nothing else under way its pack is sealed at once, not after the second that packs wait for company."""
    async with World() as world:
        a = await world.connected("a")
        for size in (100, 100_000):
            await world.pause(5)
            began = world.clock.monotonic()
            a.write(f"x{size}", content("x", size))
            await world.until(lambda size=size: world.record(f"x{size}"))  # type: ignore[misc]
            assert world.clock.monotonic() - began < 0.5


# --- deletions and changes of type


@simulated
async def test_a_tree_is_deleted_from_its_leaves() -> None:
    async with World() as world:
        a = await world.connected("a", "b")
        names = ["d", "d/e", "d/e/f"]
        with a.batch():
            for name in names:
                a.mkdir(name)
            a.write("d/e/f/x", content("x", 10))
            a.write("d/y", content("y", 10))
        await world.until(lambda: len(world.live()) == 5)
        with a.batch():
            for name in ["d", "d/e", "d/e/f", "d/e/f/x", "d/y"]:
                a.delete(name)
        await world.until(lambda: not world.live())
        heard = world.peers["b"].folder()
        await world.until(lambda: all(info.deleted for info in heard.heard.values()) and len(heard.heard) == 5)
        order = [info.name for message in heard.messages for info in message.files if info.deleted]
        assert order.index("d/e/f/x") < order.index("d/e/f") < order.index("d/e") < order.index("d")


@simulated
async def test_a_deletion_of_what_was_never_here_is_not_needed() -> None:
    async with World() as world:
        a = await world.connected("a")
        gone = fileinfo.new(name="x", type=FileType.FILE, version=((a.short, 5),), modified_by=a.short, deleted=True)
        a.announce(gone)
        a.write("y", b"y")
        await world.until(lambda: world.record("y"))
        assert world.record("x") is None
        await world.until(lambda: world.runner().state == "idle")


@simulated
async def test_a_file_becomes_a_directory_and_back() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.write("x", content("x", 100))
        await world.until(lambda: world.record("x"))
        with a.batch():
            a.mkdir("x")
            a.write("x/y", content("y", 100))
        await world.until(lambda: world.live() == ["x", "x/y"])
        with a.batch():
            a.delete("x/y")
            a.write("x", content("z", 200))
        version = a.folder().files["x"].info.version
        await world.until(lambda: world.version("x") == version)
        await world.until(lambda: world.live() == ["x"])
        assert await world.content("x") == content("z", 200)


@simulated
async def test_a_file_becomes_a_symlink_and_back() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.write("x", content("x", 100))
        await world.until(lambda: world.record("x"))
        a.symlink("x", "elsewhere")
        await world.until(lambda: (record := world.record("x")) and record.info.type is FileType.SYMLINK)
        version = a.write("x", content("x", 100)).info.version
        await world.until(lambda: world.version("x") == version)


@simulated
async def test_a_directory_that_others_filled_stays() -> None:
    """A refused deletion is an error that is tried again seldom, and goes away by itself."""
    async with World() as world:
        a = await world.connected("a", "b")
        b = world.peers["b"]
        a.mkdir("d")
        await world.until(lambda: world.record("d"))
        b.announce(a.folder().files["d"].info)
        b.write("d/new", content("new", 10))
        await world.until(lambda: world.record("d/new"))
        gone = a.delete("d")
        await world.until(lambda: "d" in world.runner().errors)
        await world.pause(10)
        before = world.node.store.status().journal.number
        await world.pause(40)
        assert world.runner().state == "waiting"
        assert world.node.store.status().journal.number == before
        b.delete("d/new")
        await world.until(lambda: world.version("d") == gone.info.version, 3600)
        await world.until(lambda: not world.runner().errors)


# --- conflicts


async def _edited_by_both(world: World, mtime_a: int, mtime_b: int, *, follow: bool = True) -> tuple[FakePeer, FakePeer]:
    """Both have `x`, are cut off, change it, and come back: first a, later b."""
    a = await world.connected("a", "b", follows=follow)
    b = world.peers["b"]
    a.write("x.txt", content("base", 100))
    await world.until(lambda: "x.txt" in b.folder().files or not follow)
    if not follow:
        b.announce(a.folder().files["x.txt"].info, content("base", 100))
    a.disconnect()
    b.disconnect()
    await world.turns(10)
    a.write("x.txt", content("of a", 100), mtime=mtime_a)
    b.write("x.txt", content("of b", 200), mtime=mtime_b)
    return a, b


@pytest.mark.parametrize("a_wins", [True, False])
def test_the_later_edit_wins_and_the_loser_is_copied_by_its_device(a_wins: bool) -> None:
    @simulated
    async def scenario() -> None:
        async with World() as world:
            a, b = await _edited_by_both(world, 2000 if a_wins else 1000, 1500)
            winner, loser = (a, b) if a_wins else (b, a)
            await a.connect()
            await world.until(lambda: world.version("x.txt") == a.folder().files["x.txt"].info.version)
            await b.connect()
            await world.until(lambda: len(a.folder().live()) == 2 and a.folder().live() == b.folder().live())
            copies = [name for name in world.live() if "sync-conflict" in name]
            assert len(copies) == 1
            record = world.record(copies[0])
            assert record is not None
            assert record.info.modified_by == loser.short
            assert await world.content("x.txt") == content("of a" if a_wins else "of b", 100 if a_wins else 200)
            assert await world.content(copies[0]) == content("of b" if a_wins else "of a", 200 if a_wins else 100)
            assert world.version("x.txt") == winner.folder().files["x.txt"].info.version

    scenario()


@simulated
async def test_a_loser_that_nobody_announces_is_copied_by_metadata() -> None:
    """The device that had it has made something else of it since."""
    async with World() as world:
        a, b = await _edited_by_both(world, 1000, 2000, follow=False)
        await a.connect()
        await world.until(lambda: world.version("x.txt") == a.folder().files["x.txt"].info.version)
        a.disconnect()
        await world.turns(10)
        await world.share(b)  # a is not a device of the folder any more
        await b.connect()
        await world.until(lambda: world.version("x.txt") == b.folder().files["x.txt"].info.version)
        copies = [name for name in world.live() if "sync-conflict" in name]
        assert len(copies) == 1
        assert await world.content(copies[0]) == content("of a", 100)


async def _had_by_both(world: World, data: bytes) -> tuple[FakePeer, FakePeer, Held]:
    """a has written `x`, b has taken it over."""
    a = await world.connected("a", "b", follows=True)
    b = world.peers["b"]
    held = a.write("x", data)
    await world.until(lambda: "x" in b.folder().files)
    return a, b, held


@pytest.mark.parametrize("delete_wins", [True, False])
def test_a_deletion_against_an_edit_is_decided_by_time(delete_wins: bool) -> None:
    @simulated
    async def scenario() -> None:
        async with World() as world:
            a, b, _ = await _had_by_both(world, content("base", 100))
            a.disconnect()
            b.disconnect()
            await world.turns(10)
            b.now_s = a.now_s + (-100 if delete_wins else 100)
            a.delete("x")
            b.write("x", content("edit", 100))
            await a.connect()
            await world.until(lambda: (record := world.record("x")) and record.info.deleted)
            await b.connect()
            await world.until(lambda: b.configs and world.runner().state == "idle" and len(b.configs) == 2)
            if delete_wins:
                await world.until(lambda: any("sync-conflict" in name for name in world.live()))
                assert "x" not in world.live()
            else:
                await world.until(lambda: world.live() == ["x"])
                assert await world.content("x") == content("edit", 100)
            await world.until(lambda: a.folder().live() == b.folder().live())

    scenario()


@pytest.mark.parametrize("deleted_here", [True, False])
def test_a_deletion_and_a_live_item_of_one_vector_are_settled_for_all(deleted_here: bool) -> None:
    """As Syncthing 1 makes them (docs/adr/0017): a deletion knows more of a device's own changes than the device's own record."""

    @simulated
    async def scenario() -> None:
        async with World() as world:
            a, b, held = await _had_by_both(world, content("x", 3 * BLOCK))
            b.follows = False  # for itself, b is in sync with the deletion, and has the file
            if deleted_here:
                version = a.delete("x").info.version
                await world.until(lambda: (record := world.record("x")) and record.info.deleted)
                b.announce(fileinfo.replace(held.info, version=version), held.data)
            else:
                version = held.info.version
                b.announce(fileinfo.new(name="x", type=FileType.FILE, version=version, modified_by=b.short, deleted=True))
            await world.until(lambda: (record := world.record("x")) and record.info.version != version)
            record = world.record("x")
            assert record is not None
            assert vector.compare(record.info.version, version) is vector.Ordering.GREATER
            assert world.live() == ["x"]
            assert await world.content("x") == held.data
            await world.until(lambda: "x" in a.folder().live())
            await world.until(lambda: world.runner().state == "idle")

    scenario()


# --- what goes wrong


@simulated
async def test_what_failed_and_is_gone_with_its_index_is_no_error_any_more() -> None:
    async with World() as world:
        a = await world.connected("a")
        refusing(a)
        a.write("x", content("x", 100))
        await world.until(lambda: world.runner().errors)
        a.disconnect()
        await world.turns(10)
        a.folders.clear()  # its database is new, and so is its index
        a.folder().index_id ^= 1
        await a.connect()
        await world.until(lambda: not world.runner().errors and world.runner().state == "idle", 600)


@pytest.mark.parametrize("bad", ["wrong", "short", "long", "generic", "gone", "invalid", "unknown"])
@pytest.mark.parametrize("size", [100, 5 * BLOCK])
def test_what_one_device_cannot_give_comes_from_another(bad: str, size: int) -> None:
    @simulated
    async def scenario() -> None:
        async with World() as world:
            a = await world.connected("a", "b")
            b = world.peers["b"]

            def answer(request: Request) -> Answer:
                good = a.answer(request)[0]
                wrong = {"wrong": bytes(len(good) - 1) + b"\1", "short": good[:-1], "long": good + b"x"}
                return (wrong[bad], 0) if bad in wrong else (b"", {"generic": 1, "gone": 2, "invalid": 3, "unknown": 99}[bad])

            a.answers = answer
            b.answers = lambda _request: None
            held = a.write("x", content("x", size))
            b.announce(held.info, held.data)
            await world.until(lambda: a.requests or b.requests)
            b.answers = b.answer
            for request in b.requests:  # held back until now
                data, code = b.answer(request)
                assert b.handler is not None
                b.handler.connection.send_response(request.id, data, code)
                b.handler.flush()
            await world.until(lambda: world.record("x"))
            assert await world.content("x") == content("x", size)

    scenario()


@simulated
async def test_what_fails_when_it_is_not_wanted_any_more_is_no_error() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.write("x", content("x", 100))
        await world.until(lambda: world.record("x"))
        world.runner()._fail("gone", "it has live children")  # as a commit in flight may end when the device has taken its wish back
        assert world.runner().errors
        await world.until(lambda: world.runner().state == "idle", 10)


@simulated
async def test_three_quick_rounds_then_longer_waits() -> None:
    async with World() as world:
        a = await world.connected("a")
        tries: list[float] = []

        def answer(_request: Request) -> Answer:
            tries.append(world.clock.monotonic())
            return b"", 1

        a.answers = answer
        a.write("x", content("x", 100))
        await world.until(lambda: world.runner().errors)
        assert world.runner().state in ("waiting", "syncing")
        await world.pause(430)
        gaps = [round(later - earlier) for earlier, later in pairwise(tries)]
        assert gaps == [1, 1, 60, 120, 240]
        a.answers = a.answer
        await world.until(lambda: world.record("x"), 3600)
        await world.until(lambda: not world.runner().errors)


@simulated
async def test_a_failing_file_does_not_hold_up_others() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.answers = lambda request: (b"", 1) if request.name == "bad" else a.answer(request)
        with a.batch():
            a.write("bad", content("bad", 100))
            for number in range(50):
                a.write(f"f{number}", content(f"f{number}", 1000))
        await world.until(lambda: len(world.live()) == 50)
        for number in range(5):
            a.write(f"g{number}", content(f"g{number}", 1000))
            await world.until(lambda number=number: world.record(f"g{number}"), 5)  # type: ignore[misc]
        tries = len([request for request in a.requests if request.name == "bad"])
        await world.pause(600)
        assert len([request for request in a.requests if request.name == "bad"]) <= tries + 10


@simulated
async def test_a_device_that_does_not_answer_is_left_for_another() -> None:
    """A real device answers every Request; one that stopped doing so is disconnected, and its blocks come from elsewhere."""
    async with World() as world:
        a = await world.connected("a", "b")
        b = world.peers["b"]
        silent(a)
        held = a.write("x", content("x", 30 * BLOCK))
        await world.until(lambda: a.requests)
        b.announce(held.info, held.data)
        await world.until(lambda: world.record("x"), 600)
        assert a.losses == 1


@simulated
async def test_disconnected_in_the_middle_of_a_file() -> None:
    async with World() as world:
        a = await world.connected("a", "b")
        b = world.peers["b"]
        silent(b)
        served = 0

        def answer(request: Request) -> Answer | None:
            nonlocal served
            served += 1
            return a.answer(request) if served <= 10 else None

        a.answers = answer
        held = a.write("x", content("x", 30 * BLOCK))
        await world.until(lambda: served > 10)
        a.disconnect()
        await world.turns(10)
        b.answers = b.answer
        b.announce(held.info, held.data)
        await world.until(lambda: world.record("x"))
        assert await world.content("x") == content("x", 30 * BLOCK)


@simulated
async def test_a_newer_version_takes_the_place_of_one_under_way() -> None:
    async with World() as world:
        a = await world.connected("a")
        silent(a)
        a.write("x", content("old", 10 * BLOCK))
        await world.until(lambda: a.requests)
        a.answers = a.answer
        a.write("x", content("new", 10 * BLOCK))
        await world.until(lambda: world.record("x"), 10)
        assert await world.content("x") == content("new", 10 * BLOCK)


@simulated
async def test_a_deletion_takes_the_place_of_a_file_under_way() -> None:
    async with World() as world:
        a = await world.connected("a")
        silent(a)
        a.write("x", content("old", 10 * BLOCK))
        await world.until(lambda: a.requests)
        a.delete("x")
        await world.until(lambda: world.runner().state == "idle", 10)
        assert world.record("x") is None


@simulated
async def test_an_older_index_entry_of_another_device_does_not_restart_a_download() -> None:
    async with World() as world:
        a = await world.connected("a", "b")
        b = world.peers["b"]
        served: list[int] = []

        def answer(request: Request) -> Answer | None:
            served.append(request.block_no)
            return a.answer(request) if len(served) <= 20 else None

        a.answers = answer
        old = b.write("x", content("old", 10 * BLOCK), version=((1, 1),))
        await world.until(lambda: world.record("x"))
        a.write("x", content("new", 40 * BLOCK), version=((1, 1), (a.short, 7)))
        await world.until(lambda: len(served) == 40)
        b.announce(fileinfo.replace(old.info, permissions=0o640), old.data)
        await world.pause(1)
        assert len(served) == 40
        a.disconnect()
        await world.turns(10)


@simulated
async def test_a_small_file_does_not_wait_for_a_large_download() -> None:
    """What is announced while a long download runs is pulled beside it."""
    async with World() as world:
        a = await world.connected("a")
        a.answers = lambda request: None if request.name == "large" else a.answer(request)
        a.write("large", content("large", 50 * BLOCK))
        await world.until(lambda: len(a.requests) == 50)
        with a.batch():
            a.mkdir("a")
            a.write("a/small", content("small", 1000))
        a.write("z", content("z", 1000))
        await world.until(lambda: world.live() == ["a", "a/small", "z"], 10)
        a.delete("z")
        await world.pause(2)
        a.disconnect()
        await world.turns(10)


# --- large files


async def _large_file(world: World, blocks: int, served_blocks: int) -> tuple[FakePeer, bytes]:
    """A file of which the first `served_blocks` blocks are given, then nothing more."""
    a = await world.connected("a")
    world.node.store.packer.options = PackerOptions(target_bytes=1 << 20)
    data = content("large", blocks * BLOCK)
    served = 0

    def answer(request: Request) -> Answer | None:
        nonlocal served
        served += 1
        return a.answer(request) if served <= served_blocks else None

    a.answers = answer
    a.write("large", data)
    await world.until(lambda: served > served_blocks)
    return a, data


@simulated
async def test_a_download_goes_on_where_it_ended_after_a_restart() -> None:
    async with World() as world:
        a, data = await _large_file(world, 60, 45)
        await world.pause(3)
        a.disconnect()
        await world.turns(5)
        await world.pause(10)  # for the partial file to be committed
        await world.crash()
        await world.start()
        a.requests.clear()
        a.answers = a.answer
        await a.connect()
        await world.until(lambda: world.record("large"))
        assert await world.content("large") == data
        assert len(a.requests) <= 20
        assert not {request.block_no for request in a.requests} & set(range(40))


@simulated
async def test_a_download_goes_on_where_it_ended_after_a_reconnect() -> None:
    async with World() as world:
        a, data = await _large_file(world, 60, 45)
        await world.pause(3)
        a.disconnect()
        await world.turns(5)
        await world.pause(5)
        a.requests.clear()
        a.answers = a.answer
        await a.connect()
        await world.until(lambda: world.record("large"))
        assert await world.content("large") == data
        assert len(a.requests) <= 20


@simulated
async def test_a_large_download_given_up_for_a_newer_version_gives_its_memory_back() -> None:
    async with World() as world:
        a, _ = await _large_file(world, 60, 45)
        a.answers = a.answer
        a.write("large", content("newer", 10 * BLOCK))
        await world.until(lambda: world.record("large"))
        assert await world.content("large") == content("newer", 10 * BLOCK)
        await world.until(lambda: world.node.store.packer.bytes_held == 0)


@simulated
async def test_many_large_files_do_not_block_each_other_by_memory() -> None:
    """Open packs that cannot fill up are sealed, or nothing would ever move again."""
    async with World(pull_memory=2 << 20) as world:
        a = await world.connected("a")
        world.node.store.packer.options = PackerOptions(target_bytes=1 << 20)
        peers = [world.peer(f"p{number}") for number in range(6)]
        await world.share(a, *peers)
        for peer in peers:
            await peer.connect()
            peer.write(peer.name, content(peer.name, 20 * BLOCK))
        await world.until(lambda: len(world.live()) == 6)


@simulated
async def test_two_folders_share_a_device_fairly() -> None:
    """While one folder fills the device's window, the other's few files come too."""
    async with World() as world:
        a = world.peer("a")
        await world.share(a)
        await world.share(a, folder="g")
        for folder in ("f", "g"):
            world.runner(folder).transfer._limits = type(world.runner(folder).transfer._limits)(window=2 << 20, window_requests=16)
        await a.connect()
        await world.until(lambda: a.configs)
        held: list[Request] = []
        a.answers = held.append
        a.write("many", content("many", 200 * BLOCK))
        await world.until(lambda: len(held) == 16)
        a.write("one", content("one", 100), folder="g")
        await world.pause(1)
        assert a.handler is not None
        for _ in range(100):
            if held:
                request = held.pop(0)
                a.handler.connection.send_response(request.id, *a.answer(request))
                a.handler.flush()
            await world.turns(10)
            if world.record("one", "g"):
                break
            await world.pause(0.2)
        assert world.record("one", "g"), "the second folder starved"
        a.answers = a.answer
        for request in held:
            a.handler.connection.send_response(request.id, *a.answer(request))
        a.handler.flush()
        await world.until(lambda: world.record("many"))


# --- folder types, patterns


@simulated
async def test_a_send_only_folder_takes_nothing() -> None:
    async with World() as world:
        a = await world.connected("a", type="sendonly")
        a.write("x", content("x", 100))
        await world.pause(5)
        assert not a.requests
        assert not world.records()
        assert world.runner().state == "idle"
        await world.share(a, type="sendreceive")
        await world.until(lambda: world.record("x"))


@simulated
async def test_a_receive_only_folder_takes_everything_and_keeps_its_own_changes_to_itself() -> None:
    async with World() as world:
        a = await world.connected("a", type="receiveonly")
        a.write("x", content("x", 100))
        await world.until(lambda: world.record("x"))

        async def chunks() -> object:
            yield b"mine"

        await world.node.view("f").write_file("y", chunks())  # type: ignore[arg-type]
        await world.until(lambda: "y" in a.folder().heard)
        heard = a.folder().heard["y"]
        assert heard.invalid
        assert heard.version == ()
        version = a.write("y", content("y", 100)).info.version
        await world.until(lambda: world.version("y") == version)


@simulated
async def test_ignored_names_are_not_pulled_until_the_pattern_goes() -> None:
    async with World() as world:
        a = await world.connected("a", ignore_lines=("*.tmp",))
        with a.batch():
            a.write("x.tmp", content("x", 100))
            a.write("y", content("y", 100))
        await world.until(lambda: world.record("y"))
        assert world.live() == ["y"]
        assert {request.name for request in a.requests} == {"y"}
        await world.share(a, ignore_lines=())
        await world.until(lambda: world.live() == ["x.tmp", "y"])


@simulated
async def test_internal_names_are_never_pulled() -> None:
    async with World() as world:
        a = await world.connected("a")
        with a.batch():
            for name in (".stfolder", ".stignore", ".stversions/x", ".syncthing.y.tmp", "d/~syncthing~y.tmp"):
                a.write(name, content(name, 10))
            a.write("y", content("y", 100))
        await world.until(lambda: world.record("y"))
        await world.until(lambda: world.runner().state == "idle")
        assert world.live() == ["y"]


# --- the store in trouble


@pytest.mark.expects_log("journal cannot go on")
@simulated
async def test_pulling_goes_on_when_the_store_comes_back() -> None:
    async with World() as world:
        a = await world.connected("a")
        world.faulty.plan = FaultPlan(unreachable=1.0)
        a.write("x", content("x", 5 * BLOCK))
        a.write("y", content("y", 100))
        await world.pause(30)
        assert not world.live()
        world.faulty.plan = FaultPlan()
        await world.until(lambda: world.live() == ["x", "y"], 300)


@simulated
async def test_two_versions_of_one_vector_are_not_mixed() -> None:
    """Two devices with one identity (a restored disk): the node takes one, and tells both by a greater vector if it takes the other."""
    async with World() as world:
        a = await world.connected("a", "b")
        b = world.peers["b"]
        a.write("x", content("a", 100), version=((1, 1),), mtime=1000)
        await world.until(lambda: world.record("x"))
        b.write("x", content("b", 100), version=((1, 1),), mtime=2000)
        await world.pause(5)
        record = world.record("x")
        assert record is not None
        assert hashlib.sha256(await world.content("x")).digest()
        assert vector.covers(record.info.version, ((1, 1),))


@pytest.mark.parametrize("turns", range(0, 24, 2))
def test_changes_in_quick_succession_are_not_mixed(turns: int) -> None:
    """Metadata, then content, then deletion and new content, while the one before is being planned: no version gets another's blocks
    (each record's extents are compared with the announced hashes at the end of the world)."""

    @simulated
    async def scenario() -> None:
        async with World() as world:
            a = await world.connected("a")
            data = content("x", BLOCK)
            a.write("x", data)
            await world.until(lambda: world.record("x"))
            await world.pause(3)
            a.write("x", data, permissions=0o600)
            await world.turns(turns)
            a.write("x", data + b"more")
            await world.turns(turns)
            a.delete("x")
            await world.turns(turns)
            version = a.write("x", content("y", 2 * BLOCK)).info.version
            await world.until(lambda: world.version("x") == version)
            assert await world.content("x") == content("y", 2 * BLOCK)
            heard = a.folder()
            await world.until(lambda: heard.heard["x"].version == version)
            assert a.losses == 0

    scenario()
