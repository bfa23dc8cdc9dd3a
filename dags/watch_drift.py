"""Do the last days still look like what the champion learned from? `watch_drift >> ask_for_retraining`.

Started by `features`, so once for every prepared day. Compares the champion's training window with the last days:
feature columns, the mix of events, the scores. Reports (HTML and JSON) are in `drift_reports/DAY/`.

| verdict | what happens | do this |
| --- | --- | --- |
| `ok` | `ask_for_retraining` is skipped | nothing |
| `warn` | as above; the columns that moved are in the log | look at the report by day |
| `retrain` | `ask_for_retraining` starts `train_model` through the asset `retraining` | nothing |
| `block` | `ask_for_retraining` fails and pages: what comes in is too strange to learn from | look at the report and at the last days' quarantine; repair the feed; don't train on those days before that |

If `watch_drift` itself fails with `MissingInput`, a day isn't prepared: run `prepare_data` for it, then clear. By
hand: trigger with `{"until": "2011-11-30"}`, or `recflow run watch_drift --until 2011-11-30`.
"""  # noqa: E501 (a table row is one line)

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowSkipException
from recflow_assets import FEATURES, RETRAINING
from recflow_tasks import DEFAULT_ARGS, day_param, until_of

from recflow.errors import RecflowError
from recflow.settings import load_settings


@dag(
    doc_md=__doc__,
    schedule=FEATURES,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={"until": day_param("Last day of the days to look at; a run by hand has to name it.")},
    tags=["recflow"],
)
def watch_drift() -> None:
    """Join the report and what follows from it."""

    @task
    def watch_drift(**context: Any) -> str:
        from recflow.pipeline import watch_drift

        return str(watch_drift(until_of(context), load_settings()).manifest["verdict"])

    @task(outlets=[RETRAINING], execution_timeout=timedelta(minutes=5))
    def ask_for_retraining(verdict: str, **context: Any) -> None:
        until = until_of(context)
        if verdict == "block":
            raise RecflowError(
                f"Drift {until}: expected days that a model can learn from, found verdict 'block'. See "
                f"drift_reports/{until}, repair the feed, then prepare those days again."
            )
        if verdict != "retrain":
            raise AirflowSkipException(f"Drift {until}: verdict '{verdict}': no new model is asked for.")
        context["outlet_events"][RETRAINING].extra = {"until": f"{until}"}

    ask_for_retraining(watch_drift())


watch_drift()
