"""Contexts -> the items that a shopper may want, and what speaks for each: what the second-stage ranker decides on.

Candidates are the items of the shopper's history, those that fit it best and sell now, and the best-sellers. Training
and serving both come here, with a `Context` alone, so that both see the same.

Letters as in `interactions`; N events of a batch, H pairs of a shopper and an item of its history, P candidates (pairs
of a shopper and an item), Q of them that the shopper bought before, C features, W linear scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recflow.models.assortment import FACTS, Assortment
from recflow.models.candidate_features import (
    HALF_LIVES_DAYS,
    LAST_ORDERS,
    ORDER_DECAYS,
    Events,
    Placed,
    Purchases,
    look_features,
    mean_price,
    own_features,
    recency_ranks,
    shopper_features,
    text_fit,
)
from recflow.models.interactions import PREFERENCE, Context

_FADE_HALF_LIFE_DAYS = 45.0  # of what a shopper wanted, counted back from its newest event
_BACKOFF = 1e-6  # far below any weight: what sells orders those that nothing else speaks for
_PAIRS_AT_ONCE = 512  # whose sums are taken together: what they need on the way stays in a cache

# What a shopper's events with the item say; NaN where it never bought the item.
OWN: tuple[str, ...] = (
    "is_own",  # whether it bought the item
    "orders_with",
    "days_since_last",
    "days_to_last_order",  # from its last purchase of the item to its last order
    "orders_since",
    "in_last_order",
    "days_since_first",
    "share_of_orders",
    "share_since_first",  # of its orders since the first with the item
    "days_between",
    "due",  # days since the last, in days between
    *(f"decayed_{half_life:.0f}_days" for half_life in HALF_LIVES_DAYS),
    *(f"decayed_orders_{decay}" for decay in ORDER_DECAYS),
    *(f"share_of_last_{n}" for n in LAST_ORDERS),
    "pieces_with",  # of a purchase
    "last_pieces",
    "returns",
    "looks",  # decayed; what other events than purchases say
)
# What its events say of the shopper.
SHOPPER: tuple[str, ...] = (
    "days_since_order",
    "orders",
    "days_between_orders",
    "lines_per_order",
    "distinct_items",
    "repeated_lines",  # share of its purchases that weren't the first of their item
    "last_lines",  # purchases of its last order
    "habit",  # share of an order's items that it had bought before, newest orders weigh most
    "recent_lines",  # purchases of an order, newest weigh most
    "pieces_per_line",
    "days_between_last_two",
)
# How the item fits the history.
FIT: tuple[str, ...] = (
    "price_ratio",  # log of the item's price against the shopper's mean
    "ease",
    "ease_last",
    "ease_faded",
    "following",
    "text",
    "text_last",
    "ease_recent",
    "ease_rank",  # among the shopper's candidates, from 0
    "recency_rank",  # among the items that it bought: those of the last orders first
)
# What OWN is of an item without events; the others are missing then.
_ZERO_WITHOUT_EVENTS = ("is_own", "in_last_order", "returns", "looks")
WITHOUT_EVENTS = np.array([0 if name in _ZERO_WITHOUT_EVENTS else np.nan for name in OWN], np.float32)
FEATURES: tuple[str, ...] = (*OWN, *SHOPPER, *FIT, *FACTS)

# What weighs events: all alike, those since the last order alone, or newer ones more.
WANTED: tuple[str, ...] = ("all", "last", "faded")
# What of it weighs the events in each of the linear scores of FIT.
WEIGHTS: Mapping[str, str] = {
    "ease": "all",
    "ease_recent": "all",
    "following": "all",
    "ease_last": "last",
    "text_last": "last",
    "ease_faded": "faded",
    "text": "faded",
}
# Those of them that are sums over a matrix, and which; the first two say what fits.
_LINEAR: Mapping[str, tuple[str, str]] = {
    name: ("following" if name == "following" else "ease", WEIGHTS[name])
    for name in ("ease", "ease_faded", "ease_last", "following")
}


@dataclass(frozen=True)
class Candidates:
    """What B shoppers may want, ordered by (shopper, item), and what speaks for each."""

    cell: NDArray[np.int64]  # (P,) place in (B, V), ascending
    shopper: NDArray[np.int64]  # (P,) row of the context
    item: NDArray[np.int64]  # (P,) item_idx
    own_at: NDArray[np.int64]  # (H,) which of them are in the shopper's history
    own: NDArray[np.float32]  # (H, |OWN|) of those; NaN where there is none
    of_shopper: NDArray[np.float32]  # (B, |SHOPPER|)
    fit: NDArray[np.float32]  # (P, |FIT|)
    facts: NDArray[np.float32]  # (V, G) of all items
    others: NDArray[np.float32]  # (B, V) what orders the items that are no candidates: EASE by what sells now
    events: Events
    wanted: NDArray[np.float32]  # (|WANTED|, N) how strongly each event says that its item is wanted
    strongest: NDArray[np.float32]  # (|WANTED|, H) of the events of each pair

    def __len__(self) -> int:
        """Return P."""
        return len(self.shopper)

    @cached_property
    def features(self) -> NDArray[np.float32]:  # (P, C)
        """Return all that speaks for each candidate, see FEATURES; NaN where there is none."""
        own = WITHOUT_EVENTS[None].repeat(len(self), axis=0)
        own[self.own_at] = self.own
        return np.concatenate([own, self.of_shopper[self.shopper], self.fit, self.facts[self.item]], axis=1)

    @cached_property
    def greatest_of_others(self) -> NDArray[np.float32]:  # (B,)
        """Return how large what orders the items that are no candidates is at most."""
        greatest: NDArray[np.float32] = np.maximum(self.others.max(axis=1), -self.others.min(axis=1))
        return np.asarray(np.maximum(greatest, np.finfo(np.float32).tiny))

    @cached_property
    def each(self) -> NDArray[np.float32]:  # (|WANTED|, H)
        """Return what each of a pair's strongest events says: they share alike, all others say nothing."""
        counts = self.events.pairs.reduce(np.add, self._is_strongest.astype(np.float32), axis=1)
        return np.asarray(self.strongest / counts, np.float32)

    @cached_property
    def shares(self) -> NDArray[np.float32]:  # (|WANTED|, N)
        """Return each event's part of what is wanted."""
        return self._is_strongest * self.each.take(self.events.pair, axis=1)

    @cached_property
    def _is_strongest(self) -> NDArray[np.bool_]:  # (|WANTED|, N)
        return np.equal(self.wanted, self.strongest.take(self.events.pair, axis=1))


