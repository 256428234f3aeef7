"""What happens on a connection when either side changes its mind: indexes, folders, devices, ClusterConfigs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stnode.errors import Full
from stnode.folder import runner as runner_module
from stnode.objectstore.faulty import FaultPlan
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileType
from stnode.protocol.messages import ClusterConfig, ClusterDevice, ClusterFolder, FolderID, Index
from stnode.repo.settings import DeviceSettings, FolderDevice
from stnode.repo.store import SettingsChange, new_folder
from tests.support.fakepeer import FakePeer, content
from tests.support.world import World, simulated

BLOCK = 128 << 10


async def _reconnect(world: World, peer: FakePeer) -> None:
    peer.disconnect()
    await world.until(lambda: not peer.connected and world.device_state(peer).session is None)
    configs = len(peer.configs)
    await peer.connect()
    await world.until(lambda: len(peer.configs) > configs)


def _held(world: World, peer: FakePeer, folder: str = "f") -> tuple[int, int]:
    """What the node's last ClusterConfig says that it has of the peer's index."""
    entry = peer.configs[-1].folder(FolderID(folder))
    assert entry is not None
    device = entry.device(peer.device)
    assert device is not None
    return device.index_id, device.max_sequence


# --- the peer's index


@simulated
async def test_a_delta_after_a_reconnect() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.write("x", b"x")
        await world.until(lambda: world.record("x"))
        await _reconnect(world, a)
        assert _held(world, a) == (a.folder().index_id, 1)
        a.write("y", b"y")
        await world.until(lambda: world.record("y"))


@simulated
async def test_a_new_index_id_drops_what_we_had_of_the_device() -> None:
    """Its disk was replaced: what it does not announce any more stays here, and is announced to it."""
    async with World() as world:
        a = await world.connected("a")
        a.write("x", b"x")
        a.write("y", b"y")
        await world.until(lambda: len(world.live()) == 2)
        a.disconnect()
        await world.until(lambda: not a.connected)
        folder = a.folder()
        folder.index_id += 1
        folder.files.clear()
        folder.sequence = 0
        folder.heard_index_id = folder.heard_sequence = 0
        folder.messages.clear()
        a.write("z", b"z")
        await a.connect()
        await world.until(lambda: world.live() == ["x", "y", "z"])
        await world.until(lambda: len(folder.heard) == 3)
        await world.until(lambda: world.runner().state == "idle")
        await _reconnect(world, a)
        assert _held(world, a) == (folder.index_id, 1)


@simulated
async def test_index_id_zero_drops_everything() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.write("x", b"x")
        await world.until(lambda: world.record("x"))
        a.folder().index_id = 0
        await _reconnect(world, a)
        await _reconnect(world, a)
        assert _held(world, a)[1] in (0, 1)
        assert world.live() == ["x"]


@simulated
async def test_an_index_again_replaces_what_we_had() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.answers = lambda _request: (b"", 2)
        a.write("x", content("x", 100))
        a.write("y", content("y", 100))
        await world.until(lambda: len(world.runner().errors) == 2)
        del a.folder().files["x"]
        a.send_index([held.info for held in a.folder().files.values()], update=False)
        await world.until(lambda: list(world.runner().errors) == ["y"])
        a.delete("y")
        await world.until(lambda: world.runner().state == "idle")
        assert not world.runner().errors


@simulated
async def test_an_invalid_item_is_not_asked_for() -> None:
    async with World() as world:
        a = await world.connected("a")
        held = a.write("x", content("x", 100))
        await world.until(lambda: world.record("x"))
        a.requests.clear()
        a.announce(fileinfo.replace(held.info, invalid=True), held.data)
        a.write("y", b"y")
        await world.until(lambda: world.record("y"))
        assert world.live() == ["x", "y"]
        assert {request.name for request in a.requests} == {"y"}


# --- what the peer shares


@simulated
async def test_a_folder_that_the_peer_pauses_is_left_alone() -> None:
    async with World() as world:
        a = await world.connected("a", "b")
        b = world.peers["b"]
        b.folder().paused = True
        b.send_config()
        await world.pause(1)
        a.write("x", content("x", 100))
        await world.until(lambda: world.record("x"))
        await world.pause(3)
        assert "x" not in b.folder().heard
        b.folder().paused = False
        b.send_config()
        await world.until(lambda: "x" in b.folder().heard)


@simulated
async def test_a_folder_that_the_peer_unshares_is_left_alone() -> None:
    async with World() as world:
        a = await world.connected("a", "b")
        b = world.peers["b"]
        held = a.write("x", content("x", 100))
        await world.until(lambda: "x" in b.folder().heard)
        b.announce(held.info, held.data)
        b.folder().shared = False
        b.send_config()
        await world.pause(1)
        version = a.write("x", content("x2", 100)).info.version
        await world.until(lambda: world.version("x") == version)
        await world.pause(3)
        assert not b.requests
        b.folder().shared = True
        b.send_config()
        await world.until(lambda: b.folder().heard["x"].version == version)


@simulated
async def test_blocks_asked_of_a_folder_that_is_paused_meanwhile_come_from_elsewhere() -> None:
    async with World() as world:
        a = await world.connected("a", "b")
        b = world.peers["b"]
        a.answers = lambda _request: None
        held = a.write("x", content("x", 10 * BLOCK))
        await world.until(lambda: len(a.requests) == 10)
        b.announce(held.info, held.data)
        a.folder().paused = True
        a.send_config()
        a.answers = lambda _request: (b"", 1)
        assert a.handler is not None
        for request in a.requests:
            a.handler.connection.send_response(request.id, b"", 1)
        a.handler.flush()
        await world.until(lambda: world.record("x"))
        assert len(b.requests) == 10


@simulated
async def test_the_same_cluster_config_again_changes_nothing() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.write("x", content("x", 100))
        await world.until(lambda: "x" in a.folder().heard)
        a.folder().messages.clear()
        for _ in range(5):
            a.send_config()
        await world.pause(2)
        assert a.folder().messages == []
        a.write("y", content("y", 100))
        await world.until(lambda: "y" in a.folder().heard)


@simulated
async def test_a_folder_that_only_the_peer_has_is_pending() -> None:
    async with World() as world:
        a = world.peer("a")
        await world.share(a)
        a.folder("unknown")
        await a.connect()
        await world.until(lambda: a.configs)
        await world.until(lambda: (a.device, "unknown") in world.node.connections.pending_folders)
        assert a.connected


@simulated
async def test_a_secondary_cluster_config_has_no_effect() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.send_config(ClusterConfig(secondary=True))
        await world.turns(50)
        a.write("x", b"x")
        await world.until(lambda: "x" in a.folder().heard)


# --- what our settings say


@simulated
async def test_a_folder_added_while_connected() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.folder("g")
        await world.share(a, folder="g")
        await world.until(lambda: a.configs[-1].folder(FolderID("g")) is not None)
        a.send_config()
        a.write("x", b"x", "g")
        await world.until(lambda: world.record("x", "g"))
        await world.until(lambda: "x" in a.folder("g").heard)


@simulated
async def test_a_folder_that_the_peer_shared_first_is_taken_up() -> None:
    """The peer's ClusterConfig that named it came long ago and is not sent again."""
    async with World() as world:
        a = world.peer("a")
        await world.share(a)
        a.folder("g")
        await a.connect()
        await world.until(lambda: a.configs)
        await world.share(a, folder="g")
        await world.until(lambda: a.configs[-1].folder(FolderID("g")) is not None)
        a.write("x", b"x", "g")
        await world.until(lambda: world.record("x", "g"))


