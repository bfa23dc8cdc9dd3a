import itertools
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from recflow.models.interactions import PURCHASE
from recflow.schema import EVENT_TYPES, EVENTS, ITEMS, QUARANTINE, STAGED_EVENTS, TIMESTAMP, Days, day_end

DATES = st.dates(date(1990, 1, 1), date(2100, 1, 1))


def test_the_contract_of_events() -> None:
    assert EVENTS.names == [
        *("event_id", "event_timestamp", "event_type", "user_id", "session_id", "item_id", "quantity", "unit_price"),
        *("currency", "country", "query", "rating", "dwell_seconds", "position", "request_id", "source"),
    ]
    required = {field.name for field in EVENTS if not field.nullable}
    assert required == {"event_id", "event_timestamp", "event_type", "source"}


def test_the_contract_of_items() -> None:
    assert ITEMS.names == [
        *("item_id", "title", "description", "category", "brand", "price", "currency", "image_uri", "store_id"),
        *("first_seen", "active"),
    ]
    assert [field.name for field in ITEMS if not field.nullable] == ["item_id"]


def test_moments_are_utc_with_microseconds() -> None:
    moments = [field for schema in (EVENTS, ITEMS) for field in schema if pa.types.is_timestamp(field.type)]
    assert [field.name for field in moments] == ["event_timestamp", "first_seen"]
    assert {field.type for field in moments} == {TIMESTAMP} == {pa.timestamp("us", tz="UTC")}


def test_a_staged_row_has_every_column_of_an_event_and_may_lack_any_value() -> None:
    for field in EVENTS:
        assert STAGED_EVENTS.field(field.name) == field.with_nullable(True)
    assert set(STAGED_EVENTS.names) - set(EVENTS.names) == {"row_id", "raw", "parse_error", "batch", "event_date"}
    assert QUARANTINE.names == [*STAGED_EVENTS.names, "rule"]


def test_event_types_keep_their_codes() -> None:
    # Saved models and training sets hold the index: an order that changes would make them lie.
    assert EVENT_TYPES == ("impression", "click", "view", "add_to_cart", "purchase", "return", "search", "review")
    assert PURCHASE == 4


def test_days_hold_both_ends() -> None:
    days = Days(date(2011, 2, 27), date(2011, 3, 2))
    assert days.dates() == [date(2011, 2, 27), date(2011, 2, 28), date(2011, 3, 1), date(2011, 3, 2)]
    assert len(days) == 4
    assert str(days) == "2011-02-27..2011-03-02"
    assert str(Days.one(date(2011, 3, 1))) == "2011-03-01"
    assert Days.one(date(2011, 3, 1)) == Days(date(2011, 3, 1), date(2011, 3, 1))


@given(DATES, st.integers(0, 400))
def test_the_dates_of_days_are_consecutive(start: date, more: int) -> None:
    days = Days(start, start + timedelta(days=more))
    dates = days.dates()
    assert (dates[0], dates[-1], len(dates)) == (days.start, days.end, len(days))
    assert {later - earlier for earlier, later in itertools.pairwise(dates)} <= {timedelta(days=1)}


def test_a_snapshot_is_stamped_with_the_first_moment_after_its_day() -> None:
    assert day_end(date(2011, 12, 31)) == datetime(2012, 1, 1, tzinfo=UTC)
    assert day_end(date(2012, 2, 28)) == datetime(2012, 2, 29, tzinfo=UTC)


@given(DATES, st.times())
def test_every_moment_of_a_day_is_before_its_end_and_none_of_the_next(day: date, time: object) -> None:
    moment = datetime.combine(day, time, tzinfo=UTC)  # type: ignore[arg-type]
    assert moment < day_end(day)
    assert moment + timedelta(days=1) >= day_end(day)
