"""Lists -> figures: by task, by slice, with intervals, and as paired differences.

    {"until", "holdout_start", "ks", "users": {task: n}, "slices": {task: {slice: n}},
     "selection": {name: score} of those that can be served, "best_baseline": {task: name},
     "models": {name: {
        task: {metric: {"value", "low", "high"}},
        "slices": {task: {slice: {"users", metric: {...}}}},
        "vs_champion": {task: {metric: {...}},
                        "slices": {task: {slice: {"users", "champion", "value", "low", "high"}}}} or null,
        "vs_best_baseline": {task: {"baseline", metric: {...}}},
        "bad_scores", "seconds"}},
     "champion": {"version", "weights", "reason", "figures": like a model's} or null}

A figure that isn't defined is null. `low` and `high` are missing where no interval is made.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recflow import metrics
from recflow.evaluation.holdout import TASKS, Holdout, Slice, Task
from recflow.evaluation.scoring import Lists
from recflow.metrics import Interval, Relevant
from recflow.settings import EvaluationSettings
from recflow.storage import Artifact

SELECTED_BY = "ndcg_at_10"
SLICED_BY = (SELECTED_BY, "recall_at_20")
CHAMPION = "champion"  # among the names of models that are compared; no candidate is called so
FILE = "metrics.json"

_BY_USER = {
    "recall": metrics.recall_at_k,
    "precision": metrics.precision_at_k,
    "ndcg": metrics.ndcg_at_k,
    "map": metrics.map_at_k,
    "hit_rate": metrics.hit_rate_at_k,
}


@dataclass(frozen=True)
class Sample:
    """Figures of all models over the same users, with their resampled means: one resample serves all of them."""

    users: int
    names: list[str]  # of metrics
    values: dict[str, NDArray[np.float64]]  # by model: (M,)
    means: dict[str, NDArray[np.float64]]  # by model: (R, M)
    confidence: float

    def interval(self, model: str, metric: str, *, minus: str | None = None) -> Interval:
        """Return a model's figure, or its paired difference from another's."""
        at = self.names.index(metric)
        value, means = self.values[model][at], self.means[model][:, at]
        if minus is not None:
            value, means = value - self.values[minus][at], means - self.means[minus][:, at]
        return metrics.percentile_interval(float(value), means, confidence=self.confidence)


def list_lengths(settings: EvaluationSettings) -> list[int]:
    """Return the ks in force, shortest first."""
    return sorted({10, 20, *settings.ks})


def measure(
    lists: Mapping[str, Lists],
    holdout: Holdout,
    settings: EvaluationSettings,
    *,
    vectors: NDArray[np.floating],  # (V, D) of the items, for diversity
) -> dict[str, Any]:
    """Return the figures of all models; one named `champion` is what the others are held against."""
    headline = {task: _sample(lists, holdout, task, None, settings) for task in TASKS}
    sliced = {
        task: {name: _sample(lists, holdout, task, part, settings) for name, part in holdout.slices.items()}
        for task in TASKS
    }
    best = {task: _best_baseline(headline[task], lists, settings) for task in TASKS}
    models: dict[str, Any] = {}
    for name, shown in lists.items():
        models[name] = {
            **{task: _intervals(headline[task], name) for task in TASKS},
            "slices": {task: _slices(sliced[task], name) for task in TASKS},
            "vs_champion": _versus_champion(headline, sliced, name) if CHAMPION in lists else None,
            "vs_best_baseline": {
                task: {"baseline": best[task], **_intervals(headline[task], name, minus=best[task])} for task in TASKS
            },
            "bad_scores": shown.bad_scores,
            "seconds": round(shown.seconds, 3),
        }
        for task in TASKS:
            models[name][task].update(_list_figures(shown.items[task], holdout, settings, task=task, vectors=vectors))
    candidates = {name: entry for name, entry in models.items() if name != CHAMPION}
    return {
        "users": {task: headline[task].users for task in TASKS},
        "slices": {task: {name: s.users if s else 0 for name, s in sliced[task].items()} for task in TASKS},
        "best_baseline": best,
        "selection": selection_scores(candidates),
        "models": models,
    }


def selection_scores(models: Mapping[str, Any]) -> dict[str, float]:
    """Return what the gate picks the candidate by: the mean over tasks of ndcg_at_10 over the best one's.

    Free of scale: the tasks' figures differ by a factor of four, and a sum would hardly see *new*.
    """
    ratios = {name: 0.0 for name in models}
    for task in TASKS:
        values = {name: models[name][task][SELECTED_BY]["value"] or 0.0 for name in models}
        best = max(values.values(), default=0.0)
        for name, value in values.items():
            ratios[name] += value / best / len(TASKS) if best > 0 else 0.0
    return ratios


def best_of(selection: Mapping[str, float]) -> str:
    """Return the candidate that the gate looks at: the best score, of equal ones the first by name."""
    return max(sorted(selection), key=lambda name: float(selection[name]))


def read_figures(evaluation: Artifact) -> dict[str, Any]:
    """Return the figures of an evaluation's folder."""
    return dict(json.loads((Path(evaluation.uri) / FILE).read_text(encoding="utf-8")))


