"""Candidates and the live champion on the held-out days -> figures and a report."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recflow.console import log
from recflow.evaluation.figures import CHAMPION, FILE, list_lengths, measure
from recflow.evaluation.holdout import TASKS, Holdout, open_holdout
from recflow.evaluation.report import write_report
from recflow.evaluation.scoring import Lists, NotComparable, candidate_lists, champion_lists, released_names
from recflow.models.dataset import TrainingSet
from recflow.settings import Settings
from recflow.storage import Artifact, Release, Storage

NOUN = "evaluations"


def evaluate(until: date, champion: Release | None, settings: Settings) -> Artifact:
    """Candidates of `until`, and the champion, on the same hold-out -> `evaluations/<until>`; figures and a report.

    Figures of versions that were evaluated on different days can't be compared: the champion is scored again, with
    those of its weights that never saw the hold-out.

    Raises:
        MissingInput: the training set or the candidates aren't there.
        TrainingError: nobody with a history bought in the hold-out.
    """
    storage, name = Storage(settings), str(until)
    training = TrainingSet.open(Path(storage.read_folder("training_sets", name).uri))
    candidates = Path(storage.read_folder("candidates", name).uri)
    holdout = open_holdout(training, settings.evaluation)
    released, k = released_names(candidates), list_lengths(settings.evaluation)[-1]
    lists = candidate_lists(candidates, holdout, k=k)
    entry = _score_champion(champion, holdout, lists, k=k)
    figures = {
        "until": name,
        "holdout_start": str(training.holdout_start),
        "ks": list_lengths(settings.evaluation),
        "n_items": training.items.num_rows,
        "confidence": settings.evaluation.confidence,
        "resamples": settings.evaluation.resamples,
        **measure(lists, holdout, settings.evaluation, vectors=_title_vectors(training, settings)),
    }
    own = figures["models"].pop(CHAMPION, None)
    # The gate picks among those that can be served; a yardstick is shown, and has its part in the scale.
    figures["selection"] = {name: figures["selection"][name] for name in released}
    figures["champion"] = entry and {**entry, "figures": own}
    with storage.writing_folder(NOUN, name) as (folder, manifest):
        (folder / FILE).write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        write_report(figures, folder)
        manifest |= {
            "until": name,
            "holdout_start": figures["holdout_start"],
            "users": figures["users"],
            "champion": entry and entry["version"],
            "selection": figures["selection"],
            "models": {name: _values(model) for name, model in figures["models"].items()},
            "report": "report.html",
        }
    return storage.read_folder(NOUN, name)


def _score_champion(
    champion: Release | None, holdout: Holdout, lists: dict[str, Lists], *, k: int
) -> dict[str, Any] | None:
    """Add the champion's lists to the others; return what is known of it, None where there is no champion."""
    if champion is None:
        return None
    try:
        lists[CHAMPION], weights = champion_lists(champion, holdout, k=k)
    except NotComparable as error:
        log.warning("Champion %s can't be compared: %s", champion.version, error)
        return {"version": champion.version, "weights": None, "reason": str(error)}
    return {"version": champion.version, "weights": weights, "reason": None}


def _title_vectors(training: TrainingSet, settings: Settings) -> NDArray[np.float32]:
    from recflow.models.text import title_vectors

    return title_vectors(training.items["title"].to_pylist(), encoder=settings.training.text_encoder)


def _values(model: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    return {task: {name: figure["value"] for name, figure in model[task].items()} for task in TASKS}
