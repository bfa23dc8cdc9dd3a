"""A gated model becomes what is served: `approve >> publish >> confirm_served`.

Started by `gated_model`. Where `registry.require_approval` is set, `approve` waits up to seven days for a person's
answer (in the web page under "Required actions"; the gate's sentences stand beside the buttons); otherwise it passes
at once. No answer counts as "Reject": the champion stays. A run started by hand with the param `approved_by` is an
approval, and the name is kept with the run.

| when this fails | it means | do this |
| --- | --- | --- |
| `publish`, `PublishError` or `MissingInput` | no gated model for that day, or its bundle couldn't be built | the champion is what it was; look at `train_model` of that day |
| `publish`, `BundleInvalid` | the new bundle fails its own recorded answers | the champion is what it was; clear `publish` once, then leave it to the day shift |
| `confirm_served` | the version is the champion, but the endpoint still answers from another | see the endpoint's log for why it refused the bundle; answers go on from the old one; if in doubt trigger `rollback` |

`recflow models list` shows versions and who is champion; `recflow models rollback` goes back at once.
"""  # noqa: E501 (a table row is one line)

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param, dag, task
from recflow_assets import CHAMPION, GATED_MODEL
from recflow_tasks import DEFAULT_ARGS, day_param, until_of

from recflow.settings import load_settings


class ApprovalWhereAsked(ApprovalOperator):
    """Ask a person where settings want that and the run wasn't started by one who approves."""

    def execute(self, context: Any) -> Any:
        """Pass at once or wait for an answer."""
        settings, approver = load_settings(), context["params"].get("approved_by")
        if not settings.registry.require_approval or approver:
            self.log.info("Approved by %s.", approver or "settings: registry.require_approval is off")
            return None
        from recflow.storage import Storage

        self.body = "\n".join(Storage(settings).read_folder("verdicts", f"{until_of(context)}").manifest["sentences"])
        return super().execute(context)


@dag(
    doc_md=__doc__,
    schedule=GATED_MODEL,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    params={
        "until": day_param("Last day of data of the gated model; a run by hand has to name it."),
        "approved_by": Param(
            None, "Your name: you approve by starting this run.", type=["null", "string"], minLength=2, maxLength=100
        ),
    },
    tags=["recflow"],
)
def publish() -> None:
    """Join the steps from a gated model to a served one."""
    approve = ApprovalWhereAsked(
        task_id="approve",
        subject="Promote the model that the gate passed?",
        defaults=[ApprovalOperator.REJECT],
        response_timeout=timedelta(days=7),
        execution_timeout=None,  # it would count the person's time
    )

    @task(outlets=[CHAMPION])
    def publish(**context: Any) -> str:
        from recflow.pipeline import publish

        until = until_of(context)
        approved = load_settings(registry={"require_approval": False})  # `approve` asked: without this it waits again
        version = str(publish(until, approved).manifest["version"])
        context["outlet_events"][CHAMPION].extra = {"version": version, "until": f"{until}"}
        return version

    @task(execution_timeout=timedelta(minutes=10))
    def confirm_served(version: str) -> str:
        from recflow.pipeline import confirm_served

        return confirm_served(version, load_settings()).uri

    version = publish()
    approve >> version
    confirm_served(version)


publish()
