"""Small shops made in code: the quirks of real feeds without a real feed."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from recflow.schema import EVENTS, ITEMS, Days
from recflow.settings import Settings
from recflow.storage import Storage

START = date(2011, 1, 3)  # a Monday


def invoice_lines(*, days: int = 40, users: int = 60, items: int = 40, tastes: int = 4, seed: int = 0) -> pd.DataFrame:
    """Make invoice lines in Online Retail's columns, all text: shoppers with tastes who buy again, closed on Saturdays.

    Ordinary sales only; tests add the quirks that they are about.
    """
    rng = np.random.default_rng(seed)
    taste = rng.integers(0, tastes, users)
    codes = np.array([f"{20000 + 7 * item}" for item in range(items)])
    prices = np.round(rng.uniform(0.5, 12, items), 2)
    rows = []
    invoice = 536365
    for offset in range(days):
        day = START + timedelta(days=offset)
        if day.weekday() == 5:
            continue
        for user in rng.choice(users, size=max(6, users // 6), replace=False):
            invoice += 1
            moment = datetime(day.year, day.month, day.day, 9) + timedelta(minutes=int(rng.integers(0, 400)))
            own = np.arange(items)[np.arange(items) % tastes == taste[user]]
            basket = rng.choice(own, size=min(len(own), int(rng.integers(2, 6))), replace=False)
            rows += [
                (str(invoice), codes[item], f"ITEM NUMBER {item}", str(int(rng.integers(1, 12))),
                 f"{moment:%Y-%m-%d %H:%M:%S}", f"{prices[item]}",
                 "" if rng.random() < 0.1 else f"{12346 + user}.0",
                 "Germany" if user % 5 == 0 else "United Kingdom")
                for item in basket
            ]  # fmt: skip
    columns = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"]
    return pd.DataFrame(rows, columns=columns, dtype=str)


def write_invoice_days(folder: Path, lines: pd.DataFrame) -> Days:
    """Write invoice lines as daily CSVs, as `recflow data fetch online-retail` leaves them; return the days."""
    folder.mkdir(parents=True, exist_ok=True)
    for day, part in lines.groupby(lines["InvoiceDate"].str[:10]):
        part.to_csv(folder / f"{day}.csv", index=False)
    return Days(
        date.fromisoformat(lines["InvoiceDate"].min()[:10]), date.fromisoformat(lines["InvoiceDate"].max()[:10])
    )


def fill_lake(settings: Settings, lines: pd.DataFrame) -> Days:
    """Write invoice lines as canonical `events` and `items` partitions: a lake as validation would leave it."""
    storage = Storage(settings)
    moment = pd.to_datetime(lines["InvoiceDate"]).dt.tz_localize(UTC)
    nulls = pd.Series([None] * len(lines), index=lines.index)
    columns = {
        "event_id": [f"event-{row}" for row in range(len(lines))],
        "event_timestamp": moment,
        "event_type": "purchase",
        "user_id": lines["CustomerID"].where(lines["CustomerID"] != "", None),
        "session_id": lines["InvoiceNo"],
        "item_id": lines["StockCode"],
        "quantity": lines["Quantity"].astype(int),
        "unit_price": lines["UnitPrice"].astype(float),
        "currency": "GBP",
        "country": lines["Country"],
        "source": "online-retail",
    }
    frame = pd.DataFrame({name: columns.get(name, nulls) for name in EVENTS.names}, index=lines.index)
    events = pa.Table.from_pandas(frame, schema=EVENTS, preserve_index=False)
    events = events.append_column("event_date", pa.array(moment.dt.date, pa.date32()))
    days = Days(moment.min().date(), moment.max().date())
    storage.write_partitions("events", events, {day: {"closed": False} for day in days.dates()})
    seen = frame.assign(event_date=moment.dt.date, title=lines["Description"], price=frame["unit_price"])
    seen = seen.groupby(["event_date", "item_id"], as_index=False).first()
    seen["first_seen"] = seen.groupby("item_id")["event_timestamp"].transform("min")
    seen = seen.assign(
        active=True, **{name: None for name in ("description", "category", "brand", "image_uri", "store_id")}
    )
    items = pa.Table.from_pandas(seen[ITEMS.names], schema=ITEMS, preserve_index=False)
    items = items.append_column("event_date", pa.array(seen["event_date"], pa.date32()))
    storage.write_partitions("items", items, {day: {} for day in days.dates()})
    return days
