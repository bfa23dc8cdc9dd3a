"""What each quirk of the invoice lines becomes, one hand-made day a test."""

import csv
import io
import json
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as run_settings
from hypothesis import strategies as st

from recflow.events import online_retail
from recflow.events.files import FeedFile
from recflow.events.invoice_lines import COLUMNS
from recflow.schema import ITEMS, STAGED_EVENTS
from recflow.settings import load_settings
from tests.events.shop import DAY, HEADER, ingested, line


def test_sale_becomes_a_purchase_in_canonical_columns(tmp_path: Path) -> None:
    [event], items, _ = ingested(tmp_path, line())
    assert event | {"event_id": None} == {
        **dict.fromkeys(STAGED_EVENTS.names),
        "event_timestamp": datetime(2011, 3, 1, 10, 30, tzinfo=UTC),
        "event_type": "purchase",
        "user_id": "17850.0",
        "session_id": "545220",
        "item_id": "85123A",
        "quantity": 6,
        "unit_price": 2.55,
        "currency": "GBP",
        "country": "United Kingdom",
        "source": "online-retail",
        "row_id": 0,
        "raw": json.dumps(dict(zip(COLUMNS, line().split(","), strict=True)), separators=(",", ":")),
        "batch": "2011-03-01.csv",
        "event_date": DAY,
    }
    assert items["85123A"] | {"event_date": None} == {
        **dict.fromkeys(ITEMS.names),
        "item_id": "85123A",
        "title": "WHITE HEART",
        "price": 2.55,
        "currency": "GBP",
        "first_seen": datetime(2011, 3, 1, 10, 30, tzinfo=UTC),
        "active": True,
        "event_date": None,
    }


def test_summer_time_in_london_is_an_hour_ahead_of_utc(tmp_path: Path) -> None:
    [event], _, _ = ingested(tmp_path, line(moment="2011-07-01 10:30:00"))
    assert event["event_timestamp"] == datetime(2011, 7, 1, 9, 30, tzinfo=UTC)


def test_cancellation_is_a_return_of_positive_quantity(tmp_path: Path) -> None:
    events, items, manifest = ingested(tmp_path, line("C545220", pieces="-6"), line("c545221", pieces="-2"))
    assert [(event["event_type"], event["quantity"], event["session_id"]) for event in events] == [
        ("return", 6, "C545220"),
        ("return", 2, "c545221"),
    ]
    assert manifest["quirks"]["cancellations"] == 2
    assert (items["85123A"]["title"], items["85123A"]["price"], items["85123A"]["active"]) == (None, None, None)


def test_adjustment_stays_a_row_with_its_invoice(tmp_path: Path) -> None:
    [event], _, manifest = ingested(
        tmp_path, line("A563185", "B", "Adjust bad debt", "1", price="-11062.06", customer="")
    )
    assert (event["session_id"], event["item_id"], event["unit_price"]) == ("A563185", "B", -11062.06)
    assert event["parse_error"] is None
    assert (manifest["quirks"]["adjustments"], manifest["quirks"]["negative_prices"]) == (1, 1)


def test_line_without_customer_is_an_anonymous_session_of_its_invoice(tmp_path: Path) -> None:
    events, _, manifest = ingested(tmp_path, line(customer=""), line(customer="", code="22423"), line("545221"))
    assert [(event["user_id"], event["session_id"]) for event in events] == [
        (None, "545220"),
        (None, "545220"),
        ("17850.0", "545221"),
    ]
    assert manifest["quirks"]["anonymous_lines"] == 2


def test_code_variants_in_case_and_space_are_one_item(tmp_path: Path) -> None:
    events, items, manifest = ingested(tmp_path, line(code="85123a"), line(code=" 85123A "), line(code="85123A"))
    assert {event["item_id"] for event in events} == {"85123A"}
    assert list(items) == ["85123A"]
    assert manifest["quirks"]["code_variants"] == 2


def test_duplicate_lines_keep_equal_raw_and_ids_of_their_own(tmp_path: Path) -> None:
    events, _, manifest = ingested(tmp_path, line(), line("545221"), line())
    first, other, again = events
    assert first["raw"] == again["raw"] != other["raw"]
    assert len({event["event_id"] for event in events}) == 3
    assert manifest["quirks"]["duplicate_lines"] == 1


def test_ids_of_lines_dont_depend_on_the_lines_around_them(tmp_path: Path) -> None:
    alone, _, _ = ingested(tmp_path / "a", line())
    among, _, _ = ingested(tmp_path / "b", line("1"), line(), line("2"))
    assert alone[0]["event_id"] == among[1]["event_id"]


def test_zero_and_negative_prices_and_pieces_stay_as_they_are(tmp_path: Path) -> None:
    events, items, manifest = ingested(tmp_path, line(price="0.0"), line(price="-1.5"), line(pieces="-20", price="0.0"))
    assert [(event["quantity"], event["unit_price"]) for event in events] == [(6, 0.0), (6, -1.5), (-20, 0.0)]
    quirks = manifest["quirks"]
    assert (quirks["zero_prices"], quirks["negative_prices"], quirks["negative_pieces"]) == (2, 1, 1)
    assert items["85123A"]["price"] is None


def test_unspecified_country_is_null(tmp_path: Path) -> None:
    [event], _, manifest = ingested(tmp_path, line(country="Unspecified"))
    assert event["country"] is None
    assert manifest["quirks"]["unspecified_countries"] == 1


