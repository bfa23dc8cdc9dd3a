"""The JSON Lines feed: canonical events and items, a line each."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as run_settings
from hypothesis import strategies as st

from recflow.errors import FeedError, FeedLate
from recflow.events import jsonl
from recflow.events.files import FeedFile
from recflow.events.ingest import ingest
from recflow.schema import EVENTS, ITEMS, STAGED_EVENTS, Days
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from tests.events.shop import DAY

EVENT = {"event_id": "e1", "event_timestamp": "2011-03-01T10:30:00+01:00", "event_type": "view", "item_id": "a"}
ITEM = {"item_id": "a", "title": "A", "price": 2.5}


def _write(tmp_path: Path, *events: Any, items: tuple[Any, ...] | None = None) -> Settings:
    for name, rows in (("events", events), ("items", items)):
        if rows is not None:
            folder = tmp_path / "feed" / name
            folder.mkdir(parents=True, exist_ok=True)
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (folder / f"{DAY}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return load_settings(home=tmp_path / "var", feed={"source": "jsonl", "path": tmp_path / "feed"})


def _ingested(tmp_path: Path, *events: Any, items: tuple[Any, ...] | None = None) -> tuple[list[Any], list[Any]]:
    settings = _write(tmp_path, *events, items=items)
    ingest(Days.one(DAY), settings)
    storage = Storage(settings)
    return tuple(storage.read_partition(noun, DAY).to_pylist() for noun in ("staged_events", "staged_items"))


def test_event_comes_in_as_it_is_and_missing_keys_are_null(tmp_path: Path) -> None:
    [event], _ = _ingested(tmp_path, EVENT)
    assert event == {
        **dict.fromkeys(STAGED_EVENTS.names),
        **EVENT,
        "event_timestamp": datetime(2011, 3, 1, 9, 30, tzinfo=UTC),
        "source": "jsonl",
        "row_id": 0,
        "raw": json.dumps(EVENT),
        "batch": "2011-03-01.jsonl",
        "event_date": DAY,
    }


def test_every_key_of_an_event_is_read(tmp_path: Path) -> None:
    full = {
        **EVENT, "user_id": "u", "session_id": "s", "quantity": 2, "unit_price": 1.25, "currency": "GBP",
        "country": "FR", "query": "tea", "rating": 4.5, "dwell_seconds": 3, "position": 7, "request_id": "r",
        "source": "till",
    }  # fmt: skip
    assert set(full) == set(EVENTS.names)
    [event], _ = _ingested(tmp_path, full)
    assert {name: event[name] for name in full if name != "event_timestamp"} == {
        name: value for name, value in full.items() if name != "event_timestamp"
    }


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ("{not json", "line: not a JSON object"),
        ("[1, 2]", "line: not a JSON object"),
        ('"text"', "line: not a JSON object"),
        (EVENT | {"quantity": "abc"}, "quantity: 'abc' is not a whole number of at most 15 digits"),
        (EVENT | {"quantity": 1.5}, "quantity: '1.5' is not a whole number of at most 15 digits"),
        (EVENT | {"unit_price": {"gbp": 1}}, "unit_price: '{\"gbp\":1}' is not a number"),
        (EVENT | {"position": 3_000_000_000}, "position: '3000000000' is not a whole number"),
        (
            EVENT | {"event_timestamp": "2011-03-01T10:30:00"},
            "event_timestamp: '2011-03-01T10:30:00' is not a moment with",
        ),
        (EVENT | {"event_timestamp": "yesterday"}, "event_timestamp: 'yesterday' is not a moment with offset"),
        ({"event_id": "e"}, "event_timestamp: missing; event_type: missing"),
    ],
)
def test_line_that_cant_be_read_is_kept_and_says_why(tmp_path: Path, broken: Any, error: str) -> None:
    (event, good), _ = _ingested(tmp_path, broken, EVENT | {"event_id": "e2"})
    assert event["parse_error"].startswith(error)
    assert good["parse_error"] is None
    kept = json.loads(event["raw"])
    assert kept == ({"line": broken} if isinstance(broken, str) else broken)


def test_event_without_an_id_gets_a_stable_one_of_its_own(tmp_path: Path) -> None:
    nameless = {key: value for key, value in EVENT.items() if key != "event_id"}
    events, _ = _ingested(tmp_path / "a", nameless, nameless)
    again, _ = _ingested(tmp_path / "b", EVENT, nameless, nameless)
    assert [event["event_id"] for event in again] == ["e1", *(event["event_id"] for event in events)]
    assert events[0]["event_id"] != events[1]["event_id"]


def test_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    settings = _write(tmp_path, EVENT, EVENT | {"quantitty": 1})
    with pytest.raises(
        FeedError, match=r"2011-03-01\.jsonl: line 2: unknown key 'quantitty'; did you mean 'quantity'\?"
    ):
        ingest(Days.one(DAY), settings)
    assert Storage(settings).days("staged_events") == []


def test_unknown_key_of_an_item_is_refused(tmp_path: Path) -> None:
    settings = _write(tmp_path, EVENT, items=(ITEM | {"titles": "A"},))
    with pytest.raises(
        FeedError, match=r"items/2011-03-01\.jsonl: line 1: unknown key 'titles'; did you mean 'title'\?"
    ):
        ingest(Days.one(DAY), settings)


@pytest.mark.parametrize(
    ("item", "found"),
    [
        ("{", "line: not a JSON object"),
        ({"title": "A"}, "item_id: missing"),
        (ITEM | {"price": "dear"}, "price: 'dear' is not a number"),
        (ITEM | {"active": "yes"}, "active: 'yes' is not true or false"),
    ],
)
def test_broken_item_is_refused(tmp_path: Path, item: Any, found: str) -> None:
    with pytest.raises(FeedError, match=rf"items/2011-03-01\.jsonl: line 2: expected an item, found {found}"):
        ingest(Days.one(DAY), _write(tmp_path, EVENT, items=(ITEM, item)))


def test_file_cut_inside_its_last_line_is_refused(tmp_path: Path) -> None:
    settings = _write(tmp_path, EVENT)
    path = tmp_path / "feed" / "events" / f"{DAY}.jsonl"
    path.write_text(json.dumps(EVENT) + "\n" + json.dumps(EVENT)[:20])
    with pytest.raises(FeedError, match=r"2011-03-01\.jsonl: truncated: expected a JSON object .* as line 2"):
        ingest(Days.one(DAY), settings)
    path.write_text(json.dumps(EVENT) + "\n" + json.dumps(EVENT))
    assert ingest(Days.one(DAY), settings).manifest["lines"] == 2


def test_of_an_item_s_lines_of_a_day_the_last_counts(tmp_path: Path) -> None:
    _, [first, second] = _ingested(
        tmp_path,
        EVENT,
        items=(ITEM, {"item_id": "b", "active": False}, ITEM | {"price": 3, "first_seen": "2011-01-01T00:00Z"}),
    )
    assert first == {
        **dict.fromkeys(ITEMS.names), "item_id": "a", "title": "A", "price": 3.0, "event_date": DAY,
        "first_seen": datetime(2011, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    assert (second["item_id"], second["active"], second["price"]) == ("b", False, None)


def test_feed_without_items_has_those_of_its_events(tmp_path: Path) -> None:
    bought = EVENT | {"event_type": "purchase", "quantity": 1, "currency": "GBP"}
    _, items = _ingested(tmp_path, bought | {"unit_price": 2}, bought | {"unit_price": 3}, EVENT | {"item_id": "b"})
    assert [(item["item_id"], item["price"], item["currency"], item["active"]) for item in items] == [
        ("a", 3.0, "GBP", True),
        ("b", None, None, None),
    ]


def test_file_without_lines_is_a_closed_day(tmp_path: Path) -> None:
    settings = _write(tmp_path, "", " ")
    assert ingest(Days.one(DAY), settings).manifest == {
        "days": "2011-03-01", "source": "jsonl", "lines": 0, "closed_days": 1,
    }  # fmt: skip
    with pytest.raises(FeedLate, match="2011-03-02"):
        ingest(Days.one(DAY + timedelta(days=1)), settings)


@run_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.fixed_dictionaries(
            {"event_timestamp": st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))},
            optional={
                "user_id": st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
                "quantity": st.integers(-(10**14), 10**14),
                "unit_price": st.floats(allow_nan=False, allow_infinity=False, width=32),
            },
        ),
        max_size=8,
    )
)
def test_values_come_out_as_they_went_in(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    path = tmp_path / "2011-03-01.jsonl"
    rows = [event | {"event_timestamp": event["event_timestamp"].isoformat(), "event_type": "view"} for event in events]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")
    file = FeedFile(DAY, path, path.name, path.stat().st_size, "", len(rows), True)
    staged = jsonl.read([file], load_settings(home=tmp_path / "var")).events.to_pylist()
    assert [event["parse_error"] for event in staged] == [None] * len(rows)
    for name in ("event_timestamp", "user_id", "quantity", "unit_price"):
        assert [event[name] for event in staged] == [event.get(name) for event in events]
