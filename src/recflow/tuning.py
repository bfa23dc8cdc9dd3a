"""A training set -> settings of `training` that rank better: a search with Optuna that never looks at the hold-out.

A trial fits one candidate before each of the latest windows that end where the hold-out starts, or before it, and is
judged on what was bought there, as the hold-out is in `evaluation`. Trials are kept in `<home>/tuning.db`: killed and
started again, the search goes on with the trial that it was at.
"""

import copy
import dataclasses
import hashlib
import json
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recflow.console import log
from recflow.errors import SettingsError, TrainingError
from recflow.evaluation.figures import SELECTED_BY
from recflow.evaluation.holdout import TASKS, Holdout, open_holdout
from recflow.evaluation.scoring import candidate_lists
from recflow.metrics import ndcg_at_k
from recflow.models.dataset import TrainingSet
from recflow.registry.tracking import log_run
from recflow.settings import Settings, TrainingSettings
from recflow.storage import Storage
from recflow.training.fit import Fitting

if TYPE_CHECKING:
    from optuna import Study, Trial

    from recflow.training.windows import CandidateWindows

_K = 10  # NDCG@10, as the gate reads it
_STARTUP_TRIALS = 5  # drawn at random, before the sampler has a model and the pruner a median: searches are small

Suggest = Callable[["Trial"], dict[str, Any]]


def _of_ranker(trial: "Trial") -> dict[str, Any]:
    return {
        "ranker_learning_rate": trial.suggest_float("ranker_learning_rate", 5e-4, 1e-2, log=True),
        "ranker_epochs": trial.suggest_int("ranker_epochs", 2, 8),
        "ranker_windows": trial.suggest_int("ranker_windows", 4, 16, step=2),
        # A few strengths alone, for each makes the windows' candidates anew.
        "ease_regularization": trial.suggest_float("ease_regularization", 100, 500, step=100),
    }


def _of_ease(trial: "Trial") -> dict[str, Any]:
    return {
        "ease_regularization": trial.suggest_float("ease_regularization", 50, 1000, log=True),
        "ease_recency_days": trial.suggest_int("ease_recency_days", 14, 120),
    }


def _of_item_knn(trial: "Trial") -> dict[str, Any]:
    return {
        "knn_neighbours": trial.suggest_int("knn_neighbours", 20, 300, log=True),
        "knn_shrinkage": trial.suggest_float("knn_shrinkage", 0, 100),
    }


def _of_repeats(trial: "Trial") -> dict[str, Any]:
    return {"repeat_half_life_days": trial.suggest_float("repeat_half_life_days", 7, 365, log=True)}


def _of_sequence(trial: "Trial") -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 5e-4, 1e-2, log=True),
        "dropout": trial.suggest_float("dropout", 0.0, 0.5),
        "embedding_size": trial.suggest_int("embedding_size", 32, 128, step=32),
        "layers": trial.suggest_int("layers", 0, 2),
    }


# What is tried, by candidate.
SPACES: Mapping[str, Suggest] = {
    "ranker": _of_ranker,
    "sequence": _of_sequence,
    "ease_recent": _of_ease,
    "item_knn": _of_item_knn,
    "repeat_purchase": _of_repeats,
}
_BEFORE = {"ease_recent": ("ease",)}  # candidates that one takes its weights from


