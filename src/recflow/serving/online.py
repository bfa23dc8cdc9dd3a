"""The online store as answers see it: shoppers' rows, or why there are none; never an error, never a long wait.

A circuit breaker stands before it. Closed: the store is asked. Open, after a failure or a read over the budget: nobody
asks it for a while. Half-open, after that while: one read asks it, the others go on without; its success closes the
breaker, its failure opens it again.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING, NamedTuple, Protocol

from recflow.console import log
from recflow.errors import MissingInput
from recflow.serving import metrics

if TYPE_CHECKING:
    from recflow.onlinestore import OnlineUser

_FORGET_SECONDS = 5.0  # nobody waits for a page meanwhile, and what can't be forgotten must be known
_LATE = 1.5  # times the budget: a timer that rings so late says that the event loop was held up, not the store


class Reader(Protocol):
    """What `onlinestore.open_reader` returns."""

    async def users_async(self, user_ids: Sequence[str]) -> "list[OnlineUser | None]":
        """Read rows, one a user in their order, None where it can't be read, without holding up the event loop."""

    def forget(self, user_id: str) -> None:
        """Delete a user's rows."""

    def is_current(self) -> bool:
        """Return whether it still reads what is materialized."""

    def has_lost_rows(self) -> bool | None:
        """Return whether the store holds other rows than were materialized last; None: it can't be said just now."""

    async def aclose(self) -> None:
        """Close it."""


class Stored(NamedTuple):
    """What the online store said of a shopper."""

    user: "OnlineUser | None" = None
    day: date | None = None  # the last day that the row knows
    failure: str | None = None  # why it couldn't say anything


class StoreAway(Exception):
    """The online store can't be changed just now."""


_AWAY = Stored(failure="the online store is away")
_LOST = Stored(failure="the online store has lost the rows that were materialized last")
_UNREADABLE = Stored(failure="the online store's row of this shopper can't be read")
_SLOW = Stored(failure="the online store is too slow")


