"""Encrypted folders between a node and its peers, in both roles (bep-facts 5.6, 10)."""

from __future__ import annotations

import hashlib

import pytest

from stnode.protocol import encryption, fileinfo
from stnode.protocol.fileinfo import FileType
from stnode.protocol.pb import bep_pb2 as pb
from tests.support.cipherpeers import PASSWORD, TrustedPeer, UntrustedPeer, cipher_of
from tests.support.fakepeer import FOLDER, FakePeer, content
from tests.support.world import World, simulated

BLOCK = 128 << 10
SIZES = {"empty": 0, "one": 1, "short": 1023, "exact": 1024, "long/é 名": BLOCK + 1, "deep/" * 9 + "large": 9 * BLOCK + 77}


async def untrusted_node(world: World, *names: str, follows: bool = True) -> list[TrustedPeer]:
    """A node that cannot read what these peers give it."""
    peers = [world.peer_of(TrustedPeer, name, follows=follows) for name in names]
    await world.share(*peers, type="receiveencrypted")
    for peer in peers:
        await peer.connect()
    await world.until(lambda: all(peer.configs and peer.configs[-1].folders for peer in peers))
    return peers


async def trusted_node(world: World, name: str = "cloud") -> UntrustedPeer:
    """A node that gives a peer what it cannot read."""
    peer = world.peer_of(UntrustedPeer, name, follows=True)
    await world.share(peer, passwords={name: PASSWORD})
    await peer.connect()
    await world.until(lambda: peer.token)
    return peer


async def move(cloud: UntrustedPeer, world: World, second: World) -> None:
    """The device leaves one node for another one, of another store."""
    second.peers["cloud"] = cloud
    cloud.disconnect()
    await world.until(lambda: not cloud.connected)
    cloud.node, cloud.address, cloud.committed = second.device, second.address, lambda _folder, _info: True
    cloud.folder().heard_index_id = 0


def fill(peer: FakePeer) -> None:
    with peer.batch():
        for name, size in SIZES.items():
            peer.write(name, content(name, size))
        peer.mkdir("dir")
        peer.symlink("link", "target of the link")


# --- the node is the untrusted device


@simulated
async def test_what_a_trusted_device_gives_another_one_gets_back_and_the_node_never_sees_it() -> None:
    async with World() as world:
        a, b = await untrusted_node(world, "a", "b")
        fill(a)
        await world.until(lambda: b.folder().live() == a.folder().live())
        records = world.records()
        assert len(records) == len(SIZES) + 2
        for record in records.values():
            assert record.name.split("/")[0].endswith(".syncthing-enc")
            assert record.info.version == ((1, a.folder().files[a.cipher.decrypt_name(record.name)].info.version[0][1]),)
            assert record.info.type in (FileType.FILE, FileType.DIRECTORY)
        plain = [name.encode() for name in SIZES if len(name) > 5] + [b"target of the link", content("short", 1023)[:32], PASSWORD.encode()]
        for key, stored in world.bucket._objects.items():
            assert not [each for each in plain if each in bytes(stored.data) or each in key.encode()]


@simulated
async def test_what_the_node_announces_is_what_it_got_but_for_its_own_number() -> None:
    async with World() as world:
        a, b = await untrusted_node(world, "a", "b")
        a.write("x", content("x", 3 * BLOCK + 5))
        await world.until(world.live)
        [record] = world.records().values()
        got = a.encoded(a.folder().files["x"].info)
        sent = a.cipher.decrypt_item(record.info)
        assert sent.block_hashes == a.folder().files["x"].info.block_hashes
        assert len(record.info.wire) == len(fileinfo.from_wire(pb.FileInfo.FromString(got)).wire)
        await world.until(lambda: b.folder().heard)


@simulated
async def test_edits_deletions_and_renames_move_changed_blocks_only() -> None:
    async with World() as world:
        a, b = await untrusted_node(world, "a", "b")
        data = bytearray(content("big", 40 * BLOCK))
        a.write("big", bytes(data))
        a.write("old", content("old", 5000))
        await world.until(lambda: b.folder().live() == a.folder().live())
        asked = len(a.requests)
        data[7 * BLOCK + 5] ^= 1
        a.write("big", bytes(data))
        await world.until(lambda: b.folder().live() == a.folder().live())
        assert len(a.requests) - asked == 1
        asked = len(a.requests)
        a._changed(FOLDER, "big", bytes(data), FileType.FILE, None, size=len(data), block_size=BLOCK,
                   block_hashes=a.folder().files["big"].info.block_hashes, permissions=0o600)  # fmt: skip
        await world.until(lambda: b.folder().heard["big"].permissions == 0o600)
        assert len(a.requests) == asked
        a.rename("old", "new")
        a.delete("big")
        await world.until(lambda: b.folder().live() == a.folder().live())
        assert "big" not in b.folder().live()


@simulated
async def test_both_directions() -> None:
    async with World() as world:
        a, b = await untrusted_node(world, "a", "b")
        fill(a)
        await world.until(lambda: b.folder().live() == a.folder().live())
        b.write("from b", content("from b", 4000))
        b.delete("one")
        await world.until(lambda: b.folder().live() == a.folder().live() and "from b" in a.folder().live())
        assert "one" not in a.folder().live()


