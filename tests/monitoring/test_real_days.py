"""The Online Retail days: quiet months stay quiet, the run-up to Christmas is seen."""

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recflow.features.build import build_features
from recflow.monitoring import drift
from recflow.schema import EVENTS, ITEMS, Days
from recflow.settings import Settings
from recflow.storage import Storage

pytestmark = [
    pytest.mark.real_days,
    pytest.mark.filterwarnings("ignore:fetch_arrow_table.. is deprecated:DeprecationWarning"),
]

DAYS = Days(date(2011, 3, 1), date(2011, 11, 30))


@dataclass
class Served:
    version: str
    folder: Path


@pytest.fixture(scope="module")
def real_lake(own_year: Settings) -> Settings:
    """Return a lake of nine months, its rows cleaned by the simplest rules alone."""
    storage = Storage(own_year)
    staged = storage.read_partitions("staged_events", DAYS.dates())
    is_product = pc.match_substring_regex(pc.fill_null(staged["item_id"], ""), r"^\d{5}")
    good = pc.and_(pc.and_(pc.is_null(staged["parse_error"]), is_product), pc.greater(staged["unit_price"], 0))
    events = staged.filter(pc.fill_null(good, False)).select([*EVENTS.names, "event_date"])
    events = events.cast(pa.schema([*EVENTS, pa.field("event_date", pa.date32())]))
    storage.write_partitions("events", events, {day: {} for day in DAYS.dates()})
    items = storage.read_partitions("staged_items", DAYS.dates()).select([*ITEMS.names, "event_date"])
    storage.write_partitions("items", items, {day: {} for day in DAYS.dates()})
    build_features(DAYS, own_year)
    return own_year


def moved(manifest: dict[str, Any]) -> set[str]:
    return {column["column"] for column in manifest["moved"]}


def test_june_is_as_spring_was(real_lake: Settings) -> None:
    manifest = drift.watch_drift(date(2011, 6, 30), None, real_lake).manifest
    assert manifest["verdict"] == "ok", manifest["sentences"]
    assert sum(column["level"] == "still" for column in manifest["columns"]) > 30


def test_november_is_not_as_autumn_was(real_lake: Settings) -> None:
    manifest = drift.watch_drift(date(2011, 11, 30), None, real_lake).manifest
    assert manifest["verdict"] == "warn", manifest["sentences"]
    assert {"volume", "item_orders_7d"} <= moved(manifest)


def test_november_asks_a_model_of_the_summer_to_be_trained_again(
    real_lake: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundle.json").write_text(json.dumps({"until": "2011-08-31", "history_length": 100}))
    monkeypatch.setattr(drift, "_scores", lambda *_: ([], ""))  # the verdict stands without them
    manifest = drift.watch_drift(date(2011, 11, 30), Served("1", tmp_path), real_lake).manifest
    assert manifest["reference"]["end"] == "2011-08-31"
    assert manifest["verdict"] == "retrain", manifest["sentences"]
    assert {"volume", "item_orders_7d", "item_buyers_30d"} <= moved(manifest)
    # In UTC the clocks that were put back on 30 October would show.
    assert "hour" not in moved(manifest)
