"""`recflow tune` on a small shop: it goes on where it was cut off, and never looks at the hold-out."""

import dataclasses
import sqlite3
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from recflow import tuning
from recflow.cli import app
from recflow.errors import SettingsError, TrainingError
from recflow.evaluation.holdout import open_holdout
from recflow.models.dataset import TrainingSet
from recflow.registry.connection import connect, experiment_id
from recflow.settings import Settings, load_settings
from recflow.tuning import SPACES, tune, validation_sets, worth

ALTERED = {"ranker_epochs": 1, "ranker_windows": 4, "lightgbm_rounds": 0}


@pytest.fixture(scope="module")
def small(shop: tuple[Settings, date], tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, date]:
    """Return the folder's shop with settings that are tried in seconds, in a home of its own."""
    settings, until = shop
    own = settings.model_copy(update={"home": tmp_path_factory.mktemp("tune") / "var"})
    own.home.mkdir()
    (own.home / "training_sets").symlink_to(settings.home / "training_sets")
    return own.model_copy(update={"training": settings.training.model_copy(update=ALTERED)}), until


def open_set(small: tuple[Settings, date]) -> TrainingSet:
    return TrainingSet.open(small[0].home / "training_sets" / str(small[1]))


def test_windows_to_validate_on_end_where_the_holdout_starts(small: tuple[Settings, date]) -> None:
    training_set = open_set(small)
    parts = validation_sets(training_set, 2)
    window = timedelta(days=small[0].training.holdout_days)
    assert parts[0].holdout_start > parts[1].holdout_start
    for part in parts:
        assert part.holdout_start + window <= training_set.holdout_start
        assert max(part.cuts) == part.holdout_start
        wanted = open_holdout(part, small[0].evaluation).wanted
        rows = training_set.rows_of(part.holdout_start)
        assert wanted.sum() == len(training_set.examples.targets_of(rows)[1])
    with pytest.raises(TrainingError, match="none to learn from"):
        validation_sets(training_set, len(training_set.cuts))


def test_what_was_bought_in_the_holdout_changes_nothing(small: tuple[Settings, date]) -> None:
    settings, training_set = small[0], open_set(small)
    later = training_set.events.timestamp_us >= np.datetime64(training_set.holdout_start, "us").astype(np.int64)
    items = np.where(later, training_set.events.item_idx[::-1], training_set.events.item_idx)
    other = dataclasses.replace(training_set, events=dataclasses.replace(training_set.events, item_idx=items))
    assert (items != training_set.events.item_idx).any()
    chosen = settings.training
    figures = []
    for each in (training_set, other):
        judge = tuning._Judge("item_knn", validation_sets(each, 1), settings, settings.home)
        figures.append(judge.figures(0, chosen))
    assert figures[0] == figures[1]