def test_title_is_the_description_of_most_sale_lines(tmp_path: Path) -> None:
    notes = [line(str(number), title="damaged", price="0.0", pieces="-5") for number in range(5)]
    _, items, manifest = ingested(
        tmp_path, *notes, line(title="LUNCH BAG  SUKI "), line("2", title="LUNCH BAG SUKI"), line(title="LUNCH BAG RED")
    )
    assert items["85123A"]["title"] == "LUNCH BAG SUKI"
    assert manifest["quirks"]["stock_notes"] == 5


def test_title_of_equally_many_lines_is_the_first_in_the_alphabet(tmp_path: Path) -> None:
    lines = [line(title="POPCORN HOLDER"), line(title="SMALL POPCORN HOLDER"), line(title="A HOLDER"), line(title="")]
    for number, turned in enumerate((lines, lines[::-1])):
        _, items, _ = ingested(tmp_path / str(number), *turned)
        assert items["85123A"]["title"] == "A HOLDER"


def test_price_is_that_of_most_sale_lines_and_of_equals_the_highest(tmp_path: Path) -> None:
    _, items, _ = ingested(tmp_path, line(price="2.1"), line(price="2.55"), line(price="9.0", pieces="0"))
    assert items["85123A"]["price"] == 2.55
    _, items, _ = ingested(tmp_path / "most", line(price="2.1"), line(price="2.55"), line("2", price="2.1"))
    assert items["85123A"]["price"] == 2.1


@pytest.mark.parametrize(
    "note",
    ["?", "??", "check", "CHECK", "damaged", "Damaged", "DAMAGED", "WET/MOULDY", "Found in w/hse", "thrown away",
     "?sold as sets?", "20713", "amazon", "FBA", "MIA", "Wet pallet-thrown away", "POSSIBLE DAMAGES OR LOST?"],
)  # fmt: skip
def test_stock_notes_are_no_titles_even_on_sale_lines(tmp_path: Path, note: str) -> None:
    _, items, manifest = ingested(tmp_path, line(title=note))
    assert items["85123A"]["title"] is None
    assert manifest["quirks"]["stock_notes"] == 1


@pytest.mark.parametrize(
    "title",
    ["POLYESTER FILLER PAD 40x40cm", "Dr. Jam's Arouzer Stress Ball", "*USB Office Mirror Ball",
     "3 TRADITIONAl CUTTERS", "WET BAG BLUE", "CHECK SHIRT MUG", "Mug"],
)  # fmt: skip
def test_product_names_in_any_case_are_titles(tmp_path: Path, title: str) -> None:
    _, items, _ = ingested(tmp_path, line(title=title))
    assert items["85123A"]["title"] == title


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ({"pieces": "abc"}, "Quantity: 'abc' is not a whole number of at most 15 digits"),
        ({"pieces": "2.5"}, "Quantity: '2.5' is not a whole number of at most 15 digits"),
        ({"pieces": "-9223372036854775808"}, "Quantity: '-9223372036854775808' is not a whole number"),
        ({"price": '"1,5"'}, "UnitPrice: '1,5' is not a number"),
        ({"price": "free"}, "UnitPrice: 'free' is not a number"),
        ({"price": "nan"}, "UnitPrice: 'nan' is not a number"),
        ({"price": "1e999"}, "UnitPrice: '1e999' is not a number"),
        ({"moment": "2011-02-30 10:00:00"}, "InvoiceDate: '2011-02-30 10:00:00' is not a moment like"),
        ({"moment": "01/03/2011"}, "InvoiceDate: '01/03/2011' is not a moment like"),
        ({"code": " "}, "StockCode: missing, expected a stock code"),
        ({"invoice": ""}, "InvoiceNo: missing, expected an invoice number"),
        (
            {"pieces": "", "price": "x"},
            "Quantity: missing, expected a whole number of at most 15 digits; UnitPrice: 'x'",
        ),
    ],
)
def test_field_that_cant_be_read_is_named_and_the_row_kept(tmp_path: Path, broken: dict[str, str], error: str) -> None:
    events, items, manifest = ingested(tmp_path, line(**broken), line())
    assert len(events) == 2
    assert events[0]["parse_error"].startswith(error)
    assert events[1]["parse_error"] is None
    assert manifest["quirks"]["parse_errors"] == 1
    assert items["85123A"]["price"] == 2.55


def test_whole_numbers_may_have_a_decimal_point(tmp_path: Path) -> None:
    events, _, _ = ingested(tmp_path, line(pieces="6.0"), line(pieces="+7"), line(pieces=" 8 "))
    assert [event["quantity"] for event in events] == [6, 7, 8]


_FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=12)


@run_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(*[_FIELD] * 8), max_size=12))
def test_every_line_is_one_row_that_keeps_its_text(tmp_path: Path, rows: list[tuple[str, ...]]) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    path = tmp_path / "2011-03-01.csv"
    path.write_text(f"{HEADER}\n{text.getvalue()}", encoding="utf-8")
    file = FeedFile(date(2011, 3, 1), path, path.name, path.stat().st_size, "", 0, True)
    staged = online_retail.read([file], load_settings(home=tmp_path / "var"))
    kept = [tuple(json.loads(raw).values()) for raw in staged.events["raw"].to_pylist()]
    assert kept == rows
    assert staged.events["row_id"].to_pylist() == list(range(len(rows)))
    assert len(set(staged.events["event_id"].to_pylist())) == len(rows)
