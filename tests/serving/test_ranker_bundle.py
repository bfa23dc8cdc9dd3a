"""The second-stage ranker as a champion: published, loaded, answering every kind of call with reasons that are true."""

import asyncio
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from recflow.errors import BundleInvalid
from recflow.models.interactions import top_k
from recflow.models.ranker import CandidateRanker
from recflow.serving import bundle as module
from recflow.serving.answering import Answerer
from recflow.serving.bundle import load_bundle
from recflow.serving.feedback import EventLog
from recflow.serving.make_bundle import build_bundle
from recflow.serving.online import OnlineStore
from recflow.serving.placements.campaigns import CampaignCatalogue
from recflow.serving.placements.profile import profile
from recflow.serving.probe import probe_context
from recflow.serving.recommend import Recommender
from recflow.serving.requests import (
    AlsoBoughtRequest,
    BasketRequest,
    CartOrderRequest,
    CrossCategoryRequest,
    ListRequest,
    NewArrivalsRequest,
    PromotionsRequest,
    RecommendRequest,
    RerankRequest,
    SimilarRequest,
    StoresRequest,
    TrendingRequest,
)
from recflow.settings import Settings, load_settings
from tests.serving import handmade, rankers
from tests.serving.conftest import Built, FakeReader
from tests.serving.test_reasons import _check

USER = "13000.0"
REQUESTS: Sequence[ListRequest] = [
    RecommendRequest(user_id=USER, k=24, explain=True),
    RecommendRequest(user_id=USER, filters={"new_only": True, "categories": ["home > lantern"]}),
    RecommendRequest(session=[{"item_id": "P05"}]),
    RecommendRequest(user_id="nobody"),
    NewArrivalsRequest(user_id=USER),
    CrossCategoryRequest(user_id=USER),
    SimilarRequest(item_id="P05"),
    AlsoBoughtRequest(item_id="P05"),
    BasketRequest(user_id=USER, item_ids=["P05", "P09"]),
    RerankRequest(user_id=USER, item_ids=["P01", "P02", "P23"]),
    CartOrderRequest(user_id=USER, item_ids=["P01", "P02"]),
    TrendingRequest(),
    StoresRequest(user_id=USER),
    PromotionsRequest(user_id=USER),
]


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Built:
    settings = load_settings(home=tmp_path_factory.mktemp("ranker") / "var")
    return _published(settings)


def _published(settings: Settings) -> Built:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(handmade, "_fitted", rankers.fitted)
        events = handmade.write_shop(settings, model="ranker")
    folder = Path(build_bundle(handmade.UNTIL, settings).uri)
    return Built(settings, events, folder, load_bundle(folder))


class FeaturelessReader(FakeReader):
    """A store whose rows have none of the features that were there at training."""

    def _row(self, user_id: str) -> Any:
        return dataclasses.replace(super()._row(user_id), features={"something_new": 1.0})


def _answers(champion: Built, requests: Sequence[ListRequest], *, reader: FakeReader | None = None) -> list[Any]:
    settings = champion.settings
    recommender = Recommender(champion.bundle, settings, version="1", event_log=EventLog(settings))
    store = OnlineStore(lambda: reader or FakeReader(champion.events), retry_seconds=60, budget_seconds=60)
    answers = asyncio.run(Answerer(store, CampaignCatalogue(settings)).answer(requests, recommender))
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    return answers


def test_it_is_loaded_by_its_class_and_its_probe_is_what_it_answers(champion: Built) -> None:
    bundle = champion.bundle
    assert isinstance(bundle.ranker, CandidateRanker)
    assert (bundle.facts["candidate"], bundle.facts["model_class"]) == ("ranker", "CandidateRanker")
    items, _ = top_k(bundle.ranker.score(probe_context(bundle)), 10)
    assert [row["items"] for row in bundle.facts["probe"]] == [[bundle.item_ids[item] for item in row] for row in items]
    assert not [path for path in champion.folder.rglob("*") if path.suffix in (".pkl", ".pt", ".pickle", ".joblib")]


def test_twice_built_it_is_byte_for_byte_the_same(champion: Built, settings: Settings) -> None:
    again = _published(settings)
    assert (again.folder / "bundle.json").read_bytes() == (champion.folder / "bundle.json").read_bytes()


