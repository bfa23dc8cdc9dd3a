"""What was tried and how it did: MLflow runs with parameters, metrics and reports."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recflow.registry.connection import connect, experiment_id
from recflow.settings import Settings


def log_run(
    name: str,
    settings: Settings,
    *,
    params: Mapping[str, object] | None = None,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    files: Mapping[str, Path] | None = None,
) -> str:
    """Record one finished run; return its id.

    Metrics and parameters travel in batches: one call each would be a round trip each. `files` maps a folder inside
    the run to a file or folder that is copied there.

    Raises:
        OSError: a file couldn't be copied; the run is kept, marked as failed.
    """
    client = connect(settings)
    run = client.create_run(experiment_id(settings), run_name=name, tags=dict(tags or {}))
    outcome = "FAILED"
    try:
        log_figures(run.info.run_id, settings, params=params, metrics=metrics)
        for place, path in (files or {}).items():
            log = client.log_artifacts if path.is_dir() else client.log_artifact
            log(run.info.run_id, str(path), place)
        outcome = "FINISHED"
    finally:
        client.set_terminated(run.info.run_id, outcome)
    return str(run.info.run_id)


def log_figures(
    run_id: str,
    settings: Settings,
    *,
    params: Mapping[str, object] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Add parameters and metrics to a run, in as few calls as MLflow's limits on a batch allow."""
    from mlflow.entities import Metric, Param
    from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH

    client = connect(settings)
    now = int(time.time() * 1000)
    measured = [Metric(name, float(value), now, 0) for name, value in (metrics or {}).items()]
    for first in range(0, len(measured), MAX_METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=measured[first : first + MAX_METRICS_PER_BATCH])
    chosen = [Param(name, str(value)) for name, value in (params or {}).items()]
    for first in range(0, len(chosen), MAX_PARAMS_TAGS_PER_BATCH):
        client.log_batch(run_id, params=chosen[first : first + MAX_PARAMS_TAGS_PER_BATCH])


def flatten(figures: Mapping[str, Any], *, prefix: str = "") -> dict[str, float]:
    """Return nested figures as MLflow takes them, `any/ndcg_at_10`; what is no number is left out.

    >>> flatten({"any": {"ndcg_at_10": 0.3, "best": True}, "until": "2011-11-30"})
    {'any/ndcg_at_10': 0.3}
    """
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, prefix=f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = float(value)
    return flat
