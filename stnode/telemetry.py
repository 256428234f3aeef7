"""Log messages and metrics: the one door to structlog and prometheus-client.

Messages go through the standard library's logging, so that other packages' messages and ours end in one stream.
Rules: an event name in words, values as keywords, one line per batch and never one per block or small file.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

Logger = structlog.stdlib.BoundLogger
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
]


def get_logger(name: str) -> Logger:
    """The logger of a module: `log = get_logger(__name__)`. May be called before `configure_logging`."""
    return structlog.stdlib.get_logger(name)


def configure_logging(level: str = "info", *, json: bool = False, stream: TextIO | None = None) -> None:
    """Sends all messages of at least `level` to `stream` (default: stderr), one line each; called once by the process's entry point."""
    out = stream if stream is not None else sys.stderr
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=out.isatty(), pad_event_to=0)
    )
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, stamp],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.format_exc_info, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("botocore", "aiobotocore", "aioboto3", "aiohttp.access", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    _configure_structlog([stamp, structlog.stdlib.ProcessorFormatter.wrap_for_formatter])


def _configure_structlog(last: list[structlog.typing.Processor]) -> None:
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *_SHARED, structlog.stdlib.PositionalArgumentsFormatter(), *last],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


# Until the entry point configures more, messages go to the standard library's logging as `event key=value`.
_configure_structlog([structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer(key_order=["event"])])


class Metrics:
    """The node's counters and gauges. One object per node, handed to those who count; cheap enough per batch, not per block.

    Use `metrics.store_requests.labels("get", "ok").inc()` and the like; label values are few and fixed.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.store_requests = Counter("stnode_store_requests", "Object store requests.", ["kind", "outcome"], registry=r)
        self.store_bytes = Counter("stnode_store_bytes", "Bytes of object bodies moved.", ["direction"], registry=r)
        self.store_seconds = Histogram(
            "stnode_store_seconds", "Time of object store requests.", ["kind"], registry=r, buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60)
        )
        self.net_bytes = Counter("stnode_net_bytes", "Bytes moved to and from devices, after TLS.", ["direction"], registry=r)
        self.connections = Gauge("stnode_connections", "Devices connected now.", registry=r)
        self.connection_attempts = Counter("stnode_connection_attempts", "Dials and accepted links.", ["way", "outcome"], registry=r)
        self.folder_files = Gauge("stnode_folder_files", "Live files of a folder.", ["folder"], registry=r)
        self.folder_bytes = Gauge("stnode_folder_bytes", "Live bytes of a folder.", ["folder"], registry=r)
        self.folder_need_files = Gauge("stnode_folder_need_files", "Files a folder still needs.", ["folder"], registry=r)
        self.folder_need_bytes = Gauge("stnode_folder_need_bytes", "Bytes a folder still needs.", ["folder"], registry=r)
        self.pulled_bytes = Counter("stnode_pulled_bytes", "Verified bytes received from devices.", ["folder"], registry=r)
        self.served_bytes = Counter("stnode_served_bytes", "Bytes served to devices.", ["folder"], registry=r)
        self.commits = Counter("stnode_commits", "Commit attempts of this node.", ["outcome"], registry=r)
        self.head = Gauge("stnode_journal_head", "Number of the newest commit applied here.", registry=r)

    def render(self) -> bytes:
        """All of it in the Prometheus text format (`CONTENT_TYPE`)."""
        return generate_latest(self.registry)
