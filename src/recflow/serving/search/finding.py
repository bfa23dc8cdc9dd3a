"""A query that was understood, and the request's filters -> what was found, and which filters let it through.

What is found is found without the request's filters first: so a filter that leaves nothing can be named, and a facet
be counted without its own filter. Where a catalogue holds more than is looked at, the list itself is found under the
filters, and counts are of the best `search.max_found` items.

Letters: V items of the bundle, A that were added since, N items found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recflow.retrieval.search import PARTS, Found
from recflow.retrieval.understanding import Understood
from recflow.serving.recommend import Ranked, Recommender
from recflow.serving.requests import Filters, SearchRequest
from recflow.serving.search.finder import Finder, Taste
from recflow.serving.shopper import Shopper

Mask = NDArray[np.bool_]

_FACETS: dict[str, tuple[str, ...]] = {  # facet -> the filters that set it
    "categories": ("categories",),
    "brands": ("brands",),
    "prices": ("price_min", "price_max"),
}


@dataclass(frozen=True)
class Pool:
    """What was found, best first, and which filters let it through."""

    found: Found
    by_facet: dict[str, Mask]  # (N,) under the facet's own filter; True where there is none
    by_rest: Mask  # (N,) under all other filters
    is_nothing: bool  # no words or meaning led here: what is popular

    @property
    def allowed(self) -> Mask:  # (N,)
        """Return which items all filters let through."""
        return _all([self.by_rest, *self.by_facet.values()])

    def but(self, facet: str) -> Mask:  # (N,)
        """Return which items the filters but one facet's let through."""
        others = [mask for name, mask in self.by_facet.items() if name != facet]
        return _all([self.by_rest, *others])


def taste_of(recommender: Recommender, ranked: Ranked, row: int) -> Taste | None:
    """Return how items suit the shopper: the champion's scores; None where nothing is known of them."""
    if not (ranked.timelines.items[row] > 0).any():
        return None
    n_known = len(recommender.bundle.item_ids)

    def scores(items: NDArray[np.int32]) -> NDArray[np.floating[Any]]:  # (N,)
        is_known = items < n_known
        found = np.zeros(len(items), np.float32)
        if is_known.any():
            found[is_known] = recommender.scores_of(ranked, row, items[is_known])
            found[~is_known] = np.median(found[is_known])  # what nobody knows yet is neither liked nor disliked
        return found

    return scores


def pool_of(
    recommender: Recommender,
    finder: Finder,
    understood: Understood,
    request: SearchRequest,
    shopper: Shopper,
    taste: Taste | None,
) -> Pool:
    """Find items, under the request's filters where all that could be found is more than is looked at."""
    open_ = recommender.shown(finder.offer, in_stock=request.filters.in_stock)
    found = _find(recommender, finder, understood, open_, taste)
    masks = _masks(recommender, finder, request.filters, shopper)
    pool = _pooled(found, masks)
    if found.is_cut and any(mask is not None for mask in masks.values()):
        under = _all([open_, *(mask for mask in masks.values() if mask is not None)])
        narrow = _find(recommender, finder, understood, under, taste)
        if len(narrow.items) and _is_nothing(narrow) == pool.is_nothing:
            # The best of both: the list from what is under the filters, other facets' values from what isn't.
            return _pooled(_joined(narrow, found), masks)
    return pool


def _find(
    recommender: Recommender, finder: Finder, understood: Understood, allowed: Mask, taste: Taste | None
) -> Found:
    limit = recommender.settings.search.max_found
    if understood.terms:
        return finder.find(understood, limit=limit, allowed=allowed, taste=taste)
    items = np.flatnonzero(allowed).astype(np.int32)
    popularity = finder.offer.popularity[items]
    parts = {name: np.zeros(len(items), np.float32) for name in PARTS} | {"popularity": popularity}
    values = popularity
    if taste is not None:
        values = np.asarray(taste(items), np.float32)
        parts |= {"taste": values, "popularity": np.zeros_like(popularity)}
    order = np.lexsort((items, -popularity, -values))[:limit]
    parts = {name: part[order] for name, part in parts.items()}
    return Found(items[order], values[order], parts, (), len(items) > limit)


def _masks(recommender: Recommender, finder: Finder, filters: Filters, shopper: Shopper) -> dict[str, Mask | None]:
    """Return what each facet's filters, and the rest of them, let through; (V + A,) each, None: all."""
    masks = {}
    names = [name for fields in _FACETS.values() for name in fields]
    for facet, fields in _FACETS.items():
        only = Filters(**{name: getattr(filters, name) for name in fields})
        masks[facet] = mask_of(recommender, finder, only, shopper)
    masks["rest"] = mask_of(recommender, finder, filters.model_copy(update=dict.fromkeys(names)), shopper)
    return masks


def mask_of(recommender: Recommender, finder: Finder, filters: Filters, shopper: Shopper) -> Mask | None:  # (V + A,)
    """Return which items filters let through; None: all."""
    own = recommender.allowed(filters, shopper)
    if own is None or not len(finder.offer.added):
        return own
    return np.concatenate([own, finder.offer.added.allowed(filters)])


def _pooled(found: Found, masks: dict[str, Mask | None]) -> Pool:
    everywhere = np.ones(len(found.items), dtype=bool)
    own = {name: everywhere if mask is None else mask[found.items] for name, mask in masks.items()}
    rest = own.pop("rest")
    return Pool(found, own, rest, _is_nothing(found))


def _all(masks: Sequence[Mask]) -> Mask:
    """Return what all masks let through."""
    through: Mask = np.logical_and.reduce(masks)
    return through


def _is_nothing(found: Found) -> bool:
    return not (found.parts["words"].any() or found.parts["meaning"].any())


def _joined(first: Found, second: Found) -> Found:
    """Return what was found in both, in the order of the scores; an item of both as the first has it."""
    new = ~np.isin(second.items, first.items)
    items = np.concatenate([first.items, second.items[new]])
    scores = np.concatenate([first.scores, second.scores[new]])
    order = np.lexsort((items, -scores))
    parts = {name: np.concatenate([part, second.parts[name][new]])[order] for name, part in first.parts.items()}
    return Found(items[order], scores[order], parts, first.relaxed, is_cut=True)
