"""Rows in quarantine are counted, shown, mended by a person and put back."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from recflow.errors import FeedError, MissingInput
from recflow.schema import STAGED_EVENTS, Days
from recflow.settings import Settings
from recflow.storage import Storage
from recflow.validation.quarantine import list_quarantine, replay, show_quarantine
from recflow.validation.validate import validate
from tests.validation.staging import DAY, broken_rules, event, lake_files, published_ids, stage

NEXT = DAY + timedelta(days=1)


def parse(rows: pa.Table) -> pa.Table:
    """Read rows whose text is `{"item": ..., "pieces": ..., "price": ...}`: a feed of these tests."""
    read = []
    for row in rows.to_pylist():
        came = json.loads(row["raw"])
        is_number = str(came["pieces"]).lstrip("-").isdigit()
        read.append(
            row
            | {
                "item_id": came["item"],
                "quantity": int(came["pieces"]) if is_number else None,
                "unit_price": float(came["price"]),
                "parse_error": None if is_number else f"pieces: '{came['pieces']}' is not a number",
            }
        )
    return pa.Table.from_pylist(read, STAGED_EVENTS)


def line(number: int, day: Any = DAY, *, item: str = "", pieces: Any = 3, price: float = 1.5) -> dict[str, Any]:
    """Return a staged row that `parse` reads from its own text."""
    raw = json.dumps({"item": item or f"{20000 + number}", "pieces": pieces, "price": price, "line": number})
    staged = pa.Table.from_pylist([event(number, day, raw=raw)], STAGED_EVENTS)
    row: dict[str, Any] = parse(staged).to_pylist()[0]
    return row


@pytest.fixture
def shop(settings: Settings) -> Settings:
    """Publish two days with five rows in quarantine."""
    rows = [line(number) for number in range(20)]
    rows += [line(20, pieces="abc"), line(21, price=0.0), line(22, price=-1.0), line(23, item="POST")]
    rows += [*(line(number, NEXT) for number in range(20)), line(20, NEXT, price=0.0)]
    stage(settings, rows)
    validate(Days(DAY, NEXT), settings)
    return settings


def export(settings: Settings, file: Path, **mended: Any) -> Path:
    """Export a day's quarantine and mend rows: `row_20={"pieces": 4}`."""
    show_quarantine(DAY, settings, out=file)
    rows = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["raw"] |= mended.get(f"row_{row['row_id']}", {})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_list_counts_by_day_and_rule(shop: Settings) -> None:
    assert list_quarantine(shop) == [
        {"event_date": "2011-03-01", "rule": "not_a_product", "rows": 1},
        {"event_date": "2011-03-01", "rule": "price_positive", "rows": 2},
        {"event_date": "2011-03-01", "rule": "row_parses", "rows": 1},
        {"event_date": "2011-03-02", "rule": "price_positive", "rows": 1},
    ]


def test_show_gives_the_rows_as_they_came_and_writes_them(shop: Settings, tmp_path: Path) -> None:
    rows = show_quarantine(DAY, shop, rule="price_positive", out=tmp_path / "new" / "rows.jsonl")
    assert [(row["row_id"], row["rule"], json.loads(row["raw"])["price"]) for row in rows] == [
        (21, "price_positive", 0.0),
        (22, "price_positive", -1.0),
    ]
    written = [json.loads(text) for text in (tmp_path / "new" / "rows.jsonl").read_text().splitlines()]
    assert written == [row | {"raw": json.loads(row["raw"])} for row in rows]
    assert [row["row_id"] for row in show_quarantine(DAY, shop)] == [20, 21, 22, 23]
    assert show_quarantine(DAY, shop, rule="no_such_rule") == []
    with pytest.raises(MissingInput):
        show_quarantine(DAY - timedelta(days=9), shop)


def test_mended_rows_land_in_events_of_their_day_and_leave_quarantine(shop: Settings, tmp_path: Path) -> None:
    other_day = Storage(shop).read_partition("events", NEXT)
    file = export(shop, tmp_path / "rows.jsonl", row_20={"pieces": 4}, row_21={"price": 2.5})
    artifact = replay(file, shop, parse=parse)
    assert artifact.manifest == {"days": [str(DAY)], "replayed": 2, "unchanged": 2}
    result = validate(Days.one(DAY), shop)
    assert broken_rules(shop) == {22: "price_positive", 23: "not_a_product"}
    assert set(published_ids(shop)) == {f"{DAY}-{number}" for number in range(22)}
    rows = {row["event_id"]: row for row in Storage(shop).read_partition("events", DAY).to_pylist()}
    assert (rows[f"{DAY}-20"]["quantity"], rows[f"{DAY}-21"]["unit_price"]) == (4, 2.5)
    assert result.manifest["mended"] == 2
    assert Storage(shop).partition_manifest("events", DAY)["mended"] == 2
    assert Storage(shop).read_partition("events", NEXT).equals(other_day)


