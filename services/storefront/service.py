"""The storefront endpoint: routes, readiness, lifecycle. What an answer is made of lies in `recflow.serving`.

The routes are a Starlette application mounted into the BentoML service: half the latency of `@bentoml.api`, and
errors with bodies of our own (RFC 9457). Metrics are our own too: BentoML's take the path as a label, and paths are
what callers make up.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http import HTTPStatus
from types import FrameType
from typing import Any, TypeVar

import bentoml
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from recflow.console import log, quiet_third_parties, show_log
from recflow.serving import metrics
from recflow.serving.bundle import Bundle
from recflow.serving.feedback import EventLog, field_path, judge_events
from recflow.serving.online import OnlineStore, Stored
from recflow.serving.recommend import Recommender, UnknownItem
from recflow.serving.slot import ModelSlot
from recflow.serving.types import EventsAnswer, EventsRequest, RecommendRequest, SimilarRequest, new_request_id
from recflow.settings import Settings, load_settings

_JSON = b"application/json"
_PROBLEM = b"application/problem+json"

Model = TypeVar("Model", bound=BaseModel)


class Problem(Exception):
    """An answer that is an error: status, a sentence, and the fields that it is about."""

    def __init__(self, status: int, detail: str, *, errors: list[dict[str, str]] | None = None, **headers: str) -> None:
        """Name the status and say what is wrong; `headers` go with the answer."""
        super().__init__(detail)
        self.status, self.detail, self.errors = HTTPStatus(status), detail, errors or []
        self.headers = headers

    def body(self) -> bytes:
        """Return the problem details (RFC 9457)."""
        content: dict[str, Any] = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
        }
        if self.errors:
            content["errors"] = self.errors
        return json.dumps(content).encode()  # ASCII: callers' own characters can't break it


class Shop:
    """All that the routes share in one worker."""

    def __init__(self, settings: Settings) -> None:
        """Open the feedback folder; model and online store follow in the background."""
        from recflow.featurestore import materialized_through, open_reader
        from recflow.registry.versions import champion, champion_version

        self.settings = settings
        self.event_log = EventLog(settings)
        self.store = OnlineStore(
            lambda: open_reader(settings),
            retry_seconds=settings.serving.store_retry_seconds,
            materialized_through=lambda: materialized_through(settings),
        )
        self.slot = ModelSlot(
            champion_version=lambda: champion_version(settings),
            champion=lambda: champion(settings),
            recommender=self._recommender,
        )
        # One thread each: the store has one connection, the log one writer, and neither holds up the other.
        self.reading = ThreadPoolExecutor(1, "read")
        self.writing = ThreadPoolExecutor(1, "write")
        self.watching = ThreadPoolExecutor(1, "watch")
        self.is_warm = False
        self.is_draining = False

    @property
    def is_ready(self) -> bool:
        """Return whether a version is loaded and the worker isn't on its way out."""
        return self.slot.current is not None and self.is_warm and not self.is_draining

    def recommender(self) -> Recommender:
        """Return the version in force.

        Raises:
            Problem: 503, there is none yet.
        """
        if self.slot.current is None:
            raise Problem(503, "No model is loaded yet: publish one, or wait until it is.", retry_after="1")
        return self.slot.current

    async def watch(self) -> None:
        """Follow the champion alias and other workers' events until cancelled."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.reading, self._warm_up)
        parent = os.getppid()
        while True:
            if os.getppid() != parent and not self.is_draining:
                log.error("The process that started this worker is gone; the worker ends, too.")
                os.kill(os.getpid(), signal.SIGTERM)
            try:
                await loop.run_in_executor(self.watching, self.slot.refresh)
                await loop.run_in_executor(self.writing, self.event_log.follow)
                await loop.run_in_executor(self.watching, self.store.follow)
                metrics.READY.set(self.is_ready)
            except Exception:  # the watcher outlives whatever it meets
                log.exception("The watcher failed; it goes on.")
            await asyncio.sleep(self.settings.serving.poll_seconds)

    def _warm_up(self) -> None:
        self.store.follow()
        self.store.read("")  # opens it: the imports behind it take seconds
        self.is_warm = True

    def _recommender(self, bundle: Bundle, version: str) -> Recommender:
        return Recommender(bundle, self.settings, version=version, store=self.store, event_log=self.event_log)


# -- routes


async def recommend(shop: Shop, body: bytes) -> BaseModel:
    """Recommend items to one shopper."""
    request = _parse(RecommendRequest, body)
    recommender = shop.recommender()
    stored = Stored()
    if request.user_id is not None and shop.store.is_away:
        stored = shop.store.read(request.user_id)
    elif request.user_id is not None:
        loop, budget = asyncio.get_running_loop(), shop.settings.serving.store_budget_ms / 1000
        try:
            stored = await asyncio.wait_for(loop.run_in_executor(shop.reading, recommender.read, request), budget)
        except TimeoutError:
            shop.store.leave_alone(f"no answer within {budget:g} s")
            stored = Stored(failure="the online store is too slow")
    answer = recommender.answer(request, stored)
    if answer.fallback:
        metrics.FALLBACKS.labels(answer.fallback.kind).inc()
    return answer


async def similar(shop: Shop, body: bytes) -> BaseModel:
    """Name items like one item."""
    request = _parse(SimilarRequest, body)
    try:
        return shop.recommender().similar(request)
    except UnknownItem as error:
        raise Problem(
            404, "The catalogue has no item of that item_id.", errors=[_field("item_id", "unknown")]
        ) from error


async def events(shop: Shop, body: bytes) -> BaseModel:
    """Take events; what is answered for is on disk."""
    request = _parse(EventsRequest, body)
    rows, rejected = judge_events(
        request.events, now=datetime.now(UTC), max_future_seconds=shop.settings.serving.max_future_seconds
    )
    metrics.EVENTS.labels("rejected").inc(len(rejected))
    if not rows:
        errors = [
            _field(f"events.{event.index}{'.' if error['path'] else ''}{error['path']}", error["message"])
            for event in rejected
            for error in event.errors
        ]
        raise Problem(422, f"None of the {len(rejected)} events can be taken.", errors=errors[:100])
    if shop.slot.current is not None:
        for row in rows:
            if "item_id" in row:
                row["item_id"] = shop.slot.current.resolve(row["item_id"])
    try:
        appended = await asyncio.get_running_loop().run_in_executor(shop.writing, shop.event_log.append, rows)
    except OSError as error:
        log.error("Events can't be kept: %s", error.strerror)
        raise Problem(
            503, "The events can't be kept just now; none was taken. Send them again.", retry_after="5"
        ) from error
    metrics.EVENTS.labels("accepted").inc(appended.accepted)
    metrics.EVENTS.labels("duplicate").inc(appended.duplicates)
    return EventsAnswer(
        request_id=new_request_id(), accepted=appended.accepted, duplicates=appended.duplicates, rejected=rejected
    )


async def model(shop: Shop, body: bytes) -> BaseModel:
    """Say which version answers."""
    return shop.recommender().describe()


def _parse(shape: type[Model], body: bytes) -> Model:
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        raise Problem(400, f"The body is no JSON: {details[0]['msg']}.")
    errors = [_field(field_path(detail["loc"]), detail["msg"]) for detail in details[:100]]
    raise Problem(422, f"{len(details)} of the fields can't be taken.", errors=errors)


def _field(path: str, message: str) -> dict[str, str]:
    return {"path": path, "message": message.encode("ascii", "backslashreplace").decode("ascii")[:256]}


# -- HTTP


Answering = Callable[[Shop, bytes], Awaitable[BaseModel]]


class Endpoint:
    """One route: reads the body within its limit, answers, counts; whatever goes wrong becomes problem details."""

    def __init__(self, method: str, answer: Answering) -> None:
        """Take the one method that the route has, and what answers it."""
        self.method, self._answer, self.name = method, answer, answer.__name__

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        shop: Shop = scope["app"].state.shop
        started = time.perf_counter()
        headers: dict[str, str] = {}
        try:
            if scope["method"] != self.method:
                raise Problem(405, f"This route takes {self.method}, not {scope['method']}.", allow=self.method)
            body = await _read(scope, receive, shop.settings.serving.max_body_bytes)
            content, status, kind = (await self._answer(shop, body)).model_dump_json().encode(), HTTPStatus.OK, _JSON
        except Problem as problem:
            content, status, kind, headers = problem.body(), problem.status, _PROBLEM, problem.headers
        except _Gone:
            return
        except Exception:
            log.exception("%s failed.", self.name)  # without the body: it is people's
            problem = Problem(500, "The endpoint failed; its log says why.")
            content, status, kind = problem.body(), problem.status, _PROBLEM
        await _send(send, shop, status, kind, content, headers)
        metrics.REQUESTS.labels(self.name, status.value).inc()
        metrics.SECONDS.labels(self.name).observe(time.perf_counter() - started)


class Metrics:
    """The Prometheus page, summed over the workers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        from bentoml._internal.configuration.containers import BentoMLContainer  # the one that knows the workers' files

        page = BentoMLContainer.metrics_client.get()
        kind = page.CONTENT_TYPE_LATEST.encode()
        await _send(send, scope["app"].state.shop, HTTPStatus.OK, kind, page.generate_latest(), {})


