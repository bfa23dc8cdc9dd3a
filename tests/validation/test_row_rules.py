"""Which row goes to quarantine by which rule, by hand and against a reference that shares no code."""

import math
import re
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recflow.schema import EVENT_TYPES, EVENTS, QUARANTINE, STAGED_EVENTS, Days
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from recflow.validation.checks import row_checks
from recflow.validation.rows import event_frame
from recflow.validation.suites import Suites
from recflow.validation.validate import validate
from tests.validation.staging import DAY, broken_rules, event, published_ids, stage, table

GOOD_ROWS: list[dict[str, Any]] = [
    {"user_id": None},
    {"session_id": None},
    {"event_type": "search", "item_id": None, "quantity": None, "unit_price": None, "query": "lantern"},
    {"event_type": "view", "unit_price": 0.0, "quantity": None},
    {"event_type": "review", "rating": 5.0, "unit_price": None},
    {"event_type": "impression", "position": 1, "unit_price": None, "dwell_seconds": 0.0},
    {"unit_price": None},
    {"quantity": None},
    {"unit_price": 0.001},
    {"unit_price": 100_000.0, "quantity": 1_000_000},
    {"minute": 0},
    {"minute": 24 * 60 - 1},
]
BROKEN_ROWS: list[tuple[str, dict[str, Any]]] = [
    ("row_parses", {"parse_error": "Quantity: 'abc' is not a number", "quantity": None, "event_type": None}),
    ("event_id_present", {"event_id": None}),
    ("timestamp_present", {"event_timestamp": None}),
    ("type_present", {"event_type": None}),
    ("type_known", {"event_type": "purchased"}),
    ("item_id_present", {"item_id": None}),
    ("shopper_present", {"user_id": None, "session_id": None}),
    ("of_its_day", {"minute": -1}),
    ("of_its_day", {"minute": 24 * 60}),
    ("not_a_product", {"item_id": "POST"}),
    ("price_positive", {"unit_price": 0.0}),
    ("price_positive", {"unit_price": -1.5}),
    ("price_positive", {"unit_price": 0.0, "event_type": "return"}),
    ("price_plausible", {"unit_price": 100_000.01}),
    ("price_plausible", {"unit_price": math.inf}),
    ("quantity_positive", {"quantity": 0}),
    ("quantity_positive", {"quantity": -3}),
    ("quantity_plausible", {"quantity": 1_000_001}),
    ("rating_in_range", {"event_type": "review", "rating": 0.9}),
    ("rating_in_range", {"event_type": "review", "rating": 5.1}),
    ("position_positive", {"event_type": "impression", "position": 0}),
    ("dwell_not_negative", {"event_type": "view", "dwell_seconds": -0.1}),
    # Two rules at once: the first one counts.
    ("row_parses", {"parse_error": "no", "item_id": "POST", "unit_price": 0.0}),
    ("not_a_product", {"item_id": "POST", "unit_price": -1.0, "quantity": -1}),
    ("price_positive", {"unit_price": 0.0, "quantity": -5}),
]


def test_each_rule_catches_its_rows_and_no_others(settings: Settings) -> None:
    good = [event(number, **changes) for number, changes in enumerate(GOOD_ROWS)]
    padding = [event(number) for number in range(100, 400)]  # keeps shares below their limits
    broken = [event(1000 + number, **changes) for number, (_, changes) in enumerate(BROKEN_ROWS)]
    stage(settings, [*good, *broken, *padding])
    artifact = validate(Days.one(DAY), settings)
    assert broken_rules(settings) == {1000 + number: rule for number, (rule, _) in enumerate(BROKEN_ROWS)}
    assert set(published_ids(settings)) == {row["event_id"] for row in [*good, *padding]}
    assert artifact.manifest["published"] == len(GOOD_ROWS) + 300
    assert artifact.manifest["quarantined"] == len(BROKEN_ROWS)
    rules = [rule for rule, _ in BROKEN_ROWS]
    assert artifact.manifest["quarantined_by_rule"] == {rule: rules.count(rule) for rule in dict.fromkeys(rules)}


def test_tables_have_their_schemas_and_events_are_in_order_of_time_then_feed(settings: Settings) -> None:
    stage(settings, [event(0, minute=700), event(1, minute=650), event(2, minute=700), event(3, minute=650)])
    validate(Days.one(DAY), settings)
    storage = Storage(settings)
    assert published_ids(settings) == [f"{DAY}-{number}" for number in (1, 3, 0, 2)]
    assert storage.read_partition("events", DAY).drop_columns("event_date").schema.equals(EVENTS)
    quarantine = storage.read_partition("quarantine", DAY).drop_columns("event_date").schema
    assert quarantine.equals(pa.schema([field for field in QUARANTINE if field.name != "event_date"]))


def test_a_quarantined_row_keeps_all_that_came(settings: Settings) -> None:
    row = event(7, unit_price=-2.0, raw='{"InvoiceNo": "536007", "UnitPrice": "-2.0"}')
    stage(settings, [row, *(event(number) for number in range(100, 110))])
    validate(Days.one(DAY), settings)
    (kept,) = Storage(settings).read_partition("quarantine", DAY).to_pylist()
    assert kept == {**dict.fromkeys(STAGED_EVENTS.names), **row, "rule": "price_positive"}


