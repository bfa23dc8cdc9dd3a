"""Where a shopper stands: new, active, loyal, lapsing or lost, by the shopper's own rhythm of buying."""

from typing import Literal, NamedTuple

from recflow.schema import EVENT_TYPES
from recflow.serving.shopper import Shopper

Segment = Literal["new", "active", "loyal", "lapsing", "lost"]

_DAY_US = 86_400_000_000
_LOYAL_ORDERS = 5
_LATE, _GONE = 2.0, 4.0  # times the usual gap between purchases
_GONE_DAYS = 180.0  # after a single order: half a year, since nothing is known of the rhythm
_MIN_GAP_DAYS = 7.0  # who bought on two days in a row isn't gone after a week
_PURCHASE = "purchase"
if _PURCHASE not in EVENT_TYPES:
    raise AssertionError("schema.EVENT_TYPES must name purchases.")


class Standing(NamedTuple):
    """A segment, and the figures that it follows from."""

    segment: Segment
    why: str
    orders: int  # as far as they are known


def standing(shopper: Shopper) -> Standing:
    """Put a shopper into a segment.

    new: at most one order; loyal: five or more; active: between. Whoever hasn't bought for more than twice their usual
    gap is lapsing, for more than four times, or half a year after a single order, lost.
    """
    history = shopper.history
    moments = sorted(
        {
            timestamp
            for timestamp, event_type in zip(history.timestamps_us, history.event_types, strict=True)
            if event_type == _PURCHASE
        }
    )
    stored = shopper.features or {}
    orders = max(len(moments), int(stored.get("user_orders_lifetime") or 0))
    if not moments:
        return Standing("new", "No order is known.", orders)
    recency = (history.as_of_us - moments[-1]) / _DAY_US
    since = f"the last {_days(recency)} ago"
    gap = _gap_days([timestamp // _DAY_US for timestamp in moments])
    if history.is_cut:  # the newest events alone may all be of one day
        gap = stored.get("user_purchase_gap_days") or gap
    if gap is None:
        counted = "One order" if orders == 1 else f"{orders} orders on one day"
        segment: Segment = "lost" if recency > _GONE_DAYS else "new" if orders == 1 else "active"
        return Standing(segment, f"{counted}, {since}.", orders)
    gap = max(gap, _MIN_GAP_DAYS)
    why = f"{orders} orders, {since}; usually one every {_days(gap)}."
    if recency > _GONE * gap:
        return Standing("lost", why, orders)
    if recency > _LATE * gap:
        return Standing("lapsing", why, orders)
    return Standing("loyal" if orders >= _LOYAL_ORDERS else "active", why, orders)


def _gap_days(days: list[int]) -> float | None:
    """Return the mean days between purchase days, in order; None where there was one only."""
    distinct = sorted(set(days))
    return (distinct[-1] - distinct[0]) / (len(distinct) - 1) if len(distinct) > 1 else None


def _days(number: float) -> str:
    return "1 day" if round(number) == 1 else f"{number:.0f} days"
