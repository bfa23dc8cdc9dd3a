"""What the online store keeps of a shopper + what happened since -> one history, oldest first."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from recflow.serving.feedback import RecentEvent, to_us
from recflow.serving.types import SessionEvent

if TYPE_CHECKING:
    from recflow.featurestore import OnlineUser


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
    rows: list[tuple[int, str, str, float | None]] = []
    if stored is not None:
        rows += zip(stored.timestamps_us, stored.item_ids, stored.event_types, stored.quantities, strict=True)
    was_full = max(len(rows), len(recent)) >= history_length  # either is kept up to that length
    known = {row[:3] for row in rows}
    added = [(event.timestamp_us, event.item_id, event.event_type, event.quantity) for event in recent]
    added += [
        (to_us(event.event_timestamp.astimezone(UTC)), event.item_id, event.event_type, float(event.quantity))
        for event in session
        if event.event_timestamp is not None
    ]
    for row in added:
        if row[:3] not in known:
            known.add(row[:3])
            rows.append(row)
    as_of = max([to_us(snapshot_end), *(row[0] for row in rows)])
    rows += [
        (as_of, event.item_id, event.event_type, float(event.quantity))
        for event in session
        if event.event_timestamp is None
    ]
    rows.sort(key=lambda row: row[0])  # stable: equal times stay in their order
    kept = rows[-history_length:]
    timestamps, items, types, quantities = (list(column) for column in zip(*kept, strict=True)) if kept else ([],) * 4
    return ShopperHistory(items, types, timestamps, quantities, as_of, was_full or len(rows) > len(kept))
