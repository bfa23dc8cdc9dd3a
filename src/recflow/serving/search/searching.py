"""A search -> its answer: what was understood, found, filtered, put in order, cut into pages, counted and explained."""

import traceback
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from recflow.console import log
from recflow.retrieval.search import PARTS, Found
from recflow.retrieval.understanding import Understood
from recflow.serving.answers import (
    Fallback,
    FoundItem,
    Reason,
    SearchAnswer,
    SearchExplanation,
    Total,
    new_request_id,
)
from recflow.serving.recommend import Ranked, Recommender, moment
from recflow.serving.requests import Filters, SearchRequest
from recflow.serving.search.facets import facets_of
from recflow.serving.search.finder import Finder, Taste
from recflow.serving.search.finding import Pool, mask_of, pool_of, taste_of
from recflow.serving.search.marks import Marker, marked_html, reason_of
from recflow.serving.search.pages import Page
from recflow.serving.shopper import Shopper

_NOTHING_UNDERSTOOD = Understood("", None, (), None, "")
_WORDS_SHARE = 0.5  # of the best match by words: below, an item isn't worth being first by price
_FEW = 10  # filters that a note names


def search(recommender: Recommender, request: SearchRequest, ranked: Ranked, row: int) -> SearchAnswer:
    """Answer a search for one shopper.

    Raises:
        BadPage: the page is no token of this search.
    """
    page, shopper, finder = Page.of(request), ranked.shoppers[row], recommender.finder
    understood, pool, relaxed, why = _found(recommender, finder, request, ranked, row)
    listed = _ordered(finder, pool, request)
    ids = [finder.offer.item_id(item) for item in listed.items.tolist()]
    places = page.cut(ids, request.k)
    shown = replace(
        listed,
        items=listed.items[places],
        scores=listed.scores[places],
        parts={name: part[places] for name, part in listed.parts.items()},
    )
    n_before = (page.number - 1) * request.k if page.shown is None else len(page.shown)
    is_nothing = pool.is_nothing and bool(understood.terms)
    answer = SearchAnswer(
        request_id=new_request_id(),
        model_version=recommender.version,
        as_of=moment(shopper.history.as_of_us),
        fallback=why or _fallback(ranked, row, request, is_nothing=is_nothing),
        language=understood.language,
        items=_items(finder, understood, shown, request, first_rank=n_before + 1),
        total=_total(listed, is_nothing=is_nothing),
        facets=facets_of(
            finder.offer,
            pool.found.items,
            by_category=pool.but("categories"),
            by_brand=pool.but("brands"),
            by_price=pool.but("prices"),
        ),
        did_you_mean=understood.corrected,
        relaxed=relaxed if ids else [],
        note=_note(recommender, finder, pool, request, shopper, page, n_listed=len(ids), n_shown=len(shown.items)),
        next_page=page.next(request, ids, [ids[place] for place in np.arange(len(ids))[places].tolist()]),
    )
    if request.explain:
        answer["explanation"] = SearchExplanation(
            read_as=[[" ".join(each.words) for each in term.alternatives] for term in understood.terms],
            candidates=len(pool.found.items),
            weights={name: getattr(finder.weights, name) for name in PARTS},
        )
    return answer


class _Search(NamedTuple):
    """What a query came to."""

    understood: Understood
    pool: Pool
    relaxed: list[str]
    failed: Fallback | None


def _found(recommender: Recommender, finder: Finder, request: SearchRequest, ranked: Ranked, row: int) -> _Search:
    """Return what a query means and what it finds; where that fails, what is bought most."""
    shopper, taste = ranked.shoppers[row], taste_of(recommender, ranked, row)
    try:
        understood = finder.understand(request.query)
        pool = pool_of(recommender, finder, understood, request, shopper, taste)
    except Exception as error:  # whatever a query does, the shopper gets an answer
        # Without the error's own words: they may be people's.
        where = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        log.error("Version %s failed to search (%s):\n%s", recommender.version, type(error).__name__, where)
        pool = pool_of(recommender, finder, _NOTHING_UNDERSTOOD, request, shopper, None)
        why = Fallback(kind="tables", why="the search failed: what is bought most")
        return _Search(_NOTHING_UNDERSTOOD, pool, [], why)
    relaxed = [*understood.notes, *pool.found.relaxed]
    return _Search(understood, pool, relaxed if understood.terms else [_without_words(request.query, taste)], None)


# -- what is shown of it


