"""What the service allows, and who may ask."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from ehrseq.errors import UserError
from ehrseq.serve.credentials import Credentials

MEBIBYTE = 1 << 20
MOST_WORKERS = 4  # unless more are asked for


def one_a_core() -> int:
    """Processes that score where nothing is said."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores)


@dataclass(frozen=True)
class Settings:
    """How the service runs. The defaults suit one machine and records of some megabytes."""

    host: str = "127.0.0.1"
    port: int = 8000
    credentials: Credentials = field(default_factory=Credentials)
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the service may be asked, without port. None: on a loopback address its own names, else any."""
    access_log: Path | None = None
    """The file that access is logged to, a line each; None: standard error."""
    body_bytes: int = 8 * MEBIBYTE
    """The size of one request, unpacked."""
    held_bytes: int = 128 * MEBIBYTE
    """The bodies of all requests that are waiting, together."""
    depth: int = 64
    """Brackets within brackets of a document; FHIR needs about 30."""
    records: int = 50_000
    """Records of one request: items of a list, entries of a Bundle."""
    patients: int = 100
    """Patients of one request."""
    rate: float = 600.0
    """Requests a minute from one caller (a tenth of it at once); 0: any number."""
    waiting: int = 64
    """Requests that wait for an answer."""
    body_seconds: float = 10.0
    answer_seconds: float = 30.0
    """How long an answer may take; a worker that takes longer is ended."""
    batch: int = 16
    """Requests that are scored in one call."""
    batch_seconds: float = 0.03
    """How long one of them alone waits for a second, or for a worker to be done, while all but one are at work."""
    threads: int = 1
    """Threads of the network's arithmetic, of each worker."""
    workers: int = field(default_factory=one_a_core)
    """Processes that score, of some 0.4 GB each beside the one that is asked."""

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.credentials:
            raise UserError(
                "a token file or a key set where others can reach the service", "neither, and another host than "
                "this machine", "give --token-file, or --jwks and --audience; or leave --host out",
            )  # fmt: skip
        least = min(self.body_bytes, self.held_bytes, self.depth - 3, self.records, self.patients, self.waiting)
        if min(least, self.batch, self.workers) < 1:
            raise UserError("limits above 0, and a depth above 3", "less", "raise them")

    @property
    def hosts(self) -> frozenset[str]:
        """The names under which the service may be asked; none: any."""
        own = ("localhost", "127.0.0.1", "::1", self.host.lower()) if is_loopback(self.host) else ()
        return frozenset(self.allowed_hosts or own)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
