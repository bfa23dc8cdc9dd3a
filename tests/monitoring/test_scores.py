import json
import shutil
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recflow.models.features import Encoders, FeatureEncoder
from recflow.models.heuristics import RepeatPurchase
from recflow.models.interactions import PURCHASE, Interactions
from recflow.monitoring.drift import watch_drift
from recflow.monitoring.samples import Sampler, choose_windows
from recflow.monitoring.scores import ScoringModel, _contexts
from recflow.schema import TIMESTAMP, day_end
from recflow.settings import Settings
from recflow.storage import Storage
from tests.monitoring.lakes import EVENTS_FROM, UNTIL, Shop

pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table.. is deprecated:DeprecationWarning")

LEARNED = UNTIL - timedelta(days=28)
DAY_US = 86_400_000_000
ITEMS = ["i1", "i2", "i3", "i4"]


@dataclass
class Served:
    version: str
    folder: Path


@pytest.fixture
def champion(tmp_path: Path) -> Served:
    """Return a bundle that ranks a shopper's own purchases by recency."""
    folder = tmp_path / "bundle"
    (folder / "model" / "release").mkdir(parents=True)
    purchases = Interactions(
        user_idx=np.zeros(3, np.int32),
        item_idx=np.array([0, 1, 2], np.int32),
        timestamp=np.full(3, np.datetime64("2011-08-14", "us")),
        event_type=np.full(3, PURCHASE, np.int8),
        quantity=np.ones(3, np.float32),
        n_users=1,
        n_items=4,
        until=np.datetime64("2011-08-16", "us"),
    )
    RepeatPurchase().fit(purchases).save(folder / "model" / "release")
    Encoders().save(folder / "encoder.json")
    pq.write_table(pa.table({"item_id": ITEMS}), folder / "items.parquet")
    (folder / "bundle.json").write_text(json.dumps({"until": str(LEARNED), "history_length": 3}))
    return Served("7", folder)


def write_history(settings: Settings, day: date, rows: dict[str, list[tuple[str, str, float, float]]]) -> None:
    """Write histories of users active on a day, oldest first: (item, event type, days before its end, pieces)."""
    end = round(day_end(day).timestamp() * 1e6)
    table = pa.table(
        {
            "user_id": list(rows),
            "event_timestamp": pa.array([day_end(day)] * len(rows), TIMESTAMP),
            "history_item_ids": [[event[0] for event in events] for events in rows.values()],
            "history_event_types": [[event[1] for event in events] for events in rows.values()],
            "history_timestamps_us": [[end - round(event[2] * DAY_US) for event in events] for events in rows.values()],
            "history_quantities": [[event[3] for event in events] for events in rows.values()],
        }
    )
    Storage(settings).write_partition("user_history", day, table, {})


def everybody(age_days: float) -> dict[str, list[tuple[str, str, float, float]]]:
    rng = np.random.default_rng(0)
    return {f"u{user}": [("i4", "purchase", age_days * rng.uniform(0.5, 1.5), 1)] for user in range(600)}


def test_contexts_hold_what_was_known_at_the_end_of_the_day(settings: Settings, shop: Shop) -> None:
    shop.users = shop.users[shop.users["user_id"].isin(["u1", "u2", "u3"])]
    shop.items = shop.items[shop.items["item_id"].isin(["i3", "i1"])]
    last = shop.items["event_date"] == str(UNTIL)
    shop.items.loc[last & (shop.items["item_id"] == "i3"), "item_orders_7d"] = 40
    shop.items.loc[last & (shop.items["item_id"] == "i1"), "item_orders_7d"] = 10
    shop.write(settings)
    before, last_but_one = UNTIL - timedelta(days=25), UNTIL - timedelta(days=2)
    write_history(settings, before, {"u1": [("i2", "purchase", 1.0, 5)], "u2": [("i3", "view", 0.25, 0)]})
    history = [("i2", "purchase", 24.0, 5), ("i4", "return", 0.5, 2), ("i9", "purchase", 0.5, 1)]
    write_history(settings, last_but_one, {"u1": history})
    write_history(settings, UNTIL + timedelta(days=1), {"u1": [("i1", "purchase", 0.1, 1)]})  # the day after
    item = FeatureEncoder.fit(pa.table({"item_orders_7d": [10, 40]}), ["item_orders_7d"])
    user = FeatureEncoder.fit(pa.table({"user_country": ["Germany"]}), ["user_country"])
    folder = settings.home / "model"
    folder.mkdir()
    pq.write_table(pa.table({"item_id": ITEMS}), folder / "items.parquet")
    model = ScoringModel("model", folder, folder / "encoder.json", folder / "items.parquet", 3)
    sampler = Sampler(choose_windows(UNTIL, None, EVENTS_FROM, settings.drift), settings)
    shoppers = sampler.shoppers(UNTIL, 10).sort_by("user_id")
    assert shoppers["user_id"].to_pylist() == ["u1", "u2", "u3"]

    (context,) = _contexts(model, shoppers, Encoders(user, item), UNTIL, sampler=sampler)
    # item_idx + 1, aligned to the right; i9 isn't in the catalogue
    np.testing.assert_array_equal(context.items, [[2, 4], [0, 3], [0, 0]])
    np.testing.assert_allclose(context.ages_days, [[26, 2.5], [0, 25.25], [0, 0]])
    np.testing.assert_array_equal(context.quantities, [[5, 2], [0, 0], [0, 0]])
    # log1p(10) and log1p(40) are a standard deviation below and above their mean; i2 and i4 are unknown
    np.testing.assert_allclose(context.item_features[:, 0], [-1, 0, 1, 0], atol=1e-6)
    german = [country == "Germany" for country in shoppers["user_country"].to_pylist()]
    np.testing.assert_array_equal(context.user_features[:, 0], german)


