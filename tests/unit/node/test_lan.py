"""Announcing and hearing on the local network, here on the loopback interface only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from zeroconf import Zeroconf
from zeroconf.asyncio import AsyncZeroconf

from stnode.clock import system_env
from stnode.node import lan
from stnode.node.lan import NODE_TYPE, PAGE_TYPE, Lan
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID
from tests.support.fakepeer import device_of

A, B, C, D = (device_of(name) for name in "abcd")
LOOPBACK = ["127.0.0.1"]
ASK_MS = 20_000
Eventually = Callable[..., Awaitable[object]]


class Heard(dict[DeviceID, tuple[str, ...]]):
    """Who was heard of, and where."""

    def __call__(self, device: DeviceID, addresses: tuple[str, ...]) -> None:
        self[device] = addresses


async def test_nodes_of_one_store_hear_of_each_other_and_of_no_other(eventually: Eventually) -> None:
    env = system_env(1)
    heard = [Heard(), Heard(), Heard()]
    lans = [Lan(env, store, device, "n", told, LOOPBACK) for store, device, told in zip(("s", "s", "other"), (A, B, C), heard, strict=True)]
    for number, each in enumerate(lans):
        each.open([f"tcp://127.0.0.1:{1000 + number}"], "")
    await eventually(lambda: heard[0] and heard[1], 20)
    await asyncio.gather(*(each.close() for each in lans))
    assert heard == [{B: ("tcp://127.0.0.1:1001",)}, {A: ("tcp://127.0.0.1:1000",)}, {}]
    env.close()


async def test_the_page_is_announced_where_others_reach_it() -> None:
    """A device of its own: tests run side by side on one loopback interface, and of two with one name the later takes another one."""
    env = system_env(1)
    node = Lan(env, "page", D, "bucket.d", Heard(), LOOPBACK)
    node.open(["tcp://127.0.0.1:1000"], "http://127.0.0.1:8384/")
    watcher = AsyncZeroconf(interfaces=LOOPBACK)
    short = deviceid.format(D)[:7]
    page = await watcher.async_get_service_info(PAGE_TYPE, f"bucket-d (stnode {short}).{PAGE_TYPE}", ASK_MS)
    service = await watcher.async_get_service_info(NODE_TYPE, f"{short}.{NODE_TYPE}", ASK_MS)
    await watcher.async_close()
    await node.close()
    env.close()
    assert page is not None
    assert (page.port, page.decoded_properties["path"]) == (8384, "/")
    assert service is not None
    assert service.decoded_properties == {"store": "page", "id": deviceid.format(D)}


async def test_without_multicast_the_node_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Zeroconf:
        raise OSError(19, "No such device")

    monkeypatch.setattr(lan, "AsyncZeroconf", refuse)
    env = system_env(1)
    node = Lan(env, "s", A, "a", Heard(), LOOPBACK)
    node.open(["tcp://127.0.0.1:1000"], "")
    await asyncio.sleep(0)
    await node.close()
    env.close()
