"""Calls that come while others are worked on are answered together: see infra/adr/0007-batches.md."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Answers items in batches: all that wait when the loop gets around to it; it never waits for time to pass.

    One batch is worked on at a time, so that those who come meanwhile make up the next one.
    """

    def __init__(self, handle: Callable[[list[T]], Awaitable[Sequence[R | Exception]]], max_size: int = 64) -> None:
        """Take what answers a batch, one result an item in their order, and how many it takes at most."""
        self._handle, self._max_size = handle, max_size
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._work: asyncio.Task[None] | None = None

    async def ask(self, item: T) -> R:
        """Return an item's result.

        Raises:
            Exception: what `handle` returned for the item, or raised for its batch.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._work is None:
            self._work = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        batch: list[tuple[T, asyncio.Future[R]]] = []
        try:
            while self._waiting:
                await self._gather()
                batch, self._waiting = self._waiting[: self._max_size], self._waiting[self._max_size :]
                await self._answer(batch)
        except asyncio.CancelledError:  # the worker ends: nobody is left to wait for an answer
            for _, future in (*batch, *self._waiting):
                future.cancel()
            raise
        finally:
            self._work = None

    async def _gather(self) -> None:
        """Let the loop get around once more for as long as that brings further calls.

        Callers that were answered together ask again within moments of each other: without this they fall apart into
        two groups that wait for one another.
        """
        waiting = 0
        while waiting < len(self._waiting) < self._max_size:
            waiting = len(self._waiting)
            await asyncio.sleep(0)

    async def _answer(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        results: Sequence[R | Exception]
        try:
            results = await self._handle([item for item, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"A batch of {len(batch)} got {len(results)} results.")
        except Exception as error:  # each caller hears of it
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue  # its caller gave up
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