@simulated
async def test_a_folder_removed_while_connected_and_in_the_middle_of_a_download() -> None:
    async with World() as world:
        a = await world.connected("a", "b")
        b = world.peers["b"]
        await world.share(a, b, folder="g")
        a.answers = lambda _request: None
        a.write("x", content("x", 10 * BLOCK))
        await world.until(lambda: a.requests)
        for peer in (a, b):
            peer.folder().shared = False
        await world.change(SettingsChange(folders_removed=("f",)))
        assert "f" not in world.node.folders
        await world.until(lambda: a.configs[-1].folder(FolderID("f")) is None)
        a.answers = a.answer
        a.send_config()
        a.write("y", content("y", 100), "g")
        await world.until(lambda: world.record("y", "g"))


@simulated
async def test_an_index_that_crosses_the_removal_of_its_folder() -> None:
    """The peer may not have seen our new ClusterConfig: what it sends by the old one is dropped, the connection stays."""
    async with World() as world:
        a = await world.connected("a")
        await world.share(a, folder="g")
        await world.until(lambda: a.configs[-1].folder(FolderID("g")) is not None)
        a.send_config()
        await world.pause(1)
        await world.change(SettingsChange(folders_removed=("f",)))
        a.write("x", content("x", 100))
        await world.pause(1)
        a.folder().shared = False
        a.write("y", content("y", 100), "g")
        await world.until(lambda: world.record("y", "g"))
        assert a.losses == 0


