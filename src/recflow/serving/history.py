"""What the online store keeps of a shopper + what happened since -> one history, oldest first."""

from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from recflow.serving.feedback import RecentEvent, to_us
from recflow.serving.requests import SessionEvent

if TYPE_CHECKING:
    from recflow.onlinestore import OnlineUser


_CALENDAR_US = range(-62_135_596_800_000_000, 253_402_300_800_000_000)  # the years 1 to 9999, which can be written

_Row = tuple[int, str, str, float | None]  # moment (microseconds, UTC), item, type, pieces


class ShopperHistory(NamedTuple):
    """A shopper's events, oldest first; the shape that `models.context` takes."""

    item_ids: list[str]
    event_types: list[str]
    timestamps_us: list[int]  # UTC
    quantities: list[float | None]  # pieces
    as_of_us: int  # the moment that an answer is for
    is_cut: bool  # older events may exist

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.item_ids)


def merge_history(
    stored: "OnlineUser | None",
    recent: Sequence[RecentEvent],
    session: Sequence[SessionEvent],
    *,
    snapshot_end: datetime,
    history_length: int,
) -> ShopperHistory:
    """Put what was stored, posted and brought along into one history.

    The moment of the answer is the newest thing known and never the wall clock, so that equal knowledge gives equal
    answers: the end of the snapshot's last day, or a later event. A posted event that the snapshot has taken in by now
    counts once; brought-along events without a time happen at that moment, in their order.

    Args:
        stored: the online store's row; None where there is none.
        recent: posted events.
        session: events brought along in the request.
        snapshot_end: first moment after the last day that the stored row knows.
        history_length: newest events kept.
    """
    timestamps, item_ids, event_types, quantities = _columns(stored)
    was_full = max(len(timestamps), len(recent)) >= history_length  # either is kept up to that length
    as_of = to_us(snapshot_end)
    if timestamps:
        as_of = max(as_of, timestamps[-1])
    if recent or session:
        added: list[_Row] = [(event.timestamp_us, event.item_id, event.event_type, event.quantity) for event in recent]
        added += [
            (to_us(event.event_timestamp), event.item_id, event.event_type, float(event.quantity))
            for event in session
            if event.event_timestamp is not None
        ]
        if added:
            as_of = max(as_of, max(row[0] for row in added))
        untimed: list[_Row] = [
            (as_of, event.item_id, event.event_type, float(event.quantity))
            for event in session
            if event.event_timestamp is None
        ]
        # What is stored from the first added event on is merged with it; all before stays as it is.
        first = bisect_left(timestamps, min((row[0] for row in (*added, *untimed)), default=as_of))
        tail: list[_Row] = list(
            zip(timestamps[first:], item_ids[first:], event_types[first:], quantities[first:], strict=True)
        )
        known = {row[:3] for row in tail}
        for row in added:
            if row[:3] not in known:
                known.add(row[:3])
                tail.append(row)
        tail += untimed
        tail.sort(key=itemgetter(0))  # stable: equal times stay in their order
        timestamps = timestamps[:first] + [row[0] for row in tail]
        item_ids = item_ids[:first] + [row[1] for row in tail]
        event_types = event_types[:first] + [row[2] for row in tail]
        quantities = quantities[:first] + [row[3] for row in tail]
    return ShopperHistory(
        item_ids[-history_length:],
        event_types[-history_length:],
        timestamps[-history_length:],
        quantities[-history_length:],
        as_of,
        was_full or len(timestamps) > history_length,
    )


def _columns(stored: "OnlineUser | None") -> tuple[list[int], list[str], list[str], list[float | None]]:
    """Return what is stored in the order of time."""
    if stored is None:
        return [], [], [], []
    timestamps, item_ids, event_types, quantities = (
        stored.timestamps_us, stored.item_ids, stored.event_types, stored.quantities
    )  # fmt: skip
    if not len(timestamps) == len(item_ids) == len(event_types) == len(quantities):
        raise ValueError("the stored history's columns differ in length")
    ordered = sorted(timestamps)
    if ordered and not (ordered[0] in _CALENDAR_US and ordered[-1] in _CALENDAR_US):
        raise ValueError("the stored history has a moment that no calendar has")
    if ordered == timestamps:
        return timestamps, item_ids, event_types, list(quantities)
    order = sorted(range(len(timestamps)), key=timestamps.__getitem__)
    return (
        ordered,
        [item_ids[place] for place in order],
        [event_types[place] for place in order],
        [quantities[place] for place in order],
    )
