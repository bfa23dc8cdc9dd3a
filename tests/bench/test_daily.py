"""`recflow bench daily`, on a history of days instead of months."""

import json
from pathlib import Path
from typing import Any

import pytest

from recflow.bench import daily
from recflow.events import simulator
from recflow.settings import Settings

FIGURES = ["history_days", "median_seconds", "max_seconds", "ratio"]


@pytest.fixture(autouse=True)
def _few_days(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulator.simulate

    def small(out: Path, *, days: int, users: int, items: int, seed: int) -> dict[str, int]:
        assert (users, items) == (400, 1000)
        return whole(out, days=days, users=30, items=20, seed=seed)

    monkeypatch.setattr(simulator, "simulate", small)
    monkeypatch.setattr(daily, "SHORT", 2)
    monkeypatch.setattr(daily, "LONG", 5)
    monkeypatch.setattr(daily, "_TIMED", 1)


def test_a_day_more_is_timed_after_a_short_and_a_long_history(settings: Settings, tmp_path: Path) -> None:
    rows = daily.bench_daily(settings, json_path=tmp_path / "bench.json")
    assert [list(row) for row in rows] == [FIGURES, FIGURES]
    assert [row["history_days"] for row in rows] == [2, 5]
    assert all(0 < row["median_seconds"] <= row["max_seconds"] for row in rows)
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8")) == rows
    assert list((settings.home / "bench").iterdir()) == []


def test_the_ratio_is_that_of_the_medians(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daily, "_TIMED", 3)
    monkeypatch.setattr(daily, "_prepared", lambda scratch, history, start: history)
    seconds = {2: iter([4.0, 2.0, 9.0]), 5: iter([5.0, 8.0, 1.0])}
    asked: list[Any] = []

    def one_more_day(history: Any, day: Any) -> float:
        asked.append((history, (day - simulator.START).days))
        return next(seconds[history])

    monkeypatch.setattr(daily, "_one_more_day", one_more_day)
    assert [list(row.values()) for row in daily.bench_daily(settings)] == [[2, 4.0, 9.0, 1.0], [5, 5.0, 8.0, 1.25]]
    # In turn, each on the days after its own history and the day that paid for the imports.
    assert asked == [(2, 3), (5, 6), (2, 4), (5, 7), (2, 5), (5, 8)]


def test_what_it_made_is_gone_after_a_failure_too(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> float:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(daily, "_one_more_day", fail)
    monkeypatch.setattr(daily, "_prepared", lambda scratch, history, start: settings)
    with pytest.raises(OSError, match="No space left"):
        daily.bench_daily(settings)
    assert list((settings.home / "bench").iterdir()) == []