async def none(shop: Shop, body: bytes) -> BaseModel:
    """Say that there is no such route."""
    raise Problem(404, "There is no such route; those of the API start with /v1/.")


class NoRoute(Endpoint):
    """All other paths, by any method."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self.method = scope["method"]
        await super().__call__(scope, receive, send)


class _Gone(Exception):
    """The caller left before the request was whole."""


async def _read(scope: Scope, receive: Receive, limit: int) -> bytes:
    too_large = Problem(413, f"The body is larger than {limit} bytes; send it in parts.", connection="close")
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    if not announced.isdigit() or int(announced[:19]) > limit:
        raise too_large
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise too_large
        if not message.get("more_body"):
            return b"".join(parts)


async def _send(
    send: Send, shop: Shop, status: HTTPStatus, kind: bytes, content: bytes, headers: dict[str, str]
) -> None:
    lines = [(b"content-type", kind), (b"content-length", str(len(content)).encode())]
    lines += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    if shop.is_draining and "connection" not in headers:
        lines.append((b"connection", b"close"))  # kept-alive connections go elsewhere before the worker ends
    await send({"type": "http.response.start", "status": status.value, "headers": lines})
    await send({"type": "http.response.body", "body": content})


# -- lifecycle


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Open the shop when the worker starts; when it is told to end, turn callers away first."""
    quiet_third_parties()
    show_log()
    shop = app.state.shop = Shop(load_settings())
    _drain_on_sigterm(shop)
    watcher = asyncio.create_task(shop.watch())
    try:
        yield
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        shop.writing.shutdown()  # what is being written is finished


