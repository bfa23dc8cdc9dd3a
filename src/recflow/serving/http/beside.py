"""What may hang, beside the event loop."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def beside(function: Callable[[], T], *, seconds: float | None = None) -> T:
    """Run a function in a thread of its own, for which neither the loop nor the end of the process waits.

    An executor's threads are waited for: one that asks a database that never answers would keep a worker from ending.

    Raises:
        TimeoutError: it isn't done after so many seconds; it goes on, and what comes of it is dropped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(settler: Callable[..., None], outcome: object) -> None:
        if not future.done():
            settler(outcome)

    def run() -> None:
        settler: Callable[..., None]
        outcome: object
        try:
            settler, outcome = future.set_result, function()
        except BaseException as error:
            settler, outcome = future.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, settler, outcome)

    threading.Thread(target=run, name="beside", daemon=True).start()
    async with asyncio.timeout(seconds):
        return await future