@simulated
async def test_a_folder_removed_and_added_again_is_another_one() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.write("x", content("x", 100))
        await world.until(lambda: "x" in a.folder().heard)
        await world.change(SettingsChange(folders_removed=("f",)))
        made = replace(new_folder(world.random, "f"), devices=(FolderDevice(a.device),))
        a.configs.clear()
        await world.change(SettingsChange(folders=(made,)))
        await world.until(lambda: a.configs and a.configs[-1].folder(FolderID("f")) is not None)
        a.send_config()  # as a real device does after a change of ours
        await world.until(lambda: world.record("x"))
        assert a.folder().heard_index_id == made.index_id


@simulated
async def test_a_device_removed_while_connected() -> None:
    async with World() as world:
        a = await world.connected("a", "b")
        b = world.peers["b"]
        a.answers = lambda _request: (b"", 2)
        a.write("x", content("x", 100))
        await world.until(lambda: "x" in world.runner().errors)
        await world.share(b)
        await world.change(SettingsChange(devices_removed=(a.device,)))
        await world.until(lambda: not a.connected)
        assert a.closes == ["the device was removed"]
        await world.until(lambda: world.runner().state == "idle")  # nobody waits for its file any more
        with pytest.raises(Exception, match="closed the connection"):
            await a.connect()
        b.write("y", b"y")
        await world.until(lambda: world.record("y"))
        await world.share(a, b)
        await a.connect()
        a.answers = a.answer
        await world.until(lambda: world.record("x"))


@simulated
async def test_a_folder_unshared_with_a_device_while_connected() -> None:
    async with World() as world:
        a = await world.connected("a", "b")
        b = world.peers["b"]
        held = a.write("x", content("x", 100))
        await world.until(lambda: "x" in b.folder().heard)
        await world.share(a)
        await world.until(lambda: b.configs[-1].folder(FolderID("f")) is None)
        assert (await b.ask("x", 0, 100, held.info.block_hashes)).code == 1
        b.folder().messages.clear()
        a.write("y", content("y", 100))
        await world.until(lambda: world.record("y"))
        await world.pause(3)
        assert not b.folder().messages
        assert b.connected


# --- dialing


@simulated
async def test_a_device_with_an_address_is_dialed_and_dialed_again() -> None:
    async with World() as world:
        a = world.peer("a")
        listener = await world.listen(a)
        await world.change(SettingsChange(devices=(DeviceSettings(a.device, "a", ("memory://a",)),)))
        await world.share(a)
        await world.until(lambda: a.connected and a.configs)
        a.disconnect()
        await world.until(lambda: not a.connected)
        await world.until(lambda: a.connected)
        await listener.close()
        a.disconnect()
        await world.pause(300)
        assert not a.connected
        assert "memory://a" in world.device_state(a).last_error
        await world.listen(a)
        await world.until(lambda: a.connected, 100)


@simulated
async def test_a_dialed_device_that_is_removed_is_dialed_no_more() -> None:
    async with World() as world:
        a = world.peer("a")
        await world.listen(a)
        await world.change(SettingsChange(devices=(DeviceSettings(a.device, "a", ("memory://a",)),)))
        await world.until(lambda: a.connected)
        await world.change(SettingsChange(devices_removed=(a.device,)))
        await world.until(lambda: not a.connected)
        await world.pause(200)
        assert not a.connected
        assert not [task for task in world.env.tasks if task.get_name().startswith("dial")]
        await world.change(SettingsChange(devices=(DeviceSettings(a.device, "a", ("memory://a",)),)))
        await world.until(lambda: a.connected)


# --- the store in trouble


@pytest.mark.expects_log("journal cannot go on")
@simulated
async def test_settings_are_still_heard_after_the_store_was_away() -> None:
    async with World() as world:
        a = await world.connected("a")
        world.faulty.plan = FaultPlan(unreachable=1.0)
        changing = world.env.spawn(world.share(a, folder="g"), "change")
        await world.pause(20)
        world.faulty.plan = FaultPlan()
        await changing
        world.faulty.plan = FaultPlan(unreachable=1.0)
        await world.node.load_settings()  # wants to tell the peers, for which it has to follow to the head
        await world.pause(60)
        world.faulty.plan = FaultPlan()
        await world.pause(60)
        await world.share(a, folder="h")
        if not a.connected:
            await a.connect()
        await world.until(lambda: a.configs[-1].folder(FolderID("h")) is not None)


