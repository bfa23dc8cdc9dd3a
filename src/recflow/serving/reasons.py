"""Why an item stands in a list: what weighed most in its score, said as a true statement with the figures behind it.

A score is taken apart by `models.attribution`: what the events of each item of the history add to it, and the rest.

- Where the history weighs more than the rest, as a whole or one item of it alone, that item of it is named which
  weighs most. The item itself: when the shopper bought it, or looked at it. Another one: how many of its customers
  bought this too; where that says nothing, that the titles are alike; else only that it weighed most.
- Where the rest weighs more: that the item is popular in the shopper's country, then in the whole shop; that it is new;
  that so many customers bought it; that it is in the catalogue.

Letters as in `models.interactions`; M pairs of an item shown and an item of the history.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from recflow.models.context import Timelines
from recflow.models.pairs import Pairs
from recflow.schema import EVENT_TYPES
from recflow.serving.answers import Reason
from recflow.serving.bundle import Bundle
from recflow.serving.tables import Tables
from recflow.serving.weights import Weights
from recflow.settings import ServingSettings

_POPULAR_SHARE = 0.1  # of the items sold in the window: what a shop would call its bestsellers
_VERBS = {  # what says most comes first: who bought and then viewed has bought
    "purchase": "bought",
    "add_to_cart": "put into the cart",
    "click": "clicked on",
    "view": "viewed",
    "return": "returned",
}
_PURCHASE, _CART, _RETURN = 0, 1, 4  # places in `_VERBS`
_DONE = np.array([list(_VERBS).index(name) if name in _VERBS else -1 for name in EVENT_TYPES])  # event type -> place
_VERB = list(_VERBS.values())

# A habit: bought on three days or more, the gaps between them deviate from their mean by at most half of it, and the
# last is no longer ago than two of them. With two days there is one gap, and nothing to say that it will come again.
_HABIT_DAYS = 3
_HABIT_DEVIATION = 0.5
_HABIT_OVERDUE = 2.0

_DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1).toordinal()


@dataclass(frozen=True)
class Evidence:
    """What reasons are looked up in: the bundle's tables, titles and days."""

    tables: Tables
    is_popular: NDArray[np.bool_]  # (1 + C, V) in the whole shop, then in each country of the tables
    vectors: NDArray[np.float32]  # (V, D) of length 1; zeros where there is no title
    names: Sequence[str]  # (V,) titles, or ids where there is none
    item_ids: Sequence[str]  # (V,)
    first_seen_day: NDArray[np.int32]  # (V,) days since 1970-01-01 (UTC)
    is_new: NDArray[np.bool_]  # (V,) first seen lately
    until: str  # the last day of data in the tables
    min_customers: int
    min_title_similarity: float

    @classmethod
    def of(cls, bundle: Bundle, settings: ServingSettings) -> Self:
        """Take what a bundle has."""
        return cls(
            tables=bundle.tables,
            is_popular=popular_items(bundle.tables, min_customers=settings.min_customers_together),
            vectors=bundle.vectors,
            names=[title or item_id for title, item_id in zip(bundle.titles, bundle.item_ids, strict=True)],
            item_ids=bundle.item_ids,
            first_seen_day=bundle.first_seen_day,
            is_new=bundle.first_seen_lately(settings.new_days),
            until=str(bundle.until),
            min_customers=settings.min_customers_together,
            min_title_similarity=settings.min_title_similarity,
        )


def popular_items(tables: Tables, *, min_customers: int) -> NDArray[np.bool_]:  # (1 + C, V)
    """Return which items a tenth of the sold items at most are bought more than, in the shop and in each country."""
    by_place = [tables.popularity, *tables.country_popularity]
    is_popular = np.zeros((len(by_place), len(tables.popularity)), bool)
    for row, counts in zip(is_popular, by_place, strict=True):  # one by one: all at once would be large copies
        sold = np.sort(counts[counts > 0])
        if len(sold):
            row[:] = counts >= max(sold[-math.ceil(_POPULAR_SHARE * len(sold))], min_customers)
    return is_popular


