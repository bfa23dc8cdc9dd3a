"""Lists of the shop's own: what is on the rise, what is new. V items, H events of a history, K shown."""

from datetime import date, timedelta

import numpy as np
from numpy.typing import NDArray

from recflow.models.interactions import PREFERENCE, PURCHASE
from recflow.serving.answers import Fallback, ItemsAnswer, Reason
from recflow.serving.bundle import Bundle
from recflow.serving.placements.general import general_reasons, name_of
from recflow.serving.recommend import Ranked, Recommender
from recflow.serving.requests import NewArrivalsRequest, TrendingRequest

_EPOCH = date(1970, 1, 1)
_DAY_US = 86_400_000_000
_HALF_LIFE_DAYS = 60.0  # of a shopper's tastes, as that of habits in `models.repeats`
_NEWER = 1e-4  # far below any difference of cosines that means something: of equal ones the newer item comes first

_NUMBERS = {2: "two", 3: "three", 4: "four"}

# -- trending


def trending(recommender: Recommender, request: TrendingRequest) -> ItemsAnswer:
    """Return what more customers buy this week than in a week before, by `Tables.growth`, the fastest first.

    In the request's country, or everywhere where too few buy there. Only what at least `min_customers_together` bought
    this week and what grows is on the rise; the list is filled up with what is popular.
    """
    tables, country = recommender.bundle.tables, request.context.country
    has_row = tables.country_index(country) is not None
    growth, (now, before) = tables.growth(country), tables.weekly(country)
    is_rising = (growth > 1) & (now >= recommender.settings.serving.min_customers_together)
    fallback = None
    if not tables.earlier_weeks:
        fallback = Fallback(kind="popularity", why="less than two weeks of data: what is popular")
    elif country is not None and not has_row:
        fallback = Fallback(kind="popularity", why=f"too few customers in {country}: what grows in all countries")

    def reasons(items: NDArray[np.int32]) -> list[Reason]:
        found = general_reasons(recommender, items, country)
        for place, item in enumerate(items.tolist()):
            if is_rising[item]:
                found[place] = _on_the_rise(
                    recommender.bundle, int(now[item]), float(before[item]), country if has_row else None
                )
        return found

    return recommender.finish(
        request,
        scores=np.where(is_rising, growth, 0).astype(np.float32),
        second=lambda: tables.popularity_scores(country),
        reasons=reasons,
        fallback=fallback,
    )


def _on_the_rise(bundle: Bundle, now: int, before: float, country: str | None) -> Reason:
    weeks = bundle.tables.earlier_weeks
    who = f"{now} customer{'' if now == 1 else 's'}{f' in {country}' if country else ''}"
    usual = f"{before:.1f}".removesuffix(".0")
    when = "in the week before" if weeks == 1 else f"a week in the {_NUMBERS[weeks]} weeks before"
    reason = Reason(
        kind="trending",
        text=f"Bought by {who} in the 7 days to {bundle.until}, against {usual} {when}.",
        count=now,
    )
    if country:
        reason["country"] = country
    return reason


# -- new arrivals


def new_arrivals(recommender: Recommender, request: NewArrivalsRequest, ranked: Ranked, row: int) -> ItemsAnswer:
    """Return items without history (`Bundle.is_new`), those first that suit what the shopper likes.

    The events of the history are weighted by what was done (a purchase 1, a look 0.2) x 2^(-age / 60 days). score =
    sum of what they say of the item by `Bundle.cold`; where that says nothing, the cosine of the item with the
    shopper's profile, the weighted sum of the vectors of the history's items. Without a profile the newest come first.
    What the shopper has bought already isn't new to them.
    """
    bundle, shopper = recommender.bundle, ranked.shoppers[row]
    items, weights, is_purchase = _history(ranked, row)  # (H,)
    allowed = bundle.is_new(recommender.settings.serving.new_days)
    allowed[items[is_purchase]] = False
    profile = weights @ bundle.vectors[items]
    norm = float(np.linalg.norm(profile))
    scores = _newness(bundle)
    fallback = None
    if norm > 0:
        scores = bundle.vectors @ (profile / norm) + _NEWER * scores
    learned = _learned(bundle, items, weights)
    if learned is not None:
        scores = _NEWER * scores + learned  # of equal ones the one that reads like the profile comes first
    elif norm == 0:
        known = ranked.fallbacks[row]
        why = known["why"] if known else "nothing of the shopper's history has a title"
        fallback = Fallback(kind="popularity", why=f"{why}: the newest first")
    return recommender.finish(
        request,
        scores=scores.astype(np.float32),
        allowed=allowed,
        reasons=lambda shown: _why_new(recommender, shown, np.unique(items[weights > 0])),
        shopper=shopper,
        fallback=fallback,
    )


