"""A catalogue that is large enough for an index: published with it, loaded with it, answering as without it."""

import asyncio
import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recflow.models.dataset import TrainingSet
from recflow.models.network import SequenceConfig, SequenceModel
from recflow.models.sequence import SequenceRanker
from recflow.retrieval.dense import ListIndex
from recflow.serving.answering import Answerer
from recflow.serving.bundle import Bundle, load_bundle
from recflow.serving.feedback import EventLog
from recflow.serving.make_bundle import build_bundle
from recflow.serving.online import OnlineStore
from recflow.serving.recommend import Recommender
from recflow.serving.requests import CrossCategoryRequest, ListRequest, RecommendRequest, RerankRequest
from recflow.settings import Settings, load_settings
from tests.serving import handmade
from tests.serving.conftest import FakeReader

N_ITEMS = 600
RULES = {  # no cap: with it lists of so small a catalogue would be chosen from all of it
    "blocked_item_ids": ["P11"],
    "pins": [{"placement": "home", "position": 2, "item_id": "P300"}],
}


def _network(training: TrainingSet, model: str) -> tuple[SequenceRanker, SequenceRanker]:
    encoders = training.fit_encoders([handmade.HOLDOUT_START])
    torch.manual_seed(0)
    config = SequenceConfig(
        n_items=N_ITEMS,
        text_size=4,
        n_user_features=encoders.user.width,
        n_item_features=encoders.item.width,
        embedding_size=16,
    )
    return tuple(SequenceRanker(SequenceModel(config, torch.randn(N_ITEMS, 4))) for _ in range(2))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Bundle, Any]:
    serving = {"exact_below_items": 100, "index_recall": 1.0, "rules": RULES}
    settings = load_settings(home=tmp_path_factory.mktemp("large") / "var", serving=serving)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(handmade, "N_ITEMS", N_ITEMS)
        patched.setattr(handmade, "_fitted", _network)
        events = handmade.write_shop(settings, model="sequence")
        folder = Path(build_bundle(handmade.UNTIL, settings).uri)
    return settings, load_bundle(folder), events


def test_the_index_is_published_and_loaded(shop: tuple[Settings, Bundle, Any]) -> None:
    _, bundle, _ = shop
    assert bundle.facts["index"] == {"exact_below": 100, "recall": 1.0, "lists": 12, "lists_read": 12}
    assert {"index/index.faiss", "index/index.json"} <= set(bundle.facts["files"])
    assert isinstance(bundle.index, ListIndex)
    assert np.shares_memory(bundle.index.vectors, bundle.ranker.item_vectors(bundle.item_features))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"k": 200},
        {"placement": "cart", "diversity": 0.3},
        {"explain": True},
        {"filters": {"categories": ["home > mug"], "new_only": True}},
        {"filters": {"brands": ["Acme"], "price_max": 300}},
        {"filters": {"include_item_ids": ["P01", "P11", "P599", "?"]}},
        {"filters": {"include_item_ids": []}},
    ],
    ids=str,
)
def test_answers_are_those_of_the_whole_catalogue(shop: tuple[Settings, Bundle, Any], asked: dict[str, Any]) -> None:
    _, bundle, _ = shop
    users = [None, "nobody", *(f"{13000 + user}.0" for user in range(6))]
    requests: list[ListRequest] = [RecommendRequest(user_id=user, **asked) for user in users]
    requests += [CrossCategoryRequest(session=[{"item_id": "P05"}], **asked)]
    requests += [RerankRequest(user_id=users[2], item_ids=bundle.item_ids[::-3], **asked)]
    whole = _answers(shop, dataclasses.replace(bundle, index=None), requests)
    searched = _answers(shop, bundle, requests)
    for one, other in zip(whole, searched, strict=True):
        ids = [item["item_id"] for item in other["items"]]
        assert ids == [item["item_id"] for item in one["items"]]
        assert [item["reason"] for item in other["items"]] == [item["reason"] for item in one["items"]]
        scores = ([item["score"] for item in answer["items"]] for answer in (other, one))
        np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-4)
        assert "P11" not in ids
        assert other.get("explanation", {}).get("rules") == one.get("explanation", {}).get("rules")
        assert other.get("explanation", {}).get("candidates") == one.get("explanation", {}).get("candidates")


def test_an_index_that_finds_little_still_shows_only_what_may_be_shown_and_as_much(
    shop: tuple[Settings, Bundle, Any],
) -> None:
    _, bundle, _ = shop
    index = copy.copy(bundle.index)
    index.n_read = 6  # of 12 lists; with fewer they hold too few items and all are looked at
    users = [None, *(f"{13000 + user}.0" for user in range(20))]
    filters = {"brands": ["Acme", "Boreal"], "exclude_item_ids": ["P04"]}
    requests: list[ListRequest] = [
        RecommendRequest(user_id=user, k=k, filters=wanted, diversity=diversity)
        for user in users
        for k, wanted, diversity in ((20, {}, 0), (200, filters, 0), (50, filters, 0.5))
    ]
    answers = _answers(shop, dataclasses.replace(bundle, index=index), requests)
    assert answers != _answers(shop, bundle, requests)  # it does miss
    for request, answer in zip(requests, answers, strict=True):
        shown = [int(item["item_id"][1:]) for item in answer["items"]]
        assert len(shown) == len(set(shown)) == request.k
        assert not {11, 23} & set(shown)  # blocked, and offered no more
        assert not request.filters.brands or all(item % 3 and item != 4 for item in shown)


def _answers(shop: tuple[Settings, Bundle, Any], bundle: Bundle, requests: list[ListRequest]) -> list[Any]:
    settings, _, events = shop
    recommender = Recommender(bundle, settings, version="1", event_log=EventLog(settings))
    store = OnlineStore(lambda: FakeReader(events), retry_seconds=60, budget_seconds=60)
    answers = asyncio.run(Answerer(store, campaigns=None).answer(requests, recommender))  # type: ignore[arg-type]
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    return [{key: value for key, value in answer.items() if key != "request_id"} for answer in answers]
