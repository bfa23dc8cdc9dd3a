"""A steady shop made in code: its events and weekly snapshots as frames, to be changed by a test and written."""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa

from recflow.schema import EVENTS, TIMESTAMP, day_end
from recflow.settings import Settings
from recflow.storage import Storage

FIRST = date(2011, 3, 1)
UNTIL = date(2011, 9, 12)  # 28 weeks: all windows of features are full
CURRENT = pd.Timestamp("2011-08-16")  # the first of the last 28 days
EVENTS_FROM = date(2011, 5, 24)  # 16 weeks: nothing older is compared
_VISITS, _LINES, _USERS, _ITEMS = 40, 4, 600, 500
_COUNTRIES = ("United Kingdom", "Germany", "France")


@dataclass
class Shop:
    """Frames with `event_date` as a timestamp; what a test leaves alone is steady."""

    events: pd.DataFrame
    users: pd.DataFrame
    items: pd.DataFrame

    def copy(self) -> "Shop":
        return Shop(self.events.copy(), self.users.copy(), self.items.copy())

    def write(self, settings: Settings) -> None:
        storage = Storage(settings)
        days = [EVENTS_FROM + timedelta(days=offset) for offset in range((UNTIL - EVENTS_FROM).days + 1)]
        schema = pa.schema([*EVENTS, pa.field("event_date", pa.date32())])
        events = self.events.assign(event_date=self.events["event_date"].dt.date)
        table = pa.Table.from_pandas(events, schema=schema, preserve_index=False)
        storage.write_partitions("events", table, {day: {} for day in days})
        for noun, frame in (("user_purchase_stats", self.users), ("item_sales_stats", self.items)):
            for moment, part in frame.groupby("event_date"):
                day = moment.date()
                # Columns that are empty on a day keep the type that they have over the whole table.
                table = pa.Table.from_pandas(
                    part.drop(columns="event_date"), schema=_feature_schema(frame), preserve_index=False
                )
                stamp = pa.repeat(pa.scalar(day_end(day), TIMESTAMP), table.num_rows)
                table = table.append_column("event_timestamp", stamp).append_column("created_timestamp", stamp)
                storage.write_partition(noun, day, table, {})


def steady_shop(seed: int = 0) -> Shop:
    rng = np.random.default_rng(seed)
    return Shop(_events(rng), *_snapshots(rng))


def _events(rng: np.random.Generator) -> pd.DataFrame:
    n_days = (UNTIL - EVENTS_FROM).days + 1
    visits = n_days * _VISITS
    visit = np.repeat(np.arange(visits), rng.poisson(_LINES - 1, visits) + 1)
    offset = visit // _VISITS
    moment = pd.Timestamp(EVENTS_FROM) + pd.to_timedelta(offset, "D")
    user = np.where(rng.random(visits) < 0.2, None, np.char.add("u", rng.integers(0, _USERS, visits).astype(str)))
    minutes = rng.integers(8 * 60, 18 * 60, visits)[visit]
    frame = pd.DataFrame({name: None for name in EVENTS.names}, index=range(len(visit)))
    return frame.assign(
        event_id=[f"e{row}" for row in range(len(visit))],
        event_timestamp=(moment + pd.to_timedelta(minutes, "min")).tz_localize("UTC"),
        event_type=np.where(rng.random(visits) < 0.05, "return", "purchase")[visit],
        user_id=user[visit],
        session_id=np.char.add("s", visit.astype(str)),
        item_id=np.char.add("i", rng.integers(0, _ITEMS, len(visit)).astype(str)),
        quantity=rng.geometric(0.2, len(visit)),
        unit_price=np.round(rng.lognormal(1, 0.8, len(visit)), 2),
        currency="GBP",
        country=rng.choice(_COUNTRIES, visits, p=[0.8, 0.1, 0.1])[visit],
        source="test",
        event_date=moment,
    )


def _snapshots(rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    weeks = [pd.Timestamp(UNTIL) - pd.Timedelta(weeks=week) for week in range(28)]
    users = pd.DataFrame(
        [(f"u{user}", day) for day in weeks for user in range(_USERS)], columns=["user_id", "event_date"]
    )
    orders = rng.poisson(2, len(users)) + 1
    age = (users["event_date"] - pd.Timestamp(FIRST)).dt.days
    users = users.assign(
        user_orders_30d=orders,
        user_spend_cents_30d=np.round(orders * rng.lognormal(6, 1, len(users))),
        user_country=rng.choice(_COUNTRIES, len(users), p=[0.8, 0.1, 0.1]),
        user_orders_lifetime=orders + age // 10,
        user_age_days=age,
    )
    items = pd.DataFrame(
        [(f"i{item}", day) for day in weeks for item in range(_ITEMS)], columns=["item_id", "event_date"]
    )
    items = items.assign(
        item_orders_7d=rng.geometric(0.1, len(items)),
        item_price_cents=np.round(rng.lognormal(6, 0.8, len(items))),
        item_return_ratio_90d=np.where(rng.random(len(items)) < 0.3, np.nan, rng.beta(1, 9, len(items))),
    )
    return users, items


def _feature_schema(frame: pd.DataFrame) -> pa.Schema:
    kinds = {"O": pa.string(), "i": pa.int64(), "f": pa.float64()}
    return pa.schema([(name, kinds[frame[name].dtype.kind]) for name in frame.columns if name != "event_date"])
