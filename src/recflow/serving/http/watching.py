"""What keeps a worker current: looks now and then at the champion alias, the keys, and what other processes did."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from recflow.console import log
from recflow.serving import metrics
from recflow.serving.http.beside import beside

if TYPE_CHECKING:
    from recflow.serving.http.shop import Shop


Look = Callable[[], object]


class Watcher:
    """Looks at what may have changed, off the loop; whatever a look meets, it is taken again."""

    def __init__(self, shop: "Shop") -> None:
        """Take whom the news are for."""
        self._shop = shop
        self._seconds = shop.settings.serving.poll_seconds
        self._failing: set[str] = set()  # looks that failed the last time
        self.has_looked = asyncio.Event()  # at the registry: a version that there is has been loaded
        # Of its own: keys are followed while a version loads.
        self._thread = ThreadPoolExecutor(1, "watch")

    async def run(self) -> None:
        """Watch until cancelled."""
        shop, parent = self._shop, os.getppid()
        await self._look(self._in_own_thread, shop.store.follow)  # opened before anybody is answered

        async def follow_versions() -> None:
            while True:
                await self._look(beside, shop.slot.refresh)
                self.has_looked.set()
                await self._look(self._in_own_thread, shop.show_state)
                await asyncio.sleep(self._seconds)

        async def follow_others() -> None:
            while True:
                if os.getppid() != parent and not shop.is_draining:
                    log.error("The process that started this worker is gone; the worker ends, too.")
                    os.kill(os.getpid(), signal.SIGTERM)
                for look in (
                    shop.keys.follow,
                    shop.store.follow,
                    shop.event_log.follow,
                    shop.follow_stock,
                    shop.follow_items,
                    metrics.forget_dead_workers,
                    shop.show_state,
                ):
                    await self._look(self._in_own_thread, look)
                shop.limiter.forget(shop.keys.ids)
                await asyncio.sleep(self._seconds)

        async def follow_rows() -> None:
            while True:
                await self._look(beside, shop.store.compare)
                await asyncio.sleep(self._seconds)

        try:
            await asyncio.gather(follow_versions(), follow_rows(), follow_others())
        finally:
            self._thread.shutdown(wait=False)

    async def _in_own_thread(self, look: Look) -> object:
        return await asyncio.get_running_loop().run_in_executor(self._thread, look)

    async def _look(self, run: Callable[[Look], Awaitable[object]], look: Look) -> None:
        try:
            await run(look)
            self._failing.discard(look.__qualname__)
        except Exception as error:
            if look.__qualname__ not in self._failing:  # once, not every second
                log.exception("%s failed with %s; it is tried again.", look.__qualname__, type(error).__name__)
            self._failing.add(look.__qualname__)
