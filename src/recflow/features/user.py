"""User features: what is measured each day, and what is made of the running totals of it.

To add a feature, add an expression to `user_purchase_stats`; where it needs something that isn't counted yet, add a
line to `user_measures`. Nothing else knows the names: Feast's schema, the training set, the online rows, the model's
inputs and the drift report follow.
"""

from typing import TYPE_CHECKING

from recflow.features.totals import SPANS, ratio
from recflow.schema import HISTORY_EVENT_TYPES

if TYPE_CHECKING:
    import ibis.expr.types as ir


def user_measures(events: "ir.Table") -> "ir.Table":
    """Count what each known user did each day; one row per (user_id, day).

    Whole numbers only, so that sums are equal in whatever order they are made: money is in cents, rounded per line.
    See `totals` for what the prefixes `first_` and `last_` mean.

    Args:
        events: `schema.EVENTS` with `day` (days since 1970-01-01), `sequence` (rising with time) and `is_new_pair`
            (the user bought the item for the first time on this day).
    """
    purchase = (events.event_type == "purchase") & events.item_id.notnull()
    returned = events.event_type == "return"
    in_history = events.event_type.isin(HISTORY_EVENT_TYPES) & events.item_id.notnull()
    order = events.session_id.fill_null(events.event_timestamp.cast("string"))
    cents = (events.quantity * events.unit_price * 100).round().cast("int64")
    # Anonymous visits are left out: nothing links them to a person.
    return (
        events.filter(events.user_id.notnull())
        .group_by(["user_id", "day"])
        .agg(
            orders=order.nunique(where=purchase),
            lines=purchase.sum(),
            pieces=events.quantity.sum(where=purchase),
            spend_cents=cents.sum(where=purchase),
            returned_pieces=events.quantity.sum(where=returned),
            items=events.item_id.nunique(where=purchase),  # distinct on the day: summed, item-days
            new_items=events.item_id.nunique(where=purchase & events.is_new_pair),
            purchase_days=purchase.any().cast("int64"),
            first_day=events.day.min(),
            first_purchase_day=events.day.min(where=purchase),
            last_purchase_day=events.day.max(where=purchase),
            last_history_day=events.day.max(where=in_history),
            last_country=events.country.argmax(events.sequence, where=events.country.notnull()),
        )
    )


def user_purchase_stats(totals: "ir.Table") -> "ir.Table":
    """Describe each user as known at the end of a day; one row per user_id.

    Args:
        totals: one row per user_id with `day` (the last day counted) and each measure over each of `SPANS`
            (`orders_7d`, ..., `orders_lifetime`), see `totals.over_spans`.
    """
    t = totals
    features = {
        "user_recency_days": t.day - t.last_purchase_day,
        "user_age_days": t.day - t.first_day,
        # Mean days between purchase days: who comes monthly is late after 40 days, who comes yearly isn't.
        "user_purchase_gap_days": ratio(t.last_purchase_day - t.first_purchase_day, t.purchase_days_lifetime - 1),
        "user_country": t.last_country,
    }
    for span in SPANS:
        orders, items = t[f"orders_{span}"], t[f"items_{span}"]
        features |= {
            f"user_orders_{span}": orders,
            f"user_spend_cents_{span}": t[f"spend_cents_{span}"],
            f"user_basket_cents_{span}": ratio(t[f"spend_cents_{span}"], orders),
            f"user_basket_lines_{span}": ratio(t[f"lines_{span}"], orders),
            f"user_return_ratio_{span}": ratio(t[f"returned_pieces_{span}"], t[f"pieces_{span}"]),
            # Breadth: items bought for the first time in the span; over the lifetime, all distinct items.
            f"user_new_items_{span}": t[f"new_items_{span}"],
            f"user_repeat_ratio_{span}": ratio(items - t[f"new_items_{span}"], items),
        }
    return t.select("user_id", "day", **features)
