"""Runs are recorded in few calls, and a run that broke off says so."""

import doctest
from pathlib import Path

import pytest

from recflow.registry import tracking
from recflow.registry.connection import connect, experiment_id
from recflow.registry.tracking import log_run
from recflow.settings import Settings

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated",  # MLflow 3.17 with SQLAlchemy 2.1
)


def test_a_run_keeps_what_it_was_given(settings: Settings, tmp_path: Path) -> None:
    report = tmp_path / "evaluation"
    report.mkdir()
    (report / "report.html").write_text("<p>")
    (tmp_path / "one.json").write_text("{}")
    params = {f"p{number}": number for number in range(250)}  # MLflow takes 100 at once
    metrics = {f"m{number}": number / 10 for number in range(1500)}  # and 1000 of these
    run_id = log_run(
        "evaluate 2011-11-30",
        settings,
        params=params,
        metrics=metrics,
        tags={"until": "2011-11-30"},
        files={"evaluation": report, "single": tmp_path / "one.json"},
    )
    run = connect(settings).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "evaluate 2011-11-30"
    assert run.data.params == {name: str(value) for name, value in params.items()}
    assert run.data.metrics == metrics
    assert run.data.tags["until"] == "2011-11-30"
    kept = settings.home / "mlartifacts" / run_id / "artifacts"
    assert (kept / "evaluation" / "report.html").read_text() == "<p>"
    assert (kept / "single" / "one.json").exists()
    assert list(Path().iterdir()) == []  # nothing in the working folder


def test_a_run_that_broke_off_is_marked_failed(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        log_run("broken", settings, files={"report": tmp_path / "nowhere"})
    (run,) = connect(settings).search_runs([experiment_id(settings)])
    assert run.info.status == "FAILED"


def test_examples() -> None:
    assert doctest.testmod(tracking).failed == 0