def test_a_search_that_was_cut_off_goes_on(small: tuple[Settings, date], monkeypatch: pytest.MonkeyPatch) -> None:
    settings, until = small
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "log_run", lambda *_, **__: None)
        apart = settings.model_copy(update={"home": _copy(settings, "whole")})
        whole = tune(until, apart, candidate="item_knn", trials=3)
    home = _copy(settings, "cut")
    own = settings.model_copy(update={"home": home})
    figures, calls = tuning._Judge.figures, []

    def killed(self: Any, place: int, training: Any) -> dict[str, float]:
        calls.append(training)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return figures(self, place, training)

    monkeypatch.setattr(tuning._Judge, "figures", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(until, own, candidate="item_knn", trials=3)
    monkeypatch.setattr(tuning._Judge, "figures", figures)
    resumed = tune(until, own, candidate="item_knn", trials=3)
    without_numbers = [
        [{name: value for name, value in row.items() if name != "trial"} for row in found["trials"]]
        for found in (whole, resumed)
    ]
    assert without_numbers[0] == without_numbers[1]
    first = whole["trials"][0]
    assert first["knn_neighbours"] == settings.training.knn_neighbours  # the settings in force
    assert len({row["knn_shrinkage"] for row in whole["trials"]}) == 3
    assert len(resumed["trials"]) == 3
    assert tune(until, own, candidate="item_knn", trials=3) == resumed  # nothing is left to do
    best = max(whole["trials"], key=lambda row: row["ndcg_at_10 (any)"] * row["ndcg_at_10 (new)"])
    assert whole["best"]["figures"]["any"] == pytest.approx(best["ndcg_at_10 (any)"], abs=1e-4)
    lines = whole["toml"].splitlines()
    assert lines[0] == "[training]"
    file = home / "recflow.toml"
    file.write_text(whole["toml"], encoding="utf-8")
    monkeypatch.setenv("RECFLOW_CONFIG", str(file))
    assert load_settings().training.knn_neighbours == whole["best"]["knn_neighbours"]
    runs = connect(own).search_runs([experiment_id(own)])
    assert len(runs) == 3
    assert {run.data.tags["step"] for run in runs} == {"tune"}
    assert sum("any/ndcg_at_10" in run.data.metrics for run in runs) == 3


def test_a_trial_that_does_badly_at_first_is_given_up(
    small: tuple[Settings, date], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, until = small
    asked: list[tuple[int, float]] = []

    def made_up(self: Any, place: int, training: Any) -> dict[str, float]:
        asked.append((place, training.repeat_half_life_days))
        value = 0.5 if len(asked) <= 2 * tuning._STARTUP_TRIALS else 0.1
        return {"any": value, "new": value}

    monkeypatch.setattr(tuning._Judge, "figures", made_up)
    monkeypatch.setattr(tuning, "log_run", lambda *_, **__: None)
    own = settings.model_copy(update={"home": _copy(settings, "pruned")})
    found = tune(until, own, candidate="repeat_purchase", trials=7, validations=2)
    states = [row["state"] for row in found["trials"]]
    assert states == ["complete"] * 5 + ["pruned"] * 2
    assert len(asked) == 2 * 5 + 2
    assert found["best"]["figures"] == {"any": 0.5, "new": 0.5}


def test_windows_made_for_one_trial_serve_the_next(small: tuple[Settings, date]) -> None:
    settings = small[0]
    parts = validation_sets(open_set(small), 1)
    other = settings.training.model_copy(update={"ranker_windows": 2})
    shared, fresh = (tuning._Judge("ranker", parts, settings, settings.home) for _ in range(2))
    shared.figures(0, settings.training)
    held = list(shared._windows.values())
    assert shared.figures(0, other) == fresh.figures(0, other)
    assert list(shared._windows.values()) == held
    stronger = settings.training.model_copy(update={"ease_regularization": 100.0})
    shared.figures(0, stronger)
    assert list(shared._windows.values()) != held


def test_every_space_is_of_settings_that_there_are(small: tuple[Settings, date]) -> None:
    for candidate in SPACES:
        names = tuning._names(candidate)
        assert names
        assert set(names) <= set(type(small[0].training).model_fields)
    assert worth({"any": 0.4, "new": 0.1}) == pytest.approx((0.4 * 0.1) ** 0.5)
    with pytest.raises(SettingsError, match="there is: ranker"):
        tune(small[1], small[0], candidate="magic")


def test_the_command_prints_lines_for_the_settings(
    small: tuple[Settings, date], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = _copy(small[0], "cli")
    monkeypatch.setattr(tuning, "log_run", lambda *_, **__: None)
    monkeypatch.setenv("RECFLOW_HOME", str(home))
    monkeypatch.setenv("RECFLOW_TRAINING__MIN_EXAMPLES", "5")
    command = ["tune", "--until", str(small[1]), "--candidate", "repeat_purchase", "--trials", "2"]
    result = CliRunner().invoke(app, [*command, "--json", str(tmp_path / "found.json")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "repeat_half_life_days = " in result.output
    assert (tmp_path / "found.json").exists()
    with sqlite3.connect(home / "tuning.db") as kept:
        assert kept.execute("select count(*) from trials").fetchone() == (2,)


def _copy(settings: Settings, name: str) -> Path:
    """Return a home of its own with the training set."""
    home = settings.home.parent / name
    home.mkdir()
    (home / "training_sets").symlink_to(settings.home / "training_sets")
    return home
