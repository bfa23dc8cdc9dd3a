import re
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from recflow import pipeline
from recflow.errors import RecflowError
from recflow.orchestration import training_due
from recflow.schema import Days
from recflow.settings import load_settings
from recflow.storage import Artifact, Storage

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag

UNTIL = date(2011, 1, 9)


class Context(dict[str, Any]):
    """What Airflow gives a task, as far as ours look at it."""

    def __init__(self, **params: Any) -> None:
        super().__init__(
            params=params,
            dag_run=SimpleNamespace(run_type="manual", triggering_user_name=None),
            data_interval_start=None,
            triggering_asset_events={},
            outlet_events=defaultdict(lambda: SimpleNamespace(extra={})),
        )

    def emitted(self) -> dict[str, dict[str, str]]:
        """Return the events' extras by asset."""
        return {asset.name: accessor.extra for asset, accessor in self["outlet_events"].items() if accessor.extra}


@pytest.fixture
def call(dag_bag: "DagBag") -> Callable[..., Any]:
    """Return a way to run a task's own function."""

    def run(dag_id: str, task_id: str, *args: Any, **context: Any) -> Any:
        return dag_bag.dags[dag_id].get_task(task_id).python_callable(*args, **context)

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, Any]]:
    """Replace the line's steps by ones that only say what they were asked for."""
    calls: list[tuple[str, Any, Any]] = []

    def step(name: str) -> Callable[..., Artifact]:
        def run(subject: Any, settings: Any) -> Artifact:
            calls.append((name, subject, settings))
            return Artifact(f"uri of {name}", {"version": "7", "passed": True, "sentences": [], "verdict": "ok"})

        return run

    for name in (*(step.__name__ for step in pipeline.DAILY + pipeline.MODEL), "publish", "confirm_served", "rollback"):
        monkeypatch.setattr(pipeline, name, step(name))
    return calls


@pytest.mark.parametrize("task_id", ["erase", "ingest", "validate", "build_features", "materialize"])
def test_a_daily_task_is_one_step_for_the_days(call: Any, asked: Any, task_id: str) -> None:
    context = Context(start="2011-01-03", end="2011-01-09")
    assert call("prepare_data", task_id, **context) == f"uri of {task_id}"
    assert [each[:2] for each in asked] == [(task_id, Days(date(2011, 1, 3), UNTIL))]
    assert context.emitted() == ({"features": {"until": "2011-01-09"}} if task_id == "materialize" else {})


@pytest.mark.parametrize("task_id", ["build_training_set", "train", "evaluate", "watch_drift", "gate"])
def test_a_model_task_is_one_step_until_the_day(call: Any, asked: Any, task_id: str) -> None:
    context = Context(until="2011-01-09")
    assert call("train_model", task_id, **context) == f"uri of {task_id}"
    assert [each[:2] for each in asked] == [(task_id, UNTIL)]
    assert context.emitted() == ({"gated_model": {"until": "2011-01-09"}} if task_id == "gate" else {})


@pytest.mark.parametrize(("param", "meant"), [(None, "incremental"), ("full", "full"), ("auto", "auto")])
def test_a_person_says_how_to_train_for_once(
    call: Any, asked: Any, monkeypatch: pytest.MonkeyPatch, param: str | None, meant: str
) -> None:
    monkeypatch.setenv("RECFLOW_TRAINING__RETRAIN", "incremental")
    monkeypatch.setenv("RECFLOW_TRAINING__MAX_WINDOWS", "7")
    call("train_model", "train", **Context(until="2011-01-09", retrain=param))
    training = asked[0][2].training
    assert (training.retrain, training.max_windows) == (meant, 7)


