"""Batch recommendations are what the endpoint answers for the same users, for all of them at once."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from recflow import onlinestore
from recflow.errors import RecflowError, RegistryError
from recflow.privacy import check_home, pseudonyms
from recflow.schema import Days, day_end
from recflow.serving.answering import Answerer
from recflow.serving.batch import recommend_batch, write_batch
from recflow.serving.bundle import load_bundle
from recflow.serving.feedback import EventLog
from recflow.serving.online import OnlineStore
from recflow.serving.placements.campaigns import CampaignCatalogue
from recflow.serving.recommend import Recommender
from recflow.serving.requests import RecommendRequest
from recflow.serving.stock import Stock
from recflow.settings import PrivacySettings, Settings, load_settings
from recflow.storage import Storage
from tests.serving import line_shop


@dataclass(frozen=True)
class Release:
    version: str
    folder: Path


@dataclass(frozen=True)
class Shop:
    settings: Settings
    days: Days
    champion: Release


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    settings = load_settings(
        home=tmp_path_factory.mktemp("batch") / "var", serving={"rules": {"blocked_item_ids": ["20007"]}}
    )
    days = line_shop.prepare(settings)
    return Shop(settings, days, Release("1", line_shop.build(days, settings)))


def _bought(shop: Shop) -> dict[str, set[str]]:
    storage = Storage(shop.settings)
    events = storage.read_partitions("events", storage.days("events")).to_pandas()
    return events[events["event_type"] == "purchase"].groupby("user_id")["item_id"].agg(set).to_dict()


def test_what_is_out_of_stock_is_recommended_to_nobody(shop: Shop) -> None:
    def recommended() -> set[str]:
        table = recommend_batch(None, k=5, new_only=False, settings=shop.settings, champion=shop.champion)
        return set(table["item_id"].to_pylist())

    gone = sorted(recommended())[0]
    stock = Stock(shop.settings)
    stock.put({gone: False})
    try:
        assert gone not in recommended()
    finally:
        stock.put({gone: True})
    assert gone in recommended()


def test_batch_answers_are_the_endpoints(shop: Shop) -> None:
    table = recommend_batch(None, k=5, new_only=False, settings=shop.settings, champion=shop.champion).to_pandas()
    reader = onlinestore.open_reader(shop.settings)
    store = OnlineStore(lambda: reader, retry_seconds=0, budget_seconds=5, materialized_through=lambda: shop.days.end)
    store.follow()
    bundle = load_bundle(shop.champion.folder)
    recommender = Recommender(bundle, shop.settings, version="1", event_log=EventLog(shop.settings))
    answerer = Answerer(store, CampaignCatalogue(shop.settings))
    users = sorted(_bought(shop))
    assert table["user_id"].unique().tolist() == users
    requests = [RecommendRequest(user_id=user_id, k=5) for user_id in users[:20]]
    for request, answer in zip(requests, asyncio.run(answerer.answer(requests, recommender)), strict=True):
        assert answer["fallback"] is None
        assert datetime.fromisoformat(answer["as_of"]) == day_end(shop.days.end)
        rows = table[table["user_id"] == request.user_id]
        assert rows["item_id"].tolist() == [item["item_id"] for item in answer["items"]]
        assert rows["rank"].tolist() == [1, 2, 3, 4, 5]
        np.testing.assert_allclose(rows["score"], [item["score"] for item in answer["items"]], rtol=1e-5)


def test_ids_come_as_in_the_feed_each_once_in_the_order_asked_for(shop: Shop) -> None:
    users = ["12350.0", "stranger", "12346.0", "12350.0"]
    table = recommend_batch(users, k=3, new_only=False, settings=shop.settings, champion=shop.champion)
    assert table.column_names == ["user_id", "item_id", "rank", "score"]
    assert table["user_id"].to_pylist() == ["12350.0"] * 3 + ["stranger"] * 3 + ["12346.0"] * 3


def test_a_number_is_the_same_customer_in_either_spelling(shop: Shop) -> None:
    as_fed = "12347.0"
    assert as_fed in _bought(shop)
    asked = recommend_batch([as_fed, "12347"], k=5, new_only=True, settings=shop.settings, champion=shop.champion)
    lists = asked.to_pandas().groupby("user_id")[["item_id", "rank", "score"]].agg(list)
    assert list(lists.loc["12347"]) == list(lists.loc[as_fed])


def test_an_unknown_user_gets_what_is_popular(shop: Shop) -> None:
    table = recommend_batch(["stranger"], k=39, new_only=True, settings=shop.settings, champion=shop.champion)
    storage = Storage(shop.settings)
    events = storage.read_partitions("events", storage.days("events")).to_pandas()
    start = pd.Timestamp(day_end(shop.days.end)) - timedelta(days=30)
    recent = events[(events["event_timestamp"] >= start) & events["user_id"].notna()]
    counts = recent.groupby("item_id")["user_id"].nunique()
    found = [int(counts.get(item_id, 0)) for item_id in table["item_id"].to_pylist()]
    assert found == sorted(found, reverse=True)
    assert len(found) == 39


def test_new_only_leaves_out_all_that_was_ever_bought(shop: Shop) -> None:
    table = recommend_batch(None, k=40, new_only=True, settings=shop.settings, champion=shop.champion).to_pandas()
    bought = _bought(shop)
    for user_id, rows in table.groupby("user_id"):
        assert set(rows["item_id"]) & bought[user_id] == set()
        assert len(rows) == len(rows["item_id"].unique()) == 40 - len(bought[user_id] | {"20007"})


def test_new_only_reaches_further_back_than_the_history_that_the_model_sees(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "var", features={"history_length": 3})
    days = line_shop.prepare(settings)
    champion = Release("1", line_shop.build(days, settings))
    table = recommend_batch(None, k=40, new_only=True, settings=settings, champion=champion).to_pandas()
    bought = _bought(Shop(settings, days, champion))
    assert max(len(items) for items in bought.values()) > 3
    assert all(not set(rows["item_id"]) & bought[user_id] for user_id, rows in table.groupby("user_id"))


def test_blocked_items_are_never_recommended(shop: Shop) -> None:
    table = recommend_batch(None, k=40, new_only=False, settings=shop.settings, champion=shop.champion)
    assert "20007" not in set(table["item_id"].to_pylist())


def test_nobody_asked_for_is_an_empty_table(shop: Shop) -> None:
    table = recommend_batch([], k=5, new_only=False, settings=shop.settings, champion=shop.champion)
    assert (table.num_rows, table.column_names) == (0, ["user_id", "item_id", "rank", "score"])


def test_without_a_champion_it_says_so(settings: Settings) -> None:
    with pytest.raises(RegistryError, match="no champion"):
        recommend_batch(None, k=5, new_only=False, settings=settings, champion=None)


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    table = pa.table({"user_id": ["u"], "item_id": ["A"], "rank": [1], "score": [0.5]})
    write_batch(table, tmp_path / "deep" / "out.parquet")
    assert pq.read_table(tmp_path / "deep" / "out.parquet").equals(table)
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(RecflowError, match=r"folder\.parquet"):
        write_batch(table, tmp_path / "folder.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "folder.parquet"]


def test_a_shop_asks_with_its_own_ids_where_the_lake_has_pseudonyms(shop: Shop, tmp_path: Path) -> None:
    settings = shop.settings.model_copy(
        update={"home": tmp_path / "var", "privacy": PrivacySettings(pseudonym_key=SecretStr("k" * 32))}
    )
    check_home(settings)
    plain, storage = Storage(shop.settings), Storage(settings)
    for noun, days in (("events", plain.days("events")), ("user_purchase_stats", [shop.days.end])):
        for day in days:
            rows = plain.read_partition(noun, day)
            hidden = pseudonyms(rows["user_id"].combine_chunks(), settings)
            storage.write_partition(
                noun, day, rows.set_column(rows.column_names.index("user_id"), "user_id", hidden), {}
            )
    users = ["12350.0", "a-stranger", "12346.0", "12350"]
    asked = {"k": 5, "new_only": False, "champion": shop.champion}
    found = recommend_batch(users, settings=settings, **asked)
    expected = recommend_batch(users[:3], settings=shop.settings, **asked)
    names = pseudonyms(expected["user_id"].combine_chunks(), settings)
    assert found.equals(expected.set_column(0, "user_id", names))
    again = recommend_batch(found["user_id"].unique().to_pylist(), settings=settings, **asked)
    assert again.equals(found)