def tune(
    until: date,
    settings: Settings,
    *,
    candidate: str = "ranker",
    trials: int = 20,
    max_minutes: float | None = None,
    validations: int = 1,
) -> dict[str, Any]:
    """Search the candidate's settings until so many trials are done or time is up; return what was found.

    The first trial has the settings in force. With several validation windows a trial is given up where it is below
    the median of the others after the first ones.

    Args:
        until: last day of the training set.
        settings: what isn't searched stays as it is here.
        candidate: one of SPACES.
        trials: in all, with those of earlier calls.
        max_minutes: by the clock, of this call; the trial that is under way then is finished.
        validations: latest windows that trials are judged on.

    Raises:
        MissingInput: the training set isn't there.
        SettingsError: no such candidate.
        TrainingError: there are too few windows.
    """
    if candidate not in SPACES:
        raise SettingsError(f"Nothing is searched for '{candidate}'; there is: {', '.join(SPACES)}.")
    storage = Storage(settings)
    training_set = TrainingSet.open(Path(storage.read_folder("training_sets", str(until)).uri))
    parts = validation_sets(training_set, validations)
    with storage.lease("tune"), tempfile.TemporaryDirectory(dir=settings.home) as work:
        study = _study(candidate, training_set, settings, validations)
        judge = _Judge(candidate, parts, settings, Path(work))
        ends = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        while len(_done(study)) < trials and time.monotonic() < ends:
            _try_one(study, judge)
    return _report(study, candidate, until, parts)


def validation_sets(training_set: TrainingSet, validations: int) -> list[TrainingSet]:
    """Return the training set as if its hold-out were the last window before it, then the one before that, ...

    Raises:
        TrainingError: no window is left to learn from.
    """
    cuts = training_set.training_cuts(ending_by=training_set.holdout_start)
    parts = []
    for cut in cuts[::-1][:validations]:
        known = [str(each) for each in training_set.cuts if each <= cut]
        manifest = training_set.manifest | {"holdout_start": str(cut), "cuts": known}
        parts.append(dataclasses.replace(training_set, manifest=manifest))
    if len(parts) < validations or not parts[-1].training_cuts(ending_by=parts[-1].holdout_start):
        raise TrainingError(
            f"Training set {training_set.until}: {validations} windows to validate on leave none to learn from. "
            "Prepare more days of data."
        )
    return parts


class _Judge:
    """What settings are worth on the validation windows; candidates of windows are kept from trial to trial."""

    def __init__(self, candidate: str, parts: list[TrainingSet], settings: Settings, work: Path) -> None:
        self.candidate, self.parts, self.settings, self.work = candidate, parts, settings, work
        self._holdouts = [open_holdout(part, settings.evaluation) for part in parts]
        self._windows: dict[float, CandidateWindows] = {}  # by what their candidates are a function of: the last one

    def figures(self, place: int, training: TrainingSettings) -> dict[str, float]:
        """Fit before a validation window; return NDCG@10 of each task on it."""
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            fitting = Fitting(self.parts[place], training, Path(folder))
            if self.candidate == "ranker":
                fitting.windows = self._shared(fitting)
            for name in (*_BEFORE.get(self.candidate, ()), self.candidate):
                fitting.fit(name, "holdout")
            shutil.rmtree(Path(folder) / "checkpoints", ignore_errors=True)  # no candidate, though it has parts too
            return _figures(Path(folder), self.candidate, self._holdouts[place])

    def _shared(self, fitting: Fitting) -> "CandidateWindows":
        """Return windows with the trial's settings whose candidates were made for an earlier trial, where they can."""
        strength = fitting.settings.ease_regularization
        if strength not in self._windows:
            self._windows = {strength: fitting.windows}
        shared = copy.copy(self._windows[strength])
        shared.settings = fitting.settings
        return shared


def _figures(folder: Path, name: str, holdout: Holdout) -> dict[str, float]:
    lists = candidate_lists(folder, holdout, k=_K)[name]
    figures: dict[str, float] = {}
    for task in TASKS:
        users, relevant = holdout.relevant(task)
        figures[task] = float(ndcg_at_k(lists.items[task][users], relevant, k=_K).mean()) if len(users) else 0.0
    return figures


def worth(figures: Mapping[str, float]) -> float:
    """Return what trials are compared by: the geometric mean over tasks, for their scales differ by a factor of four.

    >>> worth({"any": 0.4, "new": 0.1})
    0.2
    """
    return round(math.prod(figures[task] for task in TASKS) ** (1 / len(TASKS)), 12)


