"""A day of the feed becomes features: `erase >> ingest >> validate >> build_features >> materialize`.

Runs daily for the UTC day before and catches up from `orchestration.first_day`. For a range, or a day again, trigger
it by hand with the params `start` and `end` (both included): `{"start": "2011-11-01", "end": "2011-11-30"}`. Every
task writes its whole output or nothing, so clearing and running again is always safe.

| when this fails | it means | do this |
| --- | --- | --- |
| any task, `FeedLate` | the day's file isn't there; tried again for about eight hours | ask the shop; clear the task when the file has come |
| any task, `LeaseHeld` | another run of the step is at work; tried again | nothing; if it never ends, look for the run that holds it |
| `erase` | somebody's wish to be forgotten isn't honoured yet, and nothing of theirs comes back until it is | do what the message says, then clear `erase`; `recflow privacy list` shows what is open |
| `ingest`, `FeedError` | the file is truncated, of another day, or no such file at all | get the file again, then clear `ingest` |
| `validate`, `BatchRejected` | a rule stopped the whole day; the lake is as before | read the rule and its figures in the message; if the day is right as it is, raise that threshold in `[validation]`; clear `ingest` and what follows |
| `build_features`, `MissingInput` | an earlier day is missing | run the missing days with `start` and `end`, then clear this task |
| `materialize` | the online store couldn't be written; answers go on with the features of the day before | free disk or repair the store, then clear `materialize` |

Single rows that broke a rule never stop a day: `recflow quarantine list`, `show --date DAY`, `replay FILE`. The same steps
without Airflow: `recflow run ingest --date DAY`, and so on. Downstream, `features` starts `train_model` and
`watch_drift`.
"""  # noqa: E501 (a table row is one line)

from datetime import UTC, datetime, time, timedelta
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, dag, task
from recflow_assets import FEATURES
from recflow_tasks import DEFAULT_ARGS, day_param, days_of

from recflow.settings import load_settings

_FEED = load_settings().orchestration
_LAST_RUN = datetime.combine(_FEED.last_day, time(), UTC) if _FEED.last_day else None


@dag(
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=datetime.combine(_FEED.first_day, time(), UTC),
    end_date=_LAST_RUN,
    catchup=True,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={
        "start": day_param("First day to prepare, instead of the day before."),
        "end": day_param("Last day to prepare, included; without it, `start` alone."),
    },
    tags=["recflow"],
)
def prepare_data() -> None:
    """Join the daily steps."""

    @task
    def erase(**context: Any) -> str:
        from recflow.pipeline import erase

        return erase(days_of(context), load_settings()).uri

    @task
    def ingest(**context: Any) -> str:
        from recflow.pipeline import ingest

        return ingest(days_of(context), load_settings()).uri

    @task
    def validate(**context: Any) -> str:
        from recflow.pipeline import validate

        return validate(days_of(context), load_settings()).uri

    @task
    def build_features(**context: Any) -> str:
        from recflow.pipeline import build_features

        return build_features(days_of(context), load_settings()).uri

    @task(outlets=[FEATURES], execution_timeout=timedelta(minutes=30))
    def materialize(**context: Any) -> str:
        from recflow.pipeline import materialize

        days = days_of(context)
        artifact = materialize(days, load_settings())
        context["outlet_events"][FEATURES].extra = {"until": f"{days.end}"}
        return artifact.uri

    erase() >> ingest() >> validate() >> build_features() >> materialize()


prepare_data()
