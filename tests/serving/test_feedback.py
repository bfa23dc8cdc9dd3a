"""Events posted are judged one by one, on disk before the answer, there once, and known after a restart."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from recflow.schema import EVENTS
from recflow.serving.feedback import Appended, EventLog, judge_events, to_us
from recflow.settings import Settings, load_settings

NOW = datetime(2011, 4, 2, 12, tzinfo=UTC)


def _rows(*raw: dict) -> list[dict]:
    rows, rejected = judge_events(raw, now=NOW, max_future_seconds=300)
    assert rejected == []
    return rows


def _event(number: int, **more: object) -> dict:
    return {"event_id": f"e{number}", "event_type": "purchase", "user_id": "u1", "item_id": "A", **more}


def _lines(settings: Settings) -> list[dict]:
    folder = settings.home / "landing" / "feedback" / "events"
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def test_an_event_lands_in_the_file_of_its_utc_day_in_the_feeds_shape(settings: Settings) -> None:
    log = EventLog(settings)
    appended = log.append(_rows(_event(1, event_timestamp="2011-04-02T00:30:00+02:00", quantity=3)))
    assert (appended.accepted, appended.duplicates) == (1, 0)
    file = settings.home / "landing" / "feedback" / "events" / "2011-04-01.jsonl"  # 22:30 UTC the day before
    row = json.loads(file.read_text())
    assert row == {
        "event_id": "e1", "event_timestamp": "2011-04-01T22:30:00.000000+00:00", "event_type": "purchase",
        "user_id": "u1", "item_id": "A", "quantity": 3, "source": "storefront",
    }  # fmt: skip
    assert set(row) <= set(EVENTS.names)


def test_an_event_without_a_time_happened_now_and_gets_an_id() -> None:
    (row,) = _rows({"event_type": "search", "session_id": "s", "query": "mug"})
    assert row["event_timestamp"] == "2011-04-02T12:00:00.000000+00:00"
    assert len(row["event_id"]) == 32


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"event_type": "stolen"}, "event_type"),
        ({"event_timestamp": "2011-04-02T12:05:01Z"}, "event_timestamp"),  # 301 s after now
        ({"event_timestamp": "1999-12-31T23:59:59Z"}, "event_timestamp"),
        ({"event_timestamp": "2011-04-02T12:00:00"}, "event_timestamp"),  # no offset: which noon?
        ({"event_timestamp": "0001-01-01T00:00:00+14:00"}, "event_timestamp"),
        ({"item_id": None}, ""),
        ({"user_id": None}, ""),
        ({"quantity": 0}, "quantity"),
        ({"quantity": float("inf")}, "quantity"),
        ({"unit_price": float("nan")}, "unit_price"),
        ({"rating": 6}, "rating"),
        ({"surprise": 1}, "surprise"),
        ({"\ud800": 1}, ""),  # no UTF-8
        ({"user_id": "\ud800"}, "user_id"),
        ({"\u00e9": 1}, "\\xe9"),
        ({"user_id": "a\nb"}, "user_id"),
        ({"item_id": "x" * 129}, "item_id"),
    ],
)
def test_what_cannot_be_is_rejected_with_its_field(change: dict, path: str) -> None:
    rows, rejected = judge_events([_event(1), _event(2) | change], now=NOW, max_future_seconds=300)
    assert [row["event_id"] for row in rows] == ["e1"]
    assert (rejected[0]["index"], rejected[0]["event_id"], rejected[0]["errors"][0]["path"]) == (1, "e2", path)


def test_what_is_no_object_is_rejected() -> None:
    rows, rejected = judge_events([7, None, "x", []], now=NOW, max_future_seconds=300)
    assert (rows, [event["index"] for event in rejected]) == ([], [0, 1, 2, 3])


def test_five_minutes_ahead_and_years_behind_are_taken() -> None:
    _rows(_event(1, event_timestamp="2011-04-02T12:05:00Z"), _event(2, event_timestamp="2000-01-01T00:00:00Z"))


def test_an_event_id_counts_once_within_a_request_over_requests_and_over_a_restart(settings: Settings) -> None:
    log = EventLog(settings)
    assert log.append(_rows(_event(1), _event(1), _event(2))) == (2, 1)
    assert log.append(_rows(_event(2), _event(3))) == (1, 1)
    assert EventLog(settings).append(_rows(_event(1), _event(3), _event(4))) == (1, 2)
    # A retry without a time of its own falls on another day: the id still counts once.
    assert EventLog(settings).append(_rows(_event(1, event_timestamp="2011-04-01T00:00:00Z"))) == (0, 1)
    assert [row["event_id"] for row in _lines(settings)] == ["e1", "e2", "e3", "e4"]


def test_a_shoppers_newest_events_are_known_at_once_and_after_a_restart(settings: Settings) -> None:
    log = EventLog(settings)
    log.append(
        _rows(
            _event(1, event_timestamp="2011-04-02T10:00:00Z", quantity=2),
            _event(2, event_timestamp="2011-04-02T09:00:00Z", event_type="view", item_id="B", session_id="s"),
            _event(3, event_type="impression"),  # what the shop did is no history
            _event(4, user_id="u2"),
            _event(5, user_id=None, session_id="s", item_id="C", event_timestamp="2011-04-02T08:00:00Z"),
        )
    )
    for each in (log, EventLog(settings)):
        found = each.recent(user_id="u1")
        assert [(event.item_id, event.event_type, event.quantity) for event in found] == [
            ("B", "view", 1.0),
            ("A", "purchase", 2.0),
        ]
        assert found[1].timestamp_us == to_us(datetime(2011, 4, 2, 10, tzinfo=UTC))
        # The visit began before the shopper was known; e2 belongs to both and counts once.
        together = each.recent(user_id="u1", session_id="s")
        assert [event.event_id for event in together] == ["e5", "e2", "e1"]
        assert each.recent(user_id="nobody") == []


def test_the_newest_events_are_those_that_happened_last_in_whatever_order_they_came(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "var", features={"history_length": 3})
    log = EventLog(settings)
    for hour in (5, 1, 9, 3, 7):
        log.append(_rows(_event(hour, event_timestamp=f"2011-04-02T0{hour}:00:00Z")))
    for each in (log, EventLog(settings)):
        assert [event.event_id for event in each.recent(user_id="u1")] == ["e5", "e7", "e9"]


def test_shoppers_not_heard_of_for_longest_are_let_go(tmp_path: Path) -> None:
    log = EventLog(load_settings(home=tmp_path / "var", serving={"session_users": 2}))
    for number, user_id in enumerate(["u1", "u2", "u1", "u3"]):
        log.append(_rows(_event(number, user_id=user_id)))
    assert [len(log.recent(user_id=user_id)) for user_id in ("u1", "u2", "u3")] == [2, 0, 1]


def test_impressions_are_counted_by_item_since_a_moment_and_after_a_restart(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "var", serving={"shown_held": 4})
    log = EventLog(settings)
    shown = {"event_type": "impression", "request_id": "r"}
    log.append(
        _rows(
            _event(3, **shown, event_timestamp="2011-04-02T10:00:00Z", position=1),
            _event(1, **shown, event_timestamp="2011-04-02T08:00:00Z", position=1),
            _event(2, **shown, event_timestamp="2011-04-02T09:00:00Z", item_id="B", position=2, session_id="s"),
            _event(4, **shown, event_timestamp="2011-04-02T10:00:00Z", position=3),  # twice on one page
            _event(5, **shown, user_id=None, session_id="s", item_id="C"),
            _event(6, event_timestamp="2011-04-02T11:00:00Z"),  # a purchase
        )
    )
    nine, ten = (to_us(datetime(2011, 4, 2, hour, tzinfo=UTC)) for hour in (9, 10))
    for each in (log, EventLog(settings)):
        assert each.shown(user_id="u1", since_us=0) == {"A": 3, "B": 1}
        assert each.shown(user_id="u1", since_us=nine) == {"A": 2, "B": 1}
        assert each.shown(user_id="u1", since_us=ten + 1) == {}
        # The second is the user's and the visit's, and counts once.
        assert each.shown(user_id="u1", session_id="s", since_us=nine) == {"A": 2, "B": 1, "C": 1}
        assert each.shown(session_id="s", since_us=0) == {"B": 1, "C": 1}
        assert each.shown(user_id="nobody", since_us=0) == {}
    log.append(_rows(_event(7, **shown, item_id="D")))
    assert log.shown(user_id="u1", since_us=0) == {"A": 2, "B": 1, "D": 1}  # the newest four


def test_a_torn_last_line_is_cut_and_the_whole_ones_stay(settings: Settings) -> None:
    EventLog(settings).append(_rows(_event(1)))
    file = settings.home / "landing" / "feedback" / "events" / "2011-04-02.jsonl"
    with file.open("a") as stream:
        stream.write('{"event_id": "e2", "event_ty')
    log = EventLog(settings)
    assert file.read_text().endswith("}\n")
    log.append(_rows(_event(2), _event(3)))
    assert [row["event_id"] for row in _lines(settings)] == ["e1", "e2", "e3"]


def test_a_line_that_is_no_event_is_passed_over(settings: Settings) -> None:
    EventLog(settings).append(_rows(_event(1)))
    file = settings.home / "landing" / "feedback" / "events" / "2011-04-02.jsonl"
    file.write_text("[1]\nnot json\n{}\n" + file.read_text())
    assert [event.event_id for event in EventLog(settings).recent(user_id="u1")] == ["e1"]


def test_threads_and_tasks_at_once_lose_nothing(settings: Settings) -> None:
    logs = [EventLog(settings), EventLog(settings)]

    async def tasks(part: int) -> list[Appended]:
        calls = [logs[part % 2].append_async(_rows(_event(100 * part + n), _event(n))) for n in range(20)]
        return await asyncio.gather(*calls)

    def one_by_one(part: int) -> list[Appended]:
        return [logs[part % 2].append(_rows(_event(100 * part + n), _event(n))) for n in range(20)]

    with ThreadPoolExecutor(4) as pool:
        parts = [pool.submit(one_by_one, part) for part in (1, 2)]
        parts += [pool.submit(asyncio.run, tasks(part)) for part in (3, 4)]
        appended = [each for part in parts for each in part.result()]
    ids = [row["event_id"] for row in _lines(settings)]
    assert sorted(ids) == sorted({f"e{100 * part + n}" for part in range(5) for n in range(20)})
    assert (sum(each.accepted for each in appended), sum(each.duplicates for each in appended)) == (100, 60)


def test_only_the_newest_days_are_held_and_an_older_one_is_read_when_it_is_written(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "var", serving={"feedback_days": 2})
    log = EventLog(settings)
    for day in range(1, 6):
        log.append(_rows(_event(day, event_timestamp=f"2011-03-0{day}T10:00:00Z")))
    fresh = EventLog(settings)
    assert [event.event_id for event in fresh.recent(user_id="u1")] == ["e4", "e5"]
    assert fresh.append(_rows(_event(1, event_timestamp="2011-03-01T10:00:00Z"))) == (0, 1)


def test_an_event_of_a_thousand_unknown_fields_names_ten_of_them() -> None:
    raw = {"event_type": "view", "user_id": "u", "item_id": "i"} | {f"x{number}": 1 for number in range(1000)}
    rows, rejected = judge_events([raw], now=datetime(2026, 1, 1, tzinfo=UTC), max_future_seconds=0)
    assert rows == []
    assert [error["path"] for error in rejected[0]["errors"]] == [f"x{number}" for number in range(10)]
