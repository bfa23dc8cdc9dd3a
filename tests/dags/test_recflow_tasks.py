import logging
import sys
from datetime import UTC, date, datetime
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from recflow import errors
from recflow.orchestration import failures_file
from recflow.schema import Days
from recflow.settings import load_settings

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag

TEMPORARY = {errors.FeedLate, errors.LeaseHeld}
LASTING = {
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.RecflowError) and value not in TEMPORARY
}


@pytest.fixture
def shared(dag_bag: "DagBag") -> ModuleType:
    """Return what the DAG files share, as they imported it."""
    return sys.modules["recflow_tasks"]


def _decide(shared: ModuleType, error: BaseException, *, try_number: int = 1, user: str | None = None) -> str:
    context = {"dag_run": SimpleNamespace(triggering_user_name=user)}
    return str(shared.WorthAnotherTry().evaluate(error, try_number, 8, context).action.value)


@pytest.mark.parametrize("error", sorted(TEMPORARY, key=lambda each: each.__name__))
def test_what_may_be_over_soon_is_tried_as_often_as_allowed(shared: ModuleType, error: type[Exception]) -> None:
    assert {_decide(shared, error("..."), try_number=number) for number in range(1, 9)} == {"retry"}


@pytest.mark.parametrize("error", sorted(LASTING, key=lambda each: each.__name__))
def test_what_a_person_has_to_mend_is_not_tried_again(shared: ModuleType, error: type[Exception]) -> None:
    assert _decide(shared, error("...")) == "fail"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("defect"), MemoryError()])
def test_an_unknown_failure_is_tried_twice_more(shared: ModuleType, error: BaseException) -> None:
    assert [_decide(shared, error, try_number=number) for number in (1, 2, 3)] == ["retry", "retry", "fail"]


def test_nothing_is_tried_again_while_a_person_waits(shared: ModuleType) -> None:
    assert _decide(shared, errors.FeedLate("..."), user="dag_test") == "fail"


# -- the day of a run


def _context(
    *, params: dict[str, Any], run_type: str = "manual", interval: datetime | None = None, events: Any = None
) -> dict[str, Any]:
    return {
        "params": params,
        "dag_run": SimpleNamespace(run_type=run_type),
        "data_interval_start": interval,
        "triggering_asset_events": events or {},
    }


def test_params_name_a_range(shared: ModuleType) -> None:
    context = _context(params={"start": "2011-01-03", "end": "2011-01-09"})
    assert shared.days_of(context) == Days(date(2011, 1, 3), date(2011, 1, 9))


def test_start_alone_is_a_day(shared: ModuleType) -> None:
    assert shared.days_of(_context(params={"start": "2011-01-03", "end": None})) == Days.one(date(2011, 1, 3))


@pytest.mark.parametrize("run_type", ["scheduled", "backfill"])
def test_a_scheduled_run_is_for_the_day_that_its_interval_covers(shared: ModuleType, run_type: str) -> None:
    midnight = datetime(2011, 1, 3, tzinfo=UTC)
    context = _context(params={"start": None, "end": None}, run_type=run_type, interval=midnight)
    assert shared.days_of(context) == Days.one(date(2011, 1, 3))


@pytest.mark.parametrize(
    ("params", "interval"),
    [
        ({"start": "2011-01-09", "end": "2011-01-03"}, None),
        ({"start": None, "end": "2011-01-03"}, None),
        ({"start": None, "end": None}, None),
        ({"start": None, "end": None}, datetime(2026, 1, 1, tzinfo=UTC)),  # a run by hand guesses no day
    ],
)
def test_days_that_are_no_range_are_refused(shared: ModuleType, params: dict[str, Any], interval: Any) -> None:
    with pytest.raises(errors.SettingsError, match="Params"):
        shared.days_of(_context(params=params, interval=interval))


def test_the_newest_triggering_event_says_the_day_and_params_win(shared: ModuleType) -> None:
    events = {
        "features": [SimpleNamespace(extra={"until": "2011-01-08"}), SimpleNamespace(extra={"until": "2011-01-09"})],
        "retraining": [SimpleNamespace(extra={"until": "2011-01-07"})],
    }
    assert shared.until_of(_context(params={"until": None}, events=events)) == date(2011, 1, 9)
    assert shared.until_of(_context(params={"until": "2011-01-01"}, events=events)) == date(2011, 1, 1)
    with pytest.raises(errors.SettingsError, match="name the last day"):
        shared.until_of(_context(params={"until": None}))


def test_a_model_is_asked_for_by_a_person_or_by_drift(shared: ModuleType) -> None:
    events = {"features": [object()]}
    assert shared.is_asked_for(_context(params={"until": "2011-01-01"}), "retraining")
    assert shared.is_asked_for(_context(params={"until": None}, events={"retraining": [object()]}), "retraining")
    assert not shared.is_asked_for(_context(params={"until": None}, events=events), "retraining")


# -- failures


def test_a_failure_is_one_paragraph_kept_and_sent(
    shared: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sent = tmp_path / "sent.txt"
    monkeypatch.setenv("RECFLOW_HOME", str(tmp_path / "var"))
    monkeypatch.setenv("RECFLOW_ORCHESTRATION__PAGE_COMMAND", f"tee '{sent}'")
    instance = SimpleNamespace(dag_id="prepare_data", task_id="validate", run_id="manual__1")
    with caplog.at_level(logging.ERROR):
        shared.report_failure({"task_instance": instance, "exception": errors.BatchRejected("10x the usual volume.")})
    paragraph = "prepare_data.validate failed for good: 10x the usual volume."
    assert caplog.messages == [paragraph]
    assert sent.read_text() == paragraph
    kept = failures_file(load_settings()).read_text()
    assert '"error": "BatchRejected"' in kept
    assert kept.count("\n") == 1


def test_a_pager_that_fails_hides_nothing(
    shared: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RECFLOW_HOME", str(tmp_path / "var"))
    monkeypatch.setenv("RECFLOW_ORCHESTRATION__PAGE_COMMAND", "/no/such/pager")
    instance = SimpleNamespace(dag_id="prepare_data", task_id="validate", run_id="manual__1")
    with caplog.at_level(logging.ERROR):
        shared.report_failure({"task_instance": instance, "exception": None})
    assert "killed, out of memory" in caplog.messages[0]
    assert "Nobody was told" in caplog.messages[1]
    assert failures_file(load_settings()).exists()
