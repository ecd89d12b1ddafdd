"""The routes of the service."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from anyio import to_thread
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ehrseq import __version__
from ehrseq.errors import UserError
from ehrseq.estimator import ProgressionModel
from ehrseq.serve import hooks, openapi
from ehrseq.serve.answer import Ask
from ehrseq.serve.bounds import Held, check_shape, check_type, read_body
from ehrseq.serve.engine import Engine
from ehrseq.serve.facts import model_facts
from ehrseq.serve.guard import Guard
from ehrseq.serve.metrics import Metrics
from ehrseq.serve.problems import FHIR_JSON, Problem
from ehrseq.serve.scoring import Here, Scorer
from ehrseq.serve.settings import Settings
from ehrseq.timeline.schema import as_instant

PAGE = Path(__file__).with_name("page.html")
JSON = "application/json"
HUNG_UP = 499  # no status of HTTP, but what logs call it
LOG = logging.getLogger("ehrseq.serve")
Include = Literal["why", "curves", "timeline"]


def make_app(
    model: ProgressionModel, settings: Settings | None = None, card: str | None = None,
    scorers: Sequence[Scorer] = (),
) -> Guard:  # fmt: skip
    """The service of a model, with its card, as an ASGI application.

    `scorers` answer with that model; where there are none, a thread of this process does.

    Raises UserError where the access log cannot be written, and for a model that forecasts nothing.
    """
    settings = settings or Settings()
    metrics = Metrics()
    engine = Engine(scorers or [Here(model)], settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        """Start the scorers with the application, and end them with it."""
        await engine.start()
        yield
        await engine.stop()

    app = FastAPI(
        title="ehrseq", version=__version__, description=openapi.DESCRIPTION, openapi_url=None,
        lifespan=lifespan, redirect_slashes=False,
    )  # fmt: skip
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)
    _add_facts(app, engine, metrics, model_facts(model, card))
    _add_answers(app, engine)
    return Guard(app, settings, metrics)


def _add_answers(app: FastAPI, engine: Engine) -> None:
    """The routes that answer with forecasts."""
    settings = engine.settings
    held = Held(settings.held_bytes)

    async def answered(request: Request, make: Callable[[bytes], Ask]) -> bytes:
        """Read the body and have it answered; its room is given back in the end."""
        headers = request.headers
        check_type(headers.get("content-type"))
        engine.check()  # before anything is read
        with ExitStack() as stack:
            take = stack.enter_context(held.room())
            body = await read_body(
                request.stream(), headers.get("content-encoding"), headers.get("content-length"), settings, take
            )
            # what takes a while for a large body does not hold up the others
            await to_thread.run_sync(check_shape, body, settings)
            ask = await to_thread.run_sync(make, body)
            give_back = stack.pop_all().close
        return await engine.ask(ask, give_back)

    @app.post("/forecast", **openapi.FORECAST)
    async def forecast(
        request: Request,
        at: Annotated[str | None, Query(description=openapi.AT, max_length=40)] = None,
        include: Annotated[list[Include] | None, Query(description=openapi.INCLUDE)] = None,
        format: Annotated[Literal["json", "fhir"] | None, Query(description=openapi.FORMAT)] = None,
    ) -> Response:
        moment = _moment(at)
        fhir = format == "fhir" if format else _wants_fhir(request.headers.get("accept"))
        wanted = frozenset(include or ())

        def make(body: bytes) -> Ask:
            patients = settings.patients if _is_list(body) else 1
            return Ask(body, moment, wanted, patients, live=at == "now", form="fhir" if fhir else "json")

        return Response(await answered(request, make), media_type=FHIR_JSON if fhir else JSON)

    @app.get("/cds-services", **openapi.DISCOVERY)
    async def discovery() -> Response:
        return Response(msgspec.json.encode(hooks.services()), media_type=JSON)

    @app.post("/cds-services/{service}", **openapi.HOOK)
    async def hook(request: Request, service: str) -> Response:
        if service != hooks.SERVICE:
            raise Problem(404, "expected a service that discovery names; found another")

        content = await answered(request, lambda body: hooks.read_hook(body, _now()))
        return Response(content, media_type=JSON)


def _add_facts(app: FastAPI, engine: Engine, metrics: Metrics, told: dict[str, Any]) -> None:
    """The routes that tell of the service itself."""
    facts = msgspec.json.encode(told)
    page = PAGE.read_bytes()
    policy = page_policy(page.decode())

    @app.get("/model", **openapi.MODEL)
    async def model() -> Response:
        return Response(facts, media_type=JSON)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", **openapi.HEALTH)
    async def health() -> Response:
        return Response(b'{"status":"alive"}', media_type=JSON)

    @app.get("/ready", **openapi.READY)
    async def ready() -> Response:
        if not engine.ready:
            raise Problem(503, "the model is not ready yet; ask again", {"Retry-After": "1"})
        return Response(b'{"status":"ready"}', media_type=JSON)

    @app.get("/openapi.json", include_in_schema=False)
    async def described() -> dict[str, Any]:
        return app.openapi()

    @app.get("/metrics", include_in_schema=False)
    async def counted() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def look() -> Response:
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy})


def page_policy(page: str) -> str:
    """What the page may do: run its own script and style, known by their hashes, and ask this service."""
    hashes = {
        tag: base64.b64encode(hashlib.sha256(re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)[0].encode()).digest())
        for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script'].decode()}'; "
        f"style-src 'sha256-{hashes['style'].decode()}'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _moment(at: str | None) -> datetime | None:
    if at is None:
        return None
    if at == "now":
        return _now()
    try:
        moment = as_instant(at)
    except (UserError, OverflowError):  # at the ends of the calendar a zone leads out of it
        raise Problem(422, "expected `at` as a date, a time or now; found another text") from None
    if moment > _now() + timedelta(days=1):
        raise Problem(422, "expected `at` up to today; found a later time: nothing is on record from then")
    return moment


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def _is_list(body: bytes) -> bool:
    return body.lstrip(b" \t\r\n\xef\xbb\xbf")[:1] == b"["


def _wants_fhir(accept: str | None) -> bool:
    """Whether FHIR is named among the types that are accepted, and JSON is not.

    >>> _wants_fhir("application/fhir+json"), _wants_fhir("application/json, application/fhir+json"), _wants_fhir(None)
    (True, False, False)
    """
    kinds = {kind.partition(";")[0].strip().lower() for kind in (accept or "").split(",")}
    return FHIR_JSON in kinds and JSON not in kinds


async def _problem(_: Request, problem: Any) -> Response:
    return Response(problem.body(), problem.status, problem.headers, FHIR_JSON)


async def _gone(_: Request, __: Any) -> Response:
    """Who hung up gets no answer; the access log says so."""
    LOG.info("a caller hung up before the whole request came")
    return Response(status_code=HUNG_UP)


async def _unexpected(request: Request, _: Any) -> Response:
    # the guard, to which the error goes on, logs its type
    return await _problem(request, Problem(500, "the service met an unexpected condition; report what was asked"))


async def _http_problem(request: Request, error: Any) -> Response:
    told = {404: "expected a path of this service; found another", 405: "expected another method for this path"}
    text = told.get(error.status_code, "the request cannot be answered")
    return await _problem(request, Problem(error.status_code, text, error.headers))


async def _invalid(request: Request, error: Any) -> Response:
    """Which parameters are wrong; what they are is not said again."""
    names = sorted({str(e["loc"][1]) for e in error.errors() if len(e["loc"]) > 1} & openapi.PARAMETERS)
    return await _problem(request, Problem(422, f"expected other values of: {', '.join(names) or 'the parameters'}"))
