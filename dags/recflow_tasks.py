"""What all DAG files share: which failures are worth another try, who hears of the rest, and what day a run is for.

| failure | another try? |
| --- | --- |
| `FeedLate`: the day's file may still come | yes, with growing pauses over about eight hours |
| `LeaseHeld`: another run of the step is at work | yes, as above |
| any other `RecflowError`: the same input would end the same way | no: a person has to act |
| anything else (a full disk, a lost connection, a defect) | twice, then it is reported |
| all of them in `airflow dags test` | no: somebody is waiting in front of it |
"""

import logging
from collections.abc import Mapping
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, Param, RetryDecision, RetryPolicy

from recflow.errors import FeedLate, LeaseHeld, RecflowError, SettingsError

if TYPE_CHECKING:
    from recflow.schema import Days

log = logging.getLogger(__name__)

TRIES_OF_UNKNOWN_FAILURES = 3  # the first and two more


class WorthAnotherTry(RetryPolicy):
    """Decide by the error's class; the pauses are the task's own."""

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        """Return whether a failed task is tried again."""
        if context and context["dag_run"].triggering_user_name == "dag_test":
            return RetryDecision.fail("a person is waiting: no other try")
        if isinstance(exception, FeedLate | LeaseHeld):
            return RetryDecision.retry(reason="may be over soon")
        if isinstance(exception, RecflowError):
            return RetryDecision.fail("the same input would end the same way")
        if try_number >= TRIES_OF_UNKNOWN_FAILURES:
            return RetryDecision.fail(f"failed {try_number} times")
        return RetryDecision.retry(reason="not known to last")

    def serialize(self) -> dict[str, Any]:
        """Return nothing to keep: the rules are code."""
        return {}


def report_failure(context: Mapping[str, Any]) -> None:
    """Log one clear paragraph on a task that won't be tried again, keep it, and page where settings ask for it."""
    from recflow.orchestration import record_failure
    from recflow.settings import load_settings

    instance, error = context["task_instance"], context.get("exception")
    reason = str(error) if isinstance(error, RecflowError) else f"{type(error).__name__}: {error}"
    if error is None:
        reason = "the process ended without an error: killed, out of memory, or its machine went away."
    paragraph = f"{instance.dag_id}.{instance.task_id} failed for good: {reason}"
    log.error(paragraph)
    try:
        record_failure(
            {
                "dag_id": instance.dag_id,
                "task_id": instance.task_id,
                "run_id": instance.run_id,
                "error": type(error).__name__,
                "paragraph": paragraph,
            },
            load_settings(),
        )
    except (OSError, SettingsError) as trouble:
        log.error("The failure above was neither kept nor paged: %s", trouble)


DEFAULT_ARGS: dict[str, Any] = {
    "owner": "recflow",
    "retries": 8,  # 5, 10, 20, 40, 80, 120, 120, 120 minutes: about eight and a half hours
    "retry_delay": timedelta(minutes=5),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(hours=2),
    "retry_policy": WorthAnotherTry(),
    "execution_timeout": timedelta(hours=1),
    "on_failure_callback": report_failure,
}


def day_param(description: str) -> Param:
    """Return an optional parameter that is a day, `2011-11-30`."""
    return Param(None, description, type=["null", "string"], format="date", pattern=r"^\d{4}-\d{2}-\d{2}$")


def days_of(context: Mapping[str, Any]) -> "Days":
    """Return the days that a run is for: its params `start` and `end`, else its data interval.

    Raises:
        SettingsError: the params are no range, or a run by hand names no day.
    """
    from recflow.schema import Days

    start, end = context["params"].get("start"), context["params"].get("end")
    if start:
        days = Days(date.fromisoformat(start), date.fromisoformat(end or start))
        if days.end < days.start:
            raise SettingsError(f"Params: expected `end` on or after `start`, found {start} to {end}. Correct them.")
        return days
    if end:
        raise SettingsError(f"Params: `end` is {end}, but there is no `start`. Give both, or `start` alone for a day.")
    if context.get("data_interval_start") is None or context["dag_run"].run_type == "manual":
        raise SettingsError('Params: a run by hand has to name its days, e.g. {"start": "2011-11-01"}. Found none.')
    return Days.one(context["data_interval_start"].date())


def until_of(context: Mapping[str, Any]) -> date:
    """Return the last day of data that a run is for: its param `until`, else the newest of what triggered it.

    Raises:
        SettingsError: a run by hand names no day.
    """
    until = context["params"].get("until")
    if until:
        return date.fromisoformat(until)
    events = [event for events in context["triggering_asset_events"].values() for event in events]
    found = [event.extra["until"] for event in events if "until" in event.extra]
    if not found:
        raise SettingsError('Params: a run by hand has to name the last day, e.g. {"until": "2011-11-30"}. Found none.')
    return date.fromisoformat(max(found))


def is_asked_for(context: Mapping[str, Any], *assets: Asset) -> bool:
    """Return whether a person named the day, or one of the assets is among what triggered the run."""
    return bool(context["params"].get("until")) or any(context["triggering_asset_events"].get(each) for each in assets)
