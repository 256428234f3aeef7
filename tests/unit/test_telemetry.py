"""The log of messages, and metrics."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from stnode import telemetry


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


def test_metrics_counted_and_read() -> None:
    metrics = telemetry.Metrics()
    metrics.store_request("get", "ok", 0.03, 100, 0)
    metrics.store_request("get", "ok", 3, 50, 0)
    metrics.store_request("put", "Unavailable", 0.03, 0, 7)
    metrics.dials.labels("ok").inc()
    head = telemetry.Family("stnode_head", "The head.", "gauge", (), {(): 7})
    served = telemetry.Family("stnode_served", "Served.", "counter", ("folder",), {('a"b',): 5, ("c",): 0})
    lines = metrics.render([head, served]).decode().splitlines()
    assert {
        'stnode_store_requests_total{kind="get",outcome="ok"} 2.0',
        'stnode_store_requests_total{kind="put",outcome="Unavailable"} 1.0',
        'stnode_store_bytes_total{direction="in"} 150.0',
        'stnode_store_bytes_total{direction="out"} 7.0',
        'stnode_store_seconds_bucket{kind="get",le="0.1"} 1.0',
        'stnode_dials_total{outcome="ok"} 1.0',
        "stnode_head 7.0",
        'stnode_served_total{folder="a\\"b"} 5.0',
        'stnode_served_total{folder="c"} 0.0',
    } <= set(lines)