@simulated
async def test_nothing_is_taken_before_the_token_is_committed_and_another_password_is_refused() -> None:
    async with World() as world:
        peer = world.peer_of(TrustedPeer, "a")
        await world.share(peer, type="receiveencrypted")
        peer.write("x", b"content")
        gate = world.hold_puts("journal/")
        await peer.connect()
        await world.pause(5)
        assert not peer.requests
        assert not peer.configs[-1].folders
        gate.set()
        await world.until(world.live)
        settings = world.settings()
        assert settings is not None
        assert settings.encryption_password_token == peer.cipher.token
        other = world.peer_of(TrustedPeer, "b")
        other.cipher = cipher_of("another")
        other.write("y", b"other content")
        await world.share(peer, other)
        await other.connect()
        await world.until(lambda: other.closes)
        assert "another encryption password" in other.closes[0]
        assert "another encryption password" in world.device_state(other).last_error
        other.exchanges = False
        await other.connect()
        await world.pause(1)
        assert "another encryption password" in world.device_state(other).last_error  # as long as they have not agreed
        assert not other.requests
        assert world.settings() is not None
        assert world.settings().encryption_password_token == peer.cipher.token  # type: ignore[union-attr]
        assert peer.connected


@simulated
async def test_changing_other_settings_keeps_the_token() -> None:
    async with World() as world:
        [a] = await untrusted_node(world, "a")
        await world.share(a, label="new", encryption_password_token=b"")
        settings = world.settings()
        assert settings is not None
        assert (settings.label, settings.encryption_password_token) == ("new", a.cipher.token)


@pytest.mark.parametrize("kind", ["receiveencrypted", "sendreceive"])
@simulated
async def test_one_side_plain_the_other_encrypted_is_refused(kind: str) -> None:
    async with World() as world:
        peer = world.peer("a") if kind == "receiveencrypted" else world.peer_of(TrustedPeer, "a")
        peer.write("x", b"content")
        await world.share(peer, type=kind)
        await peer.connect()
        await world.until(lambda: peer.closes)
        assert "plain" in peer.closes[0]
        assert FOLDER in peer.closes[0]
        assert not peer.requests
        assert not world.live()


@simulated
async def test_plain_items_in_an_encrypted_folder_end_the_connection() -> None:
    async with World() as world:
        peer = world.peer_of(TrustedPeer, "a")
        peer.encoded = lambda info: FakePeer.encoded(peer, info)  # type: ignore[method-assign]
        await world.share(peer, type="receiveencrypted")
        await peer.connect()
        peer.write("x", b"content")
        await world.until(lambda: peer.closes)
        assert "encrypted here" in peer.closes[0]
        assert not world.live()


@simulated
async def test_another_untrusted_device_gets_it_verbatim_and_a_restored_node_serves_it() -> None:
    async with World() as world:
        [a] = await untrusted_node(world, "a")
        cloud = world.peer_of(UntrustedPeer, "cloud", follows=True)
        cloud.token = a.cipher.token
        fill(a)
        await world.share(a, cloud)
        await cloud.connect()
        await world.until(lambda: len(cloud.folder().files) == len(SIZES) + 2)
        assert cloud.plain(a.cipher) == a.folder().live()
        await world.crash()
        a.disconnect()
        await world.start()
        b = world.peer_of(TrustedPeer, "b", follows=True)
        await world.share(a, cloud, b)
        await b.connect()
        await world.until(lambda: b.folder().live() == a.folder().live())


@simulated
async def test_a_size_with_a_trailer_is_taken_without_it() -> None:
    async with World() as world:
        [a] = await untrusted_node(world, "a")
        encoded = a.encoded

        def with_trailer(info: fileinfo.FileInfo) -> bytes:
            message = pb.FileInfo.FromString(encoded(info))
            message.size += 321
            return message.SerializeToString()

        a.encoded = with_trailer  # type: ignore[method-assign]
        a.write("x", content("x", BLOCK + 2000))
        await world.until(world.live)
        assert next(iter(world.records().values())).info.size == BLOCK + 40 + 2000 + 40


# --- the node is the trusted device


@simulated
async def test_an_untrusted_device_gets_what_it_cannot_read_and_gives_it_back() -> None:
    async with World() as world:
        cloud = await trusted_node(world)
        laptop = world.peer("laptop", follows=True)
        await world.share(cloud, laptop, passwords={"cloud": PASSWORD})
        await laptop.connect()
        fill(laptop)
        await world.until(lambda: len(cloud.folder().files) == len(SIZES) + 2)
        await world.until(lambda: cloud.plain(cipher_of()) == laptop.folder().live())
        assert not [name for name in cloud.folder().files if not name.split("/")[0].endswith(".syncthing-enc")]
        laptop.disconnect()
        # Another store of the same folder, connected to nobody but the untrusted device.
        async with World(name="second") as second:
            await move(cloud, world, second)
            await second.share(cloud, passwords={"cloud": PASSWORD})
            await cloud.connect()
            await second.until(lambda: second.live() == sorted(laptop.folder().live()))
            for name, size in SIZES.items():
                assert await second.content(name) == content(name, size)


