"""Who is forgotten is gone from every worker's answers, for good; and what logs know follows from what was posted."""

import json
import os
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from recflow.serving.feedback import EventLog, erasures_folder, events_folder, rewrite_without, to_us
from recflow.serving.feedback.commits import Files
from recflow.settings import Settings, load_settings
from tests.serving.feedback_worker import row

NOON = datetime(2011, 4, 2, 12, tzinfo=UTC)


def _known(log: EventLog, user_id: str | None = "u", session_id: str | None = None) -> list[str]:
    return [event.event_id for event in log.recent(user_id=user_id, session_id=session_id)]


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def _held(log: EventLog) -> str:
    """Return all that a log's memory holds, as text."""
    return str(
        [(key, shopper.events, shopper.shown_users) for key, shopper in log._follower._shoppers._shoppers.items()]
    )


def test_a_forgotten_user_is_gone_in_all_workers_and_after_a_restart_and_later_events_count(
    settings: Settings,
) -> None:
    log, other = EventLog(settings), EventLog(settings)
    log.append(
        [
            row("e1", hours=9),
            row("e2", hours=10, session_id="s", event_type="impression", item_id="B"),
            row("e3", hours=11, session_id="s"),
            row("e4", hours=11, session_id="s", user_id=None),
            row("e5", hours=11, session_id="s", user_id="v"),
        ]
    )
    moment = other.forget("u", now=NOON)
    assert moment == NOON
    assert _lines(erasures_folder(settings)) == [
        {"user_id": "u", "requested_at": "2011-04-02T12:00:00.000000+00:00", "source": "storefront"}
    ]
    assert (erasures_folder(settings) / "2011-04-02.jsonl").exists()
    log.append([row("late", hours=8, session_id="s"), row("later", hours=13)])
    for each in (log, other, EventLog(settings)):
        assert _known(each) == ["later"]
        assert _known(each, None, "s") == ["e4", "e5"]
        assert _known(each, "v") == ["e5"]
        assert each.shown(user_id="u", session_id="s", since_us=0) == {}
        assert each.append([row("e1", hours=9)]) == (0, 1)  # its line is there until the pipeline takes it out


def test_memory_itself_lets_go_when_the_worker_looks_round(settings: Settings) -> None:
    log = EventLog(settings)
    log.append([row(f"e{n}", user_id="gone", session_id=f"s{n}", event_type=kind) for n, kind in enumerate(
        ["view", "impression", "view"])])  # fmt: skip
    log.append([row("stays", user_id="v", session_id="s1")])
    log.forget("gone", now=NOON)
    log.follow()
    assert "gone" not in _held(log)
    assert "stays" in _held(log)


def test_a_clock_that_is_ahead_is_forgotten_too_and_either_spelling_of_a_number(settings: Settings) -> None:
    log = EventLog(settings)
    log.append([row("e1", hours=12, user_id="17850"), row("e2", hours=12.05, user_id="17850.0")])
    assert log.forget("17850", now=NOON) == NOON + timedelta(minutes=3)
    for each in (log, EventLog(settings)):
        assert _known(each, "17850") == _known(each, "17850.0") == []
    log.append([row("e3", hours=12.1, user_id="17850.0")])
    assert _known(log, "17850.0") == ["e3"]


def test_requests_that_are_done_or_no_requests_at_all_are_passed_over(settings: Settings) -> None:
    log = EventLog(settings)
    log.append([row("e1")])
    log.forget("w", now=NOON)
    done = {"requested_at": "2011-04-02T13:00:00Z", "source": "storefront", "person": "ab", "done_on": "2011-04-03"}
    with (erasures_folder(settings) / "2011-04-02.jsonl").open("a") as stream:
        stream.write(f'{json.dumps(done)}\nno json\n{{"user_id": "u"}}\n{{"user_id": "v", "requ')  # the last is torn
    log.append([row("e2"), row("v1", user_id="v")])
    log.forget("x", now=NOON)
    for each in (log, EventLog(settings)):
        assert _known(each) == ["e1", "e2"]
        assert _known(each, "v") == ["v1"]
    assert (erasures_folder(settings) / "2011-04-02.jsonl").read_text().splitlines()[-1].startswith('{"user_id":"x"')


# -- taking lines out


