"""The real Online Retail days: each rule's rows equal those of an independent computation over the CSV files."""

from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recflow.events.ingest import restage
from recflow.schema import Days
from recflow.settings import Settings
from recflow.storage import Storage
from recflow.validation.quarantine import list_quarantine, replay, show_quarantine
from recflow.validation.validate import validate

pytestmark = pytest.mark.real_days

DAYS = Days(date(2010, 12, 1), date(2011, 11, 30))
NO_PRODUCTS = {"POST", "DOT", "M", "D", "C2", "S", "B", "BANK CHARGES", "AMAZONFEE", "CRUK", "PADS"}
# Counted once from the files by the reference below: a change of data or rules has to be meant.
COUNTS = {"not_a_product": 2901, "price_positive": 2432, "duplicate_line": 4978, "cancelled_at_once": 2}


def _reference(folder: Path) -> pd.DataFrame:
    """Read the CSV files and name the first rule that each line breaks; one row per line that breaks one."""
    files = sorted(folder.glob("*.csv"))
    parts = [pd.read_csv(file, dtype=str, keep_default_na=False).assign(batch=file.name) for file in files]
    lines = pd.concat(parts, ignore_index=True)
    lines["row_id"] = lines.groupby("batch").cumcount()
    code = lines["StockCode"].str.strip().str.upper()
    is_product = ~(code.isin(NO_PRODUCTS) | code.str.startswith("GIFT_0001_") | code.str.startswith("DCGS"))
    pieces, price = lines["Quantity"].astype(int), lines["UnitPrice"].astype(float)
    is_cancellation = lines["InvoiceNo"].str.startswith("C")
    broken = {
        "not_a_product": ~is_product,
        "price_positive": price <= 0,
        "quantity_positive": np.where(is_cancellation, -pieces, pieces) <= 0,
        "duplicate_line": lines.drop(columns="row_id").duplicated(),
        "cancelled_at_once": (lines["StockCode"] == "23166") & (pieces.abs() == 74_215),
    }
    lines["rule"] = np.select(list(broken.values()), list(broken), default="")
    return lines[["batch", "row_id", "rule"]]


@pytest.fixture(scope="module")
def real_lake(own_year: Settings) -> Settings:
    validate(DAYS, own_year)
    return own_year


def test_every_rules_rows_are_those_of_the_reference_and_all_others_are_published(
    real_lake: Settings, real_days: Path
) -> None:
    storage, expected = Storage(real_lake), _reference(real_days)
    broken = expected[expected["rule"] != ""]
    assert broken["rule"].value_counts().to_dict() == COUNTS
    quarantine = storage.read_partitions("quarantine", DAYS.dates())
    found = quarantine.select(["batch", "row_id", "rule"]).to_pandas()
    pd.testing.assert_frame_equal(found, broken.reset_index(drop=True))
    staged = storage.read_partitions("staged_events", DAYS.dates()).select(["batch", "row_id", "event_id"]).to_pandas()
    good = expected[expected["rule"] == ""].merge(staged, on=["batch", "row_id"], validate="one_to_one")
    published = storage.read_partitions("events", DAYS.dates())
    assert published["event_id"].to_pandas().sort_values().tolist() == good["event_id"].sort_values().tolist()
    assert sum(entry["rows"] for entry in list_quarantine(real_lake)) == len(broken)


def test_closed_days_are_recorded(real_lake: Settings, real_days: Path) -> None:
    storage = Storage(real_lake)
    opened = {date.fromisoformat(file.stem) for file in real_days.glob("*.csv")}
    closed = {day for day in DAYS.dates() if storage.partition_manifest("events", day)["closed"]}
    assert closed == set(DAYS.dates()) - opened


def test_a_day_by_itself_gives_what_it_gave_in_bulk(real_lake: Settings) -> None:
    storage = Storage(real_lake)
    for day in (date(2011, 1, 18), date(2010, 12, 22)):
        before = {noun: storage.read_partition(noun, day) for noun in ("events", "items", "quarantine")}
        validate(Days.one(day), real_lake)
        for noun, rows in before.items():
            assert storage.read_partition(noun, day).equals(rows)


def test_a_mended_invoice_line_is_read_by_the_feeds_own_adapter(real_lake: Settings, tmp_path: Path) -> None:
    day = date(2011, 1, 18)
    (slip, _) = show_quarantine(day, real_lake, rule="cancelled_at_once")
    file = tmp_path / "rows.jsonl"
    show_quarantine(day, real_lake, rule="cancelled_at_once", out=file)
    text = file.read_text(encoding="utf-8")
    assert '"Quantity": "74215"' in text
    file.write_text(text.replace('"Quantity": "74215"', '"Quantity": "7"'), encoding="utf-8")
    artifact = replay(file, real_lake, parse=lambda rows: restage(rows, real_lake))
    assert artifact.manifest == {"days": [str(day)], "replayed": 1, "unchanged": 1}
    validate(Days.one(day), real_lake)
    # The order is one of seven pieces now, and the cancellation of 74,215 has no order that it could belong to.
    assert show_quarantine(day, real_lake, rule="cancelled_at_once") == []
    events = Storage(real_lake).read_partition("events", day).to_pandas()
    of_jar = events[(events["item_id"] == "23166") & (events["user_id"] == "12346.0")]
    assert of_jar[["event_type", "quantity"]].to_numpy().tolist() == [["purchase", 7], ["return", 74_215]]
    assert slip["row_id"] not in {row["row_id"] for row in show_quarantine(day, real_lake)}
