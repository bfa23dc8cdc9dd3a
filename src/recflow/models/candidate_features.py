"""The events of histories -> what they say of each candidate, of each shopper, and of how well an item fits.

Each function returns columns by name; `candidates` puts them in order. Letters as there; Q pairs with a purchase, O
purchases.
"""

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from recflow.models.interactions import PREFERENCE, PURCHASE, RETURN, Context
from recflow.models.pairs import Pairs

HALF_LIVES_DAYS = (7.0, 21.0, 60.0, 180.0)  # of decayed counts of purchases: the week, the season, the habit
ORDER_DECAYS = (0.5, 0.8)  # what the order before counts, against the one after it
LAST_ORDERS = (2, 3, 5)
_PER_HALF_LIFE, _LOG_ORDER_DECAYS = -1 / np.array(HALF_LIVES_DAYS)[:, None], np.log2(ORDER_DECAYS)[:, None]
_LAST_ORDERS = np.array(LAST_ORDERS)[:, None]
# Rows of what is summed up, behind orders and pieces.
_DECAYED = slice(2, 2 + len(HALF_LIVES_DAYS))
_DECAYED_ORDERS = slice(_DECAYED.stop, _DECAYED.stop + len(ORDER_DECAYS))
_LAST = slice(_DECAYED_ORDERS.stop, _DECAYED_ORDERS.stop + len(LAST_ORDERS))
_LOOK_HALF_LIFE_DAYS = 7.0  # of clicks and baskets: what is looked at is bought soon or not at all
_HABIT_DECAY = 0.7  # an order
_STRANGER_DAYS = 400.0  # since the last order of who never ordered: longer than all that did


class Events(NamedTuple):
    """The events of B histories without their padding: those of a pair together, oldest first."""

    pairs: Pairs  # (H,)
    pair: NDArray[np.int64]  # (N,) number of the event's pair
    age: NDArray[np.float64]  # (N,) days
    event_type: NDArray[np.int8]  # (N,)
    quantity: NDArray[np.float32]  # (N,)
    orders_ago: NDArray[np.int64]  # (N,) orders since; purchases of one moment are one order, which is its own 0th
    orders: NDArray[np.int64]  # (B,)
    newest_age: NDArray[np.float64]  # (B,) days since the shopper's newest event

    @classmethod
    def of(cls, context: Context) -> Self:
        """Flatten a context, count the orders, and put the events of each pair together."""
        in_time = np.flatnonzero(context.items)
        shopper, age = in_time // max(context.items.shape[1], 1), context.ages_days.ravel()[in_time]
        bought = np.flatnonzero(context.event_types.ravel()[in_time] == PURCHASE)
        starts_order = np.zeros(len(in_time), bool)
        starts_order[bought[:1]] = True
        before, after = bought[:-1], bought[1:]
        starts_order[after] = (shopper[before] != shopper[after]) | (age[before] != age[after])
        orders = np.bincount(shopper[starts_order], minlength=len(context))
        through = np.cumsum(orders)  # orders of the shopper and those above it
        orders_ago = np.empty(context.items.size, np.int64)
        orders_ago[in_time] = through[shopper] - np.cumsum(starts_order)
        newest_age = np.full(len(context), _STRANGER_DAYS)
        newest_age[shopper] = age  # ordered by time: the last assignment stays
        pairs = Pairs.of(context.items)
        return cls(
            pairs=pairs,
            pair=np.repeat(np.arange(len(pairs)), pairs.counts),
            age=context.ages_days.ravel()[pairs.at].astype(np.float64),
            event_type=context.event_types.ravel()[pairs.at],
            quantity=context.quantities.ravel()[pairs.at],
            orders_ago=orders_ago[pairs.at],
            orders=orders,
            newest_age=newest_age,
        )


