"""The shop's events before a moment -> what they say of its items: how they sell, who buys again, what goes with what.

Letters as in `interactions`; N purchases before the moment, M items that take part in the matrices, S of them that
each speaks for, T numbers of a title, G facts of an item, Q pairs of a shopper and an item that it bought.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from recflow.models.interactions import Interactions
from recflow.models.linear import drop_unsupported, ease_weights, preference_matrix

_DAY_US = 86_400_000_000
_WINDOWS_DAYS = (3, 7, 14, 28, 60, 90)  # of the counts of sales
_AGAIN_WINDOWS_DAYS = (28, 90)  # of the shares of orders that had an item again, or anew
_UNSOLD_DAYS = 200.0  # the last sale of an item lies so far back at most: what didn't sell by then doesn't sell
_PRICE_FLOOR = 0.05  # of a logarithm: what costs less is a gift
_TEXT_DIRECTIONS = 64  # of titles: with all 256 of them the ranker is no better
_ROWS_AT_ONCE = 512  # of a matrix that is thinned out
_FOLLOWING_DAYS = 28.0  # what was bought since is regressed on what was wanted before: a month, as orders follow

# What is said of an item, in the order of `Assortment.facts`. Counts are log(1 + x), prices and rates log x.
FACTS: tuple[str, ...] = (
    *(f"sales_{days}_days" for days in _WINDOWS_DAYS),  # purchases within the last days
    "sales_ever",
    "trend_7_28",  # sales of the last 7 days against those of the last 28, a day
    "trend_14_60",
    "trend_28_90",
    "days_since_first_sale",
    "days_since_last_sale",
    "price",
    "pieces",  # of one purchase
    "rebuy_share",  # of its buyers, those who bought it on several days
    "buys_per_buyer",  # days on which a buyer bought it
    "repeat_share_28",  # of its last 28 days' sales, those to earlier buyers
    "new_buyers_14",  # who bought it for the first time within the last 14 days
    "new_buyers_28",
    *(f"{kind}_rate_{days}" for days in _AGAIN_WINDOWS_DAYS for kind in ("again", "new")),
)


class Links(NamedTuple):
    """What some items say of others: the strongest entries of their rows in a matrix of items by items."""

    to: NDArray[np.int32]  # (*, S) item_idx
    weight: NDArray[np.float32]  # (*, S) above 0 speaks for the item, below 0 against it


@dataclass(frozen=True)
class Assortment:
    """What is known of the items of a shop at one moment; nothing in it is later."""

    facts: NDArray[np.float32]  # (V, G) see FACTS
    recency: NDArray[np.float32]  # (V,) 0 to 1: square root of the sales of 28 days, against the best-seller's
    recent_sales: NDArray[np.float32]  # (V,) purchases within 14 days
    items: NDArray[np.int32]  # (M,) item_idx of those in the matrices, ascending
    ease_to: NDArray[np.int32]  # (M, S) item_idx
    ease: NDArray[np.float32]  # (M, S) how far wanting an item speaks for each of those (see linear.EASE)
    following_to: NDArray[np.int32]  # (M, S) item_idx
    following: NDArray[np.float32]  # (M, S) how far having wanted an item speaks for buying each within a month
    text: NDArray[np.float32]  # (V, T) titles, of length 1 or 0, see `_principal`

    @classmethod
    def of(
        cls,
        interactions: Interactions,
        *,
        prices: NDArray[np.float32],  # of each interaction, for one piece; NaN where there is none
        text: NDArray[np.float32],  # (V, *) titles
        regularization: float = 300.0,  # of both matrices, in shoppers
        max_items: int = 8000,  # in the matrices, the most wanted ones: time grows with their cube
        max_links: int = 50,  # kept of each item in each matrix, the strongest: with all the ranker is no better
        min_support: int = 1,  # shoppers with both items of a pair; with fewer the pair has no weight in a matrix
    ) -> Self:
        """Sum up all interactions as of their `until`."""
        wanted = preference_matrix(interactions)
        total = np.asarray(wanted.sum(axis=0)).ravel()
        taking_part = np.argsort(-total, kind="stable")[:max_items]
        items = np.sort(taking_part[total[taking_part] > 0]).astype(np.int32)
        wanted = wanted[:, items]
        weights = ease_weights(np.asarray((wanted.T @ wanted).todense(), np.float32), regularization)
        drop_unsupported(weights, wanted, wanted, min_support)
        ease = _strongest(weights, items, max_links)
        del weights  # a matrix of 8,000 items is 256 MB
        following = _strongest(following_weights(interactions, items, regularization, min_support), items, max_links)
        sales = _Sales.of(interactions, prices)
        within_28, within_14 = sales.within(28), sales.within(14)
        return cls(
            facts=_facts(sales),
            recency=np.sqrt(within_28 / max(within_28.max(initial=0), 1) + 1e-6).astype(np.float32),
            recent_sales=within_14.astype(np.float32),
            items=items,
            ease_to=ease.to,
            ease=ease.weight,
            following_to=following.to,
            following=following.weight,
            text=_principal(text),
        )

    @cached_property
    def place(self) -> NDArray[np.int64]:  # (V,)
        """Return where each item stands in the matrices; -1: it takes no part."""
        place = np.full(len(self.facts), -1)
        place[self.items] = np.arange(len(self.items))
        return place

    @cached_property
    def best_sellers(self) -> NDArray[np.int64]:  # (V,)
        """Return all items, those that sell most now first."""
        return np.lexsort((-self.recency, -self.recent_sales))

    def links(self, place: NDArray[np.int64], matrix: str) -> Links:
        """Return what items in the matrices, by their place there, say of others."""
        to, weight = getattr(self, f"{matrix}_to"), getattr(self, matrix)
        return Links(to.take(place, axis=0), weight.take(place, axis=0))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Take back what `arrays` gave."""
        return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})


