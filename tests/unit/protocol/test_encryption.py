"""Syncthing's folder encryption: its own vectors (lib/protocol/encryption_test.go), those seen live, and what goes wrong."""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from stnode.clock import SeededRandomness
from stnode.errors import Internal, ProtocolError
from stnode.protocol import encryption, fileinfo, xchacha
from stnode.protocol.encryption import FolderCipher, folder_key
from stnode.protocol.fileinfo import FileType
from stnode.protocol.messages import FolderID, Request
from stnode.protocol.pb import bep_pb2 as pb

DEFAULT = FolderCipher("default", folder_key("default", "pass"), os.urandom)
MINE = FolderCipher("my folder", folder_key("my folder", "my password"), os.urandom)
BLOCK = 128 << 10
NAMES = {
    "a": "N.syncthing-enc/8I/02Q8DUEM42UETARU7O1M4N5I0",
    "hello.txt": "6.syncthing-enc/VG/PJ3BKHLKS9LA5SG8J6MUU8P2OFGT2PA7IGF7C",
    "dir": "8.syncthing-enc/O3/MQTA1TVNO393FTIUQFH8TEEPVEKG",
    "dir/hello.txt": "M.syncthing-enc/BM/ACJ2P7SBV7Q1GMEA9RPSRGQHO2VECQMTOUGESTUDTNQ0",
    "Documents/Project/My project.docx": "2.syncthing-enc/SM/SNIK287LPLHNTBASCFDISPI2RT0AESJDC3LGNSJF6Q9I74U2O1OMTCD7P5MM0JMBBVUHETQVS6MO",
    "é.txt": "I.syncthing-enc/DV/S8OMSDP7AF34J1L449H1IV7A131D12CIG",
    "x" * 120: (
        "I.syncthing-enc/E7/B12E0RJ4L5IS2BNJ0JRME6R21EARAQG0HLB1ENK4IIMPD3AV4B445FPOUEP3JAH8AN4P1BQ9BKTPQHA71EMM6UO3CVCECFCOVLHO0ABPK9I4FINJHKQ70SR0R0OK"
        "R5FMJFJ2UHAD6IHS966THLANITGJ1RVJ7INH2IL7DIDM0NDLA611DQIM6F49V4SV82SJ73BC4VJC/JGBMBOAAR9D5SQ8"
    ),
}


def digests(data: bytes, block_size: int = BLOCK) -> bytes:
    cuts = range(0, len(data), block_size) if data else (0,)
    return b"".join(hashlib.sha256(data[at : at + block_size]).digest() for at in cuts)


def item(name: str, data: bytes = b"", kind: FileType = FileType.FILE, **fields: object) -> fileinfo.FileInfo:
    is_file = kind is FileType.FILE and not fields.get("deleted")
    return fileinfo.new(
        name=name,
        type=kind,
        version=((7, 100), (9, 23)),
        modified_by=9,
        sequence=41,
        size=len(data),
        block_hashes=digests(data) if is_file else b"",
        **fields,  # type: ignore[arg-type]
    )


def wire(info: fileinfo.FileInfo) -> bytes:
    return fileinfo.encode(info.wire, info.sequence, info.size, info.block_size, info.block_hashes)


# --- vectors


@pytest.mark.parametrize(("name", "encrypted"), NAMES.items(), ids=[name[:12] for name in NAMES])
def test_names(name: str, encrypted: str) -> None:
    assert DEFAULT.encrypt_name(name) == encrypted
    assert DEFAULT.decrypt_name(encrypted) == name


def test_a_long_name_is_cut_in_pieces_of_two_hundred() -> None:
    encrypted = DEFAULT.encrypt_name("y" * 300)
    assert encrypted.startswith("U.syncthing-enc/23/0K7LV8HMA2AC5FG7BFKQEF302L533PA0")
    assert [len(part) for part in encrypted.split("/")] == [15, 2, 200, 200, 103]
    assert DEFAULT.decrypt_name(encrypted) == "y" * 300