def find_candidates(
    context: Context,
    assortment: Assortment,
    *,
    n_fitting: int = 80,  # that fit the whole history and sell
    n_fitting_lately: int = 60,  # that fit its newest part and sell
    n_best_sellers: int = 20,
) -> Candidates:
    """Find each shopper's candidates, and compute their features."""
    events = Events.of(context)
    bought, wanted = Purchases.of(events), _wanted(events)
    strongest = events.pairs.reduce(np.maximum, wanted, axis=1)  # (|WANTED|, H)
    planes = _linear_scores(assortment, events, strongest)  # (W, B, V)
    others, others_lately = (planes[:2] + _BACKOFF) * assortment.recency
    n_items = len(assortment.facts)
    in_history = events.pairs.shopper * n_items + events.pairs.item  # cells of (B, V), ascending
    chosen = _best(others, n_fitting, but=in_history) | _best(others_lately, n_fitting_lately, but=in_history)
    chosen[:, assortment.best_sellers[:n_best_sellers]] = True
    chosen.ravel()[in_history] = True
    cells = chosen.ravel().nonzero()[0]
    shopper = cells // n_items
    item, own_at, own = cells - shopper * n_items, cells.searchsorted(in_history), own_features(bought)
    placed = Placed.of(shopper, len(context))
    price = assortment.facts[:, FACTS.index("price")]
    fit = dict(zip(_LINEAR, planes.reshape(len(_LINEAR), -1).take(cells, axis=1), strict=True))
    fit["text_last"], fit["text"] = text_fit(events, strongest[1:], assortment.text, placed, item)
    fit["price_ratio"] = price[item] - mean_price(bought, price)[shopper]
    fit["ease_recent"] = fit["ease"] * assortment.recency[item]
    fit["ease_rank"] = placed.ranks(fit["ease"])
    fit["recency_rank"] = np.full(len(cells), np.nan, np.float32)
    fit["recency_rank"][own_at[bought.pair]] = recency_ranks(bought, own)
    return Candidates(
        cell=cells,
        shopper=shopper,
        item=item,
        own_at=own_at,
        own=_own_columns(events, bought, own),
        of_shopper=_columns(shopper_features(bought), SHOPPER),
        fit=_columns(fit, FIT),
        facts=assortment.facts,
        others=others,
        events=events,
        wanted=wanted,
        strongest=strongest,
    )