def explain(
    items: NDArray[np.int32],  # (B, K) item_idx of the lists; -1 where one is shorter
    weights: Weights,
    timelines: Timelines,
    *,
    countries: Sequence[str | None],  # (B,) the shoppers', where they are known
    moments_us: Sequence[int],  # (B,) of the answers, microseconds since 1970 (UTC)
    are_cut: Sequence[bool],  # (B,) older events may exist: counts of own purchases are lower bounds
    evidence: Evidence,
) -> list[list[Reason]]:
    """Return a reason for each item of each list."""
    pair, top = weights.heaviest()  # (B, K)
    is_named = (np.maximum(weights.history, top) > weights.rest) & (top > 0) & (items >= 0)
    pair = np.where(is_named, pair, -1)
    source = np.append(weights.pairs.item, -1)[pair]  # -1: none is named
    links, events = _links(items, source, evidence), _Events(weights.pairs, timelines)
    reasons: list[list[Reason]] = []
    for row, (shown, sources, pairs) in enumerate(zip(items.tolist(), source.tolist(), pair.tolist(), strict=True)):
        country, country_row = countries[row], evidence.tables.country_index(countries[row])
        today = moments_us[row] // _DAY_US
        said: list[Reason] = []
        for place, (item, other, own) in enumerate(zip(shown, sources, pairs, strict=True)):
            reason = None
            if other == item >= 0:
                reason = _of_itself(events.done(own, today=today), is_cut=are_cut[row])
            elif other >= 0:
                reason = _of_another(other, events.done(own, today=today), *links[row, place], evidence)
            if item >= 0:
                said.append(reason or _of_item(item, country, country_row, evidence))
        reasons.append(said)
    return reasons


def item_reasons(items: NDArray[np.int32], country: str | None, *, evidence: Evidence) -> list[Reason]:
    """Say of each item what is true whoever looks."""
    row = evidence.tables.country_index(country)
    return [_of_item(item, country, row, evidence) for item in items.tolist()]


# -- what leans on the history


class _Done(NamedTuple):
    """What a shopper did with an item of the history."""

    what: int  # the most telling, place in `_VERBS`
    moments_us: list[int]  # when it was done, each moment once, oldest first: lines of one order are one purchase
    days_ago: int  # the last time, by the calendar (UTC)


