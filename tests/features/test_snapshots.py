"""Snapshots against an independent reference, the future, and each other."""

from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from recflow.features.build import build_features
from recflow.schema import Days
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from tests.features.lakes import contents, day, events_table, items_table, random_events, snapshot, write_lake


def test_features_are_what_a_loop_over_the_raw_events_finds(settings: Settings) -> None:
    events = events_table(random_events(days=130, seed=1))
    items = items_table(events)
    write_lake(settings, events, days=[day(n) for n in range(130)])
    build_features(Days(day(0), day(129)), settings)
    for offset in (0, 5, 29, 30, 97, 129):
        users = snapshot(settings, "user_purchase_stats", day(offset))
        expected = pd.DataFrame(_users(events, day(offset))).T
        _assert_equal(users, expected)
        goods = snapshot(settings, "item_sales_stats", day(offset))
        _assert_equal(goods, pd.DataFrame(_items(events, items, day(offset))).T)


def _assert_equal(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert sorted(found.index) == sorted(expected.index)
    for name in expected.columns:
        for key, value in expected[name].items():
            other = found.at[key, name]
            if value is None or (isinstance(value, float) and np.isnan(value)):
                assert pd.isna(other), (key, name, other)
            elif isinstance(value, str):
                assert other == value, (key, name)
            else:
                assert other == pytest.approx(value, rel=1e-12), (key, name)


def _within(events: pd.DataFrame, until: date, days: int | None) -> pd.DataFrame:
    age = pd.Series([(until - each).days for each in events["event_date"]], index=events.index)
    return events[(age >= 0) & ((age < days) if days else True)]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _cents(lines: pd.DataFrame) -> int:
    return sum(round(row.quantity * row.unit_price * 100) for row in lines.itertuples())


def _orders(lines: pd.DataFrame) -> int:
    return len({(row.event_date, row.session_id or row.event_timestamp) for row in lines.itertuples()})


def _first_days(events: pd.DataFrame) -> dict[tuple[str, str], date]:
    bought = events[(events["event_type"] == "purchase") & events["user_id"].notna()]
    return bought.groupby(["user_id", "item_id"])["event_date"].min().to_dict()


def _pair_days(lines: pd.DataFrame, first_days: dict[tuple[str, str], date]) -> tuple[int, int]:
    """Return distinct (user, item, day) and how many of them are the pair's first."""
    pairs = {(row.user_id, row.item_id, row.event_date) for row in lines.itertuples() if row.user_id}
    return len(pairs), sum(first_days[user, item] == on for user, item, on in pairs)


def _users(events: pd.DataFrame, until: date) -> dict[str, dict[str, object]]:
    known = _within(events[events["user_id"].notna()], until, None)
    first_days = _first_days(known)
    rows = {}
    for user, own in known.groupby("user_id"):
        bought = own[own["event_type"] == "purchase"]
        countries = own["country"].dropna()
        row: dict[str, object] = {
            "user_age_days": (until - own["event_date"].min()).days,
            "user_recency_days": (until - bought["event_date"].max()).days if len(bought) else None,
            "user_country": countries.iloc[-1] if len(countries) else None,
        }
        for span, days in (("7d", 7), ("30d", 30), ("90d", 90), ("lifetime", None)):
            lines = _within(bought, until, days)
            back = _within(own[own["event_type"] == "return"], until, days)
            pairs, new = _pair_days(lines, first_days)
            row |= {
                f"user_orders_{span}": _orders(lines),
                f"user_spend_cents_{span}": _cents(lines),
                f"user_basket_lines_{span}": _ratio(len(lines), _orders(lines)),
                f"user_return_ratio_{span}": _ratio(back["quantity"].sum(), lines["quantity"].sum()),
                f"user_new_items_{span}": new,
                f"user_repeat_ratio_{span}": _ratio(pairs - new, pairs),
            }
        rows[user] = row
    return rows


def _items(events: pd.DataFrame, items: pd.DataFrame, until: date) -> dict[str, dict[str, object]]:
    first_days = _first_days(events)
    known = _within(events[events["item_id"].notna()], until, None)
    listed = _within(items, until, None)
    rows = {}
    for item, own in known.groupby("item_id"):
        bought = own[own["event_type"] == "purchase"]
        # A day's listed price, else what was last paid that day; of all days the last that has one.
        prices = {row.event_date: row.unit_price for row in bought.itertuples()}
        prices |= {
            row.event_date: row.price
            for row in listed[listed["item_id"] == item].itertuples()
            if not np.isnan(row.price)
        }
        row: dict[str, object] = {
            "item_age_days": (until - own["event_date"].min()).days,
            "item_price_cents": round(prices[max(prices)] * 100) if prices else None,
        }
        orders = {}
        for span, days in (("7d", 7), ("30d", 30), ("90d", 90), ("lifetime", None)):
            lines = _within(bought, until, days)
            pairs, new = _pair_days(lines, first_days)
            orders[span] = _orders(lines)
            row |= {
                f"item_orders_{span}": orders[span],
                f"item_pieces_{span}": lines["quantity"].sum(),
                f"item_revenue_cents_{span}": _cents(lines),
                f"item_buyers_{span}": pairs,
                f"item_repeat_ratio_{span}": _ratio(pairs - new, pairs),
            }
        row["item_trend_ratio_7d"] = _ratio(orders["7d"] / 7, orders["30d"] / 30)
        rows[item] = row
    return rows


_PLANS = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.integers(0, 86_399),
        st.sampled_from(["purchase", "purchase", "return", "view"]),
        st.integers(-1, 3),
        st.integers(0, 3),
        st.integers(0, 2),
        st.integers(1, 50),
        st.integers(1, 5000).map(lambda cents: cents / 100),
        st.sampled_from(["United Kingdom", "Germany", ""]),
    ),
    min_size=1,
    max_size=40,
)