def test_all_broken_rows_are_quarantined_not_the_first_twenty_or_two_hundred(settings: Settings) -> None:
    stage(settings, [event(number, unit_price=0.0 if number % 3 == 0 else 1.0) for number in range(3000)])
    validate(Days.one(DAY), settings)
    assert broken_rules(settings) == dict.fromkeys(range(0, 3000, 3), "price_positive")


@pytest.mark.parametrize(
    ("codes", "are_products"),
    [
        (["POST", "DOT", "M", "m", "D", "C2", "S", "B", "BANK CHARGES", "AMAZONFEE", "CRUK", "PADS"], False),
        (["gift_0001_20", "GIFT_0001_50", "DCGS0003", "DCGS0066P", "DCGSSBOY", "ADJUST2", "TEST001"], False),
        (["85123A", "22423", "15056BL", "79323LP", "POSTER", "20000POST", "MM", "BAG", "DOTS", "gift", "S1"], True),
    ],
)
def test_codes_that_are_no_products(codes: list[str], are_products: bool) -> None:
    rules = load_settings().validation
    rows = table([event(number, item_id=code) for number, code in enumerate(codes)])
    broken = Suites().run("rows", row_checks(rules), event_frame(rows, rules))
    assert broken.is_good.tolist() == [are_products] * len(codes)


def test_a_repeated_line_counts_once_in_its_batch(settings: Settings) -> None:
    rows = [
        event(0, raw="{A}"),
        event(1, raw="{B}"),
        event(2, raw="{A}"),
        event(3, raw="{A}"),
        event(4, raw="{A}", batch="feedback.jsonl"),  # another batch: another line
        event(5, event_id=f"{DAY}-1"),  # the same id, another line
        event(6, event_id=f"{DAY}-1", batch="feedback.jsonl"),
        event(7, event_id=None),
        event(8, event_id=None),  # no id is no repeated id
        event(0, DAY + timedelta(days=1), raw="{A}", event_id=f"{DAY}-0"),  # another day
        *(event(number) for number in range(100, 110)),
    ]
    stage(settings, rows)
    validate(Days(DAY, DAY + timedelta(days=1)), settings)
    assert broken_rules(settings) == {
        2: "duplicate_line",
        3: "duplicate_line",
        5: "duplicate_line",
        6: "duplicate_line",
        7: "event_id_present",
        8: "event_id_present",
    }
    assert broken_rules(settings, DAY + timedelta(days=1)) == {}


def test_a_slip_of_tens_of_thousands_and_its_cancellation_are_both_taken_out(settings: Settings) -> None:
    def slip(number: int, minute: int, **changes: Any) -> dict[str, Any]:
        return event(
            number, **({"user_id": "12346.0", "item_id": "23166", "quantity": 74_215, "minute": minute} | changes)
        )

    back = {"event_type": "return"}
    rows = [
        slip(0, 601),
        slip(1, 617, **back),
        # smaller: a customer's change of mind
        slip(2, 601, quantity=999),
        slip(3, 602, quantity=999, **back),
        # later than an hour
        slip(4, 601, item_id="21108"),
        slip(5, 662, item_id="21108", **back),
        # exactly an hour, exactly a thousand
        slip(6, 601, item_id="22693", quantity=1000),
        slip(7, 661, item_id="22693", quantity=1000, **back),
        # another quantity, another user, nobody known, the return before the order
        slip(8, 601, item_id="84077", quantity=2000),
        slip(9, 602, item_id="84077", quantity=2001, **back),
        slip(10, 601, item_id="16014"),
        slip(11, 602, item_id="16014", user_id="1.0", **back),
        slip(12, 601, item_id="84879", user_id=None),
        slip(13, 602, item_id="84879", user_id=None, **back),
        slip(14, 610, item_id="22197"),
        slip(15, 609, item_id="22197", **back),
        # two orders, one cancelled: the last before it
        slip(16, 601, item_id="20713"),
        slip(17, 611, item_id="20713"),
        slip(18, 620, item_id="20713", **back),
        # one order, two cancellations: the first
        slip(19, 601, item_id="21977"),
        slip(20, 611, item_id="21977", **back),
        slip(21, 620, item_id="21977", **back),
        # the order came twice: one is a duplicate, the other is cancelled
        slip(22, 601, item_id="84347", raw="{A}"),
        slip(23, 601, item_id="84347", raw="{A}"),
        slip(24, 605, item_id="84347", **back),
        *(event(number) for number in range(100, 130)),
    ]
    stage(settings, rows)
    validate(Days.one(DAY), settings)
    cancelled = dict.fromkeys((0, 1, 6, 7, 17, 18, 19, 20, 22, 24), "cancelled_at_once")
    assert broken_rules(settings) == {**cancelled, 23: "duplicate_line"}


# -- any rows at all, against a reference of one row after another


