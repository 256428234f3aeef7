"""The harness itself: two real Syncthings of different versions sync a small tree."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tests.support.processes import usage
from tests.support.syncthing import NEW, OLD, SyncthingProcess, wait_same


async def test_old_and_new_sync_a_small_tree(tmp_path: Path) -> None:
    async with SyncthingProcess(tmp_path / "old", OLD, name="old") as old, SyncthingProcess(tmp_path / "new", NEW, name="new") as new:
        source = tmp_path / "old-files"
        (source / "sub").mkdir(parents=True)
        (source / "a.txt").write_bytes(b"alpha")
        (source / "sub" / "big.bin").write_bytes(os.urandom(300_000))
        (source / "empty").touch()
        (source / "link").symlink_to("a.txt")
        await asyncio.gather(old.add_device(new.device_id, name="new"), new.add_device(old.device_id, old.address, name="old"))
        await old.add_folder("tree", source, [new.device_id])
        await new.add_folder("tree", tmp_path / "new-files", [old.device_id])
        await old.scan("tree")
        await new.wait_status("tree", {"globalFiles": 3, "globalDirectories": 1, "globalSymlinks": 1, "needTotalItems": 0, "state": "idle"})
        await wait_same(old, new, "tree")
        assert (tmp_path / "new-files" / "sub" / "big.bin").read_bytes() == (source / "sub" / "big.bin").read_bytes()
        await old.wait_in_sync("tree", new.device_id)
        used = usage(new.pid)
        assert used.cpu_s > 0
        assert used.peak_mib > 10

        await new.kill()
        (source / "a.txt").unlink()
        await old.scan("tree")
        await new.start()
        await wait_same(old, new, "tree")
        assert not (tmp_path / "new-files" / "a.txt").exists()
