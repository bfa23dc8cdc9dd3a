"""The handmade shop without the sales of P18 and P19: two items that are offered and that nobody bought."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recflow.serving.bundle import Bundle, load_bundle
from recflow.serving.feedback import EventLog
from recflow.serving.make_bundle import build_bundle
from recflow.serving.online import Stored
from recflow.serving.recommend import Ranked, Recommender
from recflow.serving.requests import ShopperRequest
from recflow.settings import load_settings
from tests.serving import handmade
from tests.serving.conftest import Built, FakeReader

UNSOLD = ["P18", "P19"]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Built:
    settings = load_settings(home=tmp_path_factory.mktemp("placements") / "var")
    events = handmade.purchases()
    events = events[~events["item_id"].isin(UNSOLD)].reset_index(drop=True)
    handmade.write_shop(settings, events=events)
    folder = Path(build_bundle(handmade.UNTIL, settings).uri)
    return Built(settings, events, folder, load_bundle(folder))


@pytest.fixture
def make(shop: Built, event_log: EventLog) -> Callable[..., Recommender]:
    """Return a recommender of the shop's bundle, or of another; settings of [serving] by keyword."""

    def make(bundle: Bundle = shop.bundle, **serving: Any) -> Recommender:
        settings = load_settings(home=shop.settings.home, serving=serving)
        return Recommender(bundle, settings, version="7", event_log=event_log)

    return make


@pytest.fixture
def recommender(make: Callable[..., Recommender]) -> Recommender:
    return make()


@pytest.fixture
def rank(shop: Built) -> Callable[[Recommender, ShopperRequest], Ranked]:
    """Return a function that knows of a request's shopper what the shop's events say, and scores."""
    reader = FakeReader(shop.events)

    def rank(recommender: Recommender, request: ShopperRequest) -> Ranked:
        user = None if request.user_id is None else reader.users([request.user_id])[0]
        return recommender.rank(recommender.shoppers([request], [Stored(user)]))

    return rank


def with_tables(bundle: Bundle, **tables: Any) -> Bundle:
    """Return the bundle with other counts."""
    return replace(bundle, tables=replace(bundle.tables, **tables))


def without_titles(bundle: Bundle, *item_ids: str) -> Bundle:
    """Return the bundle as if the items had no title."""
    vectors = bundle.vectors.copy()
    vectors[[bundle.item_index[item_id] for item_id in item_ids]] = 0
    return replace(bundle, vectors=vectors)


def ids(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def scores(answer: Any) -> list[float]:
    return [item["score"] for item in answer["items"]]


def no_pairs(bundle: Bundle) -> Bundle:
    """Return the bundle with the evidence of customers and orders in common taken away."""
    tables = bundle.tables
    return with_tables(
        bundle,
        neighbours=np.full_like(tables.neighbours, -1),
        neighbour_customers=np.zeros_like(tables.neighbour_customers),
        order_neighbours=np.full_like(tables.order_neighbours, -1),
        order_neighbour_orders=np.zeros_like(tables.order_neighbour_orders),
    )
