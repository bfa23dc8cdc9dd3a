"""Calls that came together -> their answers in one pass: one version, one read of the online store, one ranking."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

from recflow.console import log
from recflow.serving.online import OnlineStore, Stored
from recflow.serving.placements.campaigns import CampaignCatalogue, promotions
from recflow.serving.placements.cart import basket
from recflow.serving.placements.items import also_bought, similar
from recflow.serving.placements.lists import new_arrivals, trending
from recflow.serving.placements.ranked import ranked_answers
from recflow.serving.placements.stores import stores
from recflow.serving.recommend import Ranked, Recommender
from recflow.serving.requests import (
    AlsoBoughtRequest,
    BasketRequest,
    ListRequest,
    NewArrivalsRequest,
    PromotionsRequest,
    SearchRequest,
    ShopperRequest,
    SimilarRequest,
    StoresRequest,
    TrendingRequest,
)
from recflow.serving.search.searching import search
from recflow.serving.shopper import Shopper

Answer = Any  # a typed dictionary of `answers`


class Answerer:
    """Answers calls for lists, stores, promotions and searches. What waits together is answered together."""

    def __init__(
        self,
        store: OnlineStore,
        campaigns: CampaignCatalogue,
        *,
        observe: Callable[[str, float], None] = lambda stage, seconds: None,
    ) -> None:
        """Take what answers read; `observe` is told the seconds that each stage of a batch took."""
        self._store = store
        self._observe = observe
        self._for_shopper: dict[type[ListRequest], Callable[[Recommender, Any, Ranked, int], Answer]] = {
            BasketRequest: basket,
            NewArrivalsRequest: new_arrivals,
            SearchRequest: search,
            StoresRequest: stores,
            PromotionsRequest: functools.partial(promotions, campaigns=campaigns),
        }
        self._for_anybody: dict[type[ListRequest], Callable[[Recommender, Any], Answer]] = {
            SimilarRequest: similar,
            AlsoBoughtRequest: also_bought,
            TrendingRequest: trending,
        }

    async def answer(self, requests: Sequence[ListRequest], recommender: Recommender) -> list[Answer | Exception]:
        """Answer each request, or say what went wrong with it; one never fails another."""
        places = [place for place, request in enumerate(requests) if isinstance(request, ShopperRequest)]
        wanted = [request for request in requests if isinstance(request, ShopperRequest)]
        answers: list[Answer | Exception] = [None] * len(requests)
        if wanted:
            ranked = recommender.rank(await self.shoppers(wanted, recommender))
            for place, answer in zip(places, self._for_shoppers(wanted, ranked, recommender), strict=True):
                answers[place] = answer
        for place in set(range(len(requests))).difference(places):
            request = requests[place]
            answers[place] = _attempt(self._for_anybody[type(request)], recommender, request)
        return answers

    async def shoppers(self, requests: Sequence[ShopperRequest], recommender: Recommender) -> list[Shopper]:
        """Read what is known of each request's shopper: the online store once for all of them."""
        began = time.perf_counter()
        users = list(dict.fromkeys(request.user_id for request in requests if request.user_id is not None))
        found = dict(zip(users, await self._store.read(users), strict=True)) if users else {}
        stored = [Stored() if request.user_id is None else found[request.user_id] for request in requests]
        shoppers = recommender.shoppers(requests, stored)
        self._observe("features", time.perf_counter() - began)
        return shoppers

    def _for_shoppers(
        self, requests: Sequence[ShopperRequest], ranked: Ranked, recommender: Recommender
    ) -> list[Answer | Exception]:
        answers: list[Answer | Exception] = [None] * len(requests)
        by_score = [row for row, request in enumerate(requests) if type(request) not in self._for_shopper]
        for row, answer in zip(by_score, self._by_score(requests, by_score, ranked, recommender), strict=True):
            answers[row] = answer
        for row in set(range(len(requests))).difference(by_score):
            placement = self._for_shopper[type(requests[row])]
            answers[row] = _attempt(placement, recommender, requests[row], ranked, row)
        return answers

    def _by_score(
        self, requests: Sequence[ShopperRequest], rows: list[int], ranked: Ranked, recommender: Recommender
    ) -> Sequence[Answer | Exception]:
        if not rows:
            return []
        try:
            return ranked_answers(recommender, [requests[row] for row in rows], ranked, rows)
        except Exception as error:  # one of them: the others shall not go without
            log.error("A batch of %d failed with %s; each is answered alone.", len(rows), type(error).__name__)
            return [_attempt(_alone, recommender, requests[row], ranked, row) for row in rows]


def _alone(recommender: Recommender, request: ShopperRequest, ranked: Ranked, row: int) -> Answer:
    return ranked_answers(recommender, [request], ranked, [row])[0]


def _attempt(placement: Callable[..., Answer], *asked: Any) -> Answer | Exception:
    """Return the answer or what was raised; who asked is told, and the log, where the answer is given."""
    try:
        return placement(*asked)
    except Exception as error:
        return error
