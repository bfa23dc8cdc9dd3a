"""The canonical tables: one definition each; nothing downstream knows a shop's own column names.

All timestamps are UTC with microseconds (Feast's `materialize` refuses nanoseconds). What a feed lacks is null,
never invented.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

import pyarrow as pa

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")

EVENT_TYPES: Final = (
    "impression",
    "click",
    "view",
    "add_to_cart",
    "purchase",
    "return",
    "search",
    "review",
)

# What a model reads as a shopper's history. Impressions say what was shown, searches and reviews name no choice.
HISTORY_EVENT_TYPES: Final = ("purchase", "return", "view", "click", "add_to_cart")

# Grain: one row per event.
EVENTS: Final = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),  # stable over re-reads: the dedupe key
        pa.field("event_timestamp", TIMESTAMP, nullable=False),  # when it happened
        pa.field("event_type", pa.string(), nullable=False),  # one of EVENT_TYPES
        pa.field("user_id", pa.string()),  # null: an anonymous visitor
        pa.field("session_id", pa.string()),  # an order, a visit
        pa.field("item_id", pa.string()),  # null only for searches
        pa.field("quantity", pa.int64()),  # pieces, positive, also for returns
        pa.field("unit_price", pa.float64()),  # in `currency`, for one piece
        pa.field("currency", pa.string()),  # ISO 4217
        pa.field("country", pa.string()),
        pa.field("query", pa.string()),
        pa.field("rating", pa.float64()),  # 1 to 5
        pa.field("dwell_seconds", pa.float64()),
        pa.field("position", pa.int32()),  # the 1-based slot shown
        pa.field("request_id", pa.string()),  # the answer that this event follows
        pa.field("source", pa.string(), nullable=False),  # the feed it came by
    ]
)

# What ingest hands to validation: every row of the feed, those that can't be read included.
# Grain: one row per row of the feed. Event columns are all nullable here.
STAGED_EVENTS: Final = pa.schema(
    [
        *(field.with_nullable(True) for field in EVENTS),
        pa.field("row_id", pa.int64(), nullable=False),  # 0-based over the batch, header lines not counted
        pa.field("raw", pa.string(), nullable=False),  # the row as it came: a JSON object
        pa.field("parse_error", pa.string()),  # "Quantity: 'abc' is not a number"; null where the row reads well
        pa.field("batch", pa.string(), nullable=False),  # the file it came in, its name only
        pa.field("event_date", pa.date32(), nullable=False),  # the day the file is for
    ]
)

# Grain: one row per row and batch that broke a rule; `raw` goes back in when it was fixed.
QUARANTINE: Final = pa.schema(
    [
        *STAGED_EVENTS,
        pa.field("rule", pa.string(), nullable=False),  # the first rule it broke, in the suite's order
    ]
)

# Grain: one row per item and day on which it was seen or changed; the latest row at or before a day is in force.
ITEMS: Final = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("description", pa.string()),
        pa.field("category", pa.string()),  # coarse to fine, " > " between
        pa.field("brand", pa.string()),
        pa.field("price", pa.float64()),  # in `currency`
        pa.field("currency", pa.string()),
        pa.field("image_uri", pa.string()),
        pa.field("store_id", pa.string()),
        pa.field("first_seen", TIMESTAMP),
        pa.field("active", pa.bool_()),
    ]
)


@dataclass(frozen=True, order=True)
class Days:
    """Whole UTC days, both ends included; a day's run is a range of one."""

    start: date
    end: date

    @classmethod
    def one(cls, day: date) -> "Days":
        """Return the range of a single day."""
        return cls(day, day)

    def __len__(self) -> int:
        """Return the number of days."""
        return (self.end - self.start).days + 1

    def dates(self) -> list[date]:
        """Return every day of the range, oldest first."""
        return [self.start + timedelta(days=offset) for offset in range(len(self))]

    def __str__(self) -> str:
        """Return `2011-03-01` or `2011-03-01..2011-03-07`."""
        return f"{self.start}" if self.start == self.end else f"{self.start}..{self.end}"


def day_end(day: date) -> datetime:
    """Return the first moment after a UTC day: what a snapshot of that day is stamped with."""
    return datetime.combine(day, time(), tzinfo=UTC) + timedelta(days=1)
