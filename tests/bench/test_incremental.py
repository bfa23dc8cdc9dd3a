"""The tables of `recflow bench incremental`, by hand."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from recflow.bench import incremental
from recflow.bench.incremental import bench_incremental, summarize
from recflow.cli import app
from recflow.errors import FeedError
from recflow.settings import Settings

DAYS = [date(2011, 11, day) for day in (7, 8, 9)]


def _figures(any_task: float, new: float, **cpu_seconds: float) -> dict[str, Any]:
    return {"ndcg": {"ranker": {"any": any_task, "new": new}}, "cpu_seconds": cpu_seconds}


def test_shares_and_means_by_hand() -> None:
    found = summarize(
        {
            DAYS[0]: {"full": _figures(0.40, 0.10, ranker=20, ease=1)},
            DAYS[1]: {"incremental": _figures(0.36, 0.11, ranker=2, ease=1), "full": _figures(0.40, 0.10, ranker=30)},
            DAYS[2]: {"incremental": _figures(0.30, 0.20, ranker=9)},
        }
    )
    first, second, mean = found["figures"]
    assert (first["until"], second["until"], mean["until"]) == ("2011-11-08", "2011-11-09", "mean")
    assert (first["kept_any"], first["kept_new"]) == pytest.approx((0.36 / 0.40, 0.11 / 0.10))
    assert first["kept"] == pytest.approx((0.9 + 1.1) / 2)
    assert second["kept"] is None
    assert list(first) == list(second)  # a table has the columns of its first line
    # Only days with both kinds: the second of the three.
    assert {**first, "until": "mean"} == mean
    # Against the first day's 21 seconds: full ones beside a step aren't whole.
    assert found["costs"] == [
        {"until": "2011-11-08", "incremental_cpu_seconds": 3, "full_cpu_seconds": 21, "share": round(3 / 21, 3)},
        {"until": "2011-11-09", "incremental_cpu_seconds": 9, "full_cpu_seconds": 21, "share": round(9 / 21, 3)},
        {"until": "mean", "incremental_cpu_seconds": 6, "full_cpu_seconds": 21, "share": round(6 / 21, 3)},
    ]


def test_a_mean_is_over_the_days_with_both() -> None:
    days = {DAYS[0]: {"full": _figures(0.9, 0.9, all=4)}} | {
        day: {"incremental": _figures(value, value, all=1), "full": _figures(0.4, 0.4, all=4)}
        for day, value in zip(DAYS[1:], (0.2, 0.4), strict=True)
    }
    mean = summarize(days)["figures"][-1]
    assert (mean["any"], mean["kept"]) == (pytest.approx(0.3), pytest.approx(0.75))


def test_the_command_prints_its_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def fake(data: Path, settings: Settings, **options: Any) -> dict[str, Any]:
        asked.update(options, data=data)
        return {"figures": [{"candidate": "one"}], "costs": [{"share": "two"}]}

    monkeypatch.setattr(incremental, "bench_incremental", fake)
    ended = CliRunner().invoke(
        app, ["bench", "incremental", "--data", str(tmp_path), "--until", "2011-11-20", "--full-every", "2"]
    )
    assert ended.exit_code == 0, ended.output
    assert asked == {
        "data": tmp_path, "days": 14, "until": date(2011, 11, 20), "full_every": 2, "json_path": None
    }  # fmt: skip
    assert "one" in ended.output
    assert "two" in ended.output


def test_a_folder_without_days_is_told(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(FeedError, match="expected daily files"):
        bench_incremental(tmp_path, settings)
