"""The pack format: what is written is read, the golden files are read for ever, damage is found and named."""

from __future__ import annotations

from array import array
from itertools import accumulate
from pathlib import Path

import pytest

from stnode.errors import Corrupt, Internal
from stnode.repo.checksum import xxh3_64
from stnode.repo.compression import compress, decompress
from stnode.repo.pack import COMPRESSED, TAIL_BYTES, PackList, decode_footer, encode_footer, footer_size, plain_list
from tests.support.packs import blocks_of, sha

GOLDEN = Path(__file__).parents[2] / "golden" / "format-v1"


def plain_pack() -> tuple[bytes, list[bytes]]:
    """The content of pack-plain.bin: three sizes, an empty block, a run of equal sizes."""
    blocks = blocks_of("pack-plain", 5, 5, 5, 0, 700, 1, 1)
    footer = encode_footer(plain_list(32, [sha(block) for block in blocks], map(len, blocks)))
    return b"".join((*blocks, footer)), blocks


def token_pack() -> tuple[bytes, list[bytes]]:
    """The content of pack-tokens.bin: an encrypted folder's blocks, 48-byte tokens, checksums beside them."""
    blocks = blocks_of("pack-tokens", 1064, 1064, 2000)
    tokens = blocks_of("tokens", 48, 48, 48)
    footer = encode_footer(plain_list(48, tokens, map(len, blocks), array("Q", map(xxh3_64, blocks))))
    return b"".join((*blocks, footer)), blocks


def compressed_pack() -> tuple[bytes, list[bytes]]:
    """The content of pack-compressed.bin: raw and LZ4 blocks mixed."""
    blocks = [b"a" * 1000, *blocks_of("pack-lz4", 300), b"bc" * 500, b"bc" * 500]
    stored = [compress(blocks[0]), blocks[1], compress(blocks[2]), compress(blocks[3])]
    lengths, offsets = array("I", map(len, blocks)), array("I", accumulate(map(len, stored), initial=0))
    listed = PackList(32, b"".join(map(sha, blocks)), lengths, offsets, frozenset({0, 2, 3}), None)
    return b"".join((*stored, encode_footer(listed))), blocks


KINDS = {"pack-plain.bin": plain_pack, "pack-tokens.bin": token_pack, "pack-compressed.bin": compressed_pack}


def read(data: bytes) -> PackList:
    return decode_footer(data[len(data) - footer_size(data[-TAIL_BYTES:], "p") :], "p", len(data))


def _block(data: bytes, listed: PackList, place: int) -> bytes:
    stored = data[listed.offsets[place] : listed.offsets[place + 1]]
    return decompress(stored, listed.lengths[place]) if place in listed.compressed else stored


@pytest.mark.parametrize("name", KINDS)
def test_golden_files(name: str) -> None:
    made, blocks = KINDS[name]()
    data = (GOLDEN / name).read_bytes()
    listed = read(data)
    assert listed.data_bytes + footer_size(data, name) == len(data)
    assert [_block(data, listed, place) for place in range(listed.count)] == blocks
    if not listed.compressed:  # another LZ4 may find shorter matches
        assert data == made


def test_a_list_is_read_as_written() -> None:
    data, blocks = plain_pack()
    listed = read(data)
    assert listed.count == 7
    assert listed.hashes_of(3, 2) == sha(b"") + sha(blocks[4])
    assert [data[start:end] for start, end in zip(listed.offsets, listed.offsets[1:], strict=False)] == blocks
    assert read(token_pack()[0]).checks == array("Q", map(xxh3_64, token_pack()[1]))
    assert read(compressed_pack()[0]).compressed == {0, 2, 3}


def test_runs_of_equal_blocks_cost_no_room() -> None:
    hashes = [bytes(32)] * 1000
    assert len(encode_footer(plain_list(32, hashes, [131072] * 1000))) == 32_000 + 12 + TAIL_BYTES


@pytest.mark.parametrize("name", KINDS)
def test_every_flipped_bit_of_a_footer_is_found(name: str) -> None:
    data, _ = KINDS[name]()
    size = footer_size(data, name)
    for at in range(len(data) - size, len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(Corrupt, match="pack p is damaged"):
            decode_footer(bytes(damaged[-size:]), "p", len(data))


def test_wrong_sizes_are_found() -> None:
    data, _ = plain_pack()
    size = footer_size(data, "p")
    with pytest.raises(Corrupt, match="has 9 bytes instead of"):
        decode_footer(data[-size:], "p", 9)
    with pytest.raises(Corrupt, match="wrong length"):
        decode_footer(data[-size - 1 :], "p")
    with pytest.raises(Corrupt, match="too short"):
        footer_size(b"short", "p")


def test_lists_that_do_not_add_up_are_refused_when_written() -> None:
    with pytest.raises(Internal):
        plain_list(32, [bytes(32)], [1, 2])
    with pytest.raises(Internal):
        plain_list(48, [bytes(48)], [1])
    with pytest.raises(Internal):
        plain_list(32, [bytes(32)] * 256, [(16 << 20) + 1] * 256)


def _forged(span: bytes, data_bytes: int) -> bytes:
    """A footer with right checksums and one wrong span."""
    footer = bytearray(encode_footer(plain_list(32, [bytes(32)], [7])))
    footer[32:44] = span
    head = bytearray(footer[44:-16])
    head[16:24] = data_bytes.to_bytes(8, "little")
    head[24:32] = xxh3_64(bytes(footer[:44])).to_bytes(8, "little")
    return bytes(footer[:44] + head + xxh3_64(bytes(head)).to_bytes(8, "little") + footer[-8:])


@pytest.mark.parametrize(
    ("count", "length", "stored", "what"),
    [
        (1, 7, 8, "impossible length"),
        (1, 7, 7 | COMPRESSED, "impossible length"),
        (2, 7, 7, "add up"),
        (1, 1 << 30, 1 << 30, "impossible length"),
    ],
)
def test_impossible_lists_are_refused_though_their_checksum_is_right(count: int, length: int, stored: int, what: str) -> None:
    span = b"".join(number.to_bytes(4, "little") for number in (count, length, stored))
    with pytest.raises(Corrupt, match=what):
        decode_footer(_forged(span, count * (stored & ~COMPRESSED)), "p")