def _best_baseline(sample: Sample, lists: Mapping[str, Lists], settings: EvaluationSettings) -> str:
    """Return the baseline with the best ndcg_at_10; of all models where no baseline is among them."""
    names = sorted(name for name in lists if name in settings.baselines) or sorted(set(lists) - {CHAMPION})
    return max(names, key=lambda name: np.nan_to_num(sample.interval(name, SELECTED_BY).value))


def _sample(
    lists: Mapping[str, Lists], holdout: Holdout, task: Task, part: Slice | None, settings: EvaluationSettings
) -> Sample:
    users, relevant = holdout.relevant(task, part)
    ks = list_lengths(settings)
    names = [f"{metric}_at_{k}" for metric in _BY_USER for k in ks]
    if len(users) == 0:
        nothing = {name: np.full(len(names), np.nan) for name in lists}
        return Sample(0, names, nothing, {name: row[None] for name, row in nothing.items()}, settings.confidence)
    by_model = np.stack([_by_user(shown.items[task][users], relevant, ks) for shown in lists.values()])  # (n, B, M)
    flat = np.concatenate(list(by_model), axis=1)  # (B, n x M): the same resamples for every model
    means = metrics.bootstrap_means(flat, seed=settings.seed, resamples=settings.resamples)
    split = np.split(means, len(lists), axis=1)
    return Sample(
        users=len(users),
        names=names,
        values={name: by_model[at].mean(axis=0) for at, name in enumerate(lists)},
        means=dict(zip(lists, split, strict=True)),
        confidence=settings.confidence,
    )


def _by_user(shown: NDArray[np.int32], relevant: Relevant, ks: Sequence[int]) -> NDArray[np.float64]:  # (B, M)
    return np.stack([metric(shown, relevant, k=k) for metric in _BY_USER.values() for k in ks], axis=1)


def _list_figures(
    shown: NDArray[np.int32],
    holdout: Holdout,
    settings: EvaluationSettings,
    *,
    task: Task,
    vectors: NDArray[np.floating],
) -> dict[str, Any]:
    """Return what the lists are like, over the task's users: no intervals, for these aren't what models differ by."""
    users, _ = holdout.relevant(task)
    shown = shown[users]
    figures: dict[str, float] = {}
    for k in list_lengths(settings):
        figures[f"coverage_at_{k}"] = metrics.coverage_at_k(shown, k=k, n_items=holdout.training.items.num_rows)
        figures[f"diversity_at_{k}"] = _mean(metrics.diversity_at_k(shown, vectors, k=k))
        figures[f"novelty_at_{k}"] = _mean(metrics.novelty_at_k(shown, holdout.buyers, k=k, n_users=holdout.n_buyers))
    return {name: {"value": _number(value)} for name, value in figures.items()}


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def _intervals(sample: Sample, model: str, *, minus: str | None = None) -> dict[str, Any]:
    return {name: _as_json(sample.interval(model, name, minus=minus)) for name in sample.names}


def _slices(samples: Mapping[str, Sample], model: str) -> dict[str, Any]:
    return {
        name: {"users": sample.users, **{metric: _as_json(sample.interval(model, metric)) for metric in SLICED_BY}}
        for name, sample in samples.items()
        if sample.users
    }


def _versus_champion(
    headline: Mapping[Task, Sample], sliced: Mapping[Task, Mapping[str, Sample]], model: str
) -> dict[str, Any]:
    slices = {
        task: {
            name: {
                "users": sample.users,
                "champion": _number(sample.interval(CHAMPION, SELECTED_BY).value),
                **_as_json(sample.interval(model, SELECTED_BY, minus=CHAMPION)),
            }
            for name, sample in sliced[task].items()
            if sample.users
        }
        for task in TASKS
    }
    return {**{task: _intervals(headline[task], model, minus=CHAMPION) for task in TASKS}, "slices": slices}


def _as_json(interval: Interval) -> dict[str, float | None]:
    return {name: _number(value) for name, value in interval._asdict().items()}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
