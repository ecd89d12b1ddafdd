"""What every request passes before its route and after it: hosts, rates, tokens, headers, the access log, errors."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from ehrseq.errors import UserError
from ehrseq.serve.bounds import Rates
from ehrseq.serve.metrics import Metrics
from ehrseq.serve.problems import FHIR_JSON, Problem
from ehrseq.serve.settings import Settings

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOG = logging.getLogger("ehrseq.serve")
OPEN_ROUTES = ("/health", "/ready")  # for whoever watches over the service
PAGE_ROUTES = ("/",)  # holds nothing: whoever opens it gives the token there
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
NO_ROUTE = "(no route)"
HEADERS = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
}


class Guard:
    """The outermost layer of the service."""

    def __init__(self, app: App, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.rates = Rates(settings.rate)
        self.log = open_log(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; what goes wrong is answered with an OperationOutcome."""
        if scope["type"] == "lifespan":
            try:
                await self.app(scope, receive, send)
            finally:
                if self.log is not sys.stderr:
                    self.log.close()
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        begun, status = time.perf_counter(), 0

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name.lower() for name, _ in message.get("headers", ())}
                more = [(name, value) for name, value in HEADERS.items() if name not in present]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        try:
            scope["caller"] = self._check(scope)
            await self.app(scope, receive, guarded)
        except Problem as problem:
            await refuse(problem, guarded)
        except asyncio.CancelledError:  # the service stops while somebody waits
            if not status:
                await refuse(Problem(503, "the service stops; ask again", {"Retry-After": "1"}), guarded)
        except Exception as error:
            LOG.error("an unexpected %s in a route", type(error).__name__)
            if not status:
                await refuse(Problem(500, "the service met an unexpected condition"), guarded)
        finally:
            self._record(scope, status, time.perf_counter() - begun)

    def _check(self, scope: Scope) -> str:
        """Who asks, as a word for the log. Raises Problem for whoever may not, or asks too often."""
        if scope["path"] in OPEN_ROUTES:  # whoever watches knows no name of the service
            return ""
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in (b"host", b"authorization") and name in headers:
                raise Problem(400, "expected one header of a kind; found two")
            headers[name] = value
        host = host_name(headers.get(b"host", b"").decode("latin-1"))
        if self.settings.hosts and host not in self.settings.hosts:
            raise Problem(421, "expected a host name of this service; found another; see --allowed-host")
        client = scope.get("client") or ("", 0)
        self.rates.check(f"address {client[0]}")
        if scope["path"] in PAGE_ROUTES:
            return ""
        authorization = headers.get(b"authorization")
        credentials = self.settings.credentials
        caller = credentials.check(None if authorization is None else authorization.decode("latin-1"))
        if caller:  # behind a proxy all share an address, and one caller may have several
            self.rates.check(f"caller {caller}")
        known = {"token", *(f"issuer {issuer}" for issuer in credentials.issuers)}
        return caller if caller in known else "signed" if caller else ""

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """One line, of which nothing comes from the request but its method, the template of its route, and who asks.

        That is `token` or an issuer of the settings; never what a token holds.
        """
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        self.metrics.requests.labels(method, route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "method": method, "route": route,
            "status": status, "ms": round(1000 * seconds, 1), "caller": scope.get("caller", ""),
        }  # fmt: skip
        self.log.write(msgspec.json.encode(line).decode() + "\n")
        self.log.flush()


def host_name(host: str) -> str:
    """A host without its port.

    >>> host_name("localhost:8000"), host_name("[::1]:8000"), host_name("Example.org")
    ('localhost', '::1', 'example.org')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


async def refuse(problem: Problem, send: Send) -> None:
    """Send an OperationOutcome."""
    body = problem.body()
    headers = {"content-type": FHIR_JSON, "content-length": str(len(body)), **problem.headers}
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def open_log(settings: Settings) -> TextIO:
    """The access log, which is only ever added to, and which only its owner reads. Raises UserError."""
    if settings.access_log is None:
        return sys.stderr
    try:
        opened = os.open(settings.access_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        found = f"one that cannot be opened ({type(error).__name__})"
        raise UserError("a file for the access log", found, "check its path and permissions") from None
    return os.fdopen(opened, "a", encoding="utf-8")