class Purchases(NamedTuple):
    """The purchases among the events of B histories, in their order, and the pairs and shoppers that have any."""

    pair: NDArray[np.int64]  # (Q,) number among the events' pairs
    shopper: NDArray[np.int64]  # (Q,)
    item: NDArray[np.int64]  # (Q,)
    starts: NDArray[np.int64]  # (Q,) each pair's first purchase
    lines: NDArray[np.int64]  # (Q,) its purchases
    buyer: NDArray[np.int64]  # (*,) shoppers with any
    buyer_starts: NDArray[np.int64]  # (*,) each buyer's first purchase
    age: NDArray[np.float64]  # (O,) days
    ago: NDArray[np.int64]  # (O,) orders since
    quantity: NDArray[np.float32]  # (O,)
    orders: NDArray[np.int64]  # (B,)
    days_since_order: NDArray[np.float64]  # (B,)

    @classmethod
    def of(cls, events: Events) -> Self:
        """Leave out all else."""
        bought = np.flatnonzero(events.event_type == PURCHASE)
        pair_of_each, age = events.pair[bought], events.age[bought]
        starts = _starts(pair_of_each)
        pair = pair_of_each[starts]
        shopper = events.pairs.shopper[pair]
        first_pair = _starts(shopper)
        newest = np.full(len(events.orders), _STRANGER_DAYS)
        newest[shopper[first_pair]] = np.minimum(np.minimum.reduceat(age, starts[first_pair]), _STRANGER_DAYS)
        return cls(
            pair=pair,
            shopper=shopper,
            item=events.pairs.item[pair],
            starts=starts,
            lines=_lengths(starts, len(bought)),
            buyer=shopper[first_pair],
            buyer_starts=starts[first_pair],
            age=age,
            ago=events.orders_ago[bought],
            quantity=events.quantity[bought],
            orders=events.orders,
            days_since_order=newest,
        )

    def of_each(self, values: NDArray[Any]) -> NDArray[Any]:  # (Q,) -> (O,)
        """Repeat what holds for a pair for each of its purchases."""
        return np.repeat(values, self.lines)

    def by_shopper(self, rows: list[NDArray[Any]], ufunc: np.ufunc = np.add) -> NDArray[np.float64]:  # R (O,) -> (R, B)
        """Reduce each row by shopper; 0 for who bought nothing."""
        reduced = np.zeros((len(rows), len(self.orders)))
        reduced[:, self.buyer] = ufunc.reduceat(np.array(rows, np.float64), self.buyer_starts, axis=1)
        return reduced


def own_features(bought: Purchases) -> dict[str, NDArray[Any]]:
    """Return what a shopper's purchases of an item say of each pair with any (Q,), by the names of OWN."""
    last, ago, age = bought.starts + bought.lines - 1, bought.ago, bought.age
    last_age, first_age = age[last], age[bought.starts]
    orders, newest = bought.orders[bought.shopper], bought.days_since_order[bought.shopper]
    is_order = np.ones(len(ago), bool)  # lines of one order count once
    is_order[1:] = ago[1:] != ago[:-1]
    is_order[bought.starts] = True
    since = age - bought.of_each(newest)
    # Ten sums in one pass.
    terms = np.empty((_LAST.stop, len(ago)))
    terms[0], terms[1] = is_order, bought.quantity
    np.exp2(since * _PER_HALF_LIFE, out=terms[_DECAYED])
    np.exp2(ago * _LOG_ORDER_DECAYS, out=terms[_DECAYED_ORDERS])
    np.less(ago, _LAST_ORDERS, out=terms[_LAST])
    terms[_DECAYED.stop :] *= is_order
    sums = np.add.reduceat(terms, bought.starts, axis=1)
    orders_with, pieces = sums[:2]
    decayed, decayed_orders, in_last = sums[_DECAYED], sums[_DECAYED_ORDERS], sums[_LAST]
    days_between = np.where(orders_with > 1, (first_age - last_age) / np.maximum(orders_with - 1, 1), np.nan)
    return {
        "is_own": np.ones(len(last)),
        "orders_with": orders_with,
        "days_since_last": last_age,
        "days_to_last_order": last_age - newest,
        "orders_since": ago[last],
        "in_last_order": ago[last] == 0,
        "days_since_first": first_age,
        "share_of_orders": orders_with / orders,
        "share_since_first": orders_with / (ago[bought.starts] + 1),
        "days_between": days_between,
        "due": last_age / np.maximum(days_between, 1),
        **{f"decayed_{days:.0f}_days": row for days, row in zip(HALF_LIVES_DAYS, decayed, strict=True)},
        **{f"decayed_orders_{decay}": row for decay, row in zip(ORDER_DECAYS, decayed_orders, strict=True)},
        **{f"share_of_last_{n}": row / np.minimum(orders, n) for n, row in zip(LAST_ORDERS, in_last, strict=True)},
        "pieces_with": np.log1p(pieces / bought.lines),
        "last_pieces": np.log1p(bought.quantity[last]),
    }


def look_features(events: Events) -> dict[str, NDArray[Any]]:
    """Return what all other events of each pair (H,) say, by the names of OWN."""
    others = np.flatnonzero(events.event_type != PURCHASE)
    pair, event_type, n = events.pair[others], events.event_type[others], len(events.pairs)
    looks = PREFERENCE[event_type] * np.exp2(events.age[others] / -_LOOK_HALF_LIFE_DAYS)
    return {
        "returns": np.bincount(pair[event_type == RETURN], minlength=n),
        "looks": np.bincount(pair, looks, minlength=n),
    }


