"""Each DAG run for real, in process, on a small shop: prepared and trained once, then looked at from all sides."""

import sqlite3
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from recflow.errors import RecflowError
from recflow.orchestration import airflow_environment, airflow_program, complete_environment, run_dag
from recflow.runlog import read_records
from recflow.schema import Days
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from tests.shops import invoice_lines, write_invoice_days

# One epoch of a small model, few resamples; the shop is too small for the gate's floors.
SMALL = {
    "training": {"max_epochs": 1, "embedding_size": 8, "sequence_length": 16, "batch_size": 64},
    "evaluation": {"resamples": 100},
    "gate": {"min_users": 5, "max_loss_to_popularity": 0.9},
    "serving": {"port": 9},  # nothing listens there: nothing to confirm
}


@dataclass(frozen=True)
class Line:
    """A line that was walked once."""

    settings: Settings
    days: Days

    def states(self, dag_id: str) -> list[dict[str, str]]:
        """Return the states of the tasks, run by run, as Airflow's database has them."""
        query = "select run_id, task_id, state from task_instance where dag_id = ? order by run_id"
        runs: dict[str, dict[str, str]] = {}
        for run_id, task_id, state in _ask(self.settings.home / "airflow" / "airflow.db", query, dag_id):
            runs.setdefault(run_id, {})[task_id] = state
        return list(runs.values())

    def events(self, asset: str) -> list[str]:
        """Return the extras of an asset's events, oldest first."""
        query = "select e.extra from asset_event e join asset a on a.id = e.asset_id where a.name = ? order by e.id"
        return [extra for (extra,) in _ask(self.settings.home / "airflow" / "airflow.db", query, asset)]

    def champion(self) -> str:
        """Return the version that the alias names."""
        query = "select version from registered_model_aliases where alias = ?"
        return str(_ask(self.settings.home / "mlflow.db", query, "champion")[0][0])


def _ask(database: Path, query: str, value: str) -> list[tuple[str, ...]]:
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query, (value,)).fetchall()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Return a shop whose data were prepared, learned from, published and watched by the DAGs."""
    root = tmp_path_factory.mktemp("shop")
    days = write_invoice_days(root / "feed", invoice_lines(days=60, users=80, items=60))
    settings = load_settings(home=root / "var", feed={"path": root / "feed"}, **SMALL)
    until = {"until": str(days.end)}
    run_dag("prepare_data", {"start": str(days.start), "end": str(days.end)}, settings)
    run_dag("train_model", until, settings)
    run_dag("publish", until, settings)
    run_dag("watch_drift", until, settings)
    return Line(settings, days)


def test_prepare_data_fills_every_day_and_says_so(line: Line) -> None:
    steps = ("ingest", "validate", "build_features", "materialize")
    assert line.states("prepare_data") == [dict.fromkeys(steps, "success")]
    assert Storage(line.settings).days("user_purchase_stats") == line.days.dates()
    assert line.events("features") == [f'{{"until": "{line.days.end}"}}']


def test_train_model_ends_with_a_gated_model(line: Line) -> None:
    steps = ("is_due", "build_training_set", "train", "evaluate", "watch_drift", "gate")
    assert line.states("train_model")[0] == dict.fromkeys(steps, "success")
    assert Storage(line.settings).read_folder("verdicts", str(line.days.end)).manifest["passed"]
    assert line.events("gated_model")[0] == f'{{"until": "{line.days.end}"}}'


def test_publish_makes_the_champion(line: Line) -> None:
    assert line.states("publish")[0] == dict.fromkeys(("approve", "publish", "confirm_served"), "success")
    assert line.champion() == "1"
    assert line.events("champion")[0] == f'{{"version": "1", "until": "{line.days.end}"}}'


def test_watch_drift_leaves_a_verdict(line: Line) -> None:
    verdict = Storage(line.settings).read_folder("drift_reports", str(line.days.end)).manifest["verdict"]
    state = {"ok": "skipped", "warn": "skipped", "retrain": "success"}[verdict]
    assert line.states("watch_drift") == [{"watch_drift": "success", "ask_for_retraining": state}]
    assert len(line.events("retraining")) == (verdict == "retrain")


def test_every_step_left_its_record(line: Line) -> None:
    records = [record for record in read_records(line.settings.home) if record["outcome"] == "done"]
    assert [record["step"] for record in records][:12] == [
        "ingest", "validate", "build_features", "materialize",
        "build_training_set", "train", "evaluate", "watch_drift", "gate",
        "publish", "confirm_served", "watch_drift",
    ]  # fmt: skip
    assert all(record["seconds"] >= 0 and record["peak_mib"] > 0 for record in records)


def test_a_gate_that_rejects_starts_nothing(line: Line) -> None:
    strict = line.settings.model_copy(update={"gate": line.settings.gate.model_copy(update={"min_ndcg_any": 0.99})})
    variables = airflow_environment(strict)
    command = [*airflow_program(), "dags", "test", "train_model", "--conf", f'{{"until": "{line.days.end}"}}']
    # The steps before the gate ran already.
    command += ["--mark-success-pattern", "is_due|build_training_set|train|evaluate|watch_drift"]
    gated = len(line.events("gated_model"))
    subprocess.run(command, env=complete_environment(variables), capture_output=True, check=True, timeout=300)
    assert [run["gate"] for run in line.states("train_model")] == ["success", "skipped"]
    assert len(line.events("gated_model")) == gated
    assert line.champion() == "1"


def test_rollback_without_a_version_before_says_so(line: Line) -> None:
    with pytest.raises(RecflowError, match=r"rollback\.rollback failed for good: .*Champion 1 is the first"):
        run_dag("rollback", {}, line.settings)
