"""A training set's interactions -> `tables.Tables`.

Pairs are counted some items at a time and the best few kept, so that memory grows with V x N and never with V x V.

Letters: U users, V items, P purchases, C countries, N neighbours kept per item, R rows (customers or orders),
Q pairs of items.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recflow.models.interactions import Interactions
from recflow.serving.tables import EARLIER_WEEKS, WEEK_DAYS, Tables

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_DAY = np.timedelta64(86_400_000_000, "us")
_WEEK = WEEK_DAYS * _DAY
_PAIRS_AT_ONCE = 20_000_000  # multiplications, and so at most as many pairs held: about 0.5 GB

_BUCKETS = 64  # of values, see `_is_hopeful`

Rank = Callable[[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]], NDArray[Any]]


def build_tables(
    interactions: Interactions,
    user_country: NDArray[np.object_],  # (U,) by user_idx; None where unknown
    *,
    window_days: int,
    n_neighbours: int,
    min_customers: int,
    min_orders: int,
    min_country_buyers: int,
    max_countries: int,
) -> Tables:
    """Count customers, orders, weeks, days and habits by item, by country and item, and by pair of items.

    Args:
        interactions: all of the training set; what isn't a purchase counts in `events` alone.
        user_country: each user's.
        window_days: days before `interactions.until` that popularity looks at.
        n_neighbours: kept per item of each kind.
        min_customers: pairs that fewer customers bought are left out: chance, and it would name them.
        min_orders: pairs that are in fewer orders are left out, and those in orders of fewer than `min_customers`.
        min_country_buyers: countries where fewer bought in the window have no row: their few would be the country.
        max_countries: rows at most, of the countries with most buyers: a row costs 12 bytes an item.
    """
    purchases = interactions.purchases()
    n_items = purchases.n_items
    ever = _distinct(purchases.user_idx, purchases.item_idx, (purchases.n_users, n_items))
    in_window = purchases.timestamp >= purchases.until - window_days * _DAY
    recent = _distinct(purchases.user_idx[in_window], purchases.item_idx[in_window], ever.shape)
    countries, of_country = _countries(user_country, recent, min_country_buyers, max_countries)
    neighbours, neighbour_customers = best_pairs(
        ever, n_neighbours, min_count=min_customers, rank=lambda item, other, count: count
    )
    return Tables(
        all_customers=_row_count(ever),
        customers=_column_sums(ever),
        popularity=_column_sums(recent),
        buyers=_row_count(recent),
        country_popularity=_by_country(of_country, recent),
        country_buyers=_buyers_by_country(of_country, recent),
        neighbours=neighbours,
        neighbour_customers=neighbour_customers,
        events=np.bincount(interactions.item_idx, minlength=n_items).astype(np.int32),
        countries=countries,
        window_days=window_days,
        **_orders(purchases, n_neighbours, min_orders=min_orders, min_customers=min_customers),
        **_weeks(purchases, _first_moment(interactions), of_country),
        **_sold_days(purchases),
        **_reorders(purchases),
    )


# -- orders


def _orders(purchases: Interactions, n_neighbours: int, *, min_orders: int, min_customers: int) -> dict[str, Any]:
    """Count orders: by item, and by pair those that have both more often than chance puts them together."""
    order_idx = _order_idx(purchases)
    total = int(order_idx[-1]) + 1 if len(order_idx) else 0
    cells = _distinct(order_idx, purchases.item_idx, (total, purchases.n_items))
    orders = _column_sums(cells)

    def surplus(item: NDArray[np.int32], other: NDArray[np.int32], count: NDArray[np.int32]) -> NDArray[Any]:
        return count - orders[item] * (orders[other] / max(total, 1))

    # Twice as many as are kept: who orders the same two again and again is one customer, and those pairs go.
    neighbours, both = best_pairs(cells, 2 * n_neighbours, min_count=min_orders, rank=surplus)
    customer = np.zeros(total, np.int32)
    customer[order_idx] = purchases.user_idx
    neighbours, both = _of_several(neighbours, both, cells, customer, min_customers)
    neighbours, both = neighbours[:, :n_neighbours], both[:, :n_neighbours]
    return {
        "all_orders": np.array([total], dtype=np.int32),
        "orders": orders,
        "order_neighbours": neighbours,
        "order_neighbour_orders": both,
    }


def _order_idx(purchases: Interactions) -> NDArray[np.int64]:  # (P,)
    """Number the orders: a customer's purchases of one moment; they stand together, by user and time."""
    user, moment = purchases.user_idx, purchases.timestamp
    is_new = (user[1:] != user[:-1]) | (moment[1:] != moment[:-1])
    return np.concatenate([[0], np.cumsum(is_new)])[: len(user)].astype(np.int64)


