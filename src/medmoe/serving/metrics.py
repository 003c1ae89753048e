"""Numbers for Prometheus: how many requests of what outcome, how long, and how full the engine is.

Labels are routes, methods and statuses, never anything that a client chose.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from medmoe.serving.chat_engine import ChatEngine
from medmoe.serving.monitor import Monitor

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_OF = ("domain", "quantity", "statistic")
_DRIFT = (
    ("drift", "Distance of the last whole day from the reference.", _OF),
    ("drift_alarm", "1 where that distance is an alarm.", _OF),
    ("monitor_unwritten", "1 where the watch's file cannot be written.", ()),
)


class Metrics:
    """The numbers of one server.

    Args:
        engine: Gives the one that answers, asked for its load when the numbers are read.
        monitor: Asked for what has drifted; None where that is not watched.
    """

    def __init__(self, engine: Callable[[], ChatEngine], monitor: Monitor | None = None) -> None:
        self._monitor = monitor
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "medmoe_requests", "Requests by route and status.", ("route", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "medmoe_request_seconds", "From the first byte to the last.", ("route",),
            buckets=_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "medmoe_first_token_seconds", "From the request to the first word of its answer.",
            buckets=_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.tokens = Counter(
            "medmoe_tokens", "Tokens of prompts and answers.", ("kind",), registry=self.registry
        )
        self.pictures = Counter(
            "medmoe_pictures", "Pictures by outcome of their decoding.", ("outcome",),
            registry=self.registry,
        )  # fmt: skip
        waiting = Gauge("medmoe_waiting", "Requests that wait.", registry=self.registry)
        waiting.set_function(lambda: float(engine().load().waiting + engine().load().explaining))
        running = Gauge("medmoe_running", "Requests being answered.", registry=self.registry)
        running.set_function(lambda: float(engine().load().running))
        ready = Gauge("medmoe_ready", "1 where the model answers.", registry=self.registry)
        ready.set_function(lambda: float(engine().state == "ready"))
        if monitor is not None:
            self._drift, self._alarm, unwritten = (
                Gauge(f"medmoe_{name}", what, labels, registry=self.registry)
                for name, what, labels in _DRIFT
            )
            unwritten.set_function(lambda: float(monitor.unwritten))

    def text(self) -> bytes:
        """Return the numbers as Prometheus reads them."""
        if self._monitor is not None and (verdict := self._monitor.verdict):
            self._drift.clear()
            self._alarm.clear()
            for one in verdict.compared:
                for name, value in one.statistics.items():
                    labels = one.domain, one.quantity, name
                    self._drift.labels(*labels).set(value)
                    self._alarm.labels(*labels).set(name in one.alarms)
        return bytes(generate_latest(self.registry))