def shopper_features(bought: Purchases) -> dict[str, NDArray[Any]]:
    """Return what all purchases of each shopper (B,) say, by the names of SHOPPER."""
    ago, orders, newest = bought.ago, bought.orders, bought.days_since_order
    fade = np.exp2(ago * np.log2(_HABIT_DECAY))
    is_repeated = bought.of_each(ago[bought.starts]) > ago
    could_be = ago < bought.of_each(orders[bought.shopper] - 1)
    lines, pieces, faded, repeated, could_repeat, last_lines = bought.by_shopper(
        [np.ones(len(ago)), bought.quantity, fade, fade * is_repeated, fade * could_be, ago == 0]
    )
    before = np.where(ago > 0, np.minimum(bought.age, _STRANGER_DAYS), _STRANGER_DAYS)
    oldest, less_before_last = bought.by_shopper([bought.age, -before], np.maximum)
    distinct = np.bincount(bought.shopper, minlength=len(orders))
    n_orders, n_lines = np.maximum(orders, 1), np.maximum(lines, 1)
    return {
        "days_since_order": newest,
        "orders": orders,
        "days_between_orders": np.maximum(oldest - newest, 0) / np.maximum(orders - 1, 1),
        "lines_per_order": lines / n_orders,
        "distinct_items": distinct,
        "repeated_lines": 1 - distinct / n_lines,
        "last_lines": last_lines,
        "habit": (repeated + 0.3) / (could_repeat + 1),
        "recent_lines": faded / np.maximum((1 - _HABIT_DECAY**orders) / (1 - _HABIT_DECAY), 1),
        "pieces_per_line": pieces / n_lines,
        "days_between_last_two": np.maximum(-less_before_last - newest, 0),
    }


def mean_price(bought: Purchases, price: NDArray[np.float32]) -> NDArray[np.float64]:  # (B,)
    """Return the mean of the log prices of what each shopper bought; NaN for who bought nothing with a price."""
    of_pairs = price[bought.item]
    is_priced = np.isfinite(of_pairs)
    counts, n = is_priced * bought.lines, len(bought.orders)
    count = np.bincount(bought.shopper, counts, minlength=n)
    total = np.bincount(bought.shopper, counts * np.where(is_priced, of_pairs, 0), minlength=n)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


class Placed(NamedTuple):
    """Candidates of B shoppers side by side, for what is worked out shopper by shopper: n of the one who has most."""

    shopper: NDArray[np.int64]  # (P,)
    place: NDArray[np.int64]  # (P,) among the shopper's, from 0
    shape: tuple[int, int]  # (B, n)

    @classmethod
    def of(cls, shopper: NDArray[np.int64], n_shoppers: int) -> Self:  # (P,) ascending
        """Number each shopper's."""
        counts = np.bincount(shopper, minlength=n_shoppers)
        place = np.arange(len(shopper)) - (counts.cumsum() - counts)[shopper]
        return cls(shopper, place, (n_shoppers, int(counts.max(initial=0))))

    def padded(self, values: NDArray[Any], padding: float = 0) -> NDArray[Any]:  # (P,) -> (B, n)
        """Put values side by side."""
        padded = np.full(self.shape, padding, values.dtype)
        padded[self.shopper, self.place] = values
        return padded

    def ranks(self, values: NDArray[Any]) -> NDArray[np.float32]:  # (P,) -> (P,)
        """Rank each value among its shopper's, from 0, greatest first; of equal ones the first is first."""
        costs = self.padded(-values.astype(np.float32), np.inf)
        ranks = np.empty(self.shape, np.float32)
        ranks[np.arange(self.shape[0])[:, None], costs.argsort(axis=1, kind="stable")] = np.arange(self.shape[1])
        found: NDArray[np.float32] = ranks[self.shopper, self.place]
        return found


def text_fit(
    events: Events,
    wanted: NDArray[np.float32],  # (W, H) how strongly each pair's item is wanted, in several ways
    text: NDArray[np.float32],  # (V, T)
    placed: Placed,
    item: NDArray[np.int64],
) -> NDArray[np.float32]:  # (W, P)
    """Return the cosine of each candidate's title with the mean title of what its shopper wanted."""
    own = Placed.of(events.pairs.shopper, placed.shape[0])
    weights = np.stack([own.padded(of_pairs) for of_pairs in wanted], axis=1)  # (B, W, h) h pairs of who has most
    tastes = weights @ text.take(own.padded(events.pairs.item), axis=0)  # (B, W, T)
    tastes /= np.maximum(np.sqrt(np.einsum("bwt,bwt->bw", tastes, tastes)), 1e-9)[..., None]
    fits: NDArray[np.float32] = text.take(placed.padded(item), axis=0) @ tastes.transpose(0, 2, 1)  # (B, n, W)
    return fits[placed.shopper, placed.place].T


def recency_ranks(bought: Purchases, own: dict[str, NDArray[Any]]) -> NDArray[np.float32]:  # (Q,)
    """Return the rank of each item that the shopper bought, those bought last first, then the most often."""
    recent = 1e-3 * own["orders_with"] - own["days_to_last_order"]
    return Placed.of(bought.shopper, len(bought.orders)).ranks(recent)


def _lengths(starts: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """Return how long each run is, of which the next one starts where it ends."""
    lengths = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
    lengths[-1:] = end - starts[-1:]
    return lengths


def _starts(ascending: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each value begins."""
    is_first = np.ones(len(ascending), bool)
    np.not_equal(ascending[1:], ascending[:-1], out=is_first[1:])
    return is_first.nonzero()[0]