def following_weights(
    interactions: Interactions, items: NDArray[np.int32], regularization: float, min_support: int
) -> NDArray[np.float32]:
    """Return the ridge regression (M, M) of what shoppers bought lately on what they had wanted before.

    Unlike EASE its diagonal isn't 0: it says how likely an item is bought again. Over shoppers with both sides.
    """
    from scipy.linalg import cho_factor, cho_solve

    since = interactions.until - np.timedelta64(round(_FOLLOWING_DAYS * _DAY_US), "us")
    before = preference_matrix(interactions.before(since))[:, items]
    after = preference_matrix(interactions.since(since).purchases())[:, items]
    both = np.flatnonzero((np.diff(before.indptr) > 0) & (np.diff(after.indptr) > 0))
    before, after = before[both], after[both]
    following = np.zeros((len(items), len(items)), np.float32)
    # What nobody had, or nobody bought, is 0 throughout: without it the solution is the same.
    had, bought = np.unique(before.indices), np.unique(after.indices)
    if len(both):
        before, after = before[:, had], after[:, bought]
        gram = np.asarray((before.T @ before).todense(), np.float32)
        gram[np.diag_indices_from(gram)] += regularization
        factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
        cross = np.asarray((before.T @ after).todense(), np.float32)
        found = cho_solve(factor, cross, overwrite_b=True, check_finite=False)
        drop_unsupported(found, before, after, min_support)
        following[np.ix_(had, bought)] = found
    return following


def _principal(text: NDArray[np.float32]) -> NDArray[np.float32]:  # (V, *) -> (V, T)
    """Return titles in the directions in which they differ most, of length 1 again: there is less to read."""
    if text.shape[1] <= _TEXT_DIRECTIONS:
        return text
    _, directions = np.linalg.eigh((text.T @ text).astype(np.float64))  # ascending
    turned = text @ directions[:, -_TEXT_DIRECTIONS:].astype(np.float32)
    return np.asarray(turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-9), np.float32)


def _strongest(matrix: NDArray[np.float32], items: NDArray[np.int32], n: int) -> Links:
    """Return the entries of each row (M, M) that are furthest from 0, in catalogue order."""
    n = min(n, len(items))
    places = np.empty((len(items), n), np.int64)
    for first in range(0, len(items) if n else 0, _ROWS_AT_ONCE):
        strength = np.abs(matrix[first : first + _ROWS_AT_ONCE])
        places[first : first + _ROWS_AT_ONCE] = np.argpartition(strength, -n, axis=1)[:, -n:]
    places.sort(axis=1)
    return Links(items[places], np.take_along_axis(matrix, places, axis=1))


class _Sales(NamedTuple):
    """Purchases before a moment, ordered by (user, time), and the pairs and orders that they make."""

    user: NDArray[np.int32]  # (N,)
    item: NDArray[np.int32]  # (N,)
    age: NDArray[np.float64]  # (N,) days before the moment
    quantity: NDArray[np.float32]  # (N,)
    price: NDArray[np.float32]  # (N,)
    pair: NDArray[np.int64]  # (N,) number of the pair of shopper and item
    pair_user: NDArray[np.int64]  # (Q,)
    pair_item: NDArray[np.int64]  # (Q,)
    n_users: int
    n_items: int

    @classmethod
    def of(cls, interactions: Interactions, prices: NDArray[np.float32]) -> Self:
        """Take the purchases."""
        kept = interactions.purchases()
        keys, pair = np.unique(kept.user_idx.astype(np.int64) * kept.n_items + kept.item_idx, return_inverse=True)
        return cls(
            user=kept.user_idx,
            item=kept.item_idx,
            age=(kept.until - kept.timestamp).astype("timedelta64[us]").astype(np.float64) / _DAY_US,
            quantity=kept.quantity,
            price=prices[interactions.is_purchase],
            pair=pair,
            pair_user=keys // kept.n_items,
            pair_item=keys % kept.n_items,
            n_users=kept.n_users,
            n_items=kept.n_items,
        )

    def within(self, days: float) -> NDArray[np.int64]:  # (V,)
        """Count each item's purchases of the last days."""
        return np.bincount(self.item[self.age < days], minlength=self.n_items)

    @property
    def first_age(self) -> NDArray[np.float64]:  # (Q,)
        """Return how long ago each pair's first purchase was."""
        first = np.zeros(len(self.pair_item))
        np.maximum.at(first, self.pair, self.age)
        return first

    def orders_within(self, days: float) -> NDArray[np.int64]:  # (U,)
        """Count each shopper's orders of the last days; purchases of one moment are one order."""
        is_new = np.ones(len(self.user), bool)
        is_new[1:] = (self.user[1:] != self.user[:-1]) | (self.age[1:] != self.age[:-1])
        return np.bincount(self.user[is_new & (self.age < days)], minlength=self.n_users)


