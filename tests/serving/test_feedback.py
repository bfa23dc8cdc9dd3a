"""Events posted are on disk before the answer, once, and survive whatever happens to the process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from recflow.schema import EVENTS
from recflow.serving.feedback import EventLog, judge_events, to_us
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
    assert (rejected[0].index, rejected[0].event_id, rejected[0].errors[0]["path"]) == (1, "e2", path)


def test_what_is_no_object_is_rejected() -> None:
    rows, rejected = judge_events([7, None, "x", []], now=NOW, max_future_seconds=300)
    assert (rows, [event.index for event in rejected]) == ([], [0, 1, 2, 3])


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


def test_a_disk_that_is_full_keeps_nothing_of_the_request(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(settings)
    log.append(_rows(_event(1)))
    real, calls = os.write, []

    def full(descriptor: int, content: bytes) -> int:
        calls.append(len(content))
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(descriptor, content[: len(content) // 2] if len(calls) == 1 else content)

    monkeypatch.setattr(os, "write", full)  # the first write is short, the second fails
    with pytest.raises(OSError, match="No space"):
        log.append(_rows(_event(2), _event(3, event_timestamp="2011-04-01T00:00:00Z")))
    monkeypatch.undo()
    assert [row["event_id"] for row in _lines(settings)] == ["e1"]
    assert [event.event_id for event in log.recent(user_id="u1")] == ["e1"]
    assert log.append(_rows(_event(2), _event(3, event_timestamp="2011-04-01T00:00:00Z"))) == (2, 0)
    assert sorted(row["event_id"] for row in _lines(settings)) == ["e1", "e2", "e3"]


def test_workers_see_each_others_events_and_none_twice(settings: Settings) -> None:
    one, other = EventLog(settings), EventLog(settings)
    one.append(_rows(_event(1)))
    assert other.recent(user_id="u1") == []
    other.follow()
    assert [event.event_id for event in other.recent(user_id="u1")] == ["e1"]
    assert other.append(_rows(_event(1), _event(2))) == (1, 1)
    one.append(_rows(_event(2), _event(3)))  # it hadn't followed: it reads on before it writes
    assert [row["event_id"] for row in _lines(settings)] == ["e1", "e2", "e3"]


def test_threads_at_once_lose_nothing(settings: Settings) -> None:
    logs = [EventLog(settings), EventLog(settings)]
    threads = [
        threading.Thread(
            target=lambda part=part: [
                logs[part % 2].append(_rows(_event(100 * part + n), _event(n))) for n in range(20)
            ]
        )
        for part in range(1, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [row["event_id"] for row in _lines(settings)]
    assert sorted(ids) == sorted({f"e{100 * part + n}" for part in range(5) for n in range(20)})


def test_only_the_newest_days_are_held_and_an_older_one_is_read_when_it_is_written(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "var", serving={"feedback_days": 2})
    log = EventLog(settings)
    for day in range(1, 6):
        log.append(_rows(_event(day, event_timestamp=f"2011-03-0{day}T10:00:00Z")))
    fresh = EventLog(settings)
    assert [event.event_id for event in fresh.recent(user_id="u1")] == ["e4", "e5"]
    assert fresh.append(_rows(_event(1, event_timestamp="2011-03-01T10:00:00Z"))) == (0, 1)


def test_every_acknowledged_event_outlives_a_sigkill(settings: Settings) -> None:
    program = f"""
import sys
from datetime import UTC, datetime
from recflow.serving.feedback import EventLog, judge_events
from recflow.settings import load_settings
log = EventLog(load_settings(home={str(settings.home)!r}))
for n in range(1_000_000):
    raw = [{{"event_id": f"k{{n}}-{{m}}", "event_type": "view", "user_id": "u", "item_id": "A"}} for m in range(20)]
    rows, _ = judge_events(raw, now=datetime(2011, 4, 2, tzinfo=UTC), max_future_seconds=0)
    log.append(rows)
    sys.stdout.write(f"{{n}}\\n")
    sys.stdout.flush()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(0.4)
        writer.send_signal(signal.SIGKILL)
        acknowledged = [int(line) for line in [first, *writer.stdout.read().splitlines()] if line.strip()]
    assert len(acknowledged) > 3
    EventLog(settings)
    ids = [row["event_id"] for row in _lines(settings)]
    assert len(ids) == len(set(ids))
    assert {f"k{n}-{m}" for n in acknowledged for m in range(20)} <= set(ids)