class OnlineStore:
    """A reader that may be away; all but `follow` and `compare` belongs to one event loop."""

    def __init__(
        self,
        open_reader: Callable[[], Reader],
        *,
        retry_seconds: float,
        budget_seconds: float,
        materialized_through: Callable[[], date | None] = lambda: None,
    ) -> None:
        """Take the ways to open a reader and to ask for the day that the store knows; nothing is opened yet.

        Args:
            open_reader: raises MissingInput while there is nothing to read.
            retry_seconds: how long the store isn't asked after it failed.
            budget_seconds: how long a read may take.
            materialized_through: the last day that the rows know.
        """
        self._open_reader = open_reader
        self._retry_seconds = retry_seconds
        self._budget_seconds = budget_seconds
        self._materialized_through = materialized_through
        self._reader: Reader | None = None
        self._fresh: Reader | None = None  # opened by `follow`, taken over by the next read
        self._open_until: float | None = None  # monotonic seconds; None: the breaker is closed
        self._is_probing = False
        self._retiring: set[asyncio.Task[None]] = set()  # the event loop itself holds tasks weakly
        self._has_lost_rows = False
        self.day: date | None = None  # the last day that the rows know

    @property
    def trouble(self) -> str | None:
        """Return why answers do without the store, or without some of its rows."""
        if self.is_away:
            return "the store fails or is too slow; answers do without it"
        if self._has_lost_rows:
            return "the store has lost the rows that were materialized last; run `recflow run materialize`"
        return None

    @property
    def is_away(self) -> bool:
        """Return whether the store failed and hasn't answered since."""
        return self._open_until is not None

    async def read(self, user_ids: Sequence[str]) -> list[Stored]:
        """Return the shoppers' rows in their order, read together; a stranger's row is empty."""
        self._take_over()
        if not self._may_ask():
            return [_AWAY] * len(user_ids)
        is_probe = self._is_probing = self.is_away
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(self._budget_seconds):
                users = await self._opened().users_async(user_ids)
        except TimeoutError:
            if loop.time() - started < self._budget_seconds * _LATE:
                self.leave_alone(f"no answer within {self._budget_seconds:g} s")
            return [_SLOW] * len(user_ids)
        except Exception as error:  # a store fails in ways that can't be listed; the answer goes on without it
            self.leave_alone(type(error).__name__)
            return [_AWAY] * len(user_ids)
        finally:
            if is_probe:
                self._is_probing = False
        if is_probe:
            log.info("The online store answers again.")
            self._close_breaker()
        return [self._stored(user) for user in users]

    def _stored(self, user: "OnlineUser | None") -> Stored:
        if user is None:
            return _UNREADABLE
        return _LOST if self._has_lost_rows and is_stranger(user) else Stored(user=user, day=self.day)

    async def forget(self, user_id: str) -> None:
        """Delete what the store keeps of a shopper; no error where that is nothing.

        Raises:
            StoreAway: it couldn't be done; the rows may still be there.
        """
        self._take_over()
        if self.is_away:
            raise StoreAway(_AWAY.failure)
        try:
            reader = self._opened()
        except MissingInput:
            return
        try:
            await asyncio.wait_for(asyncio.to_thread(reader.forget, user_id), _FORGET_SECONDS)
        except Exception as error:
            self.leave_alone(type(error).__name__)
            raise StoreAway(_AWAY.failure) from error

    def follow(self) -> None:
        """Look which day was materialized last; open the store anew where what it holds was defined anew.

        For a thread: to open it takes an import and reads a file.
        """
        self.day = self._materialized_through()
        reader = self._fresh or self._reader
        if reader is None or not reader.is_current():
            try:
                self._fresh = self._open_reader()
            except MissingInput:  # nothing was materialized yet
                return

    def compare(self) -> None:
        """Look whether the store still holds what was materialized last.

        For a thread that nobody waits for: the store is asked without a budget.
        """
        reader = self._fresh or self._reader
        if reader is None or self.is_away:
            return
        try:
            found = reader.has_lost_rows()
        except Exception:  # it fails in ways that can't be listed; whoever reads rows finds out
            return
        if found and not self._has_lost_rows:
            log.warning("The online store has lost the rows that were materialized last: materialize again.")
        self._has_lost_rows = self._has_lost_rows if found is None else found

    def leave_alone(self, why: str) -> None:
        """Don't ask the store for a while."""
        if not self.is_away:
            log.warning("The online store is left alone for %g s (%s).", self._retry_seconds, why)
        metrics.STORE_FAILURES.inc()
        metrics.STORE_OPEN.set(1)
        self._open_until = time.monotonic() + self._retry_seconds

    def _close_breaker(self) -> None:
        self._open_until = None
        metrics.STORE_OPEN.set(0)

    async def aclose(self) -> None:
        """Close the store, once the reads under way have ended."""
        readers = [reader for reader in (self._reader, self._fresh) if reader is not None]
        self._reader = self._fresh = None
        for reader in readers:
            self._retire(reader)
        if self._retiring:
            await asyncio.wait(self._retiring)

    def _may_ask(self) -> bool:
        return self._open_until is None or (not self._is_probing and time.monotonic() >= self._open_until)

    def _opened(self) -> Reader:
        if self._reader is None:
            self._reader = self._open_reader()
        return self._reader

    def _take_over(self) -> None:
        """Read by the reader that `follow` opened; of it no failure is known."""
        if self._fresh is None:
            return
        before, self._reader, self._fresh = self._reader, self._fresh, None
        self._close_breaker()
        if before is not None:
            self._retire(before)

    def _retire(self, reader: Reader) -> None:
        task = asyncio.get_running_loop().create_task(self._close_later(reader))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _close_later(self, reader: Reader) -> None:
        await asyncio.sleep(2 * self._budget_seconds)  # by then nobody reads by it
        try:
            await reader.aclose()
        except Exception as error:
            log.warning("The online store couldn't be closed (%s).", type(error).__name__)


def is_stranger(user: "OnlineUser") -> bool:
    """Return whether the store knows nothing of a user."""
    return not user.item_ids and all(value is None for value in user.features.values())
