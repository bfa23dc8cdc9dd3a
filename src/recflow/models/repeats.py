"""A context -> one row per (shopper, item of the history): what tells whether the item is wanted again."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recflow.models.interactions import PREFERENCE, PURCHASE, RETURN, Context

# Per shopper and item: see `repeat_pairs`.
N_FEATURES = 14

_HALF_LIVES_DAYS = (14.0, 60.0)  # of the two decayed counts: the season at hand, the habit


@dataclass(frozen=True)
class RepeatPairs:
    """P pairs of a shopper and an item of its history, ordered by (shopper, item)."""

    shopper: NDArray[np.int64]  # (P,) row of the context
    item: NDArray[np.int64]  # (P,) item_idx
    features: NDArray[np.float32]  # (P, N_FEATURES), each roughly within -3 to 3


def repeat_pairs(context: Context) -> RepeatPairs:
    """Summarize each shopper's events with each item of its history."""
    shopper, column = np.nonzero(context.items)
    item = context.items[shopper, column].astype(np.int64) - 1
    n_items = len(context.item_features)
    keys, pair = np.unique(shopper * n_items + item, return_inverse=True)
    pair_shopper, pair_item = np.divmod(keys, n_items)
    size = len(keys)

    event_type, age = context.event_types[shopper, column], context.ages_days[shopper, column].astype(np.float64)
    is_purchase = event_type == PURCHASE

    def total(weight: NDArray[np.floating] | NDArray[np.bool_]) -> NDArray[np.float64]:  # (P,)
        return np.asarray(np.bincount(pair, weight, minlength=size), np.float64)

    order = _orders_ago(context)[shopper, column]  # 0: the shopper's last order
    last_age, first_age, last_order = np.full(size, np.inf), np.zeros(size), np.full(size, np.inf)
    np.minimum.at(last_age, pair, age)
    np.maximum.at(first_age, pair, np.where(is_purchase, age, 0))
    np.minimum.at(last_order, pair, np.where(is_purchase, order, np.inf))
    purchases = total(is_purchase)
    orders = np.zeros(len(context))
    np.maximum.at(orders, shopper[is_purchase], order[is_purchase] + 1)
    shopper_age = np.full(len(context), np.inf)
    np.minimum.at(shopper_age, shopper, age)

    gap = (first_age - last_age) / np.maximum(purchases - 1, 1)  # mean days between purchases
    due = np.where(purchases > 1, np.log((last_age + 1) / (np.maximum(gap, 0) + 1)), 0)
    columns = [
        np.log1p(purchases) - 1,
        np.log1p(last_age) - 3,
        np.log1p(first_age) - 3,
        np.where(purchases > 1, np.log1p(np.maximum(gap, 0)) - 3, 0),
        due,
        (purchases > 1).astype(np.float64),
        purchases / np.maximum(orders[pair_shopper], 1),
        np.log1p(orders[pair_shopper]) - 1.5,
        np.log1p(np.minimum(last_order, 50)) - 1,
        np.log1p(shopper_age[pair_shopper]) - 2.5,
        np.log1p(total(context.quantities[shopper, column] * is_purchase) / np.maximum(purchases, 1)) - 2,
        np.log1p(total(event_type == RETURN)),
        np.log1p(total(PREFERENCE[event_type] * ~is_purchase)),
        np.log(total(is_purchase * 0.5 ** (age / _HALF_LIVES_DAYS[0])) + 0.01)
        - np.log(total(is_purchase * 0.5 ** (age / _HALF_LIVES_DAYS[1])) + 0.01),
    ]
    features = np.stack(columns, axis=1).astype(np.float32)
    return RepeatPairs(pair_shopper, pair_item, features)


def _orders_ago(context: Context) -> NDArray[np.float64]:  # (B, L)
    """Return how many orders each event lies back; events of one moment are one order."""
    ages, filled = context.ages_days, context.items > 0
    is_new = np.zeros(ages.shape, dtype=bool)
    is_new[:, :-1] = (ages[:, :-1] != ages[:, 1:]) & filled[:, :-1] & filled[:, 1:]
    return np.cumsum(is_new[:, ::-1], axis=1)[:, ::-1].astype(np.float64)
