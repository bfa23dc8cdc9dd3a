import copy
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from recflow import orchestration
from recflow.orchestration import complete_environment
from recflow.settings import Settings
from tests.dags.conftest import DAGS

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag

GRAPHS = {
    "prepare_data": {
        "erase": {"ingest"},
        "ingest": {"validate"},
        "validate": {"build_features"},
        "build_features": {"materialize"},
        "materialize": set(),
    },
    "train_model": {
        "is_due": {"build_training_set"},
        "build_training_set": {"train"},
        "train": {"evaluate"},
        "evaluate": {"watch_drift"},
        "watch_drift": {"gate"},
        "gate": set(),
    },
    "publish": {"approve": {"publish"}, "publish": {"confirm_served"}, "confirm_served": set()},
    "watch_drift": {"watch_drift": {"ask_for_retraining"}, "ask_for_retraining": set()},
    "rollback": {"rollback": {"confirm_served"}, "confirm_served": set()},
}
STEPS = {
    "erase", "ingest", "validate", "build_features", "materialize", "build_training_set", "train", "evaluate",
    "gate", "publish", "confirm_served", "watch_drift", "rollback",
}  # fmt: skip
OUTLETS = {
    ("prepare_data", "materialize"): "features",
    ("train_model", "gate"): "gated_model",
    ("publish", "publish"): "champion",
    ("watch_drift", "ask_for_retraining"): "retraining",
    ("rollback", "rollback"): "champion",
}
HEAVY = ["torch", "feast", "great_expectations", "evidently", "mlflow", "pandas", "numpy", "duckdb", "ibis", "pyarrow"]


def _assets(condition: Any) -> list[Any]:
    return (
        [asset for each in condition.objects for asset in _assets(each)]
        if hasattr(condition, "objects")
        else [condition]
    )


def test_every_file_parses(dag_bag: "DagBag") -> None:
    assert dag_bag.import_errors == {}
    assert set(dag_bag.dags) == set(GRAPHS)


@pytest.mark.parametrize("dag_id", sorted(GRAPHS))
def test_the_graph_is_exactly_this(dag_bag: "DagBag", dag_id: str) -> None:
    found = {task.task_id: task.downstream_task_ids for task in dag_bag.dags[dag_id].tasks}
    assert found == GRAPHS[dag_id]


def test_a_step_has_the_same_name_as_in_the_line(dag_bag: "DagBag") -> None:
    from recflow import pipeline

    tasks = {task.task_id for dag in dag_bag.dags.values() for task in dag.tasks}
    assert tasks - STEPS == {"is_due", "approve", "ask_for_retraining"}
    assert all(callable(getattr(pipeline, name)) for name in STEPS)


def test_assets_join_the_dags(dag_bag: "DagBag") -> None:
    outlets = {
        (dag.dag_id, task.task_id): asset.name
        for dag in dag_bag.dags.values()
        for task in dag.tasks
        for asset in task.outlets
    }
    assert outlets == OUTLETS
    waits_for = {
        dag_id: sorted(asset.uri for asset in _assets(dag.timetable.asset_condition))
        for dag_id, dag in dag_bag.dags.items()
        if getattr(dag.timetable, "asset_condition", None)
    }
    assert waits_for == {
        "train_model": ["recflow://features/", "recflow://retraining/"],
        "watch_drift": ["recflow://features/"],
        "publish": ["recflow://gated_model/"],
    }


@pytest.mark.parametrize("dag_id", sorted(GRAPHS))
def test_an_operator_finds_what_to_do(dag_bag: "DagBag", dag_id: str) -> None:
    dag = dag_bag.dags[dag_id]
    assert dag.doc_md
    assert "recflow " in dag.doc_md  # a command
    for task in dag.tasks:
        assert f"`{task.task_id}`" in dag.doc_md or task.task_id in dag.doc_md


@pytest.mark.parametrize("dag_id", sorted(GRAPHS))
def test_every_task_ends_is_watched_and_runs_alone(dag_bag: "DagBag", dag_id: str) -> None:
    dag = dag_bag.dags[dag_id]
    assert dag.max_active_runs == 1
    for task in dag.tasks:
        assert task.execution_timeout or task.response_timeout
        assert [callback.__name__ for callback in task.on_failure_callback] == ["report_failure"]
        assert type(task.retry_policy).__name__ == "WorthAnotherTry"
        assert task.retries == 8
        assert task.retry_exponential_backoff == 2.0


def test_prepare_data_catches_up_from_the_first_day(dag_bag: "DagBag") -> None:
    dag = dag_bag.dags["prepare_data"]
    assert dag.catchup
    assert type(dag.timetable).__name__ == "CronDataIntervalTimetable"
    assert f"{dag.start_date:%Y-%m-%d %H:%M %Z}" == "2010-12-01 00:00 UTC"


@pytest.mark.parametrize(
    ("dag_id", "conf"),
    [
        ("prepare_data", {"start": "2011-01-03", "end": "2011-01-09"}),
        ("train_model", {"until": "2011-01-09"}),
        ("train_model", {}),
        ("train_model", {"until": "2011-01-09", "retrain": "full"}),
        ("publish", {"until": "2011-01-09", "approved_by": "Ada"}),
        ("rollback", {"version": "12"}),
    ],
)
def test_good_params_are_taken(dag_bag: "DagBag", dag_id: str, conf: dict[str, Any]) -> None:
    params = copy.deepcopy(dag_bag.dags[dag_id].params)
    params.update(conf)
    assert {name: params[name] for name in conf} == conf


@pytest.mark.parametrize(
    ("dag_id", "conf"),
    [
        ("prepare_data", {"start": "2011-02-30"}),
        ("prepare_data", {"start": "20110103"}),
        ("prepare_data", {"start": 20110103}),
        ("train_model", {"until": "yesterday"}),
        ("train_model", {"retrain": "a little"}),
        ("publish", {"approved_by": ""}),
        ("rollback", {"version": "v3"}),
        ("rollback", {"version": "0"}),
    ],
)
def test_bad_params_are_refused(dag_bag: "DagBag", dag_id: str, conf: dict[str, Any]) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    params = copy.deepcopy(dag_bag.dags[dag_id].params)
    with pytest.raises(ParamValidationError):
        params.update(conf)


def test_importing_all_files_is_quick_and_light(airflow_home: Settings) -> None:
    program = f"""
import json, sys, time
from pathlib import Path
clock = time.monotonic()
sys.path.insert(0, {str(DAGS)!r})
for file in sorted(Path({str(DAGS)!r}).glob("*.py")):
    __import__(file.stem)
seconds = time.monotonic() - clock
print(json.dumps([seconds, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    environment = complete_environment(orchestration.airflow_environment(airflow_home))
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    seconds, heavy = json.loads(ended.stdout.splitlines()[-1])
    assert heavy == []
    assert seconds < 5  # 1.2 s on two quiet cores
