"""What the service counts, for Prometheus: no label comes from a request."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ehrseq.serve.scoring import Counts

SIZES = (1, 2, 4, 8, 16, 32, 64)
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("ehrseq_requests", "Requests answered.", labels, registry=registry)
        self.seconds = Histogram(
            "ehrseq_request_seconds", "Time from a request to its answer.", ("route",), buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.waiting = Gauge("ehrseq_waiting", "Requests that wait for an answer.", registry=registry)
        self.batch = Histogram(
            "ehrseq_batch_requests", "Requests scored in one call.", buckets=SIZES, registry=registry
        )
        self.scored = Counter("ehrseq_patients_scored", "Patients with a forecast.", registry=registry)
        skipped = "Forecasts that were not made, by reason."
        self.skipped = Counter("ehrseq_forecasts_skipped", skipped, ("reason",), registry=registry)
        self.unseen = Counter("ehrseq_events_unseen", "Events whose code the model does not know.", registry=registry)

    def count(self, counts: Counts) -> None:
        """Add what an answer holds."""
        self.scored.inc(counts.scored)
        for reason, number in counts.skipped.items():
            self.skipped.labels(reason).inc(number)
        self.unseen.inc(counts.unseen)

    def text(self) -> bytes:
        """The metrics as Prometheus reads them."""
        return generate_latest(self.registry)