def _drain_on_sigterm(shop: Shop) -> None:
    """Put a pause before the server's own handler: not ready, every answer closes its connection, then it stops.

    Without it the requests that are on their way over kept-alive connections are dropped.
    """
    stop = signal.getsignal(signal.SIGTERM)
    loop = asyncio.get_running_loop()

    def drain() -> None:
        if shop.is_draining:
            return
        shop.is_draining = True
        metrics.READY.set(0)
        log.info("Draining for %g s.", shop.settings.serving.drain_seconds)
        if callable(stop):
            loop.call_later(shop.settings.serving.drain_seconds, stop, signal.SIGTERM, None)

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(drain)

    signal.signal(signal.SIGTERM, on_signal)


app = Starlette(
    routes=[
        Route("/v1/recommend", Endpoint("POST", recommend)),
        Route("/v1/similar", Endpoint("POST", similar)),
        Route("/v1/events", Endpoint("POST", events)),
        Route("/v1/model", Endpoint("GET", model)),
        Route("/metrics", Metrics()),
        Route("/{path:path}", NoRoute("GET", none)),
    ],
    lifespan=lifespan,
)


@bentoml.service(
    name="storefront",
    workers=load_settings().serving.workers,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(app, path="/")
class Storefront:
    """Recommendations of the champion, over HTTP. BentoML serves `/livez` and `/readyz`."""

    async def __is_ready__(self) -> bool:
        """Return whether this worker answers: a version is loaded and the worker isn't on its way out."""
        return app.state.shop.is_ready
