"""Campaigns: kept, seen by every process at once, shown to whom they are meant for."""

import multiprocessing
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from recflow.errors import RecflowError
from recflow.serving.placements.campaigns import (
    MAX_CAMPAIGNS,
    CampaignCatalogue,
    TooManyCampaigns,
    described,
    promotions,
)
from recflow.serving.recommend import Recommender
from recflow.serving.requests import Campaign, PromotionsRequest
from recflow.settings import Settings, load_settings
from tests.serving.conftest import Built

USER = "13000.0"  # of Germany, keeps to mugs: P00, P04, ...
START, END = datetime(2011, 4, 1, tzinfo=UTC), datetime(2011, 5, 1, tzinfo=UTC)


def campaign(name: str = "spring", **changes: object) -> Campaign:
    entry = {"campaign_id": name, "title": "Spring", "item_ids": ["P00", "P04"], "starts_at": START, "ends_at": END}
    return Campaign.model_validate(entry | changes)


def shown(
    recommender: Recommender, rank: Callable, catalogue: CampaignCatalogue, when: datetime = START, **request: object
) -> list[str]:
    asked = PromotionsRequest.model_validate({"user_id": USER, "context": {"time": when}} | request)
    answer = promotions(recommender, asked, rank(recommender, asked), 0, campaigns=catalogue)
    return [entry["campaign_id"] for entry in answer["promotions"]]


def test_what_was_put_is_there_after_a_restart_and_the_same_id_replaces(settings: Settings) -> None:
    catalogue = CampaignCatalogue(settings)
    assert catalogue.all() == ()
    catalogue.put([campaign("a"), campaign("b")])
    catalogue.put([campaign("b", title="Other")])
    found = {entry.campaign_id: entry.title for entry in CampaignCatalogue(settings).all()}
    assert found == {"a": "Spring", "b": "Other"}
    assert catalogue.remove("a")
    assert not catalogue.remove("a")
    assert [entry.campaign_id for entry in CampaignCatalogue(settings).all()] == ["b"]


def _put_many(home: Path, name: str) -> None:
    catalogue = CampaignCatalogue(load_settings(home=home))
    for number in range(20):
        catalogue.put([campaign(f"{name}{number}")])


def test_processes_that_write_at_once_lose_nothing_and_readers_see_it(settings: Settings) -> None:
    reader = CampaignCatalogue(settings)
    assert reader.all() == ()
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_put_many, args=(settings.home, name)) for name in "xy"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert {entry.campaign_id for entry in reader.all()} == {f"{name}{n}" for name in "xy" for n in range(20)}


def test_beyond_the_limit_none_is_taken(settings: Settings) -> None:
    catalogue = CampaignCatalogue(settings)
    catalogue.put([campaign(f"c{number}") for number in range(MAX_CAMPAIGNS)])
    with pytest.raises(TooManyCampaigns, match="1000 campaigns at most; with these it would be 1001"):
        catalogue.put([campaign("one more")])
    catalogue.put([campaign("c7", title="Other")])
    assert len(catalogue.all()) == MAX_CAMPAIGNS


def test_a_file_that_is_none_is_an_error_that_names_it(settings: Settings) -> None:
    settings.home.mkdir(parents=True)
    (settings.home / "campaigns.json").write_text("[{]")
    with pytest.raises(RecflowError, match=r"campaigns\.json: expected campaigns"):
        CampaignCatalogue(settings).all()


def test_only_the_period_counts_and_its_end_is_outside(
    recommender: Recommender, rank: Callable, settings: Settings
) -> None:
    catalogue = CampaignCatalogue(settings)
    catalogue.put([campaign()])
    second = timedelta(seconds=1)
    assert shown(recommender, rank, catalogue, START - second) == []
    assert shown(recommender, rank, catalogue, START) == ["spring"]
    assert shown(recommender, rank, catalogue, END - second) == ["spring"]
    assert shown(recommender, rank, catalogue, END) == []


@pytest.mark.parametrize(
    ("audience", "is_meant"),
    [
        ({}, True),
        ({"countries": ["Germany"]}, True),
        ({"countries": ["France"]}, False),
        ({"bought_category": "home > mug"}, True),
        ({"bought_category": "home"}, True),
        ({"bought_category": "home > clock"}, False),
        ({"min_orders": 2}, True),
        ({"min_orders": 1000}, False),
        ({"max_orders": 1}, False),
        ({"segments": ["new"]}, False),
        ({"countries": ["Germany"], "bought_category": "home > clock"}, False),
    ],
)
def test_the_audience_decides(
    recommender: Recommender, rank: Callable, settings: Settings, audience: dict, is_meant: bool
) -> None:
    catalogue = CampaignCatalogue(settings)
    catalogue.put([campaign(audience=audience)])
    assert shown(recommender, rank, catalogue) == (["spring"] if is_meant else [])


def test_what_fits_the_shopper_comes_first_and_hidden_items_make_no_campaign(
    recommender: Recommender, rank: Callable, settings: Settings
) -> None:
    catalogue = CampaignCatalogue(settings)
    catalogue.put(
        [
            campaign("clocks", item_ids=["P03", "P07", "P11", "P15", "P19"]),
            campaign("mugs", item_ids=["P00", "P04", "P08", "P12", "P16", "unheard of"]),
            campaign("gone", item_ids=["P23"]),
            campaign("unknown", item_ids=["unheard of"]),
        ]
    )
    assert shown(recommender, rank, catalogue) == ["mugs", "clocks"]
    assert shown(recommender, rank, catalogue, k=1) == ["mugs"]
    asked = PromotionsRequest.model_validate({"user_id": USER, "context": {"time": START}})
    answer = promotions(recommender, asked, rank(recommender, asked), 0, campaigns=catalogue)
    mugs = answer["promotions"][0]
    assert {item["item_id"] for item in mugs["items"]} <= {"P00", "P04", "P08", "P12", "P16"}
    assert mugs["reason"]["text"].startswith(mugs["items"][0]["title"])


def test_a_campaign_is_described_with_what_the_catalogue_lacks(shop: Built) -> None:
    entry = described(campaign(item_ids=["P00", "unheard of"], audience={"min_orders": 2}), shop.bundle)
    assert entry["unknown_items"] == 1
    assert entry["audience"] == {"min_orders": 2}
    assert entry["starts_at"] == "2011-04-01T00:00:00+00:00"