def test_replaying_twice_changes_nothing(shop: Settings, tmp_path: Path) -> None:
    file = export(shop, tmp_path / "rows.jsonl", row_20={"pieces": 4}, row_21={"price": 2.5})
    replay(file, shop, parse=parse)
    validate(Days.one(DAY), shop)
    once = lake_files(shop, "events", "items", "quarantine", "fixed_events")
    assert replay(file, shop, parse=parse).manifest == {"days": [str(DAY)], "replayed": 0, "unchanged": 4}
    validate(Days.one(DAY), shop)
    assert lake_files(shop, "events", "items", "quarantine", "fixed_events") == once


def test_a_row_that_is_still_wrong_goes_back_as_it_is_now_and_can_be_mended_again(
    shop: Settings, tmp_path: Path
) -> None:
    replay(export(shop, tmp_path / "rows.jsonl", row_20={"pieces": -4}), shop, parse=parse)
    validate(Days.one(DAY), shop)
    assert broken_rules(shop)[20] == "quantity_positive"
    (row,) = show_quarantine(DAY, shop, rule="quantity_positive")
    assert json.loads(row["raw"])["pieces"] == -4
    replay(export(shop, tmp_path / "rows.jsonl", row_20={"pieces": 5}), shop, parse=parse)
    validate(Days.one(DAY), shop)
    assert 20 not in broken_rules(shop)


def test_fixes_of_several_files_add_up_and_outlive_a_new_ingest_of_the_same_file(
    shop: Settings, tmp_path: Path
) -> None:
    replay(export(shop, tmp_path / "a.jsonl", row_20={"pieces": 4}), shop, parse=parse)
    replay(export(shop, tmp_path / "b.jsonl", row_21={"price": 2.5}), shop, parse=parse)
    storage = Storage(shop)
    staged = storage.read_partition("staged_events", DAY)
    storage.write_partition("staged_events", DAY, staged, {"closed": False})
    validate(Days.one(DAY), shop)
    assert broken_rules(shop) == {22: "price_positive", 23: "not_a_product"}


def test_a_fix_is_void_where_the_feed_has_another_row_by_now(
    shop: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replay(export(shop, tmp_path / "a.jsonl", row_20={"pieces": 4}), shop, parse=parse)
    stage(shop, [*(line(number) for number in range(20)), line(20, pieces=9)])
    with caplog.at_level("WARNING", logger="recflow"):
        assert validate(Days.one(DAY), shop).manifest["mended"] == 0
    assert "1 fixes are void" in caplog.text
    rows = {row["event_id"]: row for row in Storage(shop).read_partition("events", DAY).to_pylist()}
    assert rows[f"{DAY}-20"]["quantity"] == 9


def test_an_item_that_only_a_mended_row_names_is_published_too(shop: Settings, tmp_path: Path) -> None:
    storage = Storage(shop)
    items = storage.read_partition("staged_items", DAY)
    storage.write_partition("staged_items", DAY, items.slice(0, 20), {})
    replay(export(shop, tmp_path / "a.jsonl", row_21={"price": 2.5}), shop, parse=parse)
    validate(Days.one(DAY), shop)
    rows = {row["item_id"]: row for row in storage.read_partition("items", DAY).to_pylist()}
    assert len(rows) == 21
    assert (rows["20021"]["price"], rows["20021"]["title"], rows["20021"]["active"]) == (2.5, None, True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "line 1: expected a JSON object"),
        ('{"event_date": "2011-03-01", "batch": "2011-03-01.csv", "row_id": 20}', "KeyError: 'raw'"),
        ('{"event_date": "1 March", "batch": "2011-03-01.csv", "row_id": 20, "raw": "{}"}', "line 1"),
        (
            '{"event_date": "2011-03-01", "batch": "2011-03-01.csv", "row_id": 3, "raw": "{}"}',
            "row 3 of 2011-03-01.csv isn't in quarantine on 2011-03-01",
        ),
        (
            '{"event_date": "2011-03-01", "batch": "other.csv", "row_id": 20, "raw": "{}"}',
            "row 20 of other.csv isn't in quarantine",
        ),
        (
            '{"event_date": "2011-03-01", "batch": "2011-03-01.csv", "row_id": 20, "raw": "{}"}\n' * 2,
            "row 20 of 2011-03-01.csv (2011-03-01) comes 2 times",
        ),
    ],
)
def test_a_file_that_is_not_what_it_should_be_puts_nothing_back(
    shop: Settings, tmp_path: Path, text: str, complaint: str
) -> None:
    good = export(shop, tmp_path / "good.jsonl", row_21={"price": 2.5}).read_text(encoding="utf-8").splitlines()[1]
    file = tmp_path / "rows.jsonl"
    file.write_text(text.rstrip("\n") + "\n" + good + "\n", encoding="utf-8")
    with pytest.raises(FeedError) as raised:
        replay(file, shop, parse=parse)
    assert complaint in str(raised.value)
    assert Storage(shop).days("fixed_events") == []


def test_no_file_is_an_error(shop: Settings, tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="can't be read"):
        replay(tmp_path / "none.jsonl", shop, parse=parse)