# -- trials


def _study(candidate: str, training_set: TrainingSet, settings: Settings, validations: int) -> "Study":
    """Open the search of a candidate on this very training set; another one has trials of its own."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings.home.mkdir(parents=True, exist_ok=True)
    searched = _names(candidate)
    fixed = {name: value for name, value in settings.training.model_dump(mode="json").items() if name not in searched}
    content = [training_set.manifest["snapshot_hash"], fixed, validations]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    study = optuna.create_study(
        study_name=f"{candidate}-{training_set.until}-{digest}",
        storage=f"sqlite:///{settings.home.absolute() / 'tuning.db'}",
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS),
        load_if_exists=True,
    )
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):  # killed
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    if not study.trials:
        study.enqueue_trial({name: getattr(settings.training, name) for name in searched}, skip_if_exists=True)
    return study


def _names(candidate: str) -> list[str]:
    """Return the settings that are searched."""
    import optuna

    trial = optuna.trial.FixedTrial({name: getattr(TrainingSettings(), name) for name in TrainingSettings.model_fields})
    return list(SPACES[candidate](trial))  # type: ignore[arg-type]


def _try_one(study: "Study", judge: _Judge) -> None:
    """Try the next settings, judge them, and keep the figures: in the search, and as a run of MLflow."""
    import optuna

    # A sampler a trial: what it draws is a function of the seed and of the trials before, killed or not.
    seed = judge.settings.training.seed + len(_done(study))
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS)
    trial = study.ask()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Fixed parameter")  # settings in force may lie outside of the search
        chosen = SPACES[judge.candidate](trial)
    training = TrainingSettings.model_validate(judge.settings.training.model_dump() | chosen)
    found: list[dict[str, float]] = []
    for place in range(len(judge.parts)):
        found.append(judge.figures(place, training))
        trial.report(worth(_mean(found)), place)
        if place + 1 < len(judge.parts) and trial.should_prune():
            break
    figures = _mean(found)
    trial.set_user_attr("figures", figures)
    if len(found) == len(judge.parts):
        study.tell(trial, worth(figures))
    else:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    log.info("trial %d: %s: %s", trial.number, chosen, {task: round(value, 4) for task, value in figures.items()})
    metrics = {f"{task}/{SELECTED_BY}": value for task, value in figures.items()}
    tags = {"step": "tune", "until": str(judge.parts[0].until), "trial": str(trial.number)}
    log_run(f"tune {judge.candidate}", judge.settings, params=chosen, metrics=metrics, tags=tags)


def _mean(found: list[dict[str, float]]) -> dict[str, float]:
    return {task: sum(each[task] for each in found) / len(found) for task in TASKS}


def _done(study: "Study") -> list[Any]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


# -- what was found


def _report(study: "Study", candidate: str, until: date, parts: list[TrainingSet]) -> dict[str, Any]:
    rows = [
        {
            "trial": trial.number,
            **{f"{SELECTED_BY} ({task})": round(trial.user_attrs["figures"][task], 4) for task in TASKS},
            "state": trial.state.name.lower(),
            **{name: _short(value) for name, value in trial.params.items()},
        }
        for trial in _done(study)
    ]
    whole = [trial for trial in _done(study) if trial.value is not None and trial.state.name == "COMPLETE"]
    best = max(whole, key=lambda trial: (trial.value, -trial.number), default=None)
    chosen = {} if best is None else {name: _short(value) for name, value in best.params.items()}
    return {
        "candidate": candidate,
        "until": str(until),
        "validated_on": [str(part.holdout_start) for part in parts],
        "trials": rows,
        "best": None if best is None else {"trial": best.number, "figures": best.user_attrs["figures"], **chosen},
        "toml": "\n".join(["[training]", *(f"{name} = {json.dumps(value)}" for name, value in chosen.items())]),
    }


def _short(value: Any) -> Any:
    """Return a number with the four digits that a search can tell apart."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
