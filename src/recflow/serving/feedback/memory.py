"""What a worker holds of the shoppers of the last days: their newest events and what they were shown.

In whatever order lines are taken in, they come to the same, but for those of one shopper and one microsecond, which
stand in the order that they came in. A file may be read again from its start: what is known already changes nothing.
"""

from array import array
from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from sys import intern
from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from recflow.schema import HISTORY_EVENT_TYPES

HISTORY_TYPES: Final = frozenset(HISTORY_EVENT_TYPES)  # what a model's history holds
_IMPRESSION = "impression"
_SEARCH = "search"
_QUERIES_HELD = 10  # of a shopper, the newest: as many as a search box shows
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FRESH_IDS = 65_536  # so many are held as a set, 65 bytes each, before they go into the array

Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Line(msgspec.Struct, gc=False):
    """A line of an events file, as far as it is looked at here."""

    event_id: str
    event_timestamp: Moment
    event_type: str
    user_id: str | None = None
    session_id: str | None = None
    item_id: str | None = None
    quantity: float | None = None  # pieces
    query: str | None = None  # of a search


class RecentEvent(NamedTuple):
    """An event of a shopper since the snapshot, as far as the model looks at it."""

    event_id: str
    timestamp_us: int  # UTC
    item_id: str
    event_type: str
    quantity: float  # pieces
    user_id: str | None = None  # None: an anonymous visit


