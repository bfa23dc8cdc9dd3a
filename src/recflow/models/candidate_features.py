"""The events of histories -> what they say of each candidate, of each shopper, and of how well an item fits.

Each function returns columns by name; `candidates` puts them in order. Letters as there.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from recflow.models.interactions import PREFERENCE, PURCHASE, RETURN, Context

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

HALF_LIVES_DAYS = (7.0, 21.0, 60.0, 180.0)  # of decayed counts of purchases: the week, the season, the habit
ORDER_DECAYS = (0.5, 0.8)  # what the order before counts, against the one after it
LAST_ORDERS = (2, 3, 5)
_LOOK_HALF_LIFE_DAYS = 7.0  # of clicks and baskets: what is looked at is bought soon or not at all
_HABIT_DECAY = 0.7  # an order
_STRANGER_DAYS = 400.0  # since the last order of who never ordered: longer than all that did


class Events(NamedTuple):
    """The events of B histories without their padding, ordered by (shopper, time)."""

    shopper: NDArray[np.int64]  # (N,)
    item: NDArray[np.int64]  # (N,)
    age: NDArray[np.float64]  # (N,) days
    event_type: NDArray[np.int8]  # (N,)
    quantity: NDArray[np.float32]  # (N,)
    is_purchase: NDArray[np.bool_]  # (N,)
    orders_ago: NDArray[np.int64]  # (N,) orders since; purchases of one moment are one order, which is its own 0th
    orders: NDArray[np.int64]  # (B,)

    @classmethod
    def of(cls, context: Context) -> Self:
        """Flatten a context and count the orders."""
        shopper, column = np.nonzero(context.items)
        age = context.ages_days[shopper, column]
        is_purchase = context.event_types[shopper, column] == PURCHASE
        bought = np.flatnonzero(is_purchase)
        starts_order = np.zeros(len(shopper), bool)
        starts_order[bought[:1]] = True
        before, after = bought[:-1], bought[1:]
        starts_order[after] = (shopper[before] != shopper[after]) | (age[before] != age[after])
        orders = np.bincount(shopper[starts_order], minlength=len(context))
        through = np.cumsum(orders)  # orders of the shopper and those above it
        return cls(
            shopper=shopper,
            item=context.items[shopper, column].astype(np.int64) - 1,
            age=age.astype(np.float64),
            event_type=context.event_types[shopper, column],
            quantity=context.quantities[shopper, column],
            is_purchase=is_purchase,
            orders_ago=through[shopper] - np.cumsum(starts_order),
            orders=orders,
        )

    @property
    def n_shoppers(self) -> int:
        """Return B."""
        return len(self.orders)

    def purchases(self) -> "Events":
        """Return the purchases alone; the counts of orders stay."""
        of_events: dict[str, Any] = {
            name: column[self.is_purchase] for name, column in self._asdict().items() if name != "orders"
        }
        return self._replace(**of_events)

    def newest_age(self) -> NDArray[np.float64]:  # (B,)
        """Return days since each shopper's newest event."""
        newest = np.full(self.n_shoppers, _STRANGER_DAYS)
        newest[self.shopper] = self.age  # ordered by time: the last assignment stays
        return newest


