"""A catalogue searched by an index answers as one that is scored whole, and never with what mustn't be shown."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recflow.retrieval.dense import ExactIndex
from recflow.serving import rules as rules_module
from recflow.serving import slate
from recflow.serving.answering import Answerer
from recflow.serving.recommend import Recommender, filled_up
from recflow.serving.requests import (
    AlsoBoughtRequest,
    BasketRequest,
    CartOrderRequest,
    CrossCategoryRequest,
    Filters,
    ListRequest,
    NewArrivalsRequest,
    RecommendRequest,
    RequestContext,
    RerankRequest,
    SimilarRequest,
    StoresRequest,
    TrendingRequest,
)
from recflow.settings import Settings, load_settings
from tests.serving.searched_shop import Shop, ids, make_shop, shops

_ANYTHING = hypothesis_settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150
)


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few items be looked at, so that a small catalogue reaches further down than its candidates."""
    monkeypatch.setattr(slate, "_POOL", 5)
    monkeypatch.setattr(slate, "_POOL_PER_PLACE", 1)
    monkeypatch.setattr(rules_module, "_POOLS_WITHIN_REACH", 2)


@st.composite
def rule_settings(draw: st.DrawFn, n_items: int, home: Path) -> Settings:
    item = st.integers(0, n_items - 1)
    pinned = draw(st.lists(item, max_size=3, unique=True))
    places = draw(st.lists(st.integers(1, 8), min_size=len(pinned), max_size=len(pinned), unique=True))
    pins = [
        {
            "placement": draw(st.sampled_from(["home", "cart"])),
            "position": place,
            "item_id": ids(n_items)[each],
            "country": draw(st.sampled_from([None, "DE"])),
            "category": draw(st.sampled_from([None, "home"])),
        }
        for each, place in zip(pinned, places, strict=True)
    ]
    free = [ids(n_items)[each] for each in range(n_items) if each not in pinned] or ["unheard of"]
    blocked = {
        "blocked_item_ids": draw(st.lists(st.sampled_from(free), max_size=3)),
        "blocked_categories": draw(st.sampled_from([(), ("garden",), ("home > mugs",)])),
        "blocked_brands": draw(st.sampled_from([(), ("Acme",)])),
    }
    lists = {
        "max_per_category": draw(st.sampled_from([None, 1, 2])),
        "category_level": draw(st.sampled_from(["top", "full"])),
        "max_shown": draw(st.sampled_from([None, 1, 2])),
        "diversity": draw(st.sampled_from([0.0, 0.3, 1.0])),
    }
    serving = {"rules": blocked | lists | {"pins": pins}}
    return load_settings(home=home, serving=serving)


@st.composite
def filters(draw: st.DrawFn, n_items: int) -> Filters:
    some = st.lists(st.sampled_from([*ids(n_items), "unheard of"]), max_size=8)
    chosen = {
        "exclude_item_ids": draw(some),
        "include_item_ids": draw(st.none() | some),
        "categories": draw(st.sampled_from([None, ["home"], ["home > mugs", "garden"], ["?"]])),
        "brands": draw(st.sampled_from([None, ["Bolt"]])),
        "store_ids": draw(st.sampled_from([None, ["S0"]])),
        "price_max": draw(st.sampled_from([None, 4.0])),
        "in_stock": draw(st.booleans()),
        "new_only": draw(st.booleans()),
    }
    kept = draw(st.sets(st.sampled_from(sorted(chosen)), max_size=3))  # all at once would leave nothing
    return Filters(**{name: value for name, value in chosen.items() if name in kept})