@examples(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(plan=_PLANS, cut=st.integers(0, 11))
def test_no_snapshot_sees_the_future(tmp_path_factory: pytest.TempPathFactory, plan: list[tuple], cut: int) -> None:
    columns = list(random_events(days=1).columns)
    events = events_table(pd.DataFrame(plan, columns=columns))
    past = events[events["event_date"] <= day(cut)]
    items = items_table(events)
    alone, followed = (load_settings(home=tmp_path_factory.mktemp("lake")) for _ in range(2))
    write_lake(alone, past, items=items[items["event_date"] <= day(cut)], days=[day(n) for n in range(cut + 1)])
    write_lake(followed, events, items=items, days=[day(n) for n in range(13)])
    build_features(Days(day(0), day(cut)), alone)
    build_features(Days(day(0), day(12)), followed)
    until_then = [day(n) for n in range(cut + 1)]
    assert contents(alone) == contents(followed, days=until_then)


def test_a_backfill_in_one_pass_and_the_days_one_by_one_are_the_same_bytes(settings: Settings) -> None:
    events = events_table(random_events(days=106, seed=2))
    write_lake(settings, events, days=[day(n) for n in range(106)])
    build_features(Days(day(0), day(105)), settings)
    in_one_pass = contents(settings)
    storage = Storage(settings)
    for noun, each in in_one_pass:
        storage.drop_partition(noun, each)
    # Blocks of odd length, then days one by one: over the windows' edges of 7, 30 and 90 days.
    in_blocks = load_settings(home=settings.home, features={"bulk_days": 17})
    build_features(Days(day(0), day(99)), in_blocks)
    for offset in range(100, 106):
        build_features(Days.one(day(offset)), settings)
    assert contents(settings) == in_one_pass


def test_every_calendar_day_has_all_entities_seen_so_far(settings: Settings) -> None:
    events = events_table(random_events(days=15, seed=3))
    write_lake(settings, events, days=[day(n) for n in range(15)])
    build_features(Days(day(0), day(14)), settings)
    storage = Storage(settings)
    closed = day(7)  # a Saturday
    assert closed.weekday() == 5
    assert storage.days("user_purchase_stats") == [day(n) for n in range(15)]
    for offset in range(15):
        seen = events[events["event_date"] <= day(offset)]
        assert set(snapshot(settings, "user_purchase_stats", day(offset)).index) == set(seen["user_id"].dropna())
        assert set(snapshot(settings, "item_sales_stats", day(offset)).index) == set(seen["item_id"].dropna())
    assert storage.read_partition("user_history", closed).num_rows == 0
    moments = snapshot(settings, "user_purchase_stats", closed)[["event_timestamp", "created_timestamp"]]
    assert (moments == pd.Timestamp("2011-01-09", tz="UTC")).all(axis=None)
