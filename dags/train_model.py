"""Features become a judged model.

`is_due >> build_training_set >> train >> evaluate >> watch_drift >> gate`.

Started by `features` (every prepared day) and by `retraining` (the drift report asks for a new model). `is_due` lets
a run go on when the last verdict is `orchestration.retrain_every_days` days of data old, when drift asked, or when a
person started the run with the param `until`; otherwise all that follows is skipped, which is fine. The gate that
rejects is skipped too, so that nothing downstream runs: the champion stays, and the reasons are in the gate's log and
in `verdicts/DAY/manifest.json`.

| when this fails | it means | do this |
| --- | --- | --- |
| `build_training_set`, `MissingInput` | events or snapshots through the day are missing | run `prepare_data` for the missing days, then clear |
| `build_training_set` or `train`, `TrainingError` | too little to learn from | wait for more days, or look at the last days' quarantine |
| `train`, killed or timed out | out of memory, or a slow machine | clear it: it resumes from its last checkpoint |
| `train` or `evaluate`, `RegistryError` or `BundleInvalid` | the champion can't be read, to go on from or to score again | `recflow models list`, then roll back to a sound version |
| `watch_drift`, `LeaseHeld` | the DAG of that name looks at the same days; tried again | nothing |
| `gate` is skipped | no candidate is good enough | nothing tonight; read the sentences and the report in `evaluations/DAY/` |

`train` is in full or incremental, going on from the champion's networks: the first sentence of its log says which and
why, and so does `start` in `candidates/DAY/manifest.json`. The param `retrain` (`auto`, `full`, `incremental`) decides
for once; `training.retrain` for good.

By hand: trigger with `{"until": "2011-11-30"}`, or `recflow run train --until 2011-11-30` and so on. The endpoint
never depends on this DAG: it goes on with the champion.
"""  # noqa: E501 (a table row is one line)

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowSkipException
from recflow_assets import FEATURES, GATED_MODEL, RETRAINING
from recflow_tasks import DEFAULT_ARGS, day_param, is_asked_for, until_of

from recflow.settings import load_settings


@dag(
    doc_md=__doc__,
    schedule=FEATURES | RETRAINING,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={
        "until": day_param("Last day of data to learn from, included; a run by hand has to name it."),
        "retrain": Param(
            None,
            "auto: in full or going on from the champion, by rule; empty: as set in training.retrain.",
            type=["null", "string"],
            enum=[None, "auto", "full", "incremental"],
        ),
    },
    tags=["recflow"],
)
def train_model() -> None:
    """Join the steps from features to a verdict."""

    @task.short_circuit(execution_timeout=timedelta(minutes=5))
    def is_due(**context: Any) -> bool:
        from recflow.orchestration import training_due

        until = until_of(context)
        return is_asked_for(context, RETRAINING) or training_due(until, load_settings()) is not None

    @task
    def build_training_set(**context: Any) -> str:
        from recflow.pipeline import build_training_set

        return build_training_set(until_of(context), load_settings()).uri

    @task(execution_timeout=timedelta(hours=12))
    def train(**context: Any) -> str:
        from recflow.pipeline import train

        asked = context["params"].get("retrain")
        settings = load_settings(training={"retrain": asked}) if asked else load_settings()
        return train(until_of(context), settings).uri

    @task(execution_timeout=timedelta(hours=2))
    def evaluate(**context: Any) -> str:
        from recflow.pipeline import evaluate

        return evaluate(until_of(context), load_settings()).uri

    @task
    def watch_drift(**context: Any) -> str:
        from recflow.pipeline import watch_drift

        return watch_drift(until_of(context), load_settings()).uri

    @task(outlets=[GATED_MODEL])
    def gate(**context: Any) -> str:
        from recflow.pipeline import gate

        until = until_of(context)
        verdict = gate(until, load_settings())
        if not verdict.manifest["passed"]:
            raise AirflowSkipException(" ".join(verdict.manifest["sentences"]))
        context["outlet_events"][GATED_MODEL].extra = {"until": f"{until}"}
        return verdict.uri

    is_due() >> build_training_set() >> train() >> evaluate() >> watch_drift() >> gate()


train_model()