@st.composite
def requests(draw: st.DrawFn, n_items: int, kinds: Sequence[type[ListRequest]]) -> ListRequest:
    kind = draw(st.sampled_from(kinds))
    some = st.lists(st.sampled_from([*ids(n_items), "unheard of"]), max_size=6)
    asked: dict[str, Any] = {
        "k": draw(st.integers(1, 8) | st.integers(1, 40)),
        "placement": draw(st.sampled_from(["home", "cart"])),
        "context": RequestContext(country=draw(st.sampled_from([None, "DE", "UK", "FR"]))),
        "filters": draw(st.just(Filters()) | filters(n_items)),
        "diversity": draw(st.sampled_from([None, 0.0, 0.5])),
        "explain": draw(st.booleans()),
    }
    if "user_id" in kind.model_fields:
        asked["user_id"] = draw(st.sampled_from([None, "u0", "u1", "u2", "nobody"]))
        asked["session"] = [{"item_id": item_id} for item_id in draw(st.just([]) | some)]
    if "item_id" in kind.model_fields:
        asked["item_id"] = draw(st.sampled_from(ids(n_items)))
    if "item_ids" in kind.model_fields:
        asked["item_ids"] = draw(some) or ["I000"]
    return kind(**asked)


@st.composite
def cases(draw: st.DrawFn, home: Path, kinds: Sequence[type[ListRequest]]) -> Any:
    shop = draw(shops())
    n_items = len(shop.bundle.item_ids)
    shop.bundle.ranker.is_broken = draw(st.sampled_from([False, False, False, True]))
    return SimpleNamespace(
        shop=shop,
        settings=draw(rule_settings(n_items, home)),
        sold_out=draw(st.lists(st.sampled_from(ids(n_items)), max_size=4)),
        requests=draw(st.lists(requests(n_items, kinds), min_size=1, max_size=4)),
    )


def answers(recommender: Recommender, shop: Shop, asked: Sequence[ListRequest]) -> list[dict[str, Any]]:
    """Answer as the endpoint does, all requests together."""
    answerer = Answerer(shop.store, campaigns=None)  # type: ignore[arg-type]
    found = asyncio.run(answerer.answer(asked, recommender))
    for answer in found:
        if isinstance(answer, Exception):
            raise answer
    return [{key: value for key, value in answer.items() if key != "request_id"} for answer in found]


def both_ways(case: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Recommender]:
    """Answer by all scores and by an index that finds exactly the best."""
    whole = case.shop.recommender(case.settings, sold_out=case.sold_out)
    index = ExactIndex(case.shop.bundle.ranker.item_vectors(case.shop.bundle.item_features))
    searched = case.shop.recommender(case.settings, index, sold_out=case.sold_out)
    return (*(answers(each, case.shop, case.requests) for each in (whole, searched)), whole)


def test_a_cap_looks_further_down_than_the_candidates_reach(tmp_path: Path) -> None:
    n_items = 60
    shop = make_shop(
        vectors=np.column_stack([np.zeros((n_items, 3)), np.arange(n_items, 0, -1)]),
        categories=["home > mugs"] * 50 + ["home > clocks", "garden > pots"] * 5,
    )
    case = SimpleNamespace(
        shop=shop,
        settings=load_settings(home=tmp_path, serving={"rules": {"max_per_category": 2, "category_level": "full"}}),
        sold_out=[],
        requests=[RecommendRequest(session=[{"item_id": "I000"}], k=6)],
    )
    whole, searched, _ = both_ways(case)
    assert [item["item_id"] for item in searched[0]["items"]] == ["I000", "I001", "I050", "I051", "I052", "I053"]
    assert searched == whole


_BY_SCORE = (RecommendRequest, RerankRequest, CartOrderRequest, CrossCategoryRequest)
_OTHERS = (
    *(BasketRequest, NewArrivalsRequest, StoresRequest, SimilarRequest, AlsoBoughtRequest, TrendingRequest),
    RecommendRequest,
)


@_ANYTHING
@given(data=st.data())
def test_answers_are_those_of_the_whole_catalogue(data: st.DataObject, tmp_path: Path) -> None:
    whole, searched, _ = both_ways(data.draw(cases(tmp_path, _BY_SCORE)))
    assert searched == whole


