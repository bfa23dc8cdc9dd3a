"""What one more day costs the line, with a short history and with a long one."""

import shutil
import statistics
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from recflow.console import log, track
from recflow.schema import Days
from recflow.settings import Settings
from recflow.storage import write_json

SHORT, LONG = 30, 300  # days of history before the days that are timed
_TIMED = 5


def bench_daily(settings: Settings, *, json_path: Path | None = None) -> list[dict[str, Any]]:
    """Time one more day's ingest to materialize after 30 and after 300 days of history; one row per history length.

    The feed is simulated, so that the days compared are alike in size: what differs is the history alone. The days of
    both histories are timed in turn in this process, after its imports are paid, and the medians are compared.
    """
    from recflow.events.simulator import START, simulate

    scratch = settings.home / "bench" / "daily"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        simulate(scratch / "feed", days=LONG + _TIMED + 1, users=400, items=1000, seed=0)
        homes = {history: _prepared(scratch, history, START) for history in (SHORT, LONG)}
        seconds: dict[int, list[float]] = {SHORT: [], LONG: []}
        turns = [(turn, history) for turn in range(_TIMED) for history in (SHORT, LONG)]
        for turn, history in track(turns, description="daily runs", total=len(turns)):
            seconds[history].append(_one_more_day(homes[history], START + timedelta(days=history + 1 + turn)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    baseline = statistics.median(seconds[SHORT])
    rows = [
        {
            "history_days": history,
            "median_seconds": round(statistics.median(times), 2),
            "max_seconds": round(max(times), 2),
            "ratio": round(statistics.median(times) / baseline, 2),
        }
        for history, times in seconds.items()
    ]
    if json_path:
        write_json(json_path, rows)
    return rows


def _prepared(scratch: Path, history: int, start: date) -> Settings:
    """Build the history in bulk, and one day more by the daily way, which pays for imports and first-time set-up."""
    from recflow.pipeline import prepare
    from recflow.settings import load_settings

    log.info("building %d days of history", history)
    settings = load_settings(
        home=scratch / f"home-{history}", lake_uri=None, feed={"source": "jsonl", "path": str(scratch / "feed")}
    )
    prepare(Days(start, start + timedelta(days=history - 1)), settings)
    prepare(Days.one(start + timedelta(days=history)), settings)
    return settings


def _one_more_day(settings: Settings, day: date) -> float:
    from recflow.pipeline import prepare

    clock = time.perf_counter()
    prepare(Days.one(day), settings)
    return time.perf_counter() - clock
