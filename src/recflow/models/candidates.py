"""Contexts -> the items that a shopper may want, and what speaks for each: what the second-stage ranker decides on.

Candidates are the items of the shopper's history, those that fit it best and sell now, and the best-sellers. Training
and serving both come here, with a `Context` alone, so that both see the same.

Letters as in `interactions`; N events of a batch, P candidates (pairs of a shopper and an item), C features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recflow.models.assortment import FACTS, Assortment
from recflow.models.candidate_features import (
    HALF_LIVES_DAYS,
    LAST_ORDERS,
    ORDER_DECAYS,
    Events,
    mean_price,
    own_features,
    ranks,
    recency_ranks,
    shopper_features,
    text_fit,
)
from recflow.models.interactions import PREFERENCE, Context
from recflow.models.pairs import Pairs

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_FADE_HALF_LIFE_DAYS = 45.0  # of what a shopper wanted, counted back from its newest event
_BACKOFF = 1e-6  # far below any weight: what sells orders those that nothing else speaks for

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
FEATURES: tuple[str, ...] = (*OWN, *SHOPPER, *FIT, *FACTS)

# What weighs the events in each of the linear scores of FIT.
WEIGHTS: Mapping[str, str] = {
    "ease": "all",
    "ease_recent": "all",
    "following": "all",
    "ease_last": "last",
    "text_last": "last",
    "ease_faded": "faded",
    "text": "faded",
}


@dataclass(frozen=True)
class Candidates:
    """What B shoppers may want, ordered by (shopper, item), and what speaks for each."""

    shopper: NDArray[np.int64]  # (P,) row of the context
    item: NDArray[np.int64]  # (P,) item_idx
    is_own: NDArray[np.bool_]  # (P,) whether the item is in the shopper's history
    own: NDArray[np.float32]  # (P, |OWN|) NaN where there is none
    of_shopper: NDArray[np.float32]  # (B, |SHOPPER|)
    fit: NDArray[np.float32]  # (P, |FIT|)
    facts: NDArray[np.float32]  # (V, G) of all items
    others: NDArray[np.float32]  # (B, V) what orders the items that are no candidates: EASE by what sells now
    weights: Mapping[str, NDArray[np.float32]]  # (B, L) each event's part of what is wanted; names as in WEIGHTS

    def __len__(self) -> int:
        """Return P."""
        return len(self.shopper)

    @cached_property
    def features(self) -> NDArray[np.float32]:  # (P, C)
        """Return all that speaks for each candidate, see FEATURES; NaN where there is none."""
        return np.concatenate([self.own, self.of_shopper[self.shopper], self.fit, self.facts[self.item]], axis=1)


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
    weights = _weights(context, events)
    wanted = {name: _matrix(context, weight, len(assortment.facts)) for name, weight in weights.items()}
    ease, faded = assortment.plane(wanted["all"], assortment.ease), assortment.plane(wanted["faded"], assortment.ease)
    others, others_lately = (ease + _BACKOFF) * assortment.recency, (faded + _BACKOFF) * assortment.recency
    is_in_history = np.zeros(ease.shape, bool)
    is_in_history[events.shopper, events.item] = True
    chosen = is_in_history.copy()
    chosen[:, assortment.best_sellers[:n_best_sellers]] = True
    for scores, n in ((others, n_fitting), (others_lately, n_fitting_lately)):
        _choose_best(chosen, np.where(is_in_history, -np.inf, scores), n)
    shopper, item = np.nonzero(chosen)
    own = own_features(events, shopper, item)
    price = assortment.facts[:, FACTS.index("price")]
    fit: dict[str, NDArray[Any]] = {
        "price_ratio": price[item] - mean_price(events, price)[shopper],
        "ease": ease[shopper, item],
        "ease_last": assortment.plane(wanted["last"], assortment.ease)[shopper, item],
        "ease_faded": faded[shopper, item],
        "following": assortment.plane(wanted["all"], assortment.following)[shopper, item],
        "text": text_fit(wanted["faded"], assortment.text, shopper, item),
        "text_last": text_fit(wanted["last"], assortment.text, shopper, item),
        "ease_recent": (ease[shopper, item] * assortment.recency[item]),
        "ease_rank": ranks(shopper, ease[shopper, item], len(context)),
        "recency_rank": recency_ranks(shopper, own, len(context)),
    }
    return Candidates(
        shopper=shopper,
        item=item,
        is_own=is_in_history[shopper, item],
        own=_columns(own, OWN),
        of_shopper=_columns(shopper_features(events, len(assortment.facts)), SHOPPER),
        fit=_columns(fit, FIT),
        facts=assortment.facts,
        others=others,
        weights=weights,
    )


def _weights(context: Context, events: Events) -> dict[str, NDArray[np.float32]]:  # (B, L) each
    """Return how strongly each event says that its item is wanted: ever, since the last order began, or faded."""
    pairs, preference = Pairs.of(context.items), PREFERENCE[events.event_type]
    fading = np.exp2((events.newest_age()[events.shopper] - events.age) / _FADE_HALF_LIFE_DAYS)
    of_events = {"all": preference, "last": preference * (events.orders_ago == 0), "faded": preference * fading}
    weights = {}
    for name, values in of_events.items():
        of_cells = np.zeros(context.items.shape, np.float32)
        of_cells[context.items > 0] = values
        weights[name] = pairs.strongest(of_cells)
    return weights


def _matrix(context: Context, weights: NDArray[np.float32], n_items: int) -> "csr_matrix":  # (B, V)
    """Return how strongly each shopper wants each item."""
    from scipy.sparse import csr_matrix

    shopper, column = np.nonzero(weights)  # no padding among them: it has no weight
    items = context.items[shopper, column] - 1
    return csr_matrix((weights[shopper, column], (shopper, items)), shape=(len(context), n_items))


def _choose_best(chosen: NDArray[np.bool_], scores: NDArray[np.float32], n: int) -> None:
    """Set the n best of each row (B, V); fewer where fewer are left (-inf)."""
    n = min(n, scores.shape[1])
    if n:
        best = np.argpartition(-scores, n - 1, axis=1)[:, :n]
        rows = np.arange(len(scores))[:, None]
        chosen[rows, best] |= scores[rows, best] > -np.inf


def _columns(values: Mapping[str, NDArray[Any]], names: tuple[str, ...]) -> NDArray[np.float32]:
    return np.stack([np.asarray(values[name], np.float32) for name in names], axis=1)