@pytest.mark.parametrize("name", ["network.skip.weight", "assortment.ease", "assortment.facts"])
def test_other_weights_under_right_hashes_fail_the_probe(settings: Settings, name: str) -> None:
    folder = _published(settings).folder
    weights = folder / "model/release/model.safetensors"
    arrays = load_file(weights)
    save_file(arrays | {name: -arrays[name]}, weights)
    handmade.tamper_json(folder / "bundle.json", files=module.hash_files(folder))
    with pytest.raises(BundleInvalid, match="probe"):
        load_bundle(folder)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_every_kind_of_call_is_answered(champion: Built, request_: ListRequest) -> None:
    (answer,) = _answers(champion, [request_])
    assert (answer.get("fallback") or {}).get("kind") != "tables"  # the model didn't fail
    if "items" in answer:
        assert answer["items"] or isinstance(request_, NewArrivalsRequest | TrendingRequest | CrossCategoryRequest)
        assert all(item["reason"]["text"] for item in answer["items"])
        assert np.isfinite([item["score"] for item in answer["items"]]).all()


def test_answered_together_they_are_as_alone(champion: Built) -> None:
    together = _answers(champion, REQUESTS)
    for request, answer in zip(REQUESTS, together, strict=True):
        (alone,) = _answers(champion, [request])
        for one, other in zip(alone.get("items", []), answer.get("items", []), strict=True):
            assert one["item_id"] == other["item_id"]
            assert one["reason"] == other["reason"]
            assert one["score"] == pytest.approx(other["score"], rel=1e-4, abs=1e-4)


def test_its_reasons_are_recounted(champion: Built) -> None:
    shoppers = list(champion.events.groupby("user_id"))
    answers = _answers(champion, [RecommendRequest(user_id=user_id, k=24) for user_id, _ in shoppers])
    kinds = set()
    for (_, own), answer in zip(shoppers, answers, strict=True):
        assert answer["fallback"] is None
        for item in answer["items"]:
            _check(item, own, champion.events, own["country"].iloc[0], champion)
            kinds.add(item["reason"]["kind"])
    assert kinds >= {"bought_before", "bought_together"}


def test_what_was_bought_is_explained_by_its_own_purchases(champion: Built) -> None:
    own = champion.events[champion.events["user_id"] == USER]
    (answer,) = _answers(champion, [RecommendRequest(user_id=USER, k=24, explain=True)])
    weighed = answer["explanation"]["contributions"]
    bought = [place for place, item in enumerate(answer["items"]) if item["item_id"] in set(own["item_id"])]
    assert bought
    for place in bought:
        assert answer["items"][place]["reason"]["kind"] == "bought_before"
        assert weighed[place][0]["item_id"] == answer["items"][place]["item_id"]


def test_features_that_it_does_not_read_may_be_others(champion: Built) -> None:
    (usual,) = _answers(champion, [RecommendRequest(user_id=USER)])
    (other,) = _answers(champion, [RecommendRequest(user_id=USER)], reader=FeaturelessReader(champion.events))
    assert other["fallback"] is None
    shown = [[(item["item_id"], item["score"]) for item in answer["items"]] for answer in (usual, other)]
    assert shown[0] == shown[1]


def test_a_profile_is_told(champion: Built) -> None:
    settings = champion.settings
    recommender = Recommender(champion.bundle, settings, version="1", event_log=EventLog(settings))
    store = OnlineStore(lambda: FakeReader(champion.events), retry_seconds=60, budget_seconds=60)
    answerer = Answerer(store, CampaignCatalogue(settings))
    (shopper,) = asyncio.run(answerer.shoppers([RecommendRequest(user_id=USER)], recommender))
    told = profile(recommender, USER, shopper)
    assert (told["is_known"], told["fallback"]) == (True, None)
    assert told["top_items"]


def test_a_large_catalogue_is_scored_whole_and_that_is_said(
    tmp_path: Path, champion: Built, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load_settings(home=tmp_path / "var", serving={"exact_below_items": 10})
    with caplog.at_level(logging.WARNING):
        large = _published(settings)
    assert "Candidate 'ranker' scores all 24 items for every request" in caplog.text
    assert large.bundle.index is None
    assert "index" not in large.bundle.facts
    (usual,), (exact,) = (_answers(built, [RecommendRequest(user_id=USER)]) for built in (champion, large))
    assert [item["item_id"] for item in exact["items"]] == [item["item_id"] for item in usual["items"]]
