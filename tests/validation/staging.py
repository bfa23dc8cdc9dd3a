"""Staged days made in code, as ingest would leave them, without ingest."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from recflow.schema import ITEMS, STAGED_EVENTS
from recflow.settings import Settings
from recflow.storage import Storage

DAY = date(2011, 3, 1)
ITEMS_DATED = pa.schema([*ITEMS, pa.field("event_date", pa.date32())])


def event(number: int = 0, day: date = DAY, **changes: Any) -> dict[str, Any]:
    """Return a good row of a staged event; `minute` is the minute of its day."""
    minute = changes.pop("minute", 600 + number % 600)
    row = {
        "event_id": f"{day}-{number}",
        "event_timestamp": datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(minutes=minute),
        "event_type": "purchase",
        "user_id": f"{17000 + number}.0",
        "session_id": f"{536000 + number}",
        "item_id": f"{20000 + number}",
        "quantity": 3,
        "unit_price": 1.5,
        "currency": "GBP",
        "country": "France",
        "source": "online-retail",
        "row_id": number,
        "batch": f"{day}.csv",
        "event_date": day,
    } | changes
    row.setdefault("raw", json.dumps({name: str(value) for name, value in row.items() if name != "row_id"}))
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in rows], STAGED_EVENTS)


def stage(
    settings: Settings,
    rows: Sequence[Mapping[str, Any]],
    *,
    days: Iterable[date] = (),
    items: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write staged partitions for the days of the rows and for `days`; a day without rows is a closed one."""
    storage, events = Storage(settings), table(rows)
    dates = sorted({*days, *events["event_date"].to_pylist()})
    closed = set(dates) - set(events["event_date"].to_pylist())
    storage.write_partitions("staged_events", events, {day: {"closed": day in closed} for day in dates})
    if items is None:
        seen = {(row["event_date"], row["item_id"]) for row in rows if row["item_id"]}
        items = [{"item_id": item, "event_date": day, "price": 1.5} for day, item in sorted(seen)]
    catalogue = pa.Table.from_pylist([dict(item) for item in items], ITEMS_DATED)
    storage.write_partitions("staged_items", catalogue, {day: {} for day in dates})


def usual_days(count: int, *, rows: int = 20, start: date = DAY) -> list[dict[str, Any]]:
    """Return good rows for consecutive days, `rows` each."""
    return [event(number, start + timedelta(days=offset)) for offset in range(count) for number in range(rows)]


def broken_rules(settings: Settings, day: date = DAY) -> dict[int, str]:
    """Return the quarantined rows of a day: row id -> rule."""
    rows = Storage(settings).read_partition("quarantine", day)
    return dict(zip(rows["row_id"].to_pylist(), rows["rule"].to_pylist(), strict=True))


def published_ids(settings: Settings, day: date = DAY) -> list[str]:
    ids: list[str] = Storage(settings).read_partition("events", day)["event_id"].to_pylist()
    return ids


def lake_files(settings: Settings, *nouns: str) -> dict[str, bytes]:
    """Return every object of published tables, leftovers of interrupted writes included, by path."""
    lake = Path(settings.home) / "lake"
    return {
        str(path.relative_to(lake)): path.read_bytes()
        for noun in nouns or ("events", "items", "quarantine")
        for path in sorted((lake / noun).rglob("*"))
        if path.is_file()
    }
