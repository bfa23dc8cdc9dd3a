"""Small lakes of validated events and items, with every kind of event that features are made of."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from recflow.schema import EVENTS, ITEMS
from recflow.settings import Settings
from recflow.storage import Storage

FIRST = date(2011, 1, 1)
NOUNS = (
    "catalogue",
    "item_sales_stats",
    "state_item",
    "state_user",
    "state_user_items",
    "user_history",
    "user_purchase_stats",
)


def day(offset: int) -> date:
    return FIRST + timedelta(days=offset)


def random_events(*, days: int, seed: int = 0, per_day: int = 12, users: int = 12, items: int = 9) -> pd.DataFrame:
    """Events of a shop that is closed on Saturdays: purchases, returns, views, some of them anonymous."""
    rng = np.random.default_rng(seed)
    size = days * per_day
    offsets = np.sort(rng.integers(0, days, size))
    frame = pd.DataFrame(
        {
            "offset": offsets,
            "second": rng.integers(0, 86_400, size),
            "event_type": rng.choice(["purchase", "return", "view", "search"], size, p=[0.7, 0.1, 0.15, 0.05]),
            "user": rng.integers(-1, users, size),  # -1: anonymous
            "item": rng.integers(0, items, size),
            "session": rng.integers(0, 4, size),
            "quantity": rng.integers(1, 9, size),
            "unit_price": np.round(rng.uniform(0.1, 20, size), 2),
            "country": rng.choice(["United Kingdom", "Germany", ""], size),
        }
    )
    return frame[[day(offset).weekday() != 5 for offset in frame["offset"]]].reset_index(drop=True)


def events_table(plan: pd.DataFrame) -> pd.DataFrame:
    """Turn a plan of events into canonical rows in time's order, with `event_date`."""
    plan = plan.sort_values(["offset", "second"], kind="stable").reset_index(drop=True)
    start = pd.Timestamp(FIRST, tz="UTC")
    moments = start + pd.to_timedelta(plan["offset"], unit="D") + pd.to_timedelta(plan["second"], unit="s")
    known, search = plan["user"] >= 0, plan["event_type"] == "search"
    frame = pd.DataFrame({name: [None] * len(plan) for name in EVENTS.names})
    frame["event_id"] = [f"e-{row}" for row in range(len(plan))]
    frame["event_timestamp"] = moments
    frame["event_type"] = plan["event_type"]
    frame["user_id"] = ("u" + plan["user"].astype(str)).where(known, None)
    session = "s" + plan["offset"].astype(str) + "-" + plan["user"].astype(str) + "-" + plan["session"].astype(str)
    frame["session_id"] = session.where(plan["session"] > 0, None)
    frame["item_id"] = ("i" + plan["item"].astype(str)).where(~search, None)
    frame["quantity"] = plan["quantity"].where(~search)
    frame["unit_price"] = plan["unit_price"].where(~search)
    frame["country"] = plan["country"].where(plan["country"] != "", None)
    frame["source"] = "test"
    frame["event_date"] = moments.dt.date
    return frame


def items_table(events: pd.DataFrame) -> pd.DataFrame:
    """List every item on the days on which something happened to it; prices and titles change, some are left out."""
    seen = events[events["item_id"].notna()].groupby(["event_date", "item_id"], as_index=False).first()
    frame = pd.DataFrame({name: [None] * len(seen) for name in ITEMS.names})
    number = seen["item_id"].str[1:].astype(int)
    ordinal = pd.to_datetime(seen["event_date"]).dt.dayofyear
    frame["item_id"] = seen["item_id"]
    frame["title"] = ("TITLE " + (ordinal // 5).astype(str)).where((ordinal + number) % 3 > 0, None)
    frame["price"] = (number + ordinal / 100).where(number % 4 > 0)
    frame["first_seen"] = seen["event_timestamp"]
    frame["active"] = True
    frame["event_date"] = seen["event_date"]
    return frame


def write_lake(
    settings: Settings, events: pd.DataFrame, *, days: list[date], items: pd.DataFrame | None = None
) -> None:
    """Write the given days of `events` and `items`; a day without events is empty."""
    storage = Storage(settings)
    items = items_table(events) if items is None else items
    for noun, frame, schema in (("events", events, EVENTS), ("items", items, ITEMS)):
        for each in days:
            rows = frame[frame["event_date"] == each][schema.names]
            table = pa.Table.from_pandas(rows, schema=schema, preserve_index=False)
            storage.write_partition(noun, each, table, {})


def contents(settings: Settings, *, days: list[date] | None = None) -> dict[tuple[str, date], bytes]:
    """Return every object that build_features wrote, byte by byte."""
    storage = Storage(settings)
    return {
        (noun, each): Path(storage.partition_uri(noun, each)).read_bytes()
        for noun in NOUNS
        for each in storage.days(noun)
        if days is None or each in days
    }


def snapshot(settings: Settings, noun: str, each: date) -> pd.DataFrame:
    """Return a day of a view, by id."""
    frame = Storage(settings).read_partition(noun, each).to_pandas()
    return frame.set_index(frame.columns[0])