def _reference(rows: list[dict[str, Any]]) -> list[str | None]:
    """Return the first rule that each row breaks, asked row by row in plain Python."""
    lines: set[tuple[Any, ...]] = set()
    ids: set[tuple[Any, ...]] = set()
    repeated = []
    for row in rows:
        line, own_id = (row["event_date"], row["batch"], row["raw"]), (row["event_date"], row["event_id"])
        repeated.append(line in lines or (row["event_id"] is not None and own_id in ids))
        lines.add(line)
        ids.add(own_id)
    slips = _slips(rows, repeated)
    return [_first_broken(row, repeated[at], at in slips) for at, row in enumerate(rows)]


def _slips(rows: list[dict[str, Any]], repeated: list[bool]) -> set[int]:
    marked: set[int] = set()
    met: set[int] = set()
    large = [
        at for at, row in enumerate(rows)
        if not repeated[at] and row["event_timestamp"] and row["user_id"] and row["item_id"]
        and row["quantity"] is not None and row["quantity"] >= 1000
    ]  # fmt: skip
    by_time = sorted(large, key=lambda at: rows[at]["event_timestamp"])
    for back in (at for at in by_time if rows[at]["event_type"] == "return"):
        one = rows[back]
        orders = [
            at for at in by_time
            if rows[at]["event_type"] == "purchase"
            and all(rows[at][name] == one[name] for name in ("event_date", "user_id", "item_id", "quantity"))
            and timedelta(0) <= one["event_timestamp"] - rows[at]["event_timestamp"] <= timedelta(minutes=60)
        ]  # fmt: skip
        if orders and orders[-1] not in met:
            met.add(orders[-1])
            marked |= {back, orders[-1]}
    return marked


def _first_broken(row: dict[str, Any], is_repeated: bool, is_slip: bool) -> str | None:
    price, pieces = row["unit_price"], row["quantity"]
    asked = {
        "row_parses": row["parse_error"] is None,
        "event_id_present": row["event_id"] is not None,
        "timestamp_present": row["event_timestamp"] is not None,
        "type_present": row["event_type"] is not None,
        "type_known": row["event_type"] is None or row["event_type"] in EVENT_TYPES,
        "item_id_present": row["item_id"] is not None or row["event_type"] == "search",
        "shopper_present": row["user_id"] is not None or row["session_id"] is not None,
        "of_its_day": row["event_timestamp"] is None or row["event_timestamp"].date() == row["event_date"],
        "not_a_product": row["item_id"] is None or re.fullmatch("(?i)POST|DCGS.*|M", row["item_id"]) is None,
        "price_positive": row["event_type"] not in ("purchase", "return") or price is None or price > 0,
        "price_plausible": price is None or price <= 100_000,
        "quantity_positive": pieces is None or pieces > 0,
        "quantity_plausible": pieces is None or pieces <= 1_000_000,
        "duplicate_line": not is_repeated,
        "cancelled_at_once": not is_slip,
    }
    return next((rule for rule, holds in asked.items() if not holds), None)


_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "event_date": st.sampled_from([DAY, DAY + timedelta(days=1)]),
            "minute": st.sampled_from([-1, 0, 600, 601, 660, 661, 1439, 1440]),
            "event_id": st.sampled_from([None, "a", "b", "c", "d", "e", "f", "g"]),
            "event_type": st.sampled_from([None, "purchase", "purchase", "return", "return", "search", "bought"]),
            "user_id": st.sampled_from([None, "u", "u", "v"]),
            "session_id": st.sampled_from([None, "s"]),
            "item_id": st.sampled_from([None, "10000", "10000", "POST", "dcgs1"]),
            "quantity": st.sampled_from([None, -1, 0, 1, 1000, 1000, 5000, 2_000_000]),
            "unit_price": st.sampled_from([None, -1.0, 0.0, 0.5, 2.0, 1e9]),
            "raw": st.sampled_from(list("pqrstuvwxyz")),
            "batch": st.sampled_from(["one", "two"]),
            "parse_error": st.sampled_from([None, None, None, "no"]),
            "has_time": st.sampled_from([True, True, True, False]),
        }
    ),
    max_size=14,
)


@given(drawn=_ROWS)
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_published_and_quarantined_rows_are_the_staged_ones_as_a_reference_splits_them(
    drawn: list[dict[str, Any]],
) -> None:
    rows = []
    for number, changes in enumerate(drawn):
        has_time, day = changes.pop("has_time"), changes.pop("event_date")
        row = {name: None for name in STAGED_EVENTS.names} | event(number, day, **changes)
        rows.append(row | ({} if has_time else {"event_timestamp": None}))
    rows.sort(key=lambda row: row["event_date"])
    rules = load_settings().validation
    staged = table(rows)
    judgement = Suites().run("rows", row_checks(rules), event_frame(staged, rules))
    names = [check.name for check in judgement.checks]
    found = [None if number < 0 else names[number] for number in judgement.broken]
    assert found == _reference(rows)
    assert sum(judgement.counts().values()) + int(judgement.is_good.sum()) == len(rows)