@_ANYTHING
@given(data=st.data())
def test_so_are_those_of_the_other_placements(data: st.DataObject, tmp_path: Path) -> None:
    whole, searched, _ = both_ways(data.draw(cases(tmp_path, _OTHERS)))
    assert searched == whole


@_ANYTHING
@given(data=st.data())
def test_a_second_choice_that_is_left_out_would_have_changed_nothing(data: st.DataObject, tmp_path: Path) -> None:
    case = data.draw(cases(tmp_path, (BasketRequest, AlsoBoughtRequest, TrendingRequest)))
    recommender = case.shop.recommender(case.settings, sold_out=case.sold_out)
    found = answers(recommender, case.shop, case.requests)

    def filled(scores: np.ndarray, may_show: np.ndarray, ask: rules_module.Ask, second: Any) -> rules_module.Slate:
        return recommender.rules.apply(filled_up(scores, second()), may_show, ask)

    recommender._slate = filled  # type: ignore[method-assign]
    assert answers(recommender, case.shop, case.requests) == found


@_ANYTHING
@given(data=st.data())
def test_a_list_has_min_k_of_what_may_be_shown_each_once(data: st.DataObject, tmp_path: Path) -> None:
    case = data.draw(cases(tmp_path, [RecommendRequest]))
    _, searched, _ = both_ways(case)
    for request, answer in zip(case.requests, searched, strict=True):
        shown = [item["item_id"] for item in answer["items"]]
        allowed = may_be_shown(case, request)
        assert set(shown) <= allowed
        assert len(shown) == len(set(shown)) == min(request.k, len(allowed))


def may_be_shown(case: Any, request: RecommendRequest) -> set[str]:
    """Say item by item what a request may be answered with, from the catalogue's rows and the words of the settings."""
    rules, wanted, known = case.settings.serving.rules, request.filters, case.shop.store.users.get(request.user_id)
    # The newest events that are kept; those brought along are views.
    history = list(zip(known.item_ids, known.event_types, strict=True)) if known else []
    history = (history + [(event.item_id, "view") for event in request.session])[-6:]
    bought = {item_id for item_id, event_type in history if event_type == "purchase"}

    def below(category: str | None, names: Sequence[str]) -> bool:
        return any(category == name or (category or "").startswith(f"{name} > ") for name in names)

    def is_allowed(row: dict[str, Any]) -> bool:
        return not (
            not row["active"]
            or row["item_id"] in rules.blocked_item_ids
            or below(row["category"], rules.blocked_categories)
            or row["brand"] in rules.blocked_brands
            or (wanted.in_stock and row["item_id"] in case.sold_out)
            or row["item_id"] in wanted.exclude_item_ids
            or (wanted.include_item_ids is not None and row["item_id"] not in wanted.include_item_ids)
            or (wanted.categories is not None and not below(row["category"], wanted.categories))
            or (wanted.brands is not None and row["brand"] not in wanted.brands)
            or (wanted.store_ids is not None and row["store_id"] not in wanted.store_ids)
            or (wanted.price_max is not None and not (row["price"] or np.inf) <= wanted.price_max)
            or (wanted.new_only and row["item_id"] in bought)
        )

    return {row["item_id"] for row in case.shop.bundle.items.to_pylist() if is_allowed(row)}


@pytest.mark.parametrize(("n_scored", "lowest"), [(9, 5.0), (4, -np.inf)])  # a pool of five is full, or isn't
def test_a_diverse_list_leans_on_all_that_a_full_pool_would_hold(n_scored: int, lowest: float) -> None:
    scores = np.arange(9, 9 - n_scored, -1, dtype=np.float32)
    growing = slate.GrowingSlate(
        scores, np.full(n_scored, -1, np.int32), np.eye(9, dtype=np.float32),
        k=3, pins={}, tired=[], cap=None, diversity=0.5,
    )  # fmt: skip
    growing.grow()
    assert growing.lowest == lowest