def to_us(moment: datetime) -> int:
    """Return a moment as microseconds since 1970 UTC, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


class Shoppers:
    """Newest events and impressions by user and by session; those not heard of for longest go first."""

    def __init__(self, *, shoppers_held: int, events_held: int, shown_held: int) -> None:
        """Set the bounds: users and sessions together, and of each its newest events and impressions."""
        self._shoppers_held = shoppers_held
        self._events_held = events_held
        self._shown_held = shown_held
        self._shoppers: OrderedDict[tuple[str, str], _Shopper] = OrderedDict()
        self._erased: dict[str, int] = {}  # user_id -> the moment up to which nothing of the user counts
        self._erasures = self._swept = 0  # rounds of them

    def take(self, lines: Iterable[Line], *, again: bool) -> None:
        """Take lines in; those of no item and those of users who were forgotten since leave no trace.

        Args:
            lines: in the order of the file.
            again: some may have been taken in before.
        """
        for line in lines:
            is_shown, is_search = line.event_type == _IMPRESSION, line.event_type == _SEARCH
            names_item = line.item_id is not None and (is_shown or line.event_type in HISTORY_TYPES)
            if not names_item and not (is_search and line.query):
                continue
            moment = (line.event_timestamp - _EPOCH) // _MICROSECOND
            user_id, session_id = line.user_id, line.session_id
            if _is_erased(user_id, moment, self._erased):
                continue
            shoppers = [self._shopper("user", user_id)] if user_id is not None else []
            if session_id is not None:
                shoppers.append(self._shopper("session", session_id))
            if is_search:
                for shopper in shoppers:
                    shopper.add_query(moment, line.query or "", user_id)
                continue
            item_id = intern(line.item_id or "")  # one string an item, however often it was shown
            if is_shown:
                mark = hash(line.event_id)
                for shopper in shoppers:
                    if not (again and shopper.was_shown(moment, mark)):
                        shopper.add_shown(moment, mark, item_id, user_id, self._shown_held)
            else:
                event = RecentEvent(line.event_id, moment, item_id, line.event_type, line.quantity or 1.0, user_id)
                for shopper in shoppers:
                    if not (again and event in shopper.events):
                        shopper.add_event(event, self._events_held)
        while len(self._shoppers) > self._shoppers_held:
            self._shoppers.popitem(last=False)

    def erase(self, until_us: Mapping[str, int]) -> None:
        """Let go of what users did up to a moment each (microseconds, UTC), now and whenever it comes again.

        It is gone from all answers at once. Going over all sessions takes longer: see `sweep`.
        """
        for user_id, moment in until_us.items():
            self._erased[user_id] = max(moment, self._erased.get(user_id, moment))
        self._erasures += 1
        for user_id in until_us:
            if self._found(user_id, None) and self._shoppers["user", user_id].is_empty:
                del self._shoppers["user", user_id]

    def unswept(self) -> list[tuple[str, str]]:
        """Return whose events may still hold some that were erased; asked again, nobody until the next erasure."""
        if self._swept == self._erasures:
            return []
        self._swept = self._erasures
        return [key for key, shopper in self._shoppers.items() if shopper.erasures != self._erasures]

    def sweep(self, keys: Iterable[tuple[str, str]]) -> None:
        """Take what was erased out of memory."""
        for kind, name in keys:
            for shopper in self._found(name if kind == "user" else None, name if kind == "session" else None):
                if shopper.is_empty:
                    del self._shoppers[kind, name]

    def newest_us(self, user_id: str) -> int | None:
        """Return when the newest thing known of a user happened (microseconds, UTC)."""
        shopper = self._shoppers.get(("user", user_id))
        if shopper is None:
            return None
        searched = [moment for moment, _, _ in shopper.queries[-1:]]
        return max((*shopper.times[-1:], *shopper.shown_times[-1:], *searched), default=None)

    def recent(self, user_id: str | None, session_id: str | None) -> list[RecentEvent]:
        """Return the newest events of a user or of a session, oldest first, each once."""
        found = self._found(user_id, session_id)
        if len(found) < 2:
            return list(found[0].events) if found else []
        events = {event.event_id: event for shopper in found for event in shopper.events}
        return sorted(events.values(), key=lambda event: event.timestamp_us)

    def queries(self, user_id: str | None, session_id: str | None) -> list[str]:
        """Return what a user or a session searched for lately, the newest first, each once."""
        rows = [row for shopper in self._found(user_id, session_id) for row in shopper.queries]
        return list(dict.fromkeys(query for _, query, _ in sorted(rows, key=lambda row: -row[0])))

    def shown(self, user_id: str | None, session_id: str | None, since_us: int) -> dict[str, int]:
        """Return how often each item was shown to a user or in a session, at or after a moment (microseconds, UTC)."""
        found = self._found(user_id, session_id)
        if not found:
            return {}
        first = bisect_left(found[0].shown_times, since_us)
        if len(found) == 1:
            return dict(Counter(found[0].shown_items[first:]))
        impressions: dict[int, str] = {}
        for shopper in found:
            first = bisect_left(shopper.shown_times, since_us)
            impressions.update(zip(shopper.shown_marks[first:], shopper.shown_items[first:], strict=True))
        return dict(Counter(impressions.values()))

    def _found(self, user_id: str | None, session_id: str | None) -> "list[_Shopper]":
        found = []
        for kind, name in (("user", user_id), ("session", session_id)):
            if name is not None and (shopper := self._shoppers.get((kind, name))) is not None:
                if shopper.erasures != self._erasures:
                    shopper.erase(self._erased)
                    shopper.erasures = self._erasures
                found.append(shopper)
        return found

    def _shopper(self, kind: str, name: str) -> "_Shopper":
        key = (kind, name)
        shopper = self._shoppers.get(key)
        if shopper is None:
            shopper = self._shoppers[key] = _Shopper(self._erasures)
        else:
            self._shoppers.move_to_end(key)
        return shopper


class _Shopper:
    """One user's, or one session's, newest events and impressions, both in the order of time.

    Impressions are columns, 32 bytes each: there are ten times as many as of all else.
    """

    __slots__ = ("erasures", "events", "queries", "shown_items", "shown_marks", "shown_times", "shown_users", "times")

    def __init__(self, erasures: int) -> None:
        self.erasures = erasures  # so many rounds of erasures have been applied
        self.times: list[int] = []
        self.events: list[RecentEvent] = []
        self.shown_times = array("q")
        self.shown_marks = array("q")  # hashes of the event ids
        self.shown_items: list[str] = []
        self.shown_users: list[str | None] = []
        self.queries: list[tuple[int, str, str | None]] = []  # moment, text, whose; by moment

    @property
    def is_empty(self) -> bool:
        return not self.times and not self.shown_times and not self.queries

    def add_event(self, event: RecentEvent, limit: int) -> None:
        moment = event.timestamp_us
        at = len(self.times) if not self.times or moment >= self.times[-1] else bisect_right(self.times, moment)
        self.times.insert(at, moment)
        self.events.insert(at, event)
        if len(self.times) > limit:
            del self.times[0], self.events[0]

    def add_shown(self, moment: int, mark: int, item_id: str, user_id: str | None, limit: int) -> None:
        times = self.shown_times
        at = len(times) if not times or moment >= times[-1] else bisect_right(times, moment)
        times.insert(at, moment)
        self.shown_marks.insert(at, mark)
        self.shown_items.insert(at, item_id)
        self.shown_users.insert(at, user_id)
        if len(times) > limit:
            del times[0], self.shown_marks[0], self.shown_items[0], self.shown_users[0]

    def add_query(self, moment: int, query: str, user_id: str | None) -> None:
        if (moment, query, user_id) not in self.queries:
            insort(self.queries, (moment, query, user_id), key=lambda row: row[0])
            del self.queries[:-_QUERIES_HELD]

    def was_shown(self, moment: int, mark: int) -> bool:
        times = self.shown_times
        return mark in self.shown_marks[bisect_left(times, moment) : bisect_right(times, moment)]

    def erase(self, erased: Mapping[str, int]) -> None:
        if not erased.keys().isdisjoint([event.user_id for event in self.events]):
            self.events = [event for event in self.events if not _is_erased(event.user_id, event.timestamp_us, erased)]
            self.times = [event.timestamp_us for event in self.events]
        self.queries = [row for row in self.queries if not _is_erased(row[2], row[0], erased)]
        if erased.keys().isdisjoint(self.shown_users):
            return
        columns = zip(self.shown_times, self.shown_marks, self.shown_items, self.shown_users, strict=True)
        kept = [row for row in columns if not _is_erased(row[3], row[0], erased)]
        self.shown_times = array("q", [row[0] for row in kept])
        self.shown_marks = array("q", [row[1] for row in kept])
        self.shown_items = [row[2] for row in kept]
        self.shown_users = [row[3] for row in kept]


def _is_erased(user_id: str | None, timestamp_us: int, erased: Mapping[str, int]) -> bool:
    until = erased.get(user_id) if user_id is not None else None
    return until is not None and timestamp_us <= until


class EventIds:
    """The event ids of a day, as 64-bit hashes: 8 to 16 bytes each, for a shop may post tens of millions.

    Two ids of one hash would be taken for one: among 10 million that happens to a new id once in 10^12. The hash is
    Python's own, keyed by the process: nobody outside can aim at it.
    """

    def __init__(self) -> None:
        """Start without any."""
        self._fresh: set[int] = set()
        self._settled: NDArray[np.int64] = np.empty(0, np.int64)  # sorted

    def add(self, hashes: Iterable[int]) -> None:
        """Add ids by their hashes."""
        self._fresh.update(hashes)
        if len(self._fresh) > max(_FRESH_IDS, len(self._settled) // 8):  # rarely enough that merging costs little
            fresh = np.sort(np.fromiter(self._fresh, np.int64, len(self._fresh)))
            self._settled = np.concatenate([self._settled, fresh])
            self._settled.sort(kind="stable")  # two sorted runs: a merge
            self._fresh = set()

    def among(self, hashes: set[int]) -> set[int]:
        """Return those of the hashes that are known."""
        known = self._fresh & hashes
        if len(self._settled):
            asked = np.fromiter(hashes, np.int64, len(hashes))
            places = np.minimum(np.searchsorted(self._settled, asked), len(self._settled) - 1)
            known |= set(asked[self._settled[places] == asked].tolist())
        return known
