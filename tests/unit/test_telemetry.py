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


def test_metrics_render() -> None:
    metrics = telemetry.Metrics()
    metrics.store_requests.labels("get", "ok").inc(2)
    assert b'stnode_store_requests_total{kind="get",outcome="ok"} 2.0' in metrics.render()