@simulated
async def test_cluster_configs_are_well_formed() -> None:
    """Both devices in every folder, ids of 32 bytes, and our own numbers (bep-facts 5.1)."""
    async with World() as world:
        a = await world.connected("a", "b")
        a.write("x", b"x")
        await world.until(lambda: world.record("x"))
        await _reconnect(world, a)
        (folder,) = a.configs[-1].folders
        assert {device.id for device in folder.devices} == {world.device, a.device, world.peers["b"].device}
        assert all(len(device.id) == 32 for device in folder.devices)
        own = folder.device(world.device)
        record = world.record("x")
        assert own is not None
        assert record is not None
        assert own.max_sequence == record.sequence
        assert own.index_id == a.folder().heard_index_id != 0


@simulated
async def test_a_config_without_our_entry_shares_nothing() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.send_config(ClusterConfig((ClusterFolder(FolderID("f"), devices=(ClusterDevice(a.device, index_id=5),)),)))
        await world.pause(1)
        session = world.device_state(a).session
        assert session is None or not session.folders


@simulated
async def test_what_a_device_sends_after_its_folder_was_taken_from_it_does_not_count() -> None:
    """Its messages cross the commit that unshares it, and the evaluation that forgets its index."""
    async with World() as world:
        a = await world.connected("a", "b")
        runner = world.runner()
        device = world.device_state(a).session
        assert device is not None
        a.folder().shared = False
        await world.share(world.peers["b"])
        late = fileinfo.new(name="late", type=FileType.FILE, version=((a.short, 1),), modified_by=a.short, size=5, block_hashes=bytes(32))
        await runner.receive_index(device.device, Index(FolderID("f"), [late], last_sequence=9))
        await runner.begin_index(device.device, 77)
        await world.pause(30)
        assert world.db._connect().execute("SELECT count(*) FROM remote").fetchone() == (0,)
        assert runner.errors == {}
        assert runner.state == "idle"


@simulated
async def test_what_was_pending_and_is_answered_is_told_no_more() -> None:
    async with World() as world:
        a = world.peer("a")
        with pytest.raises(Exception, match="closed the connection"):
            await a.connect()
        connections = world.node.connections
        assert a.device in connections.pending_devices
        await world.share(a)
        assert not connections.pending_devices
        a.folder("g")
        a.folder("h")
        await a.connect()
        await world.until(lambda: len(connections.pending_folders) == 2)
        await world.share(a, folder="g")
        await world.until(lambda: list(connections.pending_folders) == [(a.device, "h")])
        a.folder("h").shared = False
        a.send_config()
        await world.until(lambda: not connections.pending_folders)


@pytest.mark.expects_log("settings are not taken up yet")
@simulated
async def test_settings_that_could_not_be_taken_up_are_taken_up_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, say: the device that was removed has to go nevertheless, and later settings count too."""
    async with World() as world:
        a = await world.connected("a", "b")
        b = world.peers["b"]
        real, failed = runner_module.FolderRunner.start, 0

        async def start(runner: runner_module.FolderRunner) -> None:
            nonlocal failed
            failed += 1
            if failed == 1:
                raise Full("the disk is full")
            await real(runner)

        monkeypatch.setattr(runner_module.FolderRunner, "start", start)
        made = replace(new_folder(world.random, "g"), devices=(FolderDevice(b.device),))
        shared = world.settings()
        assert shared is not None
        only_b = replace(shared, devices=(FolderDevice(b.device),))
        await world.node.store.submit_settings(SettingsChange(folders=(made, only_b), devices_removed=(a.device,)))
        await world.until(lambda: failed)
        await world.until(lambda: not a.connected, 120)
        await world.until(lambda: "g" in world.node.runners())


@simulated
async def test_settings_loaded_while_the_node_starts_make_one_runner_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    async with World() as world:
        await world.share()
        await world.stop()
        made: list[runner_module.FolderRunner] = []
        real = runner_module.FolderRunner.start

        async def start(runner: runner_module.FolderRunner) -> None:
            made.append(runner)
            if len(made) == 1:
                world.soon(world.node.env.spawn, world.node.load_settings(), "the API's")
                await world.turns(20)
            await real(runner)

        monkeypatch.setattr(runner_module.FolderRunner, "start", start)
        await world.start()
        await world.turns(50)
        assert made == [world.runner()]
