"""Stores by the shopper's own scores, against the same worked out item by item."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from recflow.serving.placements.stores import stores
from recflow.serving.recommend import Recommender
from recflow.serving.requests import StoresRequest
from tests.serving.conftest import Built

USER = "13000.0"


def test_a_store_is_worth_its_five_best_items(recommender: Recommender, rank: Callable, shop: Built) -> None:
    request = StoresRequest(user_id=USER)
    ranked = rank(recommender, request)
    answer = stores(recommender, request, ranked, 0)
    bundle = shop.bundle
    shown = [item for item, item_id in enumerate(bundle.item_ids) if item_id != "P23"]  # offered no more
    values = ranked.scores[0].astype(float)
    values = (values - values[shown].mean()) / values[shown].std()
    store_of = bundle.items["store_id"].to_pylist()
    worth = {
        store: sum(sorted((values[item] for item in shown if store_of[item] == store), reverse=True)[:5]) / 5
        for store in ("S0", "S1")
    }
    assert [store["store_id"] for store in answer["stores"]] == sorted(worth, key=lambda store: -worth[store])
    for place, store in enumerate(answer["stores"], start=1):
        assert store["rank"] == place
        assert store["score"] == pytest.approx(worth[store["store_id"]], abs=1e-4)
        own = [item for item in shown if store_of[item] == store["store_id"]]
        best = sorted(own, key=lambda item: -ranked.scores[0][item])[:3]
        assert [item["item_id"] for item in store["items"]] == [bundle.item_ids[item] for item in best]
        assert store["reason"]["text"].endswith(store["items"][0]["reason"]["text"])
    assert msgspec.json.decode(msgspec.json.encode(answer)) == answer


def test_filters_hold_and_a_store_with_nothing_to_show_is_left_out(recommender: Recommender, rank: Callable) -> None:
    request = StoresRequest(user_id=USER, filters={"include_item_ids": ["P02", "P20"]})
    answer = stores(recommender, request, rank(recommender, request), 0)
    assert [(store["store_id"], len(store["items"])) for store in answer["stores"]] == [("S0", 1)]


def test_one_lucky_item_makes_no_store_the_best(recommender: Recommender, rank: Callable) -> None:
    request = StoresRequest(user_id=USER)
    ranked = rank(recommender, request)
    # P04 is S0's and the best of all; S1 has five items a little below.
    scores = np.zeros_like(ranked.scores)
    index = recommender.bundle.item_index
    scores[0, index["P04"]] = 1.0
    scores[0, [index[item_id] for item_id in ("P01", "P03", "P05", "P07", "P09")]] = 0.9
    answer = stores(recommender, request, replace(ranked, scores=scores), 0)
    assert [store["store_id"] for store in answer["stores"]] == ["S1", "S0"]


def test_a_catalogue_without_stores_says_so(make: Callable[..., Recommender], rank: Callable, shop: Built) -> None:
    place = shop.bundle.items.schema.get_field_index("store_id")
    items = shop.bundle.items.set_column(place, "store_id", pa.nulls(len(shop.bundle.item_ids), pa.string()))
    recommender = make(replace(shop.bundle, items=items))
    request = StoresRequest(user_id=USER)
    answer = stores(recommender, request, rank(recommender, request), 0)
    assert answer["stores"] == []
    assert answer["fallback"] == {"kind": "tables", "why": "the catalogue names no stores"}
