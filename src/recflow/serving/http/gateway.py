"""The ASGI application before all calls: finds the route, lets callers in, reads within limits, answers, counts.

Whatever comes in, the answer is the route's, or problem details with the status that says whose fault it was.
"""

import random
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from recflow.console import log
from recflow.errors import RecflowError
from recflow.serving import metrics
from recflow.serving.answers import new_request_id
from recflow.serving.http.calls import perform
from recflow.serving.http.doors import Doors
from recflow.serving.http.keys import Key
from recflow.serving.http.pages import Page, Pages
from recflow.serving.http.problems import Problem, parse_json
from recflow.serving.http.reading import Gone, Receive, Scope, check_size, check_type, read_body
from recflow.serving.http.routes import Call, Route

if TYPE_CHECKING:
    from recflow.serving.http.shop import Shop

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_JSON = b"application/json"
_PROBLEM = b"application/problem+json"
_SAFE: Headers = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
_API: Headers = [
    *_SAFE,
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
_PASSED_ON = ("/livez",)  # BentoML's own
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Reply:
    """One answer on its way out, and what is counted of it."""

    name: str = "none"  # the route's
    key: Key | None = None
    status: int = 200
    kind: bytes = _JSON  # media type
    content: bytes = b""
    headers: Headers = field(default_factory=list)
    stages: Sequence[tuple[str, float, int]] = ()  # as Call.stages


class Gateway:
    """Answers all paths but BentoML's own health check, which it hands on."""

    def __init__(self, app: Application, *, open_shop: "Callable[[], AbstractAsyncContextManager[Shop]]") -> None:
        """Take what lies behind, and how the worker's shop is opened and closed."""
        self._app = app
        self._open_shop = open_shop
        self._shop: Shop
        self._doors: Doors
        self._pages: Pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the worker's whole life."""
        if scope["type"] == "http" and scope["path"] not in _PASSED_ON:
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await self._app(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            opened = self._open_shop()
            self._shop = await opened.__aenter__()
            self._doors, self._pages = Doors(self._shop), Pages(self._shop)
        except RecflowError as error:
            log.error("%s", error)
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        try:
            await self._app(scope, receive, send)
        finally:
            await opened.__aexit__(None, None, None)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        reply, request_id = Reply(), new_request_id()
        headers = dict(scope["headers"])
        try:
            await self._answer(scope, headers, receive, reply, request_id)
        except Problem as problem:
            reply.status, reply.kind = problem.status.value, _PROBLEM
            reply.content = _encode(problem.content(request_id))
            reply.headers = [*_API, *problem.headers]
        except Gone:
            return
        await self._send(send, headers, reply, request_id)
        self._note(scope, reply, time.perf_counter() - started)

    async def _answer(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, reply: Reply, request_id: str
    ) -> None:
        check_size(scope["headers"])
        shop, path, method = self._shop, scope["path"], scope["method"]
        page = self._pages.find(path)
        if page is not None:
            reply.name = page.name
            await self._answer_page(page, scope, headers, reply)
            return
        if method == "OPTIONS":
            self._doors.answer_options(shop.router.methods(path, scope["raw_path"]), headers, reply)
            return
        route, params = shop.router.find(path, scope["raw_path"], method)
        reply.name = route.name
        reply.key = self._doors.admit(route, scope, headers)
        body = None
        if route.request is not None:
            check_type(headers)
            body = parse_json(route.request, await read_body(receive, headers, shop.settings.serving))
        call = Call(body, params, reply.key, request_id, datetime.now(UTC))
        content = await perform(shop, route, call)
        reply.content, reply.headers, reply.stages = self._encoded(route, content), _API.copy(), call.stages

    async def _answer_page(self, page: Page, scope: Scope, headers: dict[bytes, bytes], reply: Reply) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise Problem(405, "This path takes GET, HEAD.", allow="GET, HEAD")
        self._doors.admit_to_page(page.scopes, scope, headers)
        found = await page.content()
        reply.status, reply.kind, reply.content = found.status, found.kind, found.content
        reply.headers = [*_SAFE, *found.headers]

    def _encoded(self, route: Route, content: dict[str, Any]) -> bytes:
        try:
            return _encode(content)
        except (TypeError, ValueError) as error:
            log.error("An answer of %s can't be written as JSON: %s", route.name, error)  # names types, no values
            raise Problem(500, "The endpoint failed; its log says where.") from error

    async def _send(self, send: Send, headers: dict[bytes, bytes], reply: Reply, request_id: str) -> None:
        lines = reply.headers
        if reply.status != HTTPStatus.NO_CONTENT:
            lines.append((b"content-type", reply.kind))
            lines.append((b"content-length", b"%d" % len(reply.content)))
        lines.append((b"x-request-id", request_id.encode()))
        if b"origin" in headers:
            lines += self._doors.cors(headers[b"origin"])
        if self._shop.is_draining:
            lines.append((b"connection", b"close"))  # kept-alive connections go elsewhere before the worker ends
        await send({"type": "http.response.start", "status": reply.status, "headers": lines})
        await send({"type": "http.response.body", "body": reply.content})

    def _note(self, scope: Scope, reply: Reply, seconds: float) -> None:
        metrics.request_count(reply.name, reply.status).inc()
        metrics.request_seconds(reply.name).observe(seconds)
        shop = self._shop
        if shop.tracer is not None:
            attributes = {"http.route": reply.name, "http.response.status_code": reply.status}
            shop.tracer.span(reply.name, scope["headers"], seconds=seconds, stages=reply.stages, attributes=attributes)
        share = shop.settings.serving.request_log_share
        if share and random.random() < share:
            key = reply.key.id if reply.key else "-"
            size = len(reply.content)
            log.info("%s %d %.1f ms %d bytes key %s", reply.name, reply.status, 1000 * seconds, size, key)