def _history(ranked: Ranked, row: int) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """Return the items of the shopper's events, what each says of their taste, and which are purchases; (H,) each."""
    timelines = ranked.timelines
    filled = timelines.items[row] > 0
    items = timelines.items[row][filled].astype(np.int64) - 1  # 0 was padding
    event_types = timelines.event_types[row][filled]
    age_days = (ranked.shoppers[row].history.as_of_us - timelines.timestamps_us[row][filled]) / _DAY_US
    weights = PREFERENCE[event_types] * 0.5 ** (np.maximum(age_days, 0) / _HALF_LIFE_DAYS)
    return items, weights.astype(np.float32), event_types == PURCHASE


def _learned(
    bundle: Bundle, items: NDArray[np.int64], weights: NDArray[np.float32]
) -> NDArray[np.float32] | None:  # (V,) None where nothing is said
    """Return what a history says of the new items, 0 for others."""
    if bundle.cold is None:
        return None
    taste = np.bincount(items, weights, minlength=len(bundle.vectors)).astype(np.float32)
    of_new = bundle.cold.score(taste[None])[0]
    learned = np.zeros(len(bundle.vectors), np.float32)
    learned[bundle.cold.items] = of_new
    return learned if of_new.any() else None


def _newness(bundle: Bundle) -> NDArray[np.float64]:  # (V,) 1: first seen on the last day of data; 0: unknown
    age_days = np.maximum(bundle.until.toordinal() - _EPOCH.toordinal() - bundle.first_seen_day, 0)
    return np.asarray(np.where(bundle.first_seen_day < 0, 0, 1 / (1 + age_days)), np.float64)


def _why_new(recommender: Recommender, shown: NDArray[np.int32], liked: NDArray[np.int64]) -> list[Reason]:
    """Say since when each item is there, and which item that the shopper likes it is like, where there is one."""
    bundle = recommender.bundle
    cosines = bundle.vectors[shown] @ bundle.vectors[liked].T  # (K, H)
    cosines[shown[:, None] == liked] = -1  # an item isn't like itself
    nearest = cosines.argmax(axis=1) if len(liked) else np.zeros(len(shown), np.int64)
    came_lately = bundle.first_seen_lately(recommender.settings.serving.new_days)[shown]
    reasons = []
    for place, item in enumerate(shown.tolist()):
        fact = _what_is_new(bundle, item, came_lately=bool(came_lately[place]))
        reason = Reason(kind="new", text=f"{fact}.")
        cosine = float(cosines[place, nearest[place]]) if len(liked) else 0.0
        if cosine >= recommender.settings.serving.min_title_similarity:
            near = int(liked[nearest[place]])
            reason = Reason(
                kind="new_like",
                text=f"{fact}; like {name_of(bundle, near)} in your history.",
                item_id=bundle.item_ids[near],
                share=round(cosine, 4),
            )
        reasons.append(reason)
    return reasons


def _what_is_new(bundle: Bundle, item: int, *, came_lately: bool) -> str:
    """Name the day that an item came, or that nobody bought it, however long it has been there."""
    day = int(bundle.first_seen_day[item])
    since = f"in the catalogue since {_EPOCH + timedelta(days=day)}"
    if came_lately:
        return f"New: {since}"
    return f"Not bought by any known customer up to {bundle.until}{f', {since}' if day >= 0 else ''}"
