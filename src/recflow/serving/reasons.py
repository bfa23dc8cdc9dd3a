"""Why an item stands in a list: true statements from the shop's history, with the figures that they rest on.

Per item the first that holds, in the order of how much it says about this shopper:

1. the shopper bought it before;
2. customers who bought an item of the shopper's history bought it too, a larger share of them than of all buyers
   (or of the country's) did: by the share, P(item | item of the history);
3. its title is like that of an item of the shopper's history (cosine of the text vectors);
4. it is popular in the shopper's country, then in the whole shop: among the tenth of the sold items with most buyers;
5. so many customers bought it; 6. it is in the catalogue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from recflow.models.context import EventColumns
from recflow.models.interactions import PURCHASE
from recflow.schema import EVENT_TYPES
from recflow.serving.tables import Tables
from recflow.serving.types import Reason

_POPULAR_SHARE = 0.1  # of the items sold in the window: what a shop would call its bestsellers
_VERBS = {  # what says most comes first: who bought and then viewed has bought
    "purchase": "bought",
    "add_to_cart": "put into the cart",
    "click": "clicked on",
    "view": "viewed",
    "return": "returned",
}


@dataclass(frozen=True)
class Evidence:
    """What reasons are looked up in: the bundle's tables and titles."""

    tables: Tables
    vectors: NDArray[np.float32]  # (V, D) of length 1; zeros where there is no title
    titles: Sequence[str | None]  # (V,)
    item_ids: Sequence[str]  # (V,)
    until: str  # the last day of data in the tables
    min_customers: int
    min_title_similarity: float

    def name(self, item: int) -> str:
        """Return the item's title, or its id where it has none."""
        return self.titles[item] or self.item_ids[item]


def explain(
    items: NDArray[np.int32],  # (K,) item_idx of the list
    history: EventColumns,
    country: str | None,
    *,
    evidence: Evidence,
    is_cut: bool = False,
) -> list[Reason]:
    """Return a reason for each item of a list.

    Args:
        items: the list.
        history: the shopper's events with items of the catalogue, oldest first.
        country: the shopper's, where it is known.
        evidence: what the statements are looked up in.
        is_cut: older events of the shopper may exist: counts of own purchases are lower bounds.
    """
    tables = evidence.tables
    row = tables.country_index(country)
    in_country = None if row is None else tables.country_popularity[row]
    together = _together(items, history, tables)
    alike = _alike(items, history, evidence.vectors)
    reasons = []
    for position, item in enumerate(items.tolist()):
        general = int(tables.popularity[item]) / max(int(tables.buyers[0]), 1)
        local = general if row is None or in_country is None else in_country[item] / tables.country_buyers[row]
        other, customers = together[position]
        share = customers / max(int(tables.customers[other]), 1)
        near, cosine = alike[position]
        reasons.append(
            _bought_before(item, history, is_cut=is_cut)
            or (_bought_together(other, customers, share, history, evidence) if share > max(general, local) else None)
            or (
                _similar_title(near, cosine, history, evidence)
                if near != item and cosine >= evidence.min_title_similarity
                else None
            )
            or _popular(item, in_country, row, country, evidence)
            or _known(item, evidence)
        )
    return reasons


def _bought_before(item: int, history: EventColumns, *, is_cut: bool) -> Reason | None:
    # Lines of one order share its moment: two lines of it are one purchase to the shopper.
    own = np.unique(history.timestamp_us[(history.item_idx == item) & (history.event_type == PURCHASE)])
    if not len(own):
        return None
    last = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(own.max()))
    count = f"{'at least ' if is_cut else ''}{_times(len(own))}"
    return Reason(
        kind="bought_before",
        text=f"You bought this {count}, last on {last.date()}.",
        count=len(own),
        last=last,
    )


def _bought_together(
    other: int, customers: int, share: float, history: EventColumns, evidence: Evidence
) -> Reason | None:
    if customers < evidence.min_customers:
        return None
    return Reason(
        kind="bought_together",
        text=f"{customers} of the {evidence.tables.customers[other]} customers who bought {evidence.name(other)}, "
        f"which you {_verb(other, history)}, bought this too.",
        item_id=evidence.item_ids[other],
        count=customers,
        share=round(share, 4),
    )


