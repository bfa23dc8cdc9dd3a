"""Stores whose offer fits the shopper: item -> store as the catalogue says, scored by the shopper's own scores."""

import numpy as np

from recflow.serving.answers import Fallback, Store, StoresAnswer, new_request_id
from recflow.serving.placements.groups import Taste, reason_of
from recflow.serving.recommend import Ranked, Recommender, moment
from recflow.serving.requests import StoresRequest


def stores(recommender: Recommender, request: StoresRequest, ranked: Ranked, row: int) -> StoresAnswer:
    """Rank the stores that have anything to show, see `groups.Taste.fit`; equal ones in order of their ids."""
    bundle, shopper = recommender.bundle, ranked.shoppers[row]
    allowed = recommender.may_show(request.filters, shopper)
    taste = Taste(recommender.scores_of(ranked, row), allowed)
    codes = bundle.store_codes.of_item
    order = np.argsort(codes, kind="stable").astype(np.int32)
    ends = np.searchsorted(codes[order], np.arange(len(bundle.store_codes.names) + 1))
    found = [
        (store_id, fit)
        for place, store_id in enumerate(bundle.store_codes.names)
        if (fit := taste.fit(order[ends[place] : ends[place + 1]])) is not None
    ]
    found.sort(key=lambda pair: -pair[1].score)  # stable
    answered = []
    for rank, (store_id, fit) in enumerate(found[: request.k], start=1):
        items = taste.rows(recommender, ranked, row, fit.items)
        answered.append(Store(store_id=store_id, rank=rank, score=fit.score, reason=reason_of(items[0]), items=items))
    fallback = ranked.fallbacks[row]
    if not bundle.store_codes.names:
        fallback = Fallback(kind="tables", why="the catalogue names no stores")
    return StoresAnswer(
        request_id=new_request_id(),
        model_version=recommender.version,
        as_of=moment(shopper.history.as_of_us),
        fallback=fallback,
        stores=answered,
    )
