"""The storefront endpoint as BentoML serves it: a worker's life. What it answers lies in `recflow.serving.http`.

Answers come from a middleware: BentoML's own routes would cost several times what an answer costs, and have errors
without bodies of ours. What is heavy is imported by workers alone: the process that starts them reads this file, too.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import bentoml
from opentelemetry.instrumentation.utils import suppress_http_instrumentation

from recflow.console import log, quiet_third_parties, show_log
from recflow.settings import load_settings

if TYPE_CHECKING:
    from recflow.serving.http.shop import Shop
    from recflow.serving.http.watching import Watcher

# BentoML's OpenTelemetry middleware takes 75 us a request, whether anybody looks at its spans or not; spans of our own
# are made where settings ask for them. For the whole process: what uvicorn runs later inherits this context.
_UNTRACED = suppress_http_instrumentation()  # held: when it goes, so does what it does
_UNTRACED.__enter__()

# Nobody is sent to a worker that has no version yet: the others answer meanwhile. It takes some 2 s, 15 on a busy one.
_FIRST_LOOK_SECONDS = 30.0


@contextlib.asynccontextmanager
async def open_shop() -> "AsyncIterator[Shop]":
    """Open the shop when the worker starts; finish what is being written when it ends."""
    quiet_third_parties()
    show_log()
    from recflow.registry.versions import champion, champion_version, followed, list_versions, promote
    from recflow.serving.bundle import load_bundle
    from recflow.serving.http.shop import Registry, Shop
    from recflow.serving.http.watching import Watcher

    settings = load_settings()
    shop = Shop(
        settings,
        Registry(
            champion_version=lambda: champion_version(settings),
            champion=lambda: champion(settings),
            versions=lambda: [version.row() for version in list_versions(settings)],
            promote=lambda version: promote(version, settings, check=load_bundle),
            followed=lambda version: followed(version, settings),
        ),
    )
    watcher = Watcher(shop)
    _drain_on_sigterm(shop, watcher)
    watching = asyncio.create_task(watcher.run())
    try:
        with contextlib.suppress(TimeoutError):  # a registry that hangs: events at least can be taken
            await asyncio.wait_for(watcher.has_looked.wait(), _FIRST_LOOK_SECONDS)
        yield shop
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await shop.aclose()


def _drain_on_sigterm(shop: "Shop", watcher: "Watcher") -> None:
    """Put a pause before the server's own handler: not ready, every answer closes its connection, then it stops.

    Without it the requests that are on their way over kept-alive connections are dropped.
    """
    stop = signal.getsignal(signal.SIGTERM)
    loop = asyncio.get_running_loop()

    def drain() -> None:
        if shop.is_draining:
            return
        shop.drain()
        watcher.has_looked.set()  # what has only begun to start needn't wait any more
        log.info("Draining for %g s.", shop.settings.serving.drain_seconds)
        if callable(stop):
            loop.call_later(shop.settings.serving.drain_seconds, stop, signal.SIGTERM, None)

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(drain)

    signal.signal(signal.SIGTERM, on_signal)


def gateway(app: Any) -> Any:
    """Return the gateway before what lies behind: called when a worker builds its application."""
    from recflow.serving.http.gateway import Gateway

    return Gateway(app, open_shop=open_shop)


@bentoml.service(
    name="storefront",
    workers=load_settings().serving.workers,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Storefront:
    """Recommendations of the champion, over HTTP."""


Storefront.add_asgi_middleware(gateway)
