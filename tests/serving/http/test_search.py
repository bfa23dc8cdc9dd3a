"""Searching, suggesting and telling of items over the API; searches come back as events."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recflow.serving.http.table import table
from recflow.serving.search.finder import Finder
from recflow.settings import Settings, load_settings
from tests.serving.conftest import Built
from tests.serving.http.conftest import Door, Worker, problem, swap

MUGS = {"P00", "P04", "P08", "P12", "P16", "P20"}


def found(door: Door, query: str, **asked: Any) -> list[str]:
    answer = door.ask("POST", "/v1/search", json={"query": query, "k": 50} | asked)
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def put(door: Door, *lines: dict[str, Any]) -> Any:
    return door.ask("PUT", "/v1/items", json={"items": lines})


def events(settings: Settings) -> list[dict[str, Any]]:
    files = sorted((settings.home / "landing" / "feedback" / "events").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


async def written(door: Door) -> None:
    await asyncio.gather(*door.shop._beside)


def test_a_search_is_answered_and_comes_back_as_an_event(worker: Worker, settings: Settings) -> None:
    door = worker()
    answer = door.ask("POST", "/v1/search", json={"query": "red mug", "user_id": "13001.0", "session_id": "s1", "k": 2})
    content = answer.json()
    assert {item["item_id"] for item in content["items"]} < MUGS
    following = door.ask(
        "POST", "/v1/search", json={"query": "red mug", "user_id": "13001.0", "k": 2, "page": content["next_page"]}
    )
    assert following.status_code == 200
    assert found(door, "red mug")  # nobody's
    assert found(door, "", user_id="13001.0")  # no search
    door.ask(
        "POST", "/v1/batch", json={"requests": [{"call": "search", "body": {"query": "clock", "session_id": "s2"}}]}
    )
    door.runner.run(written(door))
    kept = sorted(events(settings), key=lambda event: event["query"], reverse=True)
    assert [event["query"] for event in kept] == ["red mug", "clock"]
    assert kept[0].items() >= {
        "event_type": "search", "user_id": "13001.0", "session_id": "s1", "source": "storefront",
        "request_id": content["request_id"], "event_id": f"search-{content['request_id']}",
    }.items()  # fmt: skip


def test_searches_are_pseudonyms_events_or_none_as_the_settings_say(
    open_door: Callable[..., Door], built: Built, settings: Settings
) -> None:
    hidden = Door(load_settings(home=settings.home, privacy={"pseudonym_key": "k" * 32}), table())
    silent = Door(load_settings(home=settings.home / "other", search={"log_searches": False}), table())
    for door in (hidden, silent):
        swap(door, built)
        assert found(door, "red mug", user_id="13001.0")
        door.close()
    assert [event["user_id"][:2] for event in events(hidden.settings)] == ["p_"]
    assert events(silent.settings) == []


def test_a_search_that_fails_is_answered_by_what_is_popular_and_stands_in_no_log(
    worker: Worker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = worker(request_log_share=1.0)
    caplog.set_level("DEBUG")
    popular = found(door, "")

    def fail(finder: Finder, query: str) -> Any:
        raise KeyError(query)

    monkeypatch.setattr(Finder, "understand", fail)
    answer = door.ask("POST", "/v1/search", json={"query": "my secret illness", "user_id": "13001.0", "k": 50})
    assert answer.json()["fallback"]["kind"] == "tables"
    assert [item["item_id"] for item in answer.json()["items"]] == popular
    assert "failed to search (KeyError)" in caplog.text
    assert "secret" not in caplog.text + answer.text


@pytest.mark.parametrize(
    ("call", "body", "path"),
    [
        ("search", {"query": "mug", "page": "abc"}, "page"),
        ("search", {"query": "a" * 10_001}, "query"),
        ("search", {"query": "mug", "filters": {"colour": "red"}}, "filters.colour"),
        ("suggest", {"prefix": "a" * 257}, "prefix"),
        ("suggest", {"k": 5}, "prefix"),
    ],
)
def test_what_cannot_be_asked_is_named(worker: Worker, call: str, body: dict[str, Any], path: str) -> None:
    refused = problem(worker().ask("POST", f"/v1/{call}", json=body), 422)
    assert any(error["path"].startswith(path) for error in refused["errors"])


def test_suggestions(worker: Worker) -> None:
    answer = worker().ask("POST", "/v1/suggest", json={"prefix": "blue l", "k": 4})
    suggestions = answer.json()["suggestions"]
    assert suggestions[0] == {"text": "blue lantern number", "kind": "query", "highlights": [[0, 4], [5, 6]]}
    assert {row["kind"] for row in suggestions} == {"query", "product"}
    of_mine = worker().ask("POST", "/v1/suggest", json={"prefix": "number", "session": [{"item_id": "P05"}]})
    products = [row["text"][:12] for row in of_mine.json()["suggestions"] if row["kind"] == "product"]
    assert products[0] == "BLUE LANTERN"


# -- PUT /v1/items


def test_items_are_found_at_once_here_and_with_the_next_look_elsewhere(worker: Worker, built: Built) -> None:
    told, other = worker(), worker()
    said = put(
        told,
        {"item_id": "N1", "title": "CRIMSON TEAPOT", "price": 3.5},
        {"item_id": "p00", "title": "SILVER TANKARD"},
        {"item_id": "P04", "active": False},
    )
    assert said.status_code == 200, said.text
    assert {name: said.json()[name] for name in ("added", "changed", "withdrawn", "kept")} == {
        "added": 1, "changed": 1, "withdrawn": 1, "kept": 3
    }  # fmt: skip
    put(told, {"item_id": "P00", "price": 50.0})  # adds to what was said before
    assert found(told, "teapot")[0] == "N1"
    assert "N1" not in found(other, "teapot")
    other.shop.follow_items()
    for door in (told, other, worker()):
        assert found(door, "teapot")[0] == "N1"
        tankard = door.ask("POST", "/v1/search", json={"query": "tankard"}).json()["items"][0]
        assert (tankard["item_id"], tankard["price"]) == ("P00", 50.0)
        assert set(found(door, "red mug")) == MUGS - {"P00", "P04"}
        assert door.ask("GET", "/v1/items/N1").json()["title"] == "CRIMSON TEAPOT"
        assert not door.ask("GET", "/v1/items/P04").json()["is_offered"]
    put(told, {"item_id": "P04", "active": True}, {"item_id": "N1", "active": False})
    assert "P04" in found(told, "red mug")
    assert "N1" not in found(told, "teapot")
    before = other.shop.slot.current.offer
    other.shop.follow_items()
    after = other.shop.slot.current.offer
    other.shop.follow_items()
    assert before is not after is other.shop.slot.current.offer


def test_stock_of_an_item_that_was_added_holds(worker: Worker) -> None:
    door = worker()
    put(door, {"item_id": "N1", "title": "CRIMSON TEAPOT"})
    lines = [{"item_id": "n1", "in_stock": False}]
    assert door.ask("PUT", "/v1/stock", json={"items": lines}).json()["unknown_item_ids"] == []
    assert "N1" not in found(door, "teapot")
    assert not door.ask("GET", "/v1/items/N1").json()["in_stock"]


def test_items_can_be_said_before_there_is_a_version(worker: Worker, built: Built) -> None:
    door = worker()
    door.shop.slot.current = None
    assert put(door, {"item_id": "N1", "title": "CRIMSON TEAPOT"}).json()["kept"] == 1
    swap(door, built)
    assert found(door, "teapot")[0] == "N1"


def test_too_many_are_refused_and_nothing_is_taken(built: Built, settings: Settings) -> None:
    door = Door(load_settings(home=settings.home, search={"max_changed_items": 2}), table())
    swap(door, built)
    assert put(door, {"item_id": "P00", "price": 1.0}, {"item_id": "N1", "title": "CRIMSON TEAPOT"}).status_code == 200
    # P00 costs what the catalogue says: it makes room for another one.
    assert put(door, {"item_id": "N2", "title": "SCARLET TEAPOT"}).status_code == 200
    problem(put(door, {"item_id": "N3", "title": "PINK TEAPOT"}), 422)
    assert set(found(door, "teapot")[:2]) == {"N1", "N2"}
    problem(put(door, *[{"item_id": f"X{number}"} for number in range(1_001)]), 422)
    problem(put(door, {"item_id": "N1", "price": -1}), 422)
    door.close()


def test_what_cannot_be_kept_is_refused_and_what_was_known_holds_on(worker: Worker, settings: Settings) -> None:
    door = worker()
    put(door, {"item_id": "N1", "title": "CRIMSON TEAPOT"})
    file = Path(settings.home / "items.db")
    file.write_bytes(b"no database" * 1_000)
    refused = put(door, {"item_id": "N2", "title": "SCARLET TEAPOT"})
    problem(refused, 503)
    assert refused.headers["retry-after"] == "5"
    with pytest.raises(Exception, match=r"items\.db"):
        door.shop.follow_items()
    assert {"part": "items"}.items() <= door.ask("GET", "/readyz").json()["degraded"][0].items()
    assert "N1" in found(door, "teapot")
    assert found(worker(), "red mug")  # a version is served all the same
    file.unlink()
    door.shop.follow_items()
    assert door.ask("GET", "/readyz").json()["degraded"] == []
    assert "N1" not in found(door, "teapot")


def test_a_file_that_another_worker_is_still_making_is_no_trouble(worker: Worker, settings: Settings) -> None:
    door = worker()
    sqlite3.connect(settings.home / "items.db").close()
    (settings.home / "items.db").touch()
    door.shop.follow_items()
    assert door.ask("GET", "/readyz").json()["degraded"] == []
