"""Each DAG run for real, in process: the demo's own runs, looked at in Airflow's database."""

import subprocess

import pytest

from recflow.errors import RecflowError
from recflow.orchestration import airflow_environment, airflow_program, complete_environment, run_dag
from recflow.runlog import read_records
from recflow.storage import Storage
from tests.demo_run import DemoRun, walked


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """Return a shop whose data were prepared, learned from, published and watched by the DAGs."""
    return walked(tmp_path_factory)


def test_prepare_data_fills_every_day_and_says_so(line: DemoRun) -> None:
    steps = ("erase", "ingest", "validate", "build_features", "materialize")
    assert line.states("prepare_data") == [dict.fromkeys(steps, "success")]
    assert Storage(line.settings).days("user_purchase_stats") == line.days.dates()
    assert line.events("features") == [{"until": str(line.days.end)}]


def test_train_model_ends_with_a_gated_model(line: DemoRun) -> None:
    steps = ("is_due", "build_training_set", "train", "evaluate", "watch_drift", "gate")
    assert line.states("train_model")[0] == dict.fromkeys(steps, "success")
    assert Storage(line.settings).read_folder("verdicts", str(line.days.end)).manifest["passed"]
    assert line.events("gated_model")[0] == {"until": str(line.days.end)}


def test_publish_makes_the_champion(line: DemoRun) -> None:
    assert line.states("publish")[0] == dict.fromkeys(("approve", "publish", "confirm_served"), "success")
    assert line.champion() == "1"
    assert line.events("champion")[0] == {"version": "1", "until": str(line.days.end)}


def test_watch_drift_leaves_a_verdict(line: DemoRun) -> None:
    verdict = Storage(line.settings).read_folder("drift_reports", str(line.days.end)).manifest["verdict"]
    state = {"ok": "skipped", "warn": "skipped", "retrain": "success"}[verdict]
    assert line.states("watch_drift") == [{"watch_drift": "success", "ask_for_retraining": state}]
    assert len(line.events("retraining")) == (verdict == "retrain")


def test_every_step_left_its_record(line: DemoRun) -> None:
    records = [record for record in read_records(line.settings.home) if record["outcome"] == "done"]
    assert [record["step"] for record in records][:13] == [
        "erase", "ingest", "validate", "build_features", "materialize",
        "build_training_set", "train", "evaluate", "watch_drift", "gate",
        "publish", "confirm_served", "watch_drift",
    ]  # fmt: skip
    assert all(record["seconds"] >= 0 and record["peak_mib"] > 0 for record in records)


def test_a_gate_that_rejects_starts_nothing(line: DemoRun) -> None:
    strict = line.settings.model_copy(update={"gate": line.settings.gate.model_copy(update={"min_ndcg_any": 0.99})})
    variables = airflow_environment(strict)
    command = [*airflow_program(), "dags", "test", "train_model", "--conf", f'{{"until": "{line.days.end}"}}']
    # The steps before the gate ran already.
    command += ["--mark-success-pattern", "is_due|build_training_set|train|evaluate|watch_drift"]
    gated = len(line.events("gated_model"))
    environment = complete_environment(variables)
    subprocess.run(command, env=environment, cwd=strict.home, capture_output=True, check=True, timeout=300)
    assert [run["gate"] for run in line.states("train_model")] == ["success", "skipped"]
    assert len(line.events("gated_model")) == gated
    assert line.champion() == "1"


def test_rollback_without_a_version_before_says_so(line: DemoRun) -> None:
    with pytest.raises(RecflowError, match=r"rollback\.rollback failed for good: .*Champion 1 is the first"):
        run_dag("rollback", {}, line.settings)
    assert line.champion() == "1"