def _facts(sales: _Sales) -> NDArray[np.float32]:  # (V, G)
    facts = {**_sales_facts(sales), **_buyer_facts(sales)}
    return np.stack([facts[name] for name in FACTS], axis=1).astype(np.float32)


def _sales_facts(sales: _Sales) -> dict[str, NDArray[Any]]:
    """Return how items sell: how many, since when, at what price."""
    facts: dict[str, NDArray[Any]] = {}
    sold = {days: sales.within(days) for days in _WINDOWS_DAYS}
    ever = np.bincount(sales.item, minlength=sales.n_items)
    for days, count in sold.items():
        facts[f"sales_{days}_days"] = np.log1p(count)
    facts["sales_ever"] = np.log1p(ever)
    for short, long in ((7, 28), (14, 60), (28, 90)):
        facts[f"trend_{short}_{long}"] = np.log((sold[short] + 1) / (sold[long] * short / long + 1))
    first, last = np.zeros(sales.n_items), np.full(sales.n_items, _UNSOLD_DAYS)
    np.maximum.at(first, sales.item, sales.age)
    np.minimum.at(last, sales.item, sales.age)
    facts["days_since_first_sale"], facts["days_since_last_sale"] = first, last
    priced = np.isfinite(sales.price)
    n_priced = np.bincount(sales.item[priced], minlength=sales.n_items)
    total = np.bincount(sales.item[priced], sales.price[priced], minlength=sales.n_items)
    mean_price = np.where(n_priced > 0, total / np.maximum(n_priced, 1), np.nan)
    facts["price"] = np.log(np.maximum(mean_price, 0) + _PRICE_FLOOR)
    pieces = np.bincount(sales.item, sales.quantity, minlength=sales.n_items)
    facts["pieces"] = np.log1p(np.maximum(pieces, 0) / np.maximum(ever, 1))
    return facts


def _buyer_facts(sales: _Sales) -> dict[str, NDArray[Any]]:
    """Return who buys items: whether again, whether anew."""
    facts: dict[str, NDArray[Any]] = {}
    v, first_age = sales.n_items, sales.first_age
    n_days = int(sales.age.max(initial=0)) + 1
    days_of_pairs = np.unique(sales.pair * n_days + sales.age.astype(np.int64)) // n_days
    times = np.bincount(days_of_pairs, minlength=len(first_age))  # (Q,) days on which it was bought
    buyers = np.bincount(sales.pair_item, minlength=v)
    is_first = first_age[sales.pair] - sales.age <= 0.5  # half a day: what is ordered again at once is one purchase
    facts["rebuy_share"] = (np.bincount(sales.pair_item[times > 1], minlength=v) + 1) / (buyers + 10)
    facts["buys_per_buyer"] = np.bincount(sales.pair_item, times, minlength=v) / np.maximum(buyers, 1)
    repeats = np.bincount(sales.item[(sales.age < 28) & ~is_first], minlength=v)
    facts["repeat_share_28"] = (repeats + 1) / (sales.within(28) + 4)
    for days in (14, 28):
        new = np.bincount(sales.item[(sales.age < days) & is_first], minlength=v)
        facts[f"new_buyers_{days}"] = np.log1p(new)
    for days in _AGAIN_WINDOWS_DAYS:
        facts[f"again_rate_{days}"], facts[f"new_rate_{days}"] = _rates(sales, first_age, days)
    return facts


def _rates(
    sales: _Sales, first_age: NDArray[np.float64], days: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # (V,) each
    """Return, of the orders of the last days, the share of those of an item's holders that had it again, as a log.

    And the share of all others' that had it anew. Shares of few orders are pulled to the mean and to almost nothing.
    """
    v, lately = sales.n_items, sales.age < days
    orders = sales.orders_within(days)
    held = first_age >= days  # (Q,) before these days began
    chances = np.bincount(sales.pair_item[held], orders[sales.pair_user[held]], minlength=v)
    again = np.bincount(sales.item[held[sales.pair] & lately], minlength=v)
    mean = again.sum() / max(chances.sum(), 1)
    anew = np.bincount(sales.item[lately & ~held[sales.pair]], minlength=v)
    return np.log((again + 5 * mean + 1e-6) / (chances + 5)), np.log((anew + 0.2) / (orders.sum() - chances + 100))