class _Events:
    """The events of B shoppers, by pairs of a shopper and an item."""

    def __init__(self, pairs: Pairs, timelines: Timelines) -> None:
        """Put the events of an item together, as pairs have them."""
        self._types = _DONE[timelines.event_types.ravel()[pairs.at]].tolist()
        self._moments = timelines.timestamps_us.ravel()[pairs.at].tolist()
        self._bounds = [*pairs.starts.tolist(), len(self._types)]

    def done(self, pair: int, *, today: int) -> _Done:
        """Say what a pair's shopper did with its item; `today` is the day of the answer, days since 1970 (UTC)."""
        start, end = self._bounds[pair], self._bounds[pair + 1]
        moments = self._moments[start:end]
        what = self._types[start]
        if len(moments) > 1:
            types = self._types[start:end]
            what = min(types)
            moments = list(dict.fromkeys(moment for moment, each in zip(moments, types, strict=True) if each == what))
        return _Done(what, moments, today - moments[-1] // _DAY_US)


def _links(
    items: NDArray[np.int32],  # (B, K)
    source: NDArray[np.int64],  # (B, K) the item named, -1 for none
    evidence: Evidence,
) -> dict[tuple[int, int], tuple[int, float]]:  # by row and place
    """Look up the pairs of an item shown and another one that weighed most in it.

    Returns:
        How many customers bought both, 0 where that says nothing, and the cosine of the titles, 0 where it isn't asked.
    """
    tables = evidence.tables
    rows, places = np.nonzero((source >= 0) & (source != items))
    shown, other = items[rows, places], source[rows, places]  # (M,)
    # A pair may be kept from one side only.
    one = np.where(tables.neighbours[other] == shown[:, None], tables.neighbour_customers[other], 0)
    two = np.where(tables.neighbours[shown] == other[:, None], tables.neighbour_customers[shown], 0)
    both = np.maximum(one.max(axis=1, initial=0), two.max(axis=1, initial=0))
    # Its customers are to buy the item shown more than customers do anyway.
    by_chance = tables.customers[shown] * (tables.customers[other] / max(int(tables.all_customers[0]), 1))
    both = np.where((both > by_chance) & (both >= evidence.min_customers), both, 0)
    cosines = np.zeros(len(both), np.float32)
    bare = np.flatnonzero(both == 0)
    cosines[bare] = np.einsum("md,md->m", evidence.vectors[shown[bare]], evidence.vectors[other[bare]])
    at = zip(rows.tolist(), places.tolist(), strict=True)
    return dict(zip(at, zip(both.tolist(), cosines.tolist(), strict=True), strict=True))


def _of_another(other: int, done: _Done, customers: int, cosine: float, evidence: Evidence) -> Reason:
    name, item_id = evidence.names[other], evidence.item_ids[other]
    if customers:
        of = int(evidence.tables.customers[other])
        return Reason(
            kind="bought_together",
            text=f"{customers} of the {of} customers who bought {name}, which you {_VERB[done.what]}{_today(done)}, "
            "bought this too.",
            item_id=item_id,
            count=customers,
            share=round(customers / of, 4),
        )
    if cosine >= evidence.min_title_similarity:
        text = f"Like {name}, which you {_VERB[done.what]}{_today(done)}."
        return Reason(kind="similar_title", text=text, item_id=item_id, share=round(cosine, 4))
    text = f"Suggested because you {_did(done, name)}{_today(done)}."
    return Reason(kind="because_of", text=text, item_id=item_id)


def _of_itself(done: _Done, *, is_cut: bool) -> Reason | None:
    """Say what was done with the item itself; a return alone recommends nothing."""
    if done.what == _PURCHASE:
        return _bought_before(done, is_cut=is_cut)
    if done.what == _RETURN:
        return None
    kind = "in_cart" if done.what == _CART else "viewed_before"
    last = done.moments_us[-1]
    text = f"You {_did(done, 'this')}{_today(done) or f' on {_day(last)}'}."
    return Reason(kind=kind, text=text, last=_moment(last))


def _bought_before(done: _Done, *, is_cut: bool) -> Reason:
    count, last_us = len(done.moments_us), done.moments_us[-1]
    interval = _habit_days(done) if count >= _HABIT_DAYS else 0
    if interval:
        said = f"buy this about every {_span(interval)}"
    else:
        said = f"bought this {'at least ' if is_cut else ''}{_times(count)}"
    text = f"You {said}, last on {_day(last_us)}."
    reason: Reason = {"kind": "bought_before", "text": text, "count": count, "last": _moment(last_us)}
    if interval:
        reason["interval_days"] = interval
    return reason


def _habit_days(done: _Done) -> int:
    """Return the mean days between purchases where they are regular and go on, else 0."""
    days = sorted({moment // _DAY_US for moment in done.moments_us})
    if len(days) < _HABIT_DAYS:
        return 0
    gaps = [later - earlier for earlier, later in pairwise(days)]
    mean = (days[-1] - days[0]) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    is_regular = variance <= (_HABIT_DEVIATION * mean) ** 2
    return round(mean) if is_regular and done.days_ago <= _HABIT_OVERDUE * mean else 0


def _did(done: _Done, name: str) -> str:
    return f"put {name} into the cart" if done.what == _CART else f"{_VERB[done.what]} {name}"


def _today(done: _Done) -> str:
    return "" if done.days_ago else " today"


# -- what is true whoever looks


def _of_item(item: int, country: str | None, country_row: int | None, evidence: Evidence) -> Reason:
    tables, until = evidence.tables, evidence.until
    if country_row is not None and country is not None and evidence.is_popular[1 + country_row, item]:
        count, buyers = int(tables.country_popularity[country_row, item]), int(tables.country_buyers[country_row])
        return Reason(
            kind="popular_in_country",
            text=f"Popular in {country}: {count} of {buyers} customers there bought this in the "
            f"{tables.window_days} days to {until}.",
            count=count,
            share=round(count / buyers, 4),
            country=country,
        )
    if evidence.is_popular[0, item]:
        count, buyers = int(tables.popularity[item]), int(tables.buyers[0])
        return Reason(
            kind="popular",
            text=f"Popular: {count} of {buyers} customers bought this in the {tables.window_days} days to {until}.",
            count=count,
            share=round(count / buyers, 4),
        )
    if evidence.is_new[item]:
        since = date.fromordinal(_EPOCH_DAY + int(evidence.first_seen_day[item]))
        return Reason(kind="new", text=f"New: in the catalogue since {since}.")
    count = int(tables.customers[item])
    if count < evidence.min_customers:
        return Reason(kind="in_catalogue", text=f"In the catalogue on {until}.")
    return Reason(kind="bought_by", text=f"{count} customers bought this up to {until}.", count=count)


# -- words


@lru_cache(maxsize=4096)  # the lines of an order share their moment, and lists their orders
def _day(moment_us: int) -> str:
    return date.fromordinal(_EPOCH_DAY + moment_us // _DAY_US).isoformat()


@lru_cache(maxsize=4096)
def _moment(moment_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=moment_us)).isoformat().replace("+00:00", "Z")


def _times(count: int) -> str:
    return _ADVERBS.get(count) or f"{count} times"


_ADVERBS = {1: "once", 2: "twice"}


def _span(days: int) -> str:
    """Return days as one would say them: by the day up to two weeks, by the week up to ten, then by the month."""
    if days < 14:
        return "day" if days == 1 else f"{days} days"
    if days < 70:
        return f"{round(days / 7)} weeks"
    return f"{round(days / 30.4)} months"