def test_users_are_taken_out_of_the_files_and_every_log_reads_them_again(settings: Settings) -> None:
    log, other = EventLog(settings), EventLog(settings)
    yesterday = "2011-04-01T10:00:00.000000+00:00"
    log.append([row("y1", user_id="v", event_timestamp=yesterday), row("y2", user_id="v", event_timestamp=yesterday)])
    log.append([row("e1"), row("e2", user_id="v"), row("e3", user_id=None, session_id="s"), row("e4", user_id="w")])
    untouched = (events_folder(settings) / "2011-04-01.jsonl").stat()
    torn = '{"event_id": "torn", "user_id": "u"'
    with (events_folder(settings) / "2011-04-02.jsonl").open("a") as stream:
        stream.write(torn)
    (events_folder(settings) / ".rewriting-2011-03-01").write_text("left by a process that was killed")
    for user_id in ("u", "w"):
        log.forget(user_id, now=NOON)
    other.append([row("e5", user_id="v")])  # before `log` looks again
    assert rewrite_without(settings, {"u", "w", "nobody"}) == 2
    assert [line["event_id"] for line in _lines(events_folder(settings))] == ["y1", "y2", "e2", "e3", "e5"]
    assert {file.name for file in events_folder(settings).iterdir()} == {"2011-04-01.jsonl", "2011-04-02.jsonl"}
    assert (events_folder(settings) / "2011-04-01.jsonl").stat() == untouched
    other.append([row("e6", user_id="v")])
    for each in (log, other, EventLog(settings)):
        assert _known(each, "v") == ["y1", "y2", "e2", "e5", "e6"]
        assert _known(each, None, "s") == ["e3"]
        assert _known(each) == _known(each, "w") == []
    assert log.append([row("e1", hours=13), row("e2", user_id="v"), row("y1", user_id="v")]) == (1, 2)
    assert rewrite_without(settings, []) == 0


def test_what_happened_after_a_moment_stays_in_the_files(settings: Settings) -> None:
    log = EventLog(settings)
    log.append([row("before", hours=11), row("at", hours=12), row("after", hours=12.5), row("v", user_id="v", hours=1)])
    assert rewrite_without(settings, {"u": NOON}) == 2
    assert [line["event_id"] for line in _lines(events_folder(settings))] == ["after", "v"]


def test_a_home_without_feedback_has_nothing_to_take_out(settings: Settings) -> None:
    assert rewrite_without(settings, ["u"]) == 0


def test_lines_posted_while_a_file_is_written_anew_are_all_there(settings: Settings) -> None:
    log, other = EventLog(settings), EventLog(settings)
    posted: list[str] = []

    def post() -> None:
        while len(posted) < 300:
            posted.append(f"p{len(posted)}")
            log.append([row(posted[-1], user_id="v"), row(f"u{len(posted)}")])

    posting = threading.Thread(target=post)
    posting.start()
    removed = 0
    while posting.is_alive():
        removed += rewrite_without(settings, ["u"])
    posting.join()
    removed += rewrite_without(settings, ["u"])
    assert removed == 300
    assert [line["event_id"] for line in _lines(events_folder(settings))] == posted
    for each in (log, other):
        assert _known(each, "v") == posted
        assert each.append([row(event_id, user_id="v") for event_id in posted]) == (0, 300)


