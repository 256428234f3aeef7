"""Heartbeats: aged by the store's clock, read once per change, damaged ones passed over, old ones ignored and deleted."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from stnode.errors import Refused
from stnode.objectstore.base import Key
from stnode.objectstore.memory import MemoryStore
from stnode.objectstore.metrics import Metrics
from stnode.objectstore.wrappers import Metered
from stnode.repo import layout
from stnode.repo.heartbeat import Heartbeat, Heartbeats
from tests.support.journal import START_US, make_env

A, B = b"\1" * 32, b"\2" * 32
MINUTE_US = 60_000_000
DAY_US = 1440 * MINUTE_US


class Bucket:
    """One store with a clock of its own, and what two nodes know of its heartbeats."""

    def __init__(self) -> None:
        self.env, self.clock = make_env()
        self.objects = MemoryStore(self.env)
        self.counted = Metrics()

    def node(self) -> Heartbeats:
        metered = Metered(self.objects, self.env, self.counted)
        return Heartbeats(metered, self.env, lambda: self.clock.now_us)

    def gets(self) -> int:
        return self.counted.snapshot().count("get", "ok")

    def lists(self) -> int:
        return self.counted.snapshot().count("list", "ok")


async def test_what_a_node_writes_the_others_read_with_the_stores_time() -> None:
    bucket = Bucket()
    mine, theirs = bucket.node(), bucket.node()
    await mine.write(Heartbeat(A, 1, "a", head=7, written_us=5))
    bucket.clock.now_us += MINUTE_US
    await theirs.refresh()
    assert theirs.known == {A: Heartbeat(A, 1, "a", head=7, written_us=START_US)} == mine.known
    assert theirs.age_s(theirs.known[A]) == 60.0
    assert await theirs.look(A) == theirs.known[A]
    assert await theirs.look(B) is None


async def test_only_changed_heartbeats_are_read_and_not_too_often() -> None:
    bucket = Bucket()
    mine, theirs = bucket.node(), bucket.node()
    await mine.write(Heartbeat(A, 1))
    await mine.write(Heartbeat(B, 1))
    await theirs.refresh()
    assert (bucket.gets(), bucket.lists()) == (2, 1)
    await theirs.refresh()
    assert bucket.lists() == 1
    bucket.clock.now_us += MINUTE_US
    await mine.write(Heartbeat(B, 1, head=2))
    await theirs.refresh()
    assert (bucket.gets(), bucket.lists()) == (3, 2)
    assert theirs.known[B].head == 2


async def test_age_decides_fresh_ignored_deleted() -> None:
    bucket = Bucket()
    mine, theirs = bucket.node(), bucket.node()
    await mine.write(Heartbeat(B, 1))
    await mine.write(Heartbeat(A, 1))
    await theirs.refresh()
    assert [heartbeat.node for heartbeat in theirs.fresh()] == [A, B]
    bucket.clock.now_us += 12 * MINUTE_US
    assert theirs.fresh() == []
    assert set(theirs.known) == {A, B}
    bucket.clock.now_us += DAY_US
    await mine.write(Heartbeat(A, 1))
    await theirs.refresh()
    assert set(theirs.known) == {A}
    assert layout.heartbeat_key(B) in bucket.objects.snapshot()
    bucket.clock.now_us += 29 * DAY_US
    await theirs.refresh()
    assert set(bucket.objects.snapshot()) == {layout.heartbeat_key(A)}


async def test_a_store_that_lets_nothing_be_deleted_shows_the_others_all_the_same() -> None:
    bucket = Bucket()
    mine, theirs = bucket.node(), bucket.node()
    await mine.write(Heartbeat(B, 1))
    bucket.clock.now_us += 31 * DAY_US
    await mine.write(Heartbeat(A, 1))

    async def refused(key: Key) -> None:
        raise Refused(f"{key}: Access Denied")

    bucket.objects.delete = refused  # type: ignore[method-assign]
    await theirs.refresh()
    assert set(theirs.known) == {A}


async def test_a_stopped_one_is_known_and_not_fresh() -> None:
    bucket = Bucket()
    mine, theirs = bucket.node(), bucket.node()
    await mine.write(Heartbeat(A, 1, stopped=True))
    await theirs.refresh()
    assert set(theirs.known) == {A}
    assert not theirs.fresh()


async def test_one_that_was_deleted_is_gone_for_all() -> None:
    bucket = Bucket()
    mine, theirs = bucket.node(), bucket.node()
    await mine.write(Heartbeat(A, 1))
    await theirs.refresh()
    await bucket.objects.delete(layout.heartbeat_key(A))
    await theirs.refresh(0)
    assert not theirs.known
    assert await mine.look(A) is None
    assert not mine.known


@pytest.mark.parametrize("data", [b"", b"junk", b"x" * 100])
async def test_what_is_no_heartbeat_is_passed_over_once(data: bytes) -> None:
    bucket = Bucket()
    theirs = bucket.node()
    await bucket.node().write(Heartbeat(A, 1))
    await bucket.objects.put(layout.heartbeat_key(B), [data])
    with capture_logs() as lines:
        await theirs.refresh()
        await theirs.refresh(0)
    assert set(theirs.known) == {A}
    assert [line["event"] for line in lines] == ["a heartbeat is passed over"]


@pytest.mark.expects_log("it is of another node")
async def test_a_heartbeat_speaks_for_its_own_node_only() -> None:
    bucket = Bucket()
    theirs = bucket.node()
    await bucket.node().write(Heartbeat(A, 1))
    copied = bucket.objects.snapshot()[layout.heartbeat_key(A)].data
    await bucket.objects.put(layout.heartbeat_key(B), [copied])
    await theirs.refresh()
    assert set(theirs.known) == {A}


def test_the_newer_process_is_the_one_started_later() -> None:
    old, new = Heartbeat(A, 9, started_us=1), Heartbeat(A, 1, started_us=2)
    assert new.newer_process_than(old)
    assert not old.newer_process_than(new)
    assert not new.newer_process_than(new)
    assert Heartbeat(A, 2, started_us=1).newer_process_than(Heartbeat(A, 1, started_us=1))
    assert not Heartbeat(B, 9, started_us=9).newer_process_than(old)
