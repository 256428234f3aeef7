"""A real server that ignores the conditions of writes (`rclone serve s3`): refused without a declaration, used by one declared node, and
with two overlapping processes nothing is overwritten and the second one ends."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stnode.clock import system_env
from stnode.objectstore.base import ObjectStore
from stnode.objectstore.registry import open_store
from stnode.repo import layout
from tests.support.nodes import StnodeProcess
from tests.support.s3servers import S3Server, rclone_server

__all__ = ["rclone_server"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.blocks_loop("commands of the node are waited for")]


def options(server: S3Server, **more: str) -> dict[str, str]:
    return {
        "STNODE_STORE_ENDPOINT_URL": server.endpoint_url,
        "STNODE_STORE_REGION": server.options.region,
        "STNODE_STORE_ACCESS_KEY_ID": server.options.access_key_id,
        "STNODE_STORE_SECRET_ACCESS_KEY": server.options.secret_access_key,
        **more,
    }


@pytest.fixture
def url(rclone_server: S3Server, tmp_path: Path) -> str:
    return rclone_server.url(tmp_path.name.lower().replace("_", "-"))


def test_refused_until_it_is_declared(rclone_server: S3Server, url: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no conditional writes") as refused:
        StnodeProcess(tmp_path / "a", url, options(rclone_server))
    assert "stnode init --single-node" in str(refused.value)

    node = StnodeProcess(tmp_path / "a", url, options(rclone_server, STNODE_STORE_SINGLE_NODE="true"))
    node.cli("folder", "add", "f")
    (tmp_path / "file").write_bytes(b"content" * 1000)
    node.cli("put", str(tmp_path / "file"), "f/")
    shutil.rmtree(node.home / "state")
    assert node.cli("cat", "f/file") == "content" * 1000
    assert "0 problems" in node.cli("bucket", "check", "--read-data")

    other = StnodeProcess(tmp_path / "b", url, options(rclone_server, STNODE_STORE_SINGLE_NODE="true"))
    with pytest.raises(RuntimeError, match="another one"):
        node.cli("ls", "f")  # the declaration has moved on to the other node, for no heartbeat was there
    assert "file" in other.cli("ls", "f")


async def test_two_processes_overlap(rclone_server: S3Server, url: str, tmp_path: Path) -> None:
    """The first one's heartbeat is taken away, so that the second one does not wait. Who meets the other's commit ends."""
    environment = options(rclone_server, STNODE_STORE_SINGLE_NODE="true")
    first = StnodeProcess(tmp_path / "first", url, environment)
    first.cli("folder", "add", "f")
    shutil.copytree(first.home, tmp_path / "second")
    second = StnodeProcess(tmp_path / "second", url, environment)
    assert first.device_id == second.device_id
    (tmp_path / "file").write_bytes(b"x" * 1000)
    env = system_env()
    objects = open_store(url, rclone_server.options, env)
    try:
        first.start()
        async for meta in objects.list(layout.heartbeat_prefix()):
            await objects.delete(meta.key)
        second.start()
        for number in range(3):
            first.cli("put", str(tmp_path / "file"), f"f/first{number}")
        process = second._process
        assert process is not None
        assert process.wait(60) == 77, "it meets a commit of the first one while following"
        assert "another process has written commit" in second.log()
        first.cli("put", str(tmp_path / "file"), "f/last")
        listed = first.cli("ls", "f")
        assert all(name in listed for name in ("first0", "first1", "first2", "last"))
        assert "0 problems" in first.cli("bucket", "check")
        keys = [meta.key async for meta in objects.list(layout.journal_prefix())]
        numbers = [key.partition("-")[0] for key in keys]
        assert len(numbers) == len(set(numbers))
        assert all(layout.slot_number(key) is None for key in keys)
    finally:
        first.kill()
        second.kill()
        await objects.close()
        env.close()


async def test_two_names_of_a_commit_are_repaired(rclone_server: S3Server, url: str, tmp_path: Path) -> None:
    """Two processes changed one file in the same commit's number: both versions are there after the repair, and both objects."""
    environment = options(rclone_server, STNODE_STORE_SINGLE_NODE="true")
    first = StnodeProcess(tmp_path / "first", url, environment)
    first.cli("folder", "add", "f")
    env = system_env()
    here, there = open_store(url, rclone_server.options, env), open_store(f"{url}-copy", rclone_server.options, env)
    try:
        await _copy(here, there)
        shutil.copytree(first.home, tmp_path / "second")
        second = StnodeProcess(tmp_path / "second", f"{url}-copy", environment)
        for node, content in ((first, "first"), (second, "second")):
            (tmp_path / "file").write_text(content)
            node.cli("put", str(tmp_path / "file"), "f/")
        await _copy(there, here)
        with pytest.raises(RuntimeError, match="two processes wrote commit") as refused:
            first.cli("ls", "f")
        assert "stnode bucket repair" in str(refused.value)
        before = {meta.key async for meta in here.list("")}
        told = first.cli("bucket", "repair", "--yes")
        assert "done" in told
        assert before <= {meta.key async for meta in here.list("")}
        shutil.rmtree(first.home / "state")
        names = first.cli("ls", "f").split()
        assert len(names) == 2
        assert {first.cli("cat", f"f/{name}") for name in names} == {"first", "second"}
        assert "0 problems" in first.cli("bucket", "check", "--read-data")
    finally:
        await here.close()
        await there.close()
        env.close()


async def _copy(source: ObjectStore, target: ObjectStore) -> None:
    """Every object that the target does not have."""
    has = {meta.key async for meta in target.list("")}
    for key in [meta.key async for meta in source.list("") if meta.key not in has]:
        await target.put(key, [(await source.get(key)).data])
