"""Two echoes by BentoML, as floors for the storefront's speed: `recflow bench serve` starts them.

`EchoApi` is what BentoML does out of the box. `EchoMiddleware` is the least that BentoML can be brought to do: it is
answered before its routes, the garbage collector leaves alone what is loaded, and nothing is logged or traced
(`OTEL_SDK_DISABLED=true` in its environment).
"""

import gc

import bentoml
from bare import app as echo
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send


class Text(BaseModel):
    """What is echoed; one field, so that reading and writing it costs next to nothing."""

    text: str


@bentoml.service
class EchoApi:
    """An echo with nothing set; asynchronous, since a thread for each call would make the floor a third lower."""

    @bentoml.api(route="/")
    async def echo(self, text: Text, /) -> Text:
        """Return what came."""
        return text


class Answering:
    """A middleware that answers all but BentoML's own probes."""

    def __init__(self, app: ASGIApp) -> None:
        """Take what answers the probes."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Echo one request."""
        if scope["type"] == "http" and scope["path"] == "/":
            await echo(scope, receive, send)
        else:
            await self._app(scope, receive, send)


@bentoml.service(metrics={"enabled": False}, logging={"access": {"enabled": False}})
class EchoMiddleware:
    """An echo without all that can be left out of BentoML."""

    @bentoml.on_startup
    def freeze(self) -> None:
        """Keep the garbage collector away from what is loaded: its pauses are the tail."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)

    @bentoml.api(route="/unused")
    async def unused(self) -> None:
        """Do nothing; a service has at least one method."""


EchoMiddleware.add_asgi_middleware(Answering)
