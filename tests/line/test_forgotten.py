"""A person asks to be forgotten in a shop that was walked up to a model that answers: nothing of theirs is left."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from recflow import pipeline
from recflow.serving.batch import recommend_batch
from recflow.serving.bundle import load_bundle
from recflow.serving.feedback import EventLog, judge_events
from recflow.serving.make_bundle import build_bundle
from recflow.settings import load_settings
from recflow.storage import Release
from tests.line_run import DAYS, SMALL, walked
from tests.traces import traces

GONE = "12349.0"


def test_who_asked_at_the_endpoint_is_gone_from_the_whole_home(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = walked(tmp_path_factory)
    shutil.copytree(run.settings.home, tmp_path / "var")
    settings = load_settings(home=tmp_path / "var", feed={"path": run.feed}, **SMALL)
    log = EventLog(settings)
    view = {"event_id": "e1", "event_type": "view", "user_id": GONE, "item_id": "20000", "session_id": "s1"}
    log.append(judge_events([view], now=datetime.now(UTC), max_future_seconds=0)[0])
    log.forget(GONE)
    log.close()
    held = {trace.split("/")[0] for trace in traces(settings.home, GONE)}
    assert held == {"feast", "lake", "landing", "training_sets"}

    assert pipeline.erase(DAYS, settings).manifest["persons"] == 1
    assert traces(settings.home, GONE) == []

    # What was waiting to be published still can be, and answers them like anybody unknown.
    folder = Path(build_bundle(DAYS.end, settings).uri)
    assert load_bundle(folder).until == DAYS.end
    served = cast(Release, SimpleNamespace(version="1", folder=folder))
    answers = recommend_batch([GONE, "a-stranger"], k=5, new_only=False, settings=settings, champion=served)
    items = answers["item_id"].to_pylist()
    assert items[:5] == items[5:]
