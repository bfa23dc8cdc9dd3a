"""By hand: the version before, or a named one, is champion again: `rollback >> confirm_served`.

Trigger without params to go back to the version before, or with `{"version": "3"}`. `recflow models list` shows what
there is. The alias moves in one step, and a running endpoint serves the version within seconds, without a restart.
The same without Airflow: `recflow models rollback`.

| when this fails | it means | do this |
| --- | --- | --- |
| `rollback`, `RegistryError` | no such version, or none before the champion | `recflow models list`, then trigger with a version from the list |
| `rollback`, `BundleInvalid` | that version's bundle is altered or fails its recorded answers; the champion is what it was | choose another version |
| `confirm_served` | the alias is moved, but the endpoint still answers from another version | see the endpoint's log; restarting it loads the champion |

`train_model` goes on as before: to keep a rolled-back model from coming back, pause `publish`.
"""  # noqa: E501 (a table row is one line)

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task
from recflow_assets import CHAMPION
from recflow_tasks import DEFAULT_ARGS

from recflow.settings import load_settings


@dag(
    doc_md=__doc__,
    schedule=None,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={
        "version": Param(
            None,
            "Version to serve again, as `recflow models list` shows it; none: the one before the champion.",
            type=["null", "string"],
            pattern=r"^[1-9]\d*$",
        )
    },
    tags=["recflow"],
)
def rollback() -> None:
    """Join the move and its confirmation."""

    @task(outlets=[CHAMPION])
    def rollback(**context: Any) -> str:
        from recflow.pipeline import rollback

        version = str(rollback(context["params"]["version"], load_settings()).manifest["version"])
        context["outlet_events"][CHAMPION].extra = {"version": version}
        return version

    @task(execution_timeout=timedelta(minutes=10))
    def confirm_served(version: str) -> str:
        from recflow.pipeline import confirm_served

        return confirm_served(version, load_settings()).uri

    confirm_served(rollback())


rollback()
