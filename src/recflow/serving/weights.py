"""What weighed how much in the scores of lists: an attribution by event, added up by item of the history.

Letters as in `models.interactions`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recflow.models.attribution import Attribution, Expected
from recflow.models.context import Timelines
from recflow.models.pairs import Pairs
from recflow.serving.answers import Chances, Contribution, Engagement
from recflow.serving.tables import Tables


class Weights(NamedTuple):
    """What weighed how much in the scores of K items for B shoppers; P pairs of a shopper and an item of its past."""

    pairs: Pairs
    by_pair: NDArray[np.float32]  # (P, K) what all events of the item of the history add together
    history: NDArray[np.float32]  # (B, K) what all events add
    rest: NDArray[np.float32]  # (B, K)

    def heaviest(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the pair that weighed most in each item, and its weight, (B, K) each; without a history -1 and 0."""
        pair, top = np.full(self.rest.shape, -1), np.zeros_like(self.rest)
        shoppers, starts = np.unique(self.pairs.shopper, return_index=True)
        if len(shoppers):
            top[shoppers] = np.maximum.reduceat(self.by_pair, starts, axis=0)
            others = np.where(
                self.by_pair < top[self.pairs.shopper], len(self.pairs), np.arange(len(self.pairs))[:, None]
            )
            pair[shoppers] = np.minimum.reduceat(others, starts, axis=0)
        return pair, top


def weigh(attribution: Attribution, timelines: Timelines) -> Weights:
    """Add up what the events of one item say."""
    pairs = Pairs.of(timelines.items)
    n_rows, n_items, length = attribution.events.shape
    by_event = attribution.events.transpose(0, 2, 1).reshape(n_rows * length, n_items)
    by_pair = pairs.reduce(np.add, by_event[pairs.at])
    return Weights(pairs, by_pair, attribution.events.sum(axis=2), attribution.rest)


def attribute_tables(
    items: NDArray[np.int32],  # (B, K) item_idx; -1 is padding
    timelines: Timelines,
    countries: Sequence[str | None],  # (B,)
    tables: Tables,
) -> Attribution:
    """Take apart what the tables score where there is no model: bought together with the history, then popular.

    A part of the history is the share of the customers of an event's item who bought the item shown, and the rest is
    the popularity there, 0 to 1. A shopper without history has nothing but the rest.
    """
    own = np.maximum(timelines.items - 1, 0)  # (B, L)
    shares = tables.neighbour_customers[own] / np.maximum(tables.customers[own], 1)[..., None]  # (B, L, N)
    parts = Attribution.nothing(items, own.shape[1])
    for row, country in enumerate(countries):
        shown = items[row] >= 0
        found = tables.neighbours[own[row]][None] == items[row, shown][:, None, None]  # (K, L, N)
        parts.events[row, shown] = np.where(found, shares[row], 0).sum(axis=2) * (timelines.items[row] > 0)
        popularity = tables.popularity_scores(country, items[row, shown])
        parts.rest[row, shown] = popularity / (1 + tables.greatest_popularity(country))
    return parts


def contributions(
    items: NDArray[np.int32], weights: Weights, row: int, *, n: int, item_ids: Sequence[str]
) -> list[list[Contribution]]:
    """Return for each item of one shopper's list what weighed most, the largest first, `n` at most."""
    own = np.flatnonzero(weights.pairs.shopper == row)
    own = own[np.argsort(-weights.pairs.newest[own])]  # equal weights: what came last is named first
    names = [None, *(item_ids[item] for item in weights.pairs.item[own].tolist())]
    weighed = np.concatenate([weights.rest[row][None], weights.by_pair[own]]).T  # (K, 1 + H)
    order = np.argsort(-weighed, axis=1, kind="stable")[:, :n]
    return [
        [Contribution(item_id=names[place], weight=round(float(weighed[k, place]), 4)) for place in order[k].tolist()]
        for k in np.flatnonzero(items[row] >= 0).tolist()
    ]


def engagement(items: NDArray[np.int32], expected: Expected, row: int) -> list[Engagement]:
    """Return for each item (K,) of one shopper's list what the engagement stage made of it."""
    shown = items >= 0
    found = []
    for base, chances in zip(expected.base[row][shown].tolist(), expected.chances[row][shown].tolist(), strict=True):
        click, cart, purchase = (round(chance, 6) for chance in chances)
        is_judged = click == click  # NaN: it isn't
        likely = Chances(click=click, add_to_cart=cart, purchase=purchase) if is_judged else None
        found.append(Engagement(base_score=base, chances=likely))
    return found
