"""What the node tells its peers of a folder: only what is committed, each thing once, from where the peer says that it stands."""

from __future__ import annotations

import pytest

from stnode.protocol.messages import FolderID
from tests.support.fakepeer import FakePeer, content
from tests.support.world import World, simulated


async def _filled(world: World, *names: str, files: int = 5) -> FakePeer:
    """Peers a, b, ...; a has announced some files, and everybody has heard of them."""
    a = await world.connected("a", *names)
    with a.batch():
        for number in range(files):
            a.write(f"f{number:04}", content(f"f{number}", 100))
    await world.until(lambda: len(world.live()) == files)
    await world.until(lambda: all(len(peer.folder().heard) == files for peer in world.peers.values()))
    return a


async def _reconnect(world: World, peer: FakePeer) -> None:
    peer.disconnect()
    await world.until(lambda: not peer.connected and world.device_state(peer).session is None)
    peer.folder().messages.clear()
    configs = len(peer.configs)
    await peer.connect()
    await world.until(lambda: len(peer.configs) > configs)
    await world.pause(3)


@simulated
async def test_nothing_is_announced_before_it_is_committed() -> None:
    """Every item is compared with the database as it is heard (`World._committed`); here the commit is held up."""
    async with World() as world:
        a = await world.connected("a", "b")
        hold = world.hold_puts("journal/")
        a.write("x", content("x", 100))
        await world.pause(30)
        b = world.peers["b"]
        assert not b.folder().heard
        assert not a.folder().heard
        hold.set()
        await world.until(lambda: "x" in b.folder().heard)
        assert b.folder().heard["x"].version == a.folder().files["x"].info.version


@simulated
async def test_numbers_ascend_and_vectors_and_fields_are_the_senders() -> None:
    async with World() as world:
        a = await _filled(world, "b", files=250)
        b = world.peers["b"]
        for name, info in b.folder().heard.items():
            own = a.folder().files[name].info
            assert info.version == own.version
            assert info.modified_by == own.modified_by
            assert (info.modified_s, info.permissions, info.size, info.block_hashes) == (
                own.modified_s,
                own.permissions,
                own.size,
                own.block_hashes,
            )
        sequences = [info.sequence for message in b.folder().messages for info in message.files]
        assert sequences == sorted(set(sequences))


@simulated
async def test_a_thousand_files_to_a_message() -> None:
    async with World() as world:
        a = await world.connected("a")
        with a.batch():
            for number in range(2500):
                a.symlink(f"l{number}", "x")
        await world.until(lambda: world.record("l2499"))
        late = world.peer("late")
        await world.share(a, late)
        await late.connect()
        await world.until(lambda: len(late.folder().heard) == 2500)
        messages = late.folder().messages
        assert [message.update for message in messages] == [False] + [True] * (len(messages) - 1)
        assert len(messages) == 3
        assert messages[0].prev_sequence == 0


@simulated
async def test_a_device_that_has_everything_hears_nothing_again() -> None:
    async with World() as world:
        a = await _filled(world, "b")
        b = world.peers["b"]
        await _reconnect(world, b)
        assert b.folder().messages == []
        a.write("new", content("new", 10))
        await world.until(lambda: "new" in b.folder().heard)
        assert [message.update for message in b.folder().messages] == [True]


@simulated
async def test_a_device_that_was_away_hears_what_is_newer() -> None:
    async with World() as world:
        a = await _filled(world, "b")
        b = world.peers["b"]
        b.disconnect()
        await world.until(lambda: not b.connected)
        b.folder().messages.clear()
        a.write("new", content("new", 10))
        a.delete("f0001")
        await world.until(lambda: "new" in world.live() and "f0001" not in world.live())
        await b.connect()
        await world.until(lambda: "new" in b.folder().heard and b.folder().heard["f0001"].deleted)
        assert all(message.update for message in b.folder().messages)
        assert sorted(b.folder().announced()) == ["f0001", "new"]


@pytest.mark.parametrize("why", ["unknown id", "nothing", "never assigned", "too high"])
def test_a_device_that_stands_elsewhere_gets_all(why: str) -> None:
    @simulated
    async def scenario() -> None:
        async with World() as world:
            await _filled(world, "b")
            b = world.peers["b"]
            folder = b.folder()
            match why:
                case "unknown id":
                    folder.heard_index_id = 99
                case "nothing":
                    folder.heard_sequence = 0
                case "never assigned":
                    folder.heard_sequence = 17
                case _:
                    folder.heard_sequence += 10**12
            b.lies = True
            await _reconnect(world, b)
            assert [message.update for message in folder.messages] == [False]
            assert len(folder.messages[0].files) == 5

    scenario()


@simulated
async def test_each_hears_of_the_others_changes() -> None:
    async with World() as world:
        a = await world.connected("a", "b", "c", follows=True)
        b, c = world.peers["b"], world.peers["c"]
        a.write("of a", content("a", 300_000))
        b.write("of b", content("b", 300_000))
        c.mkdir("of c")
        await world.until(lambda: len(a.folder().live()) == 3 and a.folder().live() == b.folder().live() == c.folder().live())
        b.write("of a", content("changed by b", 400_000))
        await world.until(lambda: a.folder().live() == b.folder().live() == c.folder().live())
        c.delete("of a")
        await world.until(lambda: len(a.folder().live()) == 2 and a.folder().live() == b.folder().live() == c.folder().live())


@simulated
async def test_what_a_device_told_us_comes_back_to_it() -> None:
    """It sees our record with its own vector, and so that we are in sync."""
    async with World() as world:
        a = await _filled(world)
        assert {name: info.version for name, info in a.folder().heard.items()} == {
            name: held.info.version for name, held in a.folder().files.items()
        }


@simulated
async def test_a_restart_with_an_empty_database_announces_the_same() -> None:
    async with World() as world:
        a = await _filled(world, "b")
        b = world.peers["b"]
        before = dict(b.folder().heard)
        await world.crash()
        await world.start()
        b.folder().messages.clear()
        await b.connect()
        await world.until(lambda: len(b.configs) == 2)
        await world.pause(3)
        assert b.folder().messages == []  # same index ID, same numbers
        assert b.folder().heard == before
        await a.connect()
        await world.until(lambda: len(a.configs) == 2)
        entry = a.configs[-1].folder(FolderID("f"))
        assert entry is not None
        theirs = entry.device(a.device)
        assert theirs is not None
        assert (theirs.index_id, theirs.max_sequence) == (0, 0)
        a.requests.clear()
        a.write("new", content("new", 10))
        await world.until(lambda: "new" in b.folder().heard)
        assert {request.name for request in a.requests} == {"new"}


@simulated
async def test_settings_that_change_do_not_make_us_announce_all_again() -> None:
    async with World() as world:
        a = await _filled(world, "b")
        b = world.peers["b"]
        b.folder().messages.clear()
        await world.share(a, b, world.peer("c"))
        await world.until(lambda: len(b.configs) == 2)
        await world.pause(3)
        assert b.folder().messages == []
        a.write("new", content("new", 10))
        await world.until(lambda: "new" in b.folder().heard)


@simulated
async def test_a_new_index_id_of_ours_makes_us_announce_all_again() -> None:
    async with World() as world:
        a = await _filled(world, "b")
        b = world.peers["b"]
        b.folder().messages.clear()
        settings = world.settings()
        assert settings is not None
        await world.share(a, b, index_id=settings.index_id + 1)
        await world.until(lambda: b.folder().messages)
        await world.pause(3)
        assert [message.update for message in b.folder().messages] == [False]
        assert len(b.folder().heard) == 5
