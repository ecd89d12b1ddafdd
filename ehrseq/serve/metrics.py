"""What the service counts, for Prometheus: no label comes from a request."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ehrseq.serve.answer import Reply

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        named = {"namespace": "ehrseq", "registry": self.registry}
        labels = ("method", "route", "status")
        self.requests = Counter("requests", "Requests answered.", labels, **named)
        self.seconds = Histogram(
            "request_seconds", "Time from a request to its answer.", ("route",), buckets=SECONDS, **named
        )
        self.waiting = Gauge("waiting", "Requests that wait for an answer.", **named)
        self.batch = Histogram(
            "batch_requests", "Requests scored in one call.", buckets=(1, 2, 4, 8, 16, 32, 64), **named
        )
        self.scored = Counter("patients_scored", "Patients with a forecast.", **named)
        self.skipped = Counter("forecasts_skipped", "Forecasts that were not made, by reason.", ("reason",), **named)
        self.unseen = Counter("events_unseen", "Events whose code the model does not know.", **named)

    def count(self, reply: Reply) -> None:
        """Count what a reply holds."""
        self.scored.inc(reply.forecast.risk["subject_id"].n_unique())
        for reason, number in reply.forecast.skipped["reason"].value_counts().iter_rows():
            self.skipped.labels(reason).inc(number)
        self.unseen.inc(int(reply.unseen["events"].sum()))

    def text(self) -> bytes:
        """The metrics as Prometheus reads them."""
        return generate_latest(self.registry)
