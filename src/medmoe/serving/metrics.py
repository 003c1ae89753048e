"""Numbers for Prometheus: how many requests of what outcome, how long, and how full the engine is.

Labels are routes, methods and statuses, never anything that a client chose.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from medmoe.serving.chat_engine import ChatEngine

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The numbers of one server.

    Args:
        engine: Asked for its load when the numbers are read.
    """

    def __init__(self, engine: ChatEngine) -> None:
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
        waiting.set_function(lambda: float(engine.load().waiting + engine.load().explaining))
        running = Gauge("medmoe_running", "Requests being answered.", registry=self.registry)
        running.set_function(lambda: float(engine.load().running))
        ready = Gauge("medmoe_ready", "1 where the model answers.", registry=self.registry)
        ready.set_function(lambda: float(engine.state == "ready"))

    def text(self) -> bytes:
        """Return the numbers as Prometheus reads them."""
        return bytes(generate_latest(self.registry))