@simulated
async def test_requests_of_an_untrusted_device() -> None:
    async with World() as world:
        cloud = await trusted_node(world)
        laptop = world.peer("laptop")
        await world.share(cloud, laptop, passwords={"cloud": PASSWORD})
        await laptop.connect()
        fill(laptop)
        await world.until(lambda: len(cloud.folder().heard) == len(SIZES) + 2)
        cipher = cipher_of()
        name = cipher.encrypt_name("short")
        [first, again, no_hash, small, nonsense] = await cloud.ask_many([
            (name, 0, 1064, cipher.file("short").token(hashlib.sha256(content("short", 1023)).digest(), 0)),
            (name, 0, 1064, cipher.file("short").token(hashlib.sha256(content("short", 1023)).digest(), 0)),
            (name, 0, 1064, b""),
            (name, 0, 1063, b""),
            ("X.syncthing-enc/YY/nonsense", 0, 1064, b""),
        ])  # fmt: skip
        assert first.data != again.data
        for response in (first, again, no_hash):
            data = cipher.file("short").unseal_block(response.data, 1023)
            assert data is not None
            assert bytes(data) == content("short", 1023)
        assert small.code
        assert nonsense.code
        assert cloud.connected


@simulated
async def test_what_was_not_made_with_the_password_ends_the_connection() -> None:
    async with World() as world:
        cloud = await trusted_node(world)
        cloud.announce(fileinfo.from_wire(pb.FileInfo.FromString(
            cipher_of("another").encrypt_item(FakePeer.encoded(cloud, cloud.write("y", b"").info)))))  # fmt: skip
        await world.until(lambda: cloud.closes)
        assert "password" in cloud.closes[0]
        assert not world.live()


@simulated
async def test_blocks_that_an_untrusted_device_has_changed_are_not_taken() -> None:
    async with World() as world:
        cloud = await trusted_node(world)
        laptop = world.peer("laptop")
        await world.share(cloud, laptop, passwords={"cloud": PASSWORD})
        await laptop.connect()
        laptop.write("x", content("x", 3000))
        await world.until(lambda: cloud.folder().files)
        async with World(name="second") as second:
            await move(cloud, world, second)
            honest = cloud.answers
            cloud.answers = lambda request: (honest(request)[0][:-1] + b"?", 0)  # type: ignore[index]
            await second.share(cloud, passwords={"cloud": PASSWORD})
            await cloud.connect()
            await second.until(lambda: second.runner().errors)
            assert not second.live()
            cloud.answers = honest
            await second.until(second.live, 300)


@simulated
async def test_passwords_differ() -> None:
    async with World() as world:
        cloud = world.peer_of(UntrustedPeer, "cloud", follows=True)
        cloud.token = cipher_of("another").token
        await world.share(cloud, passwords={"cloud": PASSWORD})
        await cloud.connect()
        await world.until(lambda: cloud.closes)
        assert "another encryption password" in cloud.closes[0]


@simulated
async def test_a_device_that_makes_its_folder_later_is_told_the_token_again() -> None:
    async with World() as world:
        cloud = world.peer_of(UntrustedPeer, "cloud", follows=True)
        cloud.has_folder = False
        laptop = world.peer("laptop")
        await world.share(cloud, laptop, passwords={"cloud": PASSWORD})
        await cloud.connect()
        await laptop.connect()
        fill(laptop)
        await world.pause(30)
        assert len(cloud.configs) < 4  # nobody answers for ever
        cloud.has_folder = True
        cloud.send_config()  # the same as before: it has no token to list the folder with
        await world.until(lambda: len(cloud.folder().files) == len(SIZES) + 2)


@simulated
async def test_an_offer_says_that_it_is_encrypted() -> None:
    async with World() as world:
        peer = world.peer_of(TrustedPeer, "a")
        await world.share(peer, folder="other")
        peer.folder("other").shared = False
        peer.folder(FOLDER)
        await peer.connect()
        await world.until(lambda: world.node.connections.pending_folders)
        [offer] = world.node.connections.pending_folders.values()
        assert offer.encrypted


@simulated
async def test_an_untrusted_device_is_named_to_nobody_else() -> None:
    async with World() as world:
        cloud = await trusted_node(world)
        laptop = world.peer("laptop")
        await world.share(cloud, laptop, passwords={"cloud": PASSWORD})
        await laptop.connect()
        await world.until(lambda: laptop.configs)
        assert cloud.device not in {device.id for device in laptop.configs[-1].folders[0].devices}
        assert {device.encryption_password_token for device in laptop.configs[-1].folders[0].devices} == {b""}


def test_the_token_that_is_compared_is_syncthings() -> None:
    cipher = encryption.FolderCipher("default", encryption.folder_key("default", "pass"), bytes)
    assert cipher.token.hex() == "46c8514a6d407ccd6f2528acc711c90d578aec70c278c77340290548735b64a7"