def test_scores_that_stay_are_still(shop: Shop, settings: Settings, champion: Served) -> None:
    shop.write(settings)
    for day in (LEARNED, UNTIL):
        write_history(settings, day, everybody(20))
    manifest = watch_drift(UNTIL, champion, settings).manifest
    scores = {column["column"]: column for column in manifest["columns"] if column["part"] == "scores"}
    assert set(scores) == {"best_score", "mean_of_best_4_scores"}  # a catalogue of four
    assert {column["level"] for column in scores.values()} == {"still"}
    assert (manifest["verdict"], manifest["champion"]) == ("ok", "7")


def test_scores_that_move_far_ask_for_a_new_model(shop: Shop, settings: Settings, champion: Served) -> None:
    shop.write(settings)
    write_history(settings, LEARNED, everybody(10))
    write_history(settings, UNTIL, everybody(60))
    manifest = watch_drift(UNTIL, champion, settings).manifest
    assert manifest["verdict"] == "retrain"
    best = next(column for column in manifest["columns"] if column["column"] == "best_score")
    assert best["level"] == "far"
    # 1 + 2^(-age / 60): some 1.89 and 1.5
    assert float(best["reference"].split()[1]) == pytest.approx(1 + 2 ** (-10 / 60), abs=0.02)
    assert float(best["current"].split()[1]) == pytest.approx(1.5, abs=0.03)
    assert any("best_score moved far" in sentence for sentence in manifest["sentences"])


@pytest.mark.parametrize("name", ["ranker", "sequence"])
def test_without_a_champion_the_days_candidate_is_scored(
    shop: Shop, settings: Settings, champion: Served, name: str
) -> None:
    shop.write(settings)
    for day in (LEARNED, UNTIL):
        write_history(settings, day, everybody(20))
    manifest = watch_drift(UNTIL, None, settings).manifest
    assert manifest["sentences"][-1] == "The scores weren't compared: there is no champion and no candidate yet."
    candidates = settings.home / "candidates" / str(UNTIL)
    shutil.copytree(champion.folder / "model", candidates / name)
    shutil.copy(champion.folder / "encoder.json", candidates)
    (settings.home / "training_sets" / str(UNTIL)).mkdir(parents=True)
    shutil.copy(champion.folder / "items.parquet", settings.home / "training_sets" / str(UNTIL))
    manifest = watch_drift(UNTIL, None, settings).manifest
    assert {column["column"] for column in manifest["columns"] if column["part"] == "scores"} == {
        "best_score",
        "mean_of_best_4_scores",
    }


def test_a_champion_of_other_features_is_left_out_and_said(shop: Shop, settings: Settings, champion: Served) -> None:
    shop.write(settings)
    for day in (LEARNED, UNTIL):
        write_history(settings, day, everybody(20))
    gone = FeatureEncoder.fit(pa.table({"user_gone_30d": [1, 2]}), ["user_gone_30d"])
    Encoders(user=gone).save(champion.folder / "encoder.json")
    manifest = watch_drift(UNTIL, champion, settings).manifest
    assert manifest["verdict"] == "ok"
    assert "scores of the champion 7 weren't compared: Feature 'user_gone_30d'" in manifest["sentences"][-1]
