"""A context -> one row per (shopper, item of the history): what tells whether the item is wanted again."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recflow.models.interactions import PREFERENCE, PURCHASE, RETURN, Context
from recflow.models.pairs import Pairs

# Per shopper and item: see `repeat_pairs`.
N_FEATURES = 14

_HALF_LIVES_DAYS = (14.0, 60.0)  # of the two decayed counts: the season at hand, the habit


@dataclass(frozen=True)
class RepeatPairs(Pairs):
    """Pairs of a shopper and an item of its history, and what tells whether it is wanted again."""

    features: NDArray[np.float32]  # (P, N_FEATURES), each roughly within -3 to 3


def repeat_pairs(context: Context) -> RepeatPairs:
    """Summarize each shopper's events with each item of its history."""
    pairs, filled = Pairs.of(context.items), context.items > 0
    is_purchase_at = filled & (context.event_types == PURCHASE)
    orders_ago_at = _orders_ago(context)  # 0: the shopper's last order
    orders = np.where(is_purchase_at, orders_ago_at + 1, 0).max(axis=1, initial=0)  # (B,)
    shopper_age = np.where(filled, context.ages_days, np.inf).min(axis=1, initial=np.inf)  # (B,)

    event_type, age = context.event_types.ravel()[pairs.at], context.ages_days.ravel()[pairs.at].astype(np.float64)
    is_purchase, orders_ago = is_purchase_at.ravel()[pairs.at], orders_ago_at.ravel()[pairs.at]
    weights = [
        is_purchase,
        context.quantities.ravel()[pairs.at] * is_purchase,
        event_type == RETURN,
        PREFERENCE[event_type] * ~is_purchase,
        *(is_purchase * np.exp2(age / -half_life) for half_life in _HALF_LIVES_DAYS),
    ]
    least = [age, np.where(is_purchase, -age, 0), np.where(is_purchase, orders_ago, np.inf)]
    purchases, pieces, returns, looks, soon, late = pairs.reduce(np.add, np.array(weights, np.float64), axis=1)
    last_age, first_age, last_order = pairs.reduce(np.minimum, np.array(least, np.float64), axis=1)
    features = _features(
        purchases=purchases,
        pieces=pieces,
        returns=returns,
        looks=looks,
        soon=soon,
        late=late,
        last_age=last_age,
        first_age=-first_age,
        last_order=last_order,
        orders=orders[pairs.shopper],
        shopper_age=shopper_age[pairs.shopper].astype(np.float64),
    )
    return RepeatPairs(**vars(pairs), features=features)


def _features(
    *,
    purchases: NDArray[np.float64],
    pieces: NDArray[np.float64],
    returns: NDArray[np.float64],
    looks: NDArray[np.float64],  # what other events say
    soon: NDArray[np.float64],  # purchases decayed with the shorter half-life
    late: NDArray[np.float64],  # and with the longer one
    last_age: NDArray[np.float64],  # days since the last event
    first_age: NDArray[np.float64],  # days since the first purchase
    last_order: NDArray[np.float64],  # orders since the last with the item; inf: it was never bought
    orders: NDArray[np.float64],  # of the shopper
    shopper_age: NDArray[np.float64],  # days since the shopper's last event
) -> NDArray[np.float32]:  # (P, N_FEATURES), each roughly within -3 to 3
    is_repeat = purchases > 1
    gap = np.maximum((first_age - last_age) / np.maximum(purchases - 1, 1), 0)  # mean days between purchases
    # log(1 + x), not log1p: none is near 0 where that matters, and this one runs on whole vectors.
    logs = np.log(
        1 + np.array([purchases, last_age, first_age, gap, orders, np.minimum(last_order, 50), shopper_age,
                      pieces / np.maximum(purchases, 1), returns, looks])
    )  # fmt: skip
    columns = [
        logs[0] - 1,
        logs[1] - 3,
        logs[2] - 3,
        np.where(is_repeat, logs[3] - 3, 0),
        np.where(is_repeat, logs[1] - logs[3], 0),  # above 0: it is due
        is_repeat,
        purchases / np.maximum(orders, 1),
        logs[4] - 1.5,
        logs[5] - 1,
        logs[6] - 2.5,
        logs[7] - 2,
        logs[8],
        logs[9],
        np.log((soon + 0.01) / (late + 0.01)),
    ]
    return np.ascontiguousarray(np.array(columns, np.float32).T)


def _orders_ago(context: Context) -> NDArray[np.int64]:  # (B, L)
    """Return how many orders each event lies back; events of one moment are one order."""
    ages = context.ages_days
    is_new = np.zeros(ages.shape, dtype=bool)
    is_new[:, 1:] = (ages[:, 1:] != ages[:, :-1]) & (context.items[:, :-1] > 0)
    number = np.cumsum(is_new, axis=1)
    ago: NDArray[np.int64] = number[:, -1:] - number
    return ago