def _wanted(events: Events) -> NDArray[np.float32]:  # (|WANTED|, N)
    """Return how strongly each event says that its item is wanted: ever, since the last order began, or faded."""
    preference = PREFERENCE[events.event_type]
    age_at_newest = events.newest_age[events.pairs.shopper][events.pair] - events.age
    fading = np.exp2(age_at_newest / _FADE_HALF_LIFE_DAYS).astype(np.float32)
    return np.array([preference, preference * (events.orders_ago == 0), preference * fading])


def _linear_scores(
    assortment: Assortment,
    events: Events,
    strongest: NDArray[np.float32],  # (|WANTED|, H) how strongly each item of the histories is wanted
) -> NDArray[np.float32]:  # (W, B, V)
    """Add up what the items of histories say of all others, times how strongly each is wanted; see _LINEAR."""
    n_shoppers, n_items = len(events.orders), len(assortment.facts)
    place = assortment.place[events.pairs.item]
    pair = (place >= 0).nonzero()[0]  # those whose item takes part in the matrices
    planes = np.zeros((len(_LINEAR), n_shoppers * n_items), np.float32)
    for first in range(0, len(pair), _PAIRS_AT_ONCE):
        at = pair[first : first + _PAIRS_AT_ONCE]
        row, known = (events.pairs.shopper[at] * n_items)[:, None], {}
        for plane, (matrix, weight) in zip(planes, _LINEAR.values(), strict=True):
            if matrix not in known:
                to, entry = assortment.links(place[at], matrix)
                known[matrix] = to + row, entry  # cells of (B, V) and what is said of them
            (cell, entry), wanted = known[matrix], strongest[WANTED.index(weight), at]
            if weight == "last":  # few are
                some = wanted.nonzero()[0]
                cell, entry, wanted = cell.take(some, axis=0), entry.take(some, axis=0), wanted[some]
            np.add.at(plane, cell.ravel(), (entry * wanted[:, None]).ravel())
    return planes.reshape(len(_LINEAR), n_shoppers, n_items)


def _best(scores: NDArray[np.float32], n: int, *, but: NDArray[np.int64]) -> NDArray[np.bool_]:  # (B, V)
    """Return which are among the n best of their row, some cells left out; of those that tie for the last place none.

    Where little sells, all that never did tie.
    """
    if not n:
        return np.zeros(scores.shape, bool)
    ordered = scores.copy()
    ordered.ravel()[but] = -np.inf
    place = scores.shape[1] - n - 1
    if place < 0:
        return ordered > -np.inf
    ordered.partition(place, axis=1)
    return scores > ordered[:, place, None]


def _columns(values: Mapping[str, NDArray[Any]], names: Sequence[str]) -> NDArray[np.float32]:  # (*, |names|)
    return np.array([values[name] for name in names], np.float32).T  # each column's numbers beside each other


def _own_columns(events: Events, bought: Purchases, own: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Return what the events of each pair say, (H, |OWN|), the same for those without a purchase."""
    columns = np.repeat(WITHOUT_EVENTS[:, None], len(events.pairs), axis=1)
    columns[: len(own), bought.pair] = np.array([*own.values()], np.float32)
    columns[len(own) :] = [*look_features(events).values()]
    return columns.T
