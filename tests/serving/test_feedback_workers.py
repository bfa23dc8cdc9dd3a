"""What one worker acknowledged is known to every other one at once, is there once, and outlives whoever is killed."""

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from recflow.serving.feedback import EventLog, events_folder
from recflow.settings import Settings, load_settings
from tests.serving.feedback_worker import Worker, row, workers

DEATHS = ("in the middle of the write", "before the sync", "before it is announced", "before it is acknowledged")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers") / "var"


@pytest.fixture(scope="module")
def shop(home: Path) -> Settings:
    return load_settings(home=home)


@pytest.fixture(scope="module")
def four(home: Path) -> Iterator[list[Worker]]:
    with workers(home, 4) as started:
        yield started


def _ids(settings: Settings) -> list[str]:
    texts = [file.read_text() for file in sorted(events_folder(settings).glob("*.jsonl"))]
    assert all(text.endswith("\n") for text in texts)
    return [json.loads(line)["event_id"] for text in texts for line in text.splitlines()]


def test_what_is_acknowledged_is_in_the_next_answer_of_every_worker(four: list[Worker]) -> None:
    for number in range(40):
        writer = four[number % 4]
        wanted = [f"seen-{number}-{part}" for part in range(3)]
        assert writer.ask("append", [row(each, user_id=f"seen-{number}") for each in wanted]) == (3, 0)
        assert [worker.ask("recent", f"seen-{number}") for worker in four] == [wanted] * 4


def test_events_of_many_days_and_of_a_whole_request_are_in_the_next_answer_too(four: list[Worker]) -> None:
    days = [row(f"day-{day}", user_id="d", event_timestamp=f"2011-03-{day:02d}T00:00:00+00:00") for day in range(1, 29)]
    many = [row(f"many-{n}", user_id="m", hours=n / 1000, query="x" * 500) for n in range(1000)]
    assert four[0].ask("append", days) == (28, 0)
    assert four[1].ask("append", many) == (1000, 0)
    for worker in four:
        assert worker.ask("recent", "d") == [each["event_id"] for each in days]  # older days than those held, too
        assert worker.ask("recent", "m") == [f"many-{n}" for n in range(600, 1000)]


def test_impressions_and_erasures_reach_every_worker(four: list[Worker]) -> None:
    shown = [row(f"i-{n}", user_id="i", event_type="impression", item_id="AB"[n % 2]) for n in range(5)]
    four[0].ask("append", [*shown, row("i-view", user_id="i")])
    assert [worker.ask("shown", "i") for worker in four] == [{"A": 3, "B": 2}] * 4
    four[1].ask("forget", "i", datetime(2011, 4, 2, 13, tzinfo=UTC))
    assert [worker.ask("shown", "i") for worker in four] == [{}] * 4
    assert [worker.ask("recent", "i") for worker in four] == [[]] * 4
    four[2].ask("append", [row("i-later", user_id="i", hours=14)])
    assert [worker.ask("recent", "i") for worker in four] == [["i-later"]] * 4


@pytest.mark.parametrize("point", DEATHS)
def test_a_writer_that_dies_leaves_nothing_torn_and_nothing_twice(home: Path, four: list[Worker], point: str) -> None:
    """Its request was never acknowledged: it is sent again, to another worker and without a time of its own."""
    settings, user = load_settings(home=home), f"dying {point}"
    rows = [row(f"{point}-{n}", user_id=user) for n in range(6)]
    with workers(home, 1) as (victim,):
        victim.ask("die", point)
        with pytest.raises(EOFError):
            victim.ask("append", rows)
    before_death = [worker.ask("recent", user) for worker in four[1:]]
    assert before_death == [[each["event_id"] for each in rows] if point == DEATHS[3] else []] * 3
    tomorrow = "2011-04-03T00:00:01.000000+00:00"
    appended = four[0].ask("append", [each | {"event_timestamp": tomorrow} for each in rows])
    left = 5 if point == DEATHS[0] else 6  # whole lines
    assert appended == (6 - left, left)
    wanted = [each["event_id"] for each in rows]
    assert [worker.ask("recent", user) for worker in four] == [wanted] * 4
    assert [event.event_id for event in EventLog(settings).recent(user_id=user)] == wanted
    counts = Counter(_ids(settings))
    assert {counts[each] for each in wanted} == {1}


def test_every_acknowledged_event_outlives_writers_that_are_killed(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "var")
    acknowledged: set[str] = set()
    reader = EventLog(settings)
    with workers(settings.home, 3) as writers:
        for number, writer in enumerate(writers):
            writer.tell("append for ever", f"w{number}")
        for writer in writers:  # each in the middle of its work, while the others go on
            for _ in range(20):
                acknowledged.update(writer.hear())
            writer.process.kill()
            time.sleep(0.05)
        for writer in writers:
            writer.process.join()
            assert writer.process.exitcode == -signal.SIGKILL
            try:
                while True:
                    acknowledged.update(writer.hear())
            except EOFError:
                pass
    reader.append([row("the last", user_id="w0")])  # finishes what the killed left behind
    ids = _ids(settings)
    assert len(ids) == len(set(ids))
    assert acknowledged <= set(ids)
    for log in (reader, EventLog(settings)):
        for name in ("w0", "w1", "w2"):
            mine = [each for each in ids if each.startswith(name)][-20:]
            assert set(mine) <= {event.event_id for event in log.recent(user_id=name)}