def _similar_title(near: int, cosine: float, history: EventColumns, evidence: Evidence) -> Reason:
    return Reason(
        kind="similar_title",
        text=f"Like {evidence.name(near)}, which you {_verb(near, history)}.",
        item_id=evidence.item_ids[near],
        share=round(cosine, 4),
    )


def _popular(
    item: int, in_country: NDArray[np.int32] | None, row: int | None, country: str | None, evidence: Evidence
) -> Reason | None:
    tables, days = evidence.tables, evidence.tables.window_days
    span = f"in the {days} days to {evidence.until}"
    if in_country is not None and row is not None and _is_popular(item, in_country, evidence.min_customers):
        count, buyers = int(in_country[item]), int(tables.country_buyers[row])
        return Reason(
            kind="popular_in_country",
            text=f"Popular in {country}: {count} of {buyers} customers there bought this {span}.",
            count=count,
            share=round(count / buyers, 4),
            country=country,
        )
    if _is_popular(item, tables.popularity, evidence.min_customers):
        count, buyers = int(tables.popularity[item]), int(tables.buyers[0])
        return Reason(
            kind="popular",
            text=f"Popular: {count} of {buyers} customers bought this {span}.",
            count=count,
            share=round(count / buyers, 4),
        )
    return None


def _known(item: int, evidence: Evidence) -> Reason:
    count = int(evidence.tables.customers[item])
    if count < evidence.min_customers:
        return Reason(kind="in_catalogue", text=f"In the catalogue on {evidence.until}.")
    return Reason(kind="bought_by", text=f"{count} customers bought this up to {evidence.until}.", count=count)


def _is_popular(item: int, counts: NDArray[np.int32], min_customers: int) -> bool:
    """Return whether fewer than a tenth of the sold items have more buyers."""
    count = counts[item]
    return bool(count >= min_customers and (counts > count).sum() < _POPULAR_SHARE * (counts > 0).sum())


def _together(items: NDArray[np.int32], history: EventColumns, tables: Tables) -> list[tuple[int, int]]:
    """Find for each item the item of the history whose customers bought it in the largest share, and how many."""
    found = [(0, 0)] * len(items)
    own = np.unique(history.item_idx)
    if not len(own) or not len(items):
        return found
    place = np.full(len(tables.customers), -1, dtype=np.int64)
    place[items] = np.arange(len(items))
    is_own = np.zeros(len(tables.customers), dtype=bool)
    is_own[own] = True
    # A pair may be kept from one side only: read the lists of the history's items and of the list's items.
    pairs = [
        (np.repeat(own, tables.neighbours.shape[1]), tables.neighbours[own], tables.neighbour_customers[own]),
        (tables.neighbours[items].ravel(), np.repeat(items, tables.neighbours.shape[1]).reshape(len(items), -1),
         tables.neighbour_customers[items]),
    ]  # fmt: skip
    other = np.concatenate([pair[0] for pair in pairs])
    target = np.concatenate([pair[1].ravel() for pair in pairs])
    count = np.concatenate([pair[2].ravel() for pair in pairs])
    keep = (count > 0) & (place[target] >= 0) & is_own[other] & (other != target)
    other, target, count = other[keep], place[target[keep]], count[keep]
    order = np.lexsort((other, -count / np.maximum(tables.customers[other], 1), target))
    positions, first = np.unique(target[order], return_index=True)
    for position, best in zip(positions.tolist(), order[first].tolist(), strict=True):
        found[position] = (int(other[best]), int(count[best]))
    return found


def _alike(items: NDArray[np.int32], history: EventColumns, vectors: NDArray[np.float32]) -> list[tuple[int, float]]:
    """Find for each item the item of the history with the nearest title, and the cosine between them."""
    own = np.unique(history.item_idx)
    if not len(own) or not len(items):
        return [(-1, 0.0)] * len(items)
    cosines = vectors[items] @ vectors[own].T  # (K, H)
    cosines[items[:, None] == own[None, :]] = -1  # an item isn't like itself
    best = cosines.argmax(axis=1)
    return [(int(own[column]), float(cosines[row, column])) for row, column in enumerate(best.tolist())]


def _verb(item: int, history: EventColumns) -> str:
    done = {EVENT_TYPES[code] for code in history.event_type[history.item_idx == item]}
    return next(verb for event_type, verb in _VERBS.items() if event_type in done)


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