def test_syncthings_own_vectors() -> None:
    assert MINE.encrypt_name("filename.txt") == "3.syncthing-enc/T5/957I4IOA20VEIEER6JSQG0PEPIRV862II3K7LOF75Q"
    sealed = "A1IPD28ISL7VNPRSSSQM2L31L3IJPC08283RO89J5UG0TI9P38DO9RFGK12DK0KD7PKQP6U51UL2B6H96O"
    assert MINE.file("filename.txt").unseal(base64.b32hexdecode(sealed + "=" * (-len(sealed) % 8))) == b"hello world"


def test_key_and_token() -> None:
    assert folder_key("default", "pass").hex() == "f2a78ad8aa3995c8b8b977c44213487bbd55240b41b0441d288c9594c9073726"
    assert DEFAULT.token.hex() == "46c8514a6d407ccd6f2528acc711c90d578aec70c278c77340290548735b64a7"


def test_xchacha_of_the_draft() -> None:
    """draft-irtf-cfrg-xchacha-03, 2.2.1: HChaCha20."""
    key = bytes(range(32))
    head = bytes.fromhex("000000090000004a0000000031415927")
    assert xchacha.hchacha20(key, head).hex() == "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"


# --- a library that encrypts wrongly


def test_a_faulty_openssl_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty:
        def __init__(self, key: bytes) -> None:
            self._siv = AESSIV(key)

        def encrypt(self, data: bytes, associated: list[bytes]) -> bytes:
            return self._siv.encrypt(data, [each for each in associated if each] or None)

    encryption.check_library()
    monkeypatch.setattr(encryption, "AESSIV", Faulty)
    with pytest.raises(Internal, match="CVE-2023-2975"):
        encryption.check_library()


# --- items


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 100])
def test_a_file_and_back(size: int) -> None:
    data = SeededRandomness(size).bytes(size)
    info = item("dir/é.txt", data, permissions=0o640, modified_s=1_700_000_000, modified_ns=5)
    fake = fileinfo.from_wire(pb.FileInfo.FromString(MINE.encrypt_item(wire(info))))
    fileinfo.check(fake)
    lengths = [max(length, 1024) + 40 for length in fileinfo.block_lengths(size, info.block_size)]
    assert fake.size == sum(lengths)
    assert fileinfo.block_lengths(fake.size, fake.block_size) == lengths
    assert fileinfo.hash_bytes(fake.block_hashes, fake.size, fake.block_size) == 48
    assert (fake.name, fake.version, fake.sequence) == (MINE.encrypt_name(info.name), ((1, 123),), 41)
    assert (fake.permissions, fake.modified_s, fake.modified_ns, fake.modified_by) == (0o644, 1234567890, 0, 0)
    assert info.name.encode() not in wire(fake)
    back = MINE.decrypt_item(replace(fake, sequence=99))
    assert back == fileinfo.replace(info, sequence=99)


@pytest.mark.parametrize(
    "info",
    [
        item("d", kind=FileType.DIRECTORY, permissions=0o755),
        item("l", kind=FileType.SYMLINK, symlink_target=b"somewhere"),
        item("gone", deleted=True, modified_s=1),
        item("gone too", kind=FileType.DIRECTORY, deleted=True, modified_s=1),
    ],
    ids=lambda info: info.name,
)
def test_what_is_no_file(info: fileinfo.FileInfo) -> None:
    fake = fileinfo.from_wire(pb.FileInfo.FromString(MINE.encrypt_item(wire(info))))
    fileinfo.check(fake)
    assert fake.type is (FileType.FILE if info.type is FileType.FILE else FileType.DIRECTORY)
    assert fake.deleted == info.deleted
    assert not fake.block_hashes
    assert MINE.decrypt_item(fake) == info


def test_the_list_on_the_wire_is_what_was_taken_from_it() -> None:
    encoded = MINE.encrypt_item(wire(item("x", bytes(5 * BLOCK + 3))))
    assert pb.FileInfo.FromString(wire(fileinfo.from_wire(pb.FileInfo.FromString(encoded)))) == pb.FileInfo.FromString(encoded)


