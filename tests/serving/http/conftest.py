"""A worker's gateway over a table of small calls, asked in process: what is tested is what stands before any call."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx
import pytest
from pydantic import Field
from typing_extensions import TypedDict

from recflow.serving.http.calls import batch
from recflow.serving.http.gateway import Gateway
from recflow.serving.http.problems import Problem
from recflow.serving.http.routes import Call, Route
from recflow.serving.http.shop import Registry, Shop
from recflow.serving.http.table import table
from recflow.serving.requests import BatchRequest, Strict
from recflow.settings import Settings, load_settings
from tests.serving.conftest import Built

URL = "http://127.0.0.1:3000"


class Number(Strict):
    """A request."""

    number: int = Field(ge=0)
    name: str = "nobody"


class Doubled(TypedDict):
    """An answer."""

    request_id: str
    doubled: int


async def double(shop: Shop, call: Call) -> Any:
    return {"doubled": 2 * call.body.number, "name": call.body.name}


async def fail(shop: Shop, call: Call) -> Any:
    raise KeyError(call.body.name)


async def refuse(shop: Shop, call: Call) -> Any:
    raise Problem(503, "Away.", retry_after="7")


async def named(shop: Shop, call: Call) -> Any:
    return {"item_id": call.params["item_id"]}


async def unwritable(shop: Shop, call: Call) -> Any:
    return {"set": object()}


def route(name: str, handler: Any, **changes: Any) -> Route:
    entry: dict[str, Any] = {
        "name": name, "method": "POST", "path": f"/v1/{name}", "scope": "storefront", "request": Number,
        "answer": Doubled, "handler": handler, "summary": "Test.", "examples": {"one": {"number": 1}},
    }  # fmt: skip
    return Route(**(entry | changes))


TABLE = (
    route("double", double),
    route("halve", double, scope="ingest"),
    route("fail", fail),
    route("refuse", refuse),
    route("unwritable", unwritable),
    route("thing", named, method="GET", path="/v1/things/{item_id}", request=None, example_params={"item_id": "a"}),
    route("drop", named, method="DELETE", path="/v1/things/{item_id}", scope="admin", request=None,
          example_params={"item_id": "a"}),
    route("free", named, method="GET", path="/v1/free/{item_id}", scope=None, request=None,
          example_params={"item_id": "a"}),
    route("batch", batch, scope="any", request=BatchRequest, examples={"none": {"requests": []}}),
)  # fmt: skip


class Door:
    """A gateway and what stands behind it, asked as over HTTP."""

    def __init__(self, settings: Settings, routes: Sequence[Route] = TABLE) -> None:
        self.settings = settings
        self.shop = Shop(settings, Registry(lambda: None, lambda: None, list, lambda version: None), routes=routes)
        self.gateway = Gateway(self._behind, open_shop=self._opened)
        self.runner = asyncio.Runner()
        self.passed_on: list[str] = []
        self.runner.run(self.gateway({"type": "lifespan"}, None, None))  # opens the shop; the stand-in ends at once

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[Shop]:
        yield self.shop

    async def _behind(self, scope: Any, receive: Any, send: Any) -> None:
        self.passed_on.append(scope.get("path", scope["type"]))

    def ask(
        self, method: str, path: str, *, json: Any = None, content: Any = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        return self.runner.run(self._ask(method, path, json=json, content=content, headers=headers))

    async def _ask(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.gateway)  # an exception in the gateway is one in the test
        async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
            return await client.request(method, path, **kwargs)

    def send(self, scope: Mapping[str, Any], messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Ask with a bare ASGI scope and messages; return what is sent."""
        sent: list[dict[str, Any]] = []
        left = list(messages)

        async def receive() -> Any:
            if left:
                return left.pop(0)
            await asyncio.sleep(3600)

        async def send(message: Any) -> None:
            sent.append(message)

        whole = {"type": "http", "method": "POST", "path": "/v1/double", "raw_path": b"/v1/double",
                 "headers": [(b"host", b"127.0.0.1:3000")], "server": ("127.0.0.1", 3000)}  # fmt: skip
        self.runner.run(self.gateway(whole | dict(scope), receive, send))
        return sent

    def close(self) -> None:
        self.runner.run(self.shop.aclose())
        self.runner.close()


@pytest.fixture
def open_door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Door]]:
    """Return what opens a door with settings of `serving`; a home of its own unless one is given."""
    doors: list[Door] = []

    def opened(home: Any = None, routes: Sequence[Route] = TABLE, **serving: Any) -> Door:
        home = home or tmp_path_factory.mktemp("door") / "var"
        doors.append(Door(load_settings(home=home, serving=serving), routes))
        return doors[-1]

    yield opened
    for door in doors:
        door.close()


@pytest.fixture
def door(open_door: Callable[..., Door]) -> Door:
    return open_door()


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Check the one shape of errors, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    content = answer.json()
    assert {"type", "title", "status", "detail", "request_id"} <= content.keys() <= {
        "type", "title", "status", "detail", "request_id", "errors"
    }  # fmt: skip
    assert content["status"] == status
    assert content["title"]
    assert content["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    for error in content.get("errors", []):
        assert error.keys() == {"path", "message"}
        assert (error["path"] + error["message"]).isascii()
    return content


Worker = Callable[..., Door]


@pytest.fixture
def worker(open_door: Callable[..., Door], built: Built, settings: Settings) -> Worker:
    """Return what opens a worker of one home, which answers from the handmade shop."""

    def opened(**serving: Any) -> Door:
        door = open_door(settings.home, table(), **serving)
        swap(door, built)
        return door

    return opened


def swap(door: Door, built: Built) -> None:
    door.shop.slot.current = door.shop._recommender(built.bundle, "7")
