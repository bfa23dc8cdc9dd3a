"""Item features: what is measured each day, and what is made of the running totals of it.

To add a feature, add an expression to `item_sales_stats`; where it needs something that isn't counted yet, add a line
to `item_measures`.
"""

from typing import TYPE_CHECKING

from recflow.features.totals import SPANS, WINDOW_DAYS, ratio

if TYPE_CHECKING:
    import ibis.expr.types as ir


def item_measures(events: "ir.Table", items: "ir.Table") -> "ir.Table":
    """Count each item's sales each day, and take its listed price; one row per (item_id, day).

    Args:
        events: as for `user.user_measures`.
        items: `schema.ITEMS` with `day` and `sequence`. An item that was listed and never sold has features too.
    """
    purchase = events.event_type == "purchase"
    returned = events.event_type == "return"
    order = events.session_id.fill_null(events.event_timestamp.cast("string"))
    cents = (events.unit_price * 100).round().cast("int64")
    line_cents = (events.quantity * events.unit_price * 100).round().cast("int64")
    sold = (
        events.filter(events.item_id.notnull())
        .group_by(["item_id", "day"])
        .agg(
            orders=order.nunique(where=purchase),
            pieces=events.quantity.sum(where=purchase),
            revenue_cents=line_cents.sum(where=purchase),
            returned_pieces=events.quantity.sum(where=returned),
            buyers=events.user_id.nunique(where=purchase),  # distinct on the day: summed, buyer-days
            new_buyers=events.user_id.nunique(where=purchase & events.is_new_pair),
            sold_day=events.day.max(where=purchase),
            sold_price_cents=cents.argmax(events.sequence, where=purchase & cents.notnull()),
        )
    )
    listed_cents = (items.price * 100).round().cast("int64")
    listed = items.group_by(["item_id", "day"]).agg(
        listed_price_cents=listed_cents.argmax(items.sequence, where=listed_cents.notnull())
    )
    both = sold.outer_join(listed, ["item_id", "day"])
    day = both.day.fill_null(both.day_right)
    counted = ("orders", "pieces", "revenue_cents", "returned_pieces", "buyers", "new_buyers")
    return both.select(
        item_id=both.item_id.fill_null(both.item_id_right),
        day=day,
        **{name: both[name] for name in counted},
        first_day=day,
        last_sold_day=both.sold_day,
        # The catalogue's price is what a shopper sees; where it has none, what was last paid.
        last_price_cents=both.listed_price_cents.fill_null(both.sold_price_cents),
    )


def item_sales_stats(totals: "ir.Table") -> "ir.Table":
    """Describe each item as known at the end of a day; one row per item_id.

    Args:
        totals: one row per item_id with `day` (the last day counted) and each measure over each of `SPANS`.
    """
    t = totals
    week, month, quarter = WINDOW_DAYS
    features = {
        "item_price_cents": t.last_price_cents,
        # Below 1: cheaper now than what was paid on average, a discount.
        "item_price_ratio_90d": ratio(t.last_price_cents * t.pieces_90d, t.revenue_cents_90d),
        "item_age_days": t.day - t.first_day,
        "item_recency_days": t.day - t.last_sold_day,
        # Orders a day of late against orders a day before: above 1 is rising.
        "item_trend_ratio_7d": ratio(t.orders_7d * month, t.orders_30d * week),
        "item_trend_ratio_30d": ratio(t.orders_30d * quarter, t.orders_90d * month),
    }
    for span in SPANS:
        features |= {
            f"item_orders_{span}": t[f"orders_{span}"],
            f"item_pieces_{span}": t[f"pieces_{span}"],
            f"item_revenue_cents_{span}": t[f"revenue_cents_{span}"],
            f"item_buyers_{span}": t[f"buyers_{span}"],
            f"item_repeat_ratio_{span}": ratio(t[f"buyers_{span}"] - t[f"new_buyers_{span}"], t[f"buyers_{span}"]),
            f"item_return_ratio_{span}": ratio(t[f"returned_pieces_{span}"], t[f"pieces_{span}"]),
        }
    return t.select("item_id", "day", **features)
