"""Hand-made protobuf scalars for the messages sent by the thousand (index entries, requests, responses). Everything else goes
through the generated code."""

from __future__ import annotations

from stnode.errors import ProtocolError

_ONE = [bytes((value,)) for value in range(128)]
_TWO = [bytes((value & 0x7F | 0x80, value >> 7)) for value in range(1 << 14)]
_INNER = [bytes((value & 0x7F | 0x80, value >> 7 | 0x80)) for value in range(1 << 14)]


def varint(value: int) -> bytes:
    """A number 0 .. 2**64 - 1 as a protobuf varint; callers bring negative ones to two's complement."""
    if value < 128:
        return _ONE[value]
    if value < 16384:
        return _TWO[value]
    pieces = b""
    while value >= 16384:
        pieces += _INNER[value & 0x3FFF]
        value >>= 14
    return pieces + (_ONE[value] if value < 128 else _TWO[value])


def read_varint(data: bytes | bytearray | memoryview, place: int, end: int) -> tuple[int, int]:
    """The unsigned number that starts at `place` and the place behind it; ProtocolError when it is cut off at `end` or longer than
    10 bytes."""
    value = shift = 0
    while place < end and shift < 70:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 128:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place
        shift += 7
    raise ProtocolError("a protobuf number is cut off or too long")


def signed32(value: int) -> int:
    """An int32 of the unsigned number that was read for it (negative ones are sign-extended to 64 bits on the wire)."""
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >= 1 << 31 else value
