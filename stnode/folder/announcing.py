"""Committed records as FileInfos for the wire: what was stored, plus sequence, plus the block list from the packs' lists."""

from __future__ import annotations

from collections.abc import Sequence

from stnode.clock import Env
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.repo.packlist import PackLists
from stnode.repo.records import Extents, LocalFlag, Record

_BLOCKS_PER_TURN = 4096


async def announced_files(env: Env, packlists: PackLists, records: Sequence[Record]) -> list[bytes]:
    """One encoded FileInfo per record, same order. Lists of packs that are not here yet are fetched from the store. A record whose content
    is given up goes without its blocks: nobody can name them any more."""
    extents = await packlists.present([() if record.local_flags & LocalFlag.MUST_FETCH else record.extents for record in records])
    encoded: list[bytes] = []
    blocks = 0
    for record, where in zip(records, extents, strict=True):
        info = _announced_as(record)
        hashes = b"" if record.local_flags & LocalFlag.MUST_FETCH else block_hashes(packlists, info, where)
        encoded.append(fileinfo.encode(info.wire, record.sequence, info.size, info.block_size, hashes))
        blocks += len(hashes) // 32 + 1
        if blocks >= _BLOCKS_PER_TURN:
            blocks = 0
            await env.clock.sleep(0)
    return encoded


def block_hashes(packlists: PackLists, info: FileInfo, extents: Extents) -> bytes:
    """The hashes of all blocks of a file whose packs' lists are loaded; b"" for what has no blocks. The empty file has one
    block of size 0 (bep-facts 8.1), which lies in no pack."""
    if info.type is not FileType.FILE or info.deleted:
        return b""
    if not info.size:
        return b"" if info.invalid else fileinfo.zero_hash(0)
    if len(extents) == 1 and extents[0][0]:
        return packlists.hashes(*extents[0])
    parts: list[bytes] = []
    block = 0
    for pack, place, count in extents:
        parts.append(packlists.hashes(pack, place, count) if pack else _zero_hashes(info, block, count))
        block += count
    return b"".join(parts)


def _zero_hashes(info: FileInfo, first: int, count: int) -> bytes:
    """Hashes of `count` blocks of zeros; the file's last block may be a short one."""
    rest = info.size - (first + count) * info.block_size
    full = fileinfo.zero_hash(info.block_size)
    return full * count if rest >= 0 else full * (count - 1) + fileinfo.zero_hash(info.block_size + rest)


def _announced_as(record: Record) -> FileInfo:
    """A local change in a receive-only folder is announced invalid and with an empty vector (bep-facts 9.1), damaged content invalid, under
    its vector."""
    if record.local_flags & LocalFlag.RECEIVE_ONLY:
        return fileinfo.replace(record.info, invalid=True, version=())
    return fileinfo.replace(record.info, invalid=True) if record.local_flags else record.info