def test_a_disk_that_refuses_leaves_a_file_as_it_was(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(settings)
    log.append([row("e1"), row("v1", user_id="v")])
    file = events_folder(settings) / "2011-04-02.jsonl"
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        rewrite_without(settings, ["u"])
    with pytest.raises(OSError, match="No space"):
        log.forget("u", now=NOON)
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    assert _lines(erasures_folder(settings)) == []
    assert _known(log) == _known(EventLog(settings)) == ["e1"]
    assert rewrite_without(settings, ["u"]) == 1


# -- any order of all of it

_USERS = ("u", "v", None)
_EVENT = st.fixed_dictionaries(
    {
        "number": st.integers(0, 40),
        "minutes": st.integers(0, 4 * 1440),
        "user_id": st.sampled_from(_USERS),
        "session_id": st.sampled_from(("s", "t")),
        "event_type": st.sampled_from(("view", "purchase", "impression", "search")),
        "item_id": st.sampled_from(("A", "B")),
    }
)
_START = datetime(2011, 4, 1, tzinfo=UTC)


class AnyOrder(RuleBasedStateMachine):
    """Two workers of one shop and a list of what was accepted: all three know the same at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.home = tempfile.TemporaryDirectory()
        self.settings = load_settings(home=Path(self.home.name) / "var")
        self.logs = [EventLog(self.settings), EventLog(self.settings)]
        self.accepted: dict[str, dict[str, Any]] = {}
        self.erased: dict[str, int] = {}

    def teardown(self) -> None:
        for log in self.logs:
            log.close()
        self.home.cleanup()

    @rule(which=st.integers(0, 1), raw=st.lists(_EVENT, max_size=6))
    def post(self, which: int, raw: list[dict[str, Any]]) -> None:
        rows = []
        for event in raw:
            moment = _START + timedelta(minutes=event["minutes"])
            # A repeated event is sent with the same fields, save its time: retries may have no time of their own.
            known = self.accepted.get(f"e{event['number']}", {})
            fields = {name: value for name, value in event.items() if name not in ("number", "minutes")}
            fields |= {name: value for name, value in known.items() if name in fields}
            rows.append(
                {"event_id": f"e{event['number']}", "source": "storefront"}
                | {name: value for name, value in fields.items() if value is not None}
                | {"event_timestamp": moment.isoformat(timespec="microseconds")}
            )
        fresh: dict[str, dict[str, Any]] = {}
        for each in rows:
            if each["event_id"] not in self.accepted:
                fresh.setdefault(each["event_id"], each)
        assert self.logs[which].append(rows) == (len(fresh), len(rows) - len(fresh))
        self.accepted |= fresh

    @rule(which=st.integers(0, 1), user_id=st.sampled_from(("u", "v")), minutes=st.integers(0, 4 * 1440))
    def forget(self, which: int, user_id: str, minutes: int) -> None:
        moment = self.logs[which].forget(user_id, now=_START + timedelta(minutes=minutes))
        self.erased[user_id] = max(self.erased.get(user_id, 0), to_us(moment))
        for log in self.logs:
            assert log.recent(user_id=user_id) == []
            assert log.shown(user_id=user_id, since_us=0) == {}

    @rule()
    def take_out(self) -> None:
        until = {u: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us) for u, us in self.erased.items()}
        kept = {
            event_id: each
            for event_id, each in self.accepted.items()
            if to_us(datetime.fromisoformat(each["event_timestamp"])) > self.erased.get(each.get("user_id", ""), -1)
        }
        assert rewrite_without(self.settings, until) == len(self.accepted) - len(kept)
        self.accepted = kept

    @rule(which=st.integers(0, 1))
    def restart(self, which: int) -> None:
        self.logs[which].close()
        self.logs[which] = EventLog(self.settings)

    @rule(text=st.sampled_from(('{"event_id": "e1", "event_ti', "\x00\x00", "{")), day=st.integers(1, 4))
    def die_writing(self, text: str, day: int) -> None:
        """Leave what a process leaves that dies in its turn: the mark that it began, and a line without its end."""
        with Files(self.settings).turn() as turn:
            turn.begin()
            with (events_folder(self.settings) / f"2011-04-0{day}.jsonl").open("a") as stream:
                stream.write(text)

    @rule(which=st.integers(0, 1))
    def look_round(self, which: int) -> None:
        self.logs[which].follow()

    @invariant()
    def all_know_what_was_accepted(self) -> None:
        assert sorted(self.accepted) == sorted(self._on_disk())
        for log in self.logs:
            for user_id in ("u", "v", None):
                for session_id in ("s", "t", None):
                    mine = [
                        each
                        for each in self.accepted.values()
                        if self._counts(each)
                        and (
                            (user_id is not None and each.get("user_id") == user_id)
                            or (session_id is not None and each["session_id"] == session_id)
                        )
                    ]
                    recent = log.recent(user_id=user_id, session_id=session_id)
                    assert sorted((event.timestamp_us, event.event_id) for event in recent) == sorted(
                        (to_us(datetime.fromisoformat(each["event_timestamp"])), each["event_id"])
                        for each in mine
                        if each["event_type"] in ("view", "purchase")
                    )
                    assert [event.timestamp_us for event in recent] == sorted(event.timestamp_us for event in recent)
                    items = [each["item_id"] for each in mine if each["event_type"] == "impression"]
                    shown = log.shown(user_id=user_id, session_id=session_id, since_us=0)
                    assert shown == {item_id: items.count(item_id) for item_id in set(items)}

    def _counts(self, each: dict[str, Any]) -> bool:
        moment = to_us(datetime.fromisoformat(each["event_timestamp"]))
        return moment > self.erased.get(each.get("user_id", ""), -1)

    def _on_disk(self) -> list[str]:
        ids = []
        for file in events_folder(self.settings).glob("*.jsonl"):
            *lines, _torn = file.read_bytes().split(b"\n")
            ids += [json.loads(line)["event_id"] for line in lines]
        return ids


AnyOrder.TestCase.settings = hypothesis_settings(max_examples=25, stateful_step_count=20, deadline=None)
TestAnyOrder = AnyOrder.TestCase