def _ordered(finder: Finder, pool: Pool, request: SearchRequest) -> Found:
    """Return what the filters leave of the pool, in the order that was asked for."""
    found, offer = pool.found, finder.offer
    chosen = np.flatnonzero(pool.allowed)
    items = found.items[chosen]
    if request.sort != "relevance":
        words = found.parts["words"][chosen]
        is_meant = words >= _WORDS_SHARE * words.max(initial=0)
        chosen, items = chosen[is_meant], items[is_meant]
        keys = {
            "price_asc": offer.prices[items],
            "price_desc": -offer.prices[items],
            "newest": -offer.first_seen_day[items].astype(np.float64),
            "popular": -offer.popularity[items].astype(np.float64),
        }
        key = np.nan_to_num(keys[request.sort], nan=np.inf)  # an unknown price stands last
        chosen = chosen[np.lexsort((items, -found.scores[chosen], key))]
    return replace(
        found,
        items=found.items[chosen],
        scores=found.scores[chosen],
        parts={name: part[chosen] for name, part in found.parts.items()},
    )


def _items(
    finder: Finder, understood: Understood, shown: Found, request: SearchRequest, *, first_rank: int
) -> list[FoundItem]:
    marker, rows = Marker(understood, finder.language), []
    for place, (item, score) in enumerate(zip(shown.items.tolist(), shown.scores.tolist(), strict=True)):
        title, price, currency = finder.offer.shown(item)
        parts = {name: float(part[place]) for name, part in shown.parts.items()}
        marked = marker.mark(title)
        row = FoundItem(
            item_id=finder.offer.item_id(item),
            rank=first_rank + place,
            score=score,
            title=title,
            title_html=None if title is None else marked_html(title, marked.ranges),
            highlights=marked.ranges,
            price=price,
            currency=currency,
            reason=_reason(finder, marker, marked.matches, item, parts),
        )
        if request.explain:
            row["score_parts"] = {name: round(part, 4) for name, part in parts.items()}
        rows.append(row)
    return rows


def _reason(finder: Finder, marker: Marker, matches: Any, item: int, parts: dict[str, float]) -> Reason:
    if not parts["words"] and not parts["meaning"]:
        if parts["taste"]:
            return Reason(kind="taste", text="Suits this shopper's history.")
        return Reason(kind="popular", text="One of those that are bought most.")
    if parts["words"] and not matches:
        matches = marker.mark(finder.offer.about(item)).matches
    return reason_of(matches, parts)


# -- what is said of it


def _fallback(ranked: Ranked, row: int, request: SearchRequest, *, is_nothing: bool) -> Fallback | None:
    """Say what the order had to do without. That nothing is known of a shopper is nothing amiss."""
    fallback, shopper = ranked.fallbacks[row], ranked.shoppers[row]
    if is_nothing:
        return Fallback(kind="popularity", why="nothing was found")
    if fallback is None or (request.user_id is None and not request.session and request.session_id is None):
        return None
    if fallback["kind"] == "popularity":
        return Fallback(kind="session_only", why=shopper.failure) if shopper.failure else None
    return fallback


def _total(listed: Found, *, is_nothing: bool) -> Total:
    return Total(count=0, is_exact=True) if is_nothing else Total(count=len(listed.items), is_exact=not listed.is_cut)


def _without_words(query: str, taste: Taste | None) -> str:
    why = "The query is empty" if not query.strip() else "The query has no words"
    return f"{why}: all that is sold, {'in the order that suits this shopper' if taste else 'the most popular first'}."


def _note(
    recommender: Recommender,
    finder: Finder,
    pool: Pool,
    request: SearchRequest,
    shopper: Shopper,
    page: Page,
    *,
    n_listed: int,
    n_shown: int,
) -> str | None:
    """Say why the page is empty, where it is."""
    if n_shown:
        return None
    if n_listed:
        pages = -(-n_listed // request.k)
        there = "is 1" if pages == 1 else f"are {pages}"
        return f"Page {page.number} lies behind the last one: there {there} of up to {request.k} items."
    if not len(pool.found.items):
        return "The shop has nothing to show: all items are withdrawn, blocked, out of stock or without a text."
    single = []
    defaults = Filters()
    said = [name for name in Filters.model_fields if getattr(request.filters, name) != getattr(defaults, name)]
    for name in said:
        others = request.filters.model_copy(update={name: getattr(defaults, name)})
        mask = mask_of(recommender, finder, others, shopper)
        if mask is None or mask[pool.found.items].any():
            single.append(name)
    names = ", ".join((single or said)[:_FEW])
    how = "leaves" if len(single) == 1 else "leave"
    which = "filter" if len(single or said) == 1 else "filters"
    return f"{len(pool.found.items)} items were found; the {which} {names} {how} none of them."
