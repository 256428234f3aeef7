"""The event log and the log of messages."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest
import structlog

from stnode import telemetry
from stnode.clock import SystemClock
from stnode.events import Event, EventLog


def test_since_filters_and_limits() -> None:
    log = EventLog(SystemClock(), capacity=3)
    for kind in ("a", "b", "a", "b"):
        log.emit(kind, value=1)
    assert [event.number for event in log.since(0)] == [2, 3, 4]
    assert [event.number for event in log.since(2, frozenset({"b"}))] == [4]
    assert [event.number for event in log.since(0, limit=1)] == [4]


async def test_wait_wakes_on_a_wanted_event_only() -> None:
    log = EventLog(SystemClock())
    waiting = asyncio.ensure_future(log.wait(0, frozenset({"wanted"})))
    await asyncio.sleep(0)
    log.emit("other")
    await asyncio.sleep(0)
    assert not waiting.done()
    log.emit("wanted", name="x")
    [event] = await waiting
    assert event.data == {"name": "x"}
    assert await log.wait(log.last_number, timeout_s=0.01) == []


def test_subscription_ends() -> None:
    log = EventLog(SystemClock())
    seen: list[Event] = []
    stop = log.subscribe(seen.append)
    log.emit("one")
    stop()
    log.emit("two")
    assert [event.kind for event in seen] == ["one"]


@pytest.mark.expects_log("something odd")
def test_warnings_reach_the_standard_log(caplog: pytest.LogCaptureFixture) -> None:
    telemetry.get_logger("stnode.test").warning("something odd", count=3)
    assert "count=3" in caplog.text


def test_configured_log_is_json_lines() -> None:
    root, config = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    try:
        telemetry.configure_logging("info", json=True, stream=out)
        telemetry.get_logger("stnode.test").info("started", port=1)
        telemetry.get_logger("stnode.test").debug("hidden")
        logging.getLogger("other").info("foreign")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.configure(**config)
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["event"], first["port"], first["logger"], first["level"]) == ("started", 1, "stnode.test", "info")
    assert second["event"] == "foreign"


def test_metrics_render() -> None:
    metrics = telemetry.Metrics()
    metrics.store_requests.labels("get", "ok").inc(2)
    assert b'stnode_store_requests_total{kind="get",outcome="ok"} 2.0' in metrics.render()
