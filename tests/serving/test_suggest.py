"""What is suggested: what many asked for, the shopper's own searches, the catalogue; never what one stranger asked."""

import dataclasses
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from recflow.schema import EVENTS
from recflow.serving.feedback import EventLog
from recflow.serving.recommend import Recommender
from recflow.serving.requests import SuggestRequest
from recflow.serving.search.asked import popular_queries
from recflow.serving.search.changes import Change
from recflow.serving.search.part import SearchPart
from recflow.serving.search.suggesting import suggest
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from tests.serving.conftest import Built

UNTIL = date(2011, 3, 31)
NOW = datetime(2011, 4, 1, 12, tzinfo=UTC)


def search_event(number: int, query: str, day: date, **ids: str) -> dict[str, Any]:
    moment = datetime(day.year, day.month, day.day, 9, tzinfo=UTC) + timedelta(seconds=number)
    return {"event_id": f"{day}-{number}", "event_timestamp": moment, "event_type": "search", "query": query,
            "source": "storefront", **ids}  # fmt: skip


def suggested(recommender: Recommender, prefix: str, **asked: Any) -> list[str]:
    answer = suggest(recommender, SuggestRequest(prefix=prefix, **asked), None)
    return [row["text"] for row in answer["suggestions"]]


@pytest.fixture
def recommender(built: Built, settings: Settings) -> Recommender:
    return Recommender(built.bundle, settings, version="7", event_log=EventLog(settings))


def test_only_what_many_asked_for_is_others_to_see(settings: Settings) -> None:
    storage = Storage(settings)
    asked = {
        UNTIL: [
            *(search_event(user, " Red  MUG ", UNTIL, user_id=f"u{user}") for user in range(5)),
            *(search_event(10 + visit, "cheap clock", UNTIL, session_id=f"s{visit}") for visit in range(6)),
            *(search_event(20 + times, "my name is bob", UNTIL, user_id="bob") for times in range(9)),
        ],
        UNTIL - timedelta(days=30): [
            search_event(user, "too long ago", UNTIL - timedelta(days=30), user_id=f"u{user}") for user in range(9)
        ],
        UNTIL + timedelta(days=1): [
            search_event(user, "not yet", UNTIL + timedelta(days=1), user_id=f"u{user}") for user in range(9)
        ],
    }
    for day, rows in asked.items():
        storage.write_partition("events", day, pa.Table.from_pylist(rows, schema=EVENTS), {})
    assert popular_queries(UNTIL, settings) == {"red mug": 5, "cheap clock": 6}
    bolder = load_settings(home=settings.home, search={"min_query_shoppers": 1})
    assert "my name is bob" in popular_queries(UNTIL, bolder)
    assert popular_queries(UNTIL - timedelta(days=90), settings) == {}


def test_what_many_asked_for_is_suggested_where_the_catalogue_knows_its_words(built: Built, settings: Settings) -> None:
    bundle = built.bundle
    part = SearchPart.build(
        bundle.items, bundle.vectors, popularity=bundle.tables.popularity_scores(None),
        first_seen_day=bundle.first_seen_day, until=bundle.until, language="en",
        queries={"clock white": 9, "number one hit": 50},
    )  # fmt: skip
    version = dataclasses.replace(bundle, search=part)
    recommender = Recommender(version, settings, version="7", event_log=EventLog(settings))
    assert suggested(recommender, "cl")[0] == "clock white"
    assert "number one hit" not in suggested(recommender, "num", k=50)


def test_own_searches_come_first_until_they_are_forgotten(recommender: Recommender) -> None:
    log = recommender.event_log
    rows = [
        search_event(1, "Blue lantern for Bob", NOW.date(), user_id="bob", session_id="s1"),
        search_event(2, "red mug", NOW.date(), user_id="bob"),
        search_event(3, "blue glass", NOW.date(), session_id="s1"),
    ]
    log.append([row | {"event_timestamp": row["event_timestamp"].isoformat(timespec="microseconds")} for row in rows])
    assert suggested(recommender, "bl", user_id="bob")[0] == "Blue lantern for Bob"
    assert suggested(recommender, "", user_id="bob")[:2] == ["red mug", "Blue lantern for Bob"]
    assert suggested(recommender, "blue", session_id="s1")[:2] == ["blue glass", "Blue lantern for Bob"]
    for stranger in ({}, {"user_id": "alice"}, {"session_id": "s2"}):
        assert not any("Bob" in text for text in suggested(recommender, "bl", k=50, **stranger))
    log.forget("bob", now=NOW)
    assert not any("Bob" in text for text in suggested(recommender, "", k=50, user_id="bob", session_id="s1"))
    assert suggested(recommender, "blue", session_id="s1")[0] == "blue glass"
    log.close()


def test_a_worker_that_starts_later_knows_own_searches_too(recommender: Recommender, settings: Settings) -> None:
    row = search_event(1, "red mug", datetime.now(UTC).date(), user_id="bob")
    row["event_timestamp"] = datetime.now(UTC).isoformat(timespec="microseconds")
    recommender.event_log.append([row])
    assert EventLog(settings).queries(user_id="bob") == ["red mug"]
    recommender.event_log.follow()
    assert recommender.event_log.queries(user_id="bob") == ["red mug"]


def test_hidden_products_are_not_suggested_and_new_ones_are(recommender: Recommender) -> None:
    assert "RED MUG NUMBER 4" in suggested(recommender, "red mug", k=50)
    assert "WHITE CLOCK NUMBER 23" not in suggested(recommender, "white clock number 23", k=50)
    said = {"N1": {"title": "RED MUGGLE"}, "P04": {"active": False}, "P08": {"title": "TEAL VASE"}}
    recommender.set_changes({item_id: Change(item_id, fields, 4 * 10**15) for item_id, fields in said.items()})
    recommender.set_out_of_stock(["P12"])
    found = suggested(recommender, "red mug", k=50)
    assert "RED MUGGLE" in found
    assert not {"RED MUG NUMBER 4", "RED MUG NUMBER 8", "RED MUG NUMBER 12"} & set(found)
    assert suggested(recommender, "tea") == ["TEAL VASE"]


@pytest.mark.parametrize(
    "prefix", ["", " ", "!!", "\u0000", "a" * 256, "red " * 64, "🎁", "мug", "赤", "'; DROP", "(((("]
)
def test_whatever_is_typed_is_answered(recommender: Recommender, prefix: str) -> None:
    answer = suggest(recommender, SuggestRequest(prefix=prefix, k=3), None)
    assert len(answer["suggestions"]) <= 3
    for row in answer["suggestions"]:
        assert all(0 <= start < end <= len(row["text"]) for start, end in row["highlights"])
