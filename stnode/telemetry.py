"""Log messages and metrics: the one door to structlog and prometheus-client.

Messages go through the standard library's logging, so that other packages' messages and ours end in one stream.
Rules: an event name in words, values as keywords, one line per batch and never one per block or small file.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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


@dataclass(frozen=True, slots=True)
class Family:
    """A metric whose values are read when they are asked for: `samples` has a value for the values of `labels`. A counter's name is
    shown with `_total` behind it."""

    name: str
    help: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    samples: Mapping[tuple[str, ...], float]


class Metrics:
    """What is counted as it happens, and the rendering of all there is. One object per node, handed to those who count; cheap enough per
    request, not per block. Label values are few and fixed."""

    def __init__(self) -> None:
        self._registry = r = CollectorRegistry()
        self.dials = Counter("stnode_dials", "Attempts to connect to devices.", ["outcome"], registry=r)
        self.hints = Counter("stnode_hints", "Hints of new commits to and from siblings.", ["direction"], registry=r)
        self._store_requests = Counter("stnode_store_requests", "Object store requests.", ["kind", "outcome"], registry=r)
        self._store_bytes = Counter("stnode_store_bytes", "Bytes of object bodies moved.", ["direction"], registry=r)
        self._store_seconds = Histogram(
            "stnode_store_seconds", "Time of object store requests.", ["kind"], registry=r, buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60)
        )

    def store_request(self, kind: str, outcome: str, seconds: float, bytes_in: int, bytes_out: int) -> None:
        """Counts one request to the object store."""
        self._store_requests.labels(kind, outcome).inc()
        self._store_seconds.labels(kind).observe(seconds)
        self._store_bytes.labels("in").inc(bytes_in)
        self._store_bytes.labels("out").inc(bytes_out)

    def render(self, families: Sequence[Family] = ()) -> bytes:
        """All of it in the Prometheus text format (`CONTENT_TYPE`)."""
        read = CollectorRegistry()
        read.register(_Read(families))
        return generate_latest(self._registry) + generate_latest(read)


class _Read(Collector):
    """Values that were read, as the library wants them."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = make(family.name, family.help, labels=family.labels)
            for labels, value in family.samples.items():
                metric.add_metric(labels, value)
            yield metric