def own_features(events: Events, shopper: NDArray[np.int64], item: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return what the shopper's events with each candidate (P,) say, by the names of OWN."""
    n, width = len(shopper), int(item.max(initial=0)) + 1
    keys = shopper * width + item  # ascending
    at_all = np.searchsorted(keys, events.shopper * width + events.item)  # every item of the history is a candidate
    bought, at = events.purchases(), at_all[events.is_purchase]
    lines = np.bincount(at, minlength=n)
    missing = np.where(lines > 0, 0.0, np.nan)
    order_keys = np.unique(at * (1 << 20) + bought.orders_ago)  # lines of one order count once
    at_order, ago = order_keys >> 20, order_keys & ((1 << 20) - 1)
    last_age, last_ago = _least(bought.age, at, n), _least(bought.orders_ago, at, n)
    first_age, first_ago = -_least(-bought.age, at, n), -_least(-bought.orders_ago, at, n)
    orders_with = np.bincount(at_order, minlength=n).astype(float)
    orders, newest = events.orders[shopper], _days_since_order(bought)
    days_between = np.where(orders_with > 1, (first_age - last_age) / np.maximum(orders_with - 1, 1), np.nan)
    since = bought.age - newest[bought.shopper]
    last_pieces = np.zeros(n)
    last_pieces[at] = bought.quantity  # ordered by time: the last assignment stays
    looks = PREFERENCE[events.event_type] * ~events.is_purchase * np.exp2(-events.age / _LOOK_HALF_LIFE_DAYS)
    return {
        "is_own": lines > 0,
        "orders_with": orders_with + missing,
        "days_since_last": last_age + missing,
        "days_to_last_order": last_age - newest[shopper] + missing,
        "orders_since": last_ago + missing,
        "in_last_order": (last_ago == 0) & (lines > 0),
        "days_since_first": first_age + missing,
        "share_of_orders": orders_with / np.maximum(orders, 1) + missing,
        "share_since_first": orders_with / np.maximum(first_ago + 1, 1) + missing,
        "days_between": days_between,
        "due": last_age / np.maximum(days_between, 1),
        **{
            f"decayed_{half_life:.0f}_days": np.bincount(at, np.exp2(-since / half_life), minlength=n) + missing
            for half_life in HALF_LIVES_DAYS
        },
        **{
            f"decayed_orders_{decay}": np.bincount(at_order, decay**ago, minlength=n) + missing
            for decay in ORDER_DECAYS
        },
        **{
            f"share_of_last_{last}": np.bincount(at_order, ago < last, minlength=n) / np.clip(orders, 1, last) + missing
            for last in LAST_ORDERS
        },
        "pieces_with": np.log1p(np.bincount(at, bought.quantity, minlength=n) / np.maximum(lines, 1)) + missing,
        "last_pieces": np.log1p(last_pieces) + missing,
        "returns": np.bincount(at_all[events.event_type == RETURN], minlength=n),
        "looks": np.bincount(at_all, looks, minlength=n),
    }


def shopper_features(events: Events, n_items: int) -> dict[str, NDArray[Any]]:
    """Return what all purchases of each shopper (B,) say, by the names of SHOPPER."""
    b, bought = events.n_shoppers, events.purchases()
    shopper, ago, orders = bought.shopper, bought.orders_ago, events.orders
    lines = np.bincount(shopper, minlength=b)
    keys, at = np.unique(shopper * n_items + bought.item, return_inverse=True)
    first_ago = -_least(-ago, at, len(keys))
    newest = _days_since_order(bought)
    oldest = np.maximum(-_least(-bought.age, shopper, b), 0)
    before_last = np.minimum(_least(bought.age[ago > 0], shopper[ago > 0], b), _STRANGER_DAYS)
    fade = _HABIT_DECAY**ago
    repeated = np.bincount(shopper, fade * (first_ago[at] > ago), minlength=b)
    could_repeat = np.bincount(shopper, fade * (ago < orders[shopper] - 1), minlength=b)
    distinct = np.bincount(keys // n_items, minlength=b)
    n_lines = np.maximum(lines, 1)
    return {
        "days_since_order": newest,
        "orders": orders,
        "days_between_orders": np.maximum(oldest - newest, 0) / np.maximum(orders - 1, 1),
        "lines_per_order": lines / np.maximum(orders, 1),
        "distinct_items": distinct,
        "repeated_lines": 1 - distinct / n_lines,
        "last_lines": np.bincount(shopper[ago == 0], minlength=b),
        "habit": (repeated + 0.3) / (could_repeat + 1),
        "recent_lines": np.bincount(shopper, fade, minlength=b)
        / np.maximum((1 - _HABIT_DECAY**orders) / (1 - _HABIT_DECAY), 1),
        "pieces_per_line": np.bincount(shopper, bought.quantity, minlength=b) / n_lines,
        "days_between_last_two": np.maximum(before_last - newest, 0),
    }


def _days_since_order(bought: Events) -> NDArray[np.float64]:  # (B,)
    return np.minimum(_least(bought.age, bought.shopper, bought.n_shoppers), _STRANGER_DAYS)


def mean_price(events: Events, price: NDArray[np.float32]) -> NDArray[np.float64]:  # (B,)
    """Return the mean of the log prices of what each shopper bought; NaN for who bought nothing with a price."""
    of_events = price[events.item]
    counted = events.is_purchase & np.isfinite(of_events)
    count = np.bincount(events.shopper[counted], minlength=events.n_shoppers)
    total = np.bincount(events.shopper[counted], of_events[counted], minlength=events.n_shoppers)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def text_fit(
    wanted: "csr_matrix", text: NDArray[np.float32], shopper: NDArray[np.int64], item: NDArray[np.int64]
) -> NDArray[np.float32]:  # (P,)
    """Return the cosine of each candidate's title with the mean title of what its shopper wanted."""
    taste = wanted @ text  # (B, T)
    taste /= np.maximum(np.linalg.norm(taste, axis=1, keepdims=True), 1e-9)
    fit: NDArray[np.float32] = np.einsum("pt,pt->p", taste[shopper], text[item])
    return fit


def _least(values: NDArray[Any], at: NDArray[np.int64], n: int) -> NDArray[np.float64]:  # (n,)
    """Return the least value at each place; a billion where there is none."""
    least = np.full(n, 1e9)
    np.minimum.at(least, at, values)
    return least


def ranks(shopper: NDArray[np.int64], values: NDArray[Any], n: int) -> NDArray[np.float32]:  # (P,)
    """Return the rank of each value among its shopper's, from 0, greatest first."""
    order = np.lexsort((-values, shopper))
    starts = np.searchsorted(shopper, np.arange(n))
    ranks = np.empty(len(shopper), np.float32)
    ranks[order] = np.arange(len(shopper)) - starts[shopper[order]]
    return ranks


def recency_ranks(shopper: NDArray[np.int64], own: Mapping[str, NDArray[Any]], n: int) -> NDArray[np.float32]:
    """Return the rank of each item that the shopper bought, those bought last first, then the most often."""
    is_own = own["is_own"]
    recent = np.where(is_own, 1e-3 * own["orders_with"] - own["days_to_last_order"], -np.inf)
    return np.where(is_own, ranks(shopper, recent, n), np.nan).astype(np.float32)