def test_a_gate_that_rejects_is_skipped_with_its_sentences(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.exceptions import AirflowSkipException

    verdict = Artifact("...", {"passed": False, "sentences": ["Rejected: ndcg_at_10 0.01 vs 0.02."]})
    monkeypatch.setattr(pipeline, "gate", lambda until, settings: verdict)
    context = Context(until="2011-01-09")
    with pytest.raises(AirflowSkipException, match=re.escape("Rejected: ndcg_at_10 0.01 vs 0.02.")):
        call("train_model", "gate", **context)
    assert context.emitted() == {}


@pytest.mark.parametrize(
    ("verdict", "error", "emitted"),
    [
        ("retrain", None, {"retraining": {"until": "2011-01-09"}}),
        ("ok", "AirflowSkipException", {}),
        ("warn", "AirflowSkipException", {}),
        ("block", "RecflowError", {}),
    ],
)
def test_only_the_verdict_retrain_asks_for_a_model(call: Any, verdict: str, error: str | None, emitted: Any) -> None:
    context = Context(until="2011-01-09")
    raised = None
    try:
        call("watch_drift", "ask_for_retraining", verdict, **context)
    except Exception as found:
        raised = type(found).__name__
    assert raised == error
    assert context.emitted() == emitted


def test_publish_promotes_what_was_approved_and_says_the_version(
    call: Any, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECFLOW_REGISTRY__REQUIRE_APPROVAL", "true")
    monkeypatch.setenv("RECFLOW_REGISTRY__KEEP_VERSIONS", "5")
    context = Context(until="2011-01-09")
    assert call("publish", "publish", **context) == "7"
    name, until, settings = asked[0]
    assert (name, until) == ("publish", UNTIL)
    assert not settings.registry.require_approval  # `approve` came before; the registry must not wait again
    assert settings.registry.keep_versions == 5
    assert context.emitted() == {"champion": {"version": "7", "until": "2011-01-09"}}
    call("publish", "confirm_served", "7")
    assert asked[1][:2] == ("confirm_served", "7")


@pytest.mark.parametrize("version", [None, "3"])
def test_rollback_hands_the_version_on(call: Any, asked: Any, version: str | None) -> None:
    context = Context(version=version)
    assert call("rollback", "rollback", **context) == "7"
    assert asked[0][:2] == ("rollback", version)
    assert context.emitted() == {"champion": {"version": "7"}}


# -- approval


def test_no_person_is_asked_where_settings_do_not_want_it(dag_bag: "DagBag") -> None:
    assert dag_bag.dags["publish"].get_task("approve").execute(Context(until="2011-01-09")) is None


def test_who_starts_the_run_by_name_has_approved(dag_bag: "DagBag", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECFLOW_REGISTRY__REQUIRE_APPROVAL", "true")
    approve = dag_bag.dags["publish"].get_task("approve")
    assert approve.execute(Context(until="2011-01-09", approved_by="Ada")) is None


def test_a_person_is_asked_with_the_gates_sentences(
    dag_bag: "DagBag", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from airflow.providers.standard.operators import hitl
    from airflow.sdk.exceptions import TaskAwaitingInput

    monkeypatch.setenv("RECFLOW_HOME", str(tmp_path / "var"))
    monkeypatch.setenv("RECFLOW_REGISTRY__REQUIRE_APPROVAL", "true")
    with Storage(load_settings()).writing_folder("verdicts", f"{UNTIL}") as (_, manifest):
        manifest["sentences"] = ["Accepted: ease."]
    written: dict[str, Any] = {}
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **detail: written.update(detail))
    approve = dag_bag.dags["publish"].get_task("approve")
    context = Context(until="2011-01-09") | {"task_instance": SimpleNamespace(id="1")}
    with pytest.raises(TaskAwaitingInput):
        approve.execute(context)
    assert written["body"] == "Accepted: ease."
    assert written["options"] == ["Approve", "Reject"]
    assert written["defaults"] == ["Reject"]


# -- when a model is due


@pytest.mark.parametrize(
    ("verdicts", "first_event", "is_due"),
    [
        ([], date(2010, 12, 11), True),  # 30 days, both ends counted
        ([], date(2010, 12, 12), False),
        (["2011-01-02"], date(2010, 12, 1), True),
        (["2010-12-26", "2011-01-03"], date(2010, 12, 1), False),  # the newest counts
        (["2011-01-20"], date(2010, 12, 1), False),  # days that are prepared late don't train an older model
    ],
)
def test_a_model_is_due_weekly_and_first_after_a_month(
    tmp_path: Path, verdicts: list[str], first_event: date, is_due: bool
) -> None:
    from recflow.schema import EVENTS

    settings = load_settings(home=tmp_path / "var")
    storage = Storage(settings)
    for day in (first_event, UNTIL):
        storage.write_partition("events", day, EVENTS.empty_table(), {})
    for name in verdicts:
        with storage.writing_folder("verdicts", name):
            pass
    assert (training_due(UNTIL, settings) is not None) == is_due


def test_a_model_that_is_not_due_stops_the_run_unless_asked_for(
    call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RECFLOW_HOME", str(tmp_path / "var"))
    event = SimpleNamespace(extra={"until": "2011-01-09"})
    import recflow_assets

    by_features = Context() | {"triggering_asset_events": {recflow_assets.FEATURES: [event]}}
    by_drift = Context() | {"triggering_asset_events": {recflow_assets.RETRAINING: [event]}}
    assert call("train_model", "is_due", **by_features) is False
    assert call("train_model", "is_due", **by_drift) is True
    assert call("train_model", "is_due", **Context(until="2011-01-09")) is True


def test_a_blocked_drift_pages_with_what_to_do(call: Any) -> None:
    with pytest.raises(RecflowError, match="repair the feed"):
        call("watch_drift", "ask_for_retraining", "block", **Context(until="2011-01-09"))
