"""The placements whose order is the model's: recommend, rerank, cart_order, cross_category.

Each says which items of the catalogue take part; scoring, rules and reasons are those of `Recommender.answer`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recflow.schema import EVENT_TYPES
from recflow.serving.answers import Fallback, ItemsAnswer, Reason, Recommendation
from recflow.serving.recommend import Ranked, Recommender
from recflow.serving.requests import CartOrderRequest, CrossCategoryRequest, ListRequest, RerankRequest
from recflow.serving.shopper import Shopper

_TRIED = frozenset(EVENT_TYPES) - {"impression", "search", "return"}  # what says that a shopper knows a category


def ranked_answers(
    recommender: Recommender, requests: Sequence[ListRequest], ranked: Ranked, rows: Sequence[int]
) -> list[ItemsAnswer]:
    """Answer requests of these placements together; `rows` are their shoppers' places in `ranked`."""
    chosen = ranked.take(rows)
    allowed = [
        _taking_part(recommender, request, shopper) for request, shopper in zip(requests, chosen.shoppers, strict=True)
    ]
    answers = recommender.answer(requests, chosen, allowed=allowed)
    for request, answer in zip(requests, answers, strict=True):
        if isinstance(request, RerankRequest | CartOrderRequest):
            _append_unknown(recommender, request, answer)
        elif isinstance(request, CrossCategoryRequest) and not recommender.bundle.has_categories:
            answer["fallback"] = answer["fallback"] or Fallback(
                kind="tables", why="the catalogue has no categories: these are items that the shopper hasn't tried"
            )
    return answers


def _taking_part(
    recommender: Recommender, request: ListRequest, shopper: Shopper
) -> NDArray[np.bool_] | None:  # (V,) None: all
    if isinstance(request, RerankRequest | CartOrderRequest):
        return recommender.mask(request.item_ids)
    if isinstance(request, CrossCategoryRequest):
        return _untried(recommender, shopper)
    return None


def _untried(recommender: Recommender, shopper: Shopper) -> NDArray[np.bool_]:  # (V,)
    """Return the items whose coarsest category the shopper's history doesn't touch; without categories, untried."""
    bundle = recommender.bundle
    history = zip(shopper.history.item_ids, shopper.history.event_types, strict=True)
    tried = recommender.indices([item_id for item_id, event_type in history if event_type in _TRIED])
    if not bundle.has_categories:
        untried = np.ones(len(bundle.item_ids), dtype=bool)
        untried[tried] = False
        return untried
    known = bundle.top_category_code >= 0
    return known & ~np.isin(bundle.top_category_code, bundle.top_category_code[tried])


def _append_unknown(recommender: Recommender, request: RerankRequest | CartOrderRequest, answer: ItemsAnswer) -> None:
    """Put what the catalogue doesn't know behind the rest: the shop's list loses nothing that is merely newer."""
    unknown = [item_id for item_id in dict.fromkeys(request.item_ids) if recommender.bundle.find(item_id) is None]
    items = answer["items"]
    for item_id in unknown[: request.k - len(items)]:
        items.append(
            Recommendation(
                item_id=item_id,
                rank=len(items) + 1,
                score=None,
                title=None,
                price=None,
                currency=None,
                reason=Reason(kind="not_in_catalogue", text="Not in the catalogue that is served: left at the end."),
            )
        )