def test_metadata_is_different_each_time_tokens_are_the_same() -> None:
    info = wire(item("x", b"abc"))
    one, two = (pb.FileInfo.FromString(MINE.encrypt_item(info)) for _ in range(2))
    assert one.encrypted != two.encrypted
    assert one.blocks == two.blocks


def test_what_another_password_made_is_refused() -> None:
    other = FolderCipher("my folder", folder_key("my folder", "another"), os.urandom)
    fake = fileinfo.from_wire(pb.FileInfo.FromString(other.encrypt_item(wire(item("x", b"abc")))))
    with pytest.raises(ProtocolError, match="password"):
        MINE.decrypt_item(fake)


@pytest.mark.parametrize(
    "name", ["", "x", "hello.txt", "3.syncthing-enc", "3.syncthing-enc/T5/957I", "3.syncthing-enc/!!/???", "é.syncthing-enc/AA/BB"]
)
def test_names_that_nobody_encrypted(name: str) -> None:
    with pytest.raises(ProtocolError):
        MINE.decrypt_name(name)


def test_the_metadata_of_another_file_is_refused() -> None:
    """An untrusted device may not give one file the content of another."""
    one, two = (pb.FileInfo.FromString(MINE.encrypt_item(wire(item(name, b"abc")))) for name in "ab")
    one.encrypted = two.encrypted
    with pytest.raises(ProtocolError, match="'a'"):
        MINE.decrypt_item(fileinfo.from_wire(one))


# --- blocks and requests


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, BLOCK])
def test_a_block_and_back(size: int) -> None:
    data = SeededRandomness(size).bytes(size)
    cipher = MINE.file("x")
    sealed = cipher.seal_block(data)
    assert len(sealed) == max(size, 1024) + 40
    back = cipher.unseal_block(memoryview(sealed), size)
    assert back is not None
    assert bytes(back) == data
    assert cipher.seal_block(data) != sealed
    assert cipher.unseal_block(sealed[:-1] + bytes([sealed[-1] ^ 1]), size) is None
    assert cipher.unseal_block(sealed[:39], size) is None
    assert MINE.file("y").unseal_block(sealed, size) is None
    assert cipher.unseal_block(sealed, len(sealed)) is None


def test_requests_there_and_back() -> None:
    digest = hashlib.sha256(b"").digest()
    for number, size in ((0, BLOCK), (3, BLOCK), (4, 77)):
        plain = Request(5, FolderID("my folder"), "dir/x", number * BLOCK, size, digest, block_no=number)
        asked = MINE.encrypt_request(plain)
        assert (asked.offset, asked.size, len(asked.hash)) == (number * (BLOCK + 40), max(size, 1024) + 40, 48)
        back = MINE.decrypt_request(asked)
        assert (back.name, back.offset, back.hash, back.block_no) == (plain.name, plain.offset, digest, number)
        assert back.size == max(size, 1024)
        assert MINE.decrypt_request(replace(asked, hash=b"")).hash == b""


def test_a_very_old_token_is_understood() -> None:
    key = MINE.file("x")._key
    digest = hashlib.sha256(b"1").digest()
    assert MINE.file("x").digest(AESSIV(key).encrypt(digest, [b""]), 12345) == digest


@pytest.mark.parametrize(
    "change",
    [{"offset": 39, "block_no": 1}, {"size": 1063}, {"hash": b"?" * 48}, {"name": "x"}, {"block_no": -1, "offset": -100}],
    ids=["offset below the overhead", "too short", "foreign token", "plain name", "negative"],
)
def test_requests_that_make_no_sense(change: dict[str, object]) -> None:
    request = MINE.encrypt_request(Request(5, FolderID("my folder"), "x", 0, BLOCK, hashlib.sha256(b"").digest()))
    with pytest.raises(ProtocolError):
        MINE.decrypt_request(replace(request, **change))  # type: ignore[arg-type]
