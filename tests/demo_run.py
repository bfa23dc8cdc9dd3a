"""One `recflow demo` on a small shop, run once in a test session and looked at from several sides."""

import json
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recflow.orchestration import complete_environment
from recflow.programs import free_port, settings_environment
from recflow.schema import Days
from recflow.settings import Settings, load_settings
from tests.shops import invoice_lines, write_invoice_days

# One epoch of a small model, few trees and resamples; the shop is too small for the gate's floors.
SMALL: dict[str, dict[str, Any]] = {
    "training": {"ranker_epochs": 1, "ranker_heads": 2, "ranker_windows": 3, "lightgbm_rounds": 5},
    "evaluation": {"resamples": 100},
    "gate": {"min_users": 5, "max_loss_to_popularity": 0.9},
}

_RUNS: list["DemoRun"] = []


@dataclass(frozen=True)
class DemoRun:
    """A small shop whose line was walked by the demo."""

    settings: Settings
    days: Days
    printed: str
    summary: dict[str, Any]

    def states(self, dag_id: str) -> list[dict[str, str]]:
        """Return the states of a DAG's tasks, run by run, as Airflow's database has them."""
        query = "select run_id, task_id, state from task_instance where dag_id = ? order by run_id"
        runs: dict[str, dict[str, str]] = {}
        for run_id, task_id, state in _ask(self.settings.home / "airflow" / "airflow.db", query, dag_id):
            runs.setdefault(run_id, {})[task_id] = state
        return list(runs.values())

    def events(self, asset: str) -> list[dict[str, str]]:
        """Return the extras of an asset's events, oldest first."""
        query = "select e.extra from asset_event e join asset a on a.id = e.asset_id where a.name = ? order by e.id"
        return [json.loads(extra) for (extra,) in _ask(self.settings.home / "airflow" / "airflow.db", query, asset)]

    def champion(self) -> str:
        """Return the version that the alias names."""
        return champion_of(self.settings)


def champion_of(settings: Settings) -> str:
    """Return the version that the alias names, from MLflow's database itself."""
    query = "select version from registered_model_aliases where alias = ?"
    return str(_ask(settings.home / "mlflow.db", query, "champion")[0][0])


def walked(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """Return the session's demo; the first who asks runs it."""
    if not _RUNS:
        _RUNS.append(_walk(tmp_path_factory.mktemp("demo")))
    return _RUNS[0]


def run_demo(settings: Settings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `recflow demo` with these settings."""
    command = [str(Path(sys.executable).with_name("recflow")), "demo", *arguments]
    environment = complete_environment(settings_environment(settings)) | {"COLUMNS": "120"}
    return subprocess.run(
        command, env=environment, cwd=settings.home.parent, capture_output=True, text=True, check=False
    )


def _walk(root: Path) -> DemoRun:
    days = write_invoice_days(root / "feed", invoice_lines(days=60, users=80, items=60))
    settings = load_settings(home=root / "var", feed={"path": root / "feed"}, serving={"port": free_port()}, **SMALL)
    ended = run_demo(settings, "--json", str(root / "demo.json"))
    assert ended.returncode == 0, ended.stderr
    return DemoRun(settings, days, ended.stdout, json.loads((root / "demo.json").read_text(encoding="utf-8")))


def _ask(database: Path, query: str, value: str) -> list[tuple[str, ...]]:
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query, (value,)).fetchall()
    finally:
        connection.close()
