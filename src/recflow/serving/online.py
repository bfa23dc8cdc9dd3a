"""The online store as answers see it: a shopper's row, or why there is none; never an error, never a long wait."""

import time
from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING, NamedTuple, Protocol

from recflow.console import log
from recflow.serving import metrics

if TYPE_CHECKING:
    from recflow.featurestore import OnlineUser


class Reader(Protocol):
    """What `featurestore.open_reader` returns."""

    def users(self, user_ids: list[str]) -> "list[OnlineUser]":
        """Read rows, one a user in their order."""


class Stored(NamedTuple):
    """What the online store said of a shopper."""

    user: "OnlineUser | None" = None
    day: date | None = None  # the last day that the row knows
    failure: str | None = None  # why it couldn't say anything


class OnlineStore:
    """A reader that may be away: opened when first needed, left alone for a while after it failed."""

    def __init__(
        self,
        open_reader: Callable[[], Reader],
        *,
        retry_seconds: float,
        materialized_through: Callable[[], date | None] = lambda: None,
    ) -> None:
        """Take the ways to open a reader and to ask for the day that the store knows; nothing is opened yet."""
        self._open_reader = open_reader
        self._retry_seconds = retry_seconds
        self._reader: Reader | None = None
        self._closed_until = 0.0  # monotonic seconds
        self._materialized_through = materialized_through
        self.day: date | None = None  # the last day that the rows know

    @property
    def is_away(self) -> bool:
        """Return whether the store failed so lately that it isn't asked."""
        return time.monotonic() < self._closed_until

    def read(self, user_id: str) -> Stored:
        """Return the shopper's row; a stranger's is empty."""
        if self.is_away:
            return Stored(failure="the online store is away")
        try:
            if self._reader is None:
                self._reader = self._open_reader()
            return Stored(user=self._reader.users([user_id])[0], day=self.day)
        except Exception as error:  # a store fails in ways that can't be listed; the answer goes on without it
            self.leave_alone(type(error).__name__)
            return Stored(failure="the online store is away")

    def follow(self) -> None:
        """Look which day was materialized last."""
        self.day = self._materialized_through()

    def leave_alone(self, why: str) -> None:
        """Don't ask the store for a while; it is opened anew then."""
        log.warning("The online store is left alone for %g s (%s).", self._retry_seconds, why)
        metrics.STORE_FAILURES.inc()
        self._closed_until = time.monotonic() + self._retry_seconds
        self._reader = None


def is_stranger(user: "OnlineUser") -> bool:
    """Return whether the store knows nothing of a user."""
    return not user.item_ids and all(value is None for value in user.features.values())
