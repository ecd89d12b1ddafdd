"""What a request is refused with: always an OperationOutcome, in words that hold nothing of the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

# the codes of http://hl7.org/fhir/issue-type that fit each status
ISSUE = {
    400: "structure", 401: "login", 403: "forbidden", 404: "not-found", 405: "not-supported", 406: "not-supported",
    408: "timeout", 409: "conflict", 412: "required", 413: "too-long", 415: "not-supported", 421: "security",
    422: "invalid", 429: "throttled", 500: "exception", 503: "transient",
}  # fmt: skip
FHIR_JSON = "application/fhir+json"


class Problem(Exception):
    """A request that is not answered as asked: a status, one line for the caller, and headers."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, dict(headers or {})

    def body(self) -> bytes:
        """The OperationOutcome."""
        return msgspec.json.encode(operation_outcome(self.status, self.text))


class NoForecast(Problem):
    """Records that were read and of which nothing can be forecast."""


def operation_outcome(status: int, text: str) -> dict[str, Any]:
    """An OperationOutcome of one issue.

    >>> operation_outcome(413, "too much")["issue"]
    [{'severity': 'error', 'code': 'too-long', 'diagnostics': 'too much'}]
    """
    code = ISSUE.get(status, "processing")
    return {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": "fatal" if status >= 500 else "error", "code": code, "diagnostics": text}],
    }