def _of_several(
    neighbours: NDArray[np.int32],  # (V, N) -1 where there are fewer
    counts: NDArray[np.int32],  # (V, N) orders
    cells: "csr_matrix",  # (orders, V) of ones
    customer: NDArray[np.int32],  # (orders,)
    min_customers: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:  # (V, N) each
    """Leave out pairs whose orders are of too few customers; what is left moves up."""
    items, places = np.nonzero(neighbours >= 0)
    is_kept = np.zeros(neighbours.shape, bool)
    found = customers_of_pairs(cells, customer, items, neighbours[items, places])
    is_kept[items, places] = found >= min_customers
    order = np.argsort(~is_kept, axis=1, kind="stable")
    kept = np.take_along_axis(is_kept, order, axis=1)
    up, with_both = (np.take_along_axis(table, order, axis=1) for table in (neighbours, counts))
    return np.where(kept, up, -1).astype(np.int32), np.where(kept, with_both, 0).astype(np.int32)


def customers_of_pairs(
    cells: "csr_matrix",  # (orders, V) of ones
    customer: NDArray[np.int32],  # (orders,)
    one: NDArray[np.integer],  # (Q,) item_idx
    other: NDArray[np.integer],  # (Q,)
) -> NDArray[np.int64]:  # (Q,)
    """Count the customers who have both items of each pair in one order; some pairs at a time, for memory."""
    from scipy.sparse import csr_matrix

    by_item = cells.T.tocsr()
    orders = np.diff(by_item.indptr)
    shape = (len(customer), int(customer.max(initial=0)) + 1)
    of_customer = csr_matrix((np.ones(len(customer), np.int32), (np.arange(len(customer)), customer)), shape=shape)
    found = np.zeros(len(one), np.int64)
    work = np.cumsum(orders[one] + orders[other])
    bounds = np.searchsorted(work, np.arange(0, work[-1] if len(work) else 0, _PAIRS_AT_ONCE), side="left")
    for first, end in pairwise([*np.unique(bounds).tolist(), len(one)]):
        both = by_item[one[first:end]].multiply(by_item[other[first:end]]).tocsr()
        found[first:end] = np.diff((both @ of_customer).tocsr().indptr)
    return found


def best_pairs(
    cells: "csr_matrix",  # (R, V) of ones
    n_neighbours: int,
    *,
    min_count: int,
    rank: Rank,  # (item, other, rows with both) -> the larger, the better; 0 or less isn't kept
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Keep each item's best companions: their item_idx and the rows that have both, (V, N) each.

    Equal ranks stand in catalogue order; -1 and 0 where there are fewer than N.
    """
    n_items = cells.shape[1]
    by_item = cells.T.tocsr()
    work = by_item @ np.diff(cells.indptr) + _BUCKETS  # (V,) multiplications that an item's pairs take
    bounds = np.searchsorted(np.cumsum(work), np.arange(0, work.sum() + 1, _PAIRS_AT_ONCE), side="left")
    bounds = np.unique([0, *bounds.tolist(), n_items])
    neighbours = np.full((n_items, n_neighbours), -1, dtype=np.int32)
    counts = np.zeros((n_items, n_neighbours), dtype=np.int32)
    for first, end in pairwise(bounds.tolist()):
        pairs = (by_item[first:end] @ cells).tocoo()
        keep = (pairs.data >= min_count) & (pairs.row + first != pairs.col)
        row, other, count = pairs.row[keep], pairs.col[keep], pairs.data[keep]
        best, place = _best_of_each(row, other, rank(row + first, other, count), n_neighbours)
        neighbours[row[best] + first, place] = other[best]
        counts[row[best] + first, place] = count[best]
    return neighbours, counts


def _best_of_each(
    row: NDArray[np.int32], other: NDArray[np.int32], value: NDArray[np.floating], n_best: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which pairs are among the best of their row, and their 0-based place there."""
    hopeful = np.flatnonzero(_is_hopeful(row, value, n_best))
    order = hopeful[np.lexsort((other[hopeful], -value[hopeful], row[hopeful]))]
    place = np.arange(len(order)) - np.searchsorted(row[order], row[order], side="left")
    best = place < n_best
    return order[best], place[best]


def _is_hopeful(row: NDArray[np.int32], value: NDArray[np.floating], n_best: int) -> NDArray[np.bool_]:  # (P,)
    """Return which pairs can be among the best of their row: sorting these few takes a twentieth of sorting all.

    Values fall into buckets on a scale of logarithms; what lies below the bucket that holds the last of the best is
    out. Values of 0 and less are, too.
    """
    positive = value > 0
    bucket = np.minimum(2 * np.log2(1 + np.where(positive, value, 0)), _BUCKETS - 1).astype(np.int64)
    n_rows = int(row.max(initial=-1)) + 1
    sizes = np.bincount(row[positive] * np.int64(_BUCKETS) + bucket[positive], minlength=n_rows * _BUCKETS)
    at_or_above = np.cumsum(sizes.reshape(n_rows, _BUCKETS)[:, ::-1], axis=1)[:, ::-1]
    lowest = np.maximum((at_or_above >= n_best).sum(axis=1) - 1, 0)
    return np.asarray(positive & (bucket >= lowest[row]), bool)


# -- time


def _weeks(purchases: Interactions, first: np.datetime64, of_country: Any) -> dict[str, Any]:
    """Count customers of the last 7 days, and of each whole week of data before, up to EARLIER_WEEKS of them."""
    whole_weeks = int((purchases.until - first.astype("datetime64[D]")) // _WEEK)
    earlier_weeks = min(EARLIER_WEEKS, max(whole_weeks - 1, 0))
    # 0: within the last 7 days, their first moment included, as in the window of popularity.
    weeks_ago = (purchases.until - purchases.timestamp - np.timedelta64(1, "us")) // _WEEK
    shape = (purchases.n_users, purchases.n_items)
    now = weeks_ago == 0
    week = _distinct(purchases.user_idx[now], purchases.item_idx[now], shape)
    earlier = _distinct(purchases.user_idx[:0], purchases.item_idx[:0], shape)
    for ago in range(1, earlier_weeks + 1):
        then = weeks_ago == ago
        earlier = earlier + _distinct(purchases.user_idx[then], purchases.item_idx[then], shape)
    return {
        "week_customers": _column_sums(week),
        "earlier_customers": _column_sums(earlier),
        "country_week_customers": _by_country(of_country, week),
        "country_earlier_customers": _by_country(of_country, earlier),
        "earlier_weeks": earlier_weeks,
    }


def _first_moment(interactions: Interactions) -> np.datetime64:
    return interactions.timestamp.min() if len(interactions.timestamp) else interactions.until


def _sold_days(purchases: Interactions) -> dict[str, Any]:
    """Find each item's first day with a sale."""
    never = np.iinfo(np.int32).max
    first = np.full(purchases.n_items, never, dtype=np.int32)
    np.minimum.at(first, purchases.item_idx, _days(purchases))
    return {"first_sold_day": np.where(first == never, -1, first).astype(np.int32)}


def _reorders(purchases: Interactions) -> dict[str, Any]:
    """Take each customer's mean days between purchases of an item, and of an item's customers the median.

    A day is the grain: two orders of one day are one occasion. First the mean of each customer, so that one who buys
    every day weighs no more than another.
    """
    n_items = purchases.n_items
    day_cells = purchases.user_idx.astype(np.int64) * n_items + purchases.item_idx
    order = np.lexsort((_days(purchases), day_cells))
    cells, days = day_cells[order], _days(purchases)[order]
    distinct = np.ones(len(cells), dtype=bool)
    distinct[1:] = (cells[1:] != cells[:-1]) | (days[1:] != days[:-1])
    cells, days = cells[distinct], days[distinct]
    pairs, starts, occasions = np.unique(cells, return_index=True, return_counts=True)
    again = occasions > 1
    starts, occasions, items = starts[again], occasions[again], pairs[again] % n_items
    gaps = (days[starts + occasions - 1] - days[starts]) / (occasions - 1)
    by_item = np.lexsort((gaps, items))
    gaps = gaps[by_item]
    counts = np.bincount(items, minlength=n_items)
    firsts = np.cumsum(counts) - counts
    known = counts > 0
    median = np.full(n_items, np.nan, dtype=np.float32)
    low, high = firsts + (counts - 1) // 2, firsts + counts // 2  # the two in the middle, or twice the one
    median[known] = (gaps[low[known]] + gaps[high[known]]) / 2
    return {"reorder_days": median, "reorder_customers": counts.astype(np.int32)}


def _days(purchases: Interactions) -> NDArray[np.int32]:  # (P,) days since 1970-01-01
    return purchases.timestamp.astype("datetime64[D]").astype(np.int32)


# -- countries


def _countries(
    user_country: NDArray[np.object_], recent: "csr_matrix", min_buyers: int, max_countries: int
) -> tuple[tuple[str, ...], "csr_matrix"]:
    """Choose the countries that have rows, most buyers first; return their names and (C, U) with their users."""
    from scipy.sparse import csr_matrix

    has_country = np.array([bool(country) for country in user_country], dtype=bool)
    names, codes = np.unique(user_country[has_country].astype(np.str_), return_inverse=True)
    users = np.flatnonzero(has_country)
    shape = (len(names), len(user_country))
    of_country = csr_matrix((np.ones(len(users), dtype=np.int32), (codes, users)), shape=shape)
    buyers = _buyers_by_country(of_country, recent)
    by_size = np.lexsort((names, -buyers))
    kept = by_size[buyers[by_size] >= max(min_buyers, 1)][:max_countries]
    return tuple(str(name) for name in names[kept]), of_country[kept]


def _by_country(of_country: "csr_matrix", cells: "csr_matrix") -> NDArray[np.int32]:  # (C, V)
    return np.asarray((of_country @ cells).toarray(), dtype=np.int32)


def _buyers_by_country(of_country: "csr_matrix", cells: "csr_matrix") -> NDArray[np.int32]:  # (C,)
    return np.asarray(of_country @ (np.diff(cells.indptr) > 0).astype(np.int32), dtype=np.int32)


# -- sparse


def _distinct(rows: NDArray[Any], columns: NDArray[Any], shape: tuple[int, int]) -> "csr_matrix":
    """Return 1 where a row and a column meet, however often they do."""
    from scipy.sparse import csr_matrix

    cells = csr_matrix((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=shape)
    cells.sum_duplicates()
    cells.data[:] = 1
    return cells


def _column_sums(cells: "csr_matrix") -> NDArray[np.int32]:
    return np.asarray(cells.sum(axis=0), dtype=np.int32).ravel()


def _row_count(cells: "csr_matrix") -> NDArray[np.int32]:  # (1,)
    """Count the rows that have anything."""
    return np.array([(np.diff(cells.indptr) > 0).sum()], dtype=np.int32)
