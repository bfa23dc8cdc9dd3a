"""Candidates and the live champion on the held-out days -> figures and a report."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recflow.console import log
from recflow.evaluation.attribution import Example, measure_attribution
from recflow.evaluation.engagement import measure_engagement
from recflow.evaluation.figures import CHAMPION, FILE, best_of, list_lengths, measure
from recflow.evaluation.holdout import TASKS, Holdout, open_holdout
from recflow.evaluation.report import write_report
from recflow.evaluation.scoring import Lists, NotComparable, candidate_lists, champion_lists, released_names
from recflow.models.catalog import load_ranker
from recflow.models.dataset import TrainingSet
from recflow.models.features import Encoders
from recflow.settings import Settings
from recflow.storage import Artifact, Release, Storage

NOUN = "evaluations"
_NO_PRIVACY: dict[str, Any] = {"mode": "none", "min_support": 1, "guarantees": {}}  # of what was trained without a word


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
    privacy, champion = _privacy(candidates, champion, settings)
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
    figures["privacy"] = privacy
    figures["engagement"] = _engagement(training, candidates, figures["selection"], settings)
    figures["attribution"], examples = _attribution(candidates, best_of(figures["selection"]), lists, holdout, settings)
    with storage.writing_folder(NOUN, name) as (folder, manifest):
        (folder / FILE).write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        write_report(figures, folder, examples=[] if settings.training.privacy.mode == "dp" else examples)
        manifest |= {
            "until": name,
            "holdout_start": figures["holdout_start"],
            "users": figures["users"],
            "champion": entry and entry["version"],
            "selection": figures["selection"],
            "models": {name: _values(model) for name, model in figures["models"].items()},
            "report": "report.html",
            "privacy": privacy,
        }
    return storage.read_folder(NOUN, name)


def _privacy(candidates: Path, champion: Release | None, settings: Settings) -> tuple[dict[str, Any], Release | None]:
    """Return what is asked and kept of people's privacy, and the champion that candidates are held against.

    That is none where settings ask for differential privacy and the champion has none: a model that is free to learn
    what it likes ranks better, and would stay for ever.
    """
    manifest = json.loads((candidates / "manifest.json").read_text(encoding="utf-8"))
    privacy = {**manifest.get("privacy", _NO_PRIVACY), "asked": settings.training.privacy.mode, "passed_over": None}
    if champion is None or settings.training.privacy.mode == "none":
        return privacy, champion
    try:
        bundle = json.loads((champion.folder / "bundle.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        bundle = {}  # nothing is known of it
    if bundle.get("privacy", _NO_PRIVACY)["mode"] == settings.training.privacy.mode:
        return privacy, champion
    log.warning("Champion %s has no differential privacy: no candidate is held against it", champion.version)
    return {**privacy, "passed_over": champion.version}, None


def _engagement(
    training: TrainingSet, candidates: Path, selection: dict[str, float], settings: Settings
) -> dict[str, Any] | None:
    """Return the figures of the engagement stage over the best candidate, or why there is none."""
    trained = json.loads((candidates / "manifest.json").read_text(encoding="utf-8")).get("engagement")
    if not trained:
        return None
    best = best_of(selection)
    found = measure_engagement(training, candidates, best, settings) if trained["trained"] else None
    if trained["trained"] and found is None:
        return {"sentence": f"{trained['sentence']} There is none over {best}."}
    return {"sentence": trained["sentence"], **(found or {})}


def _attribution(
    candidates: Path, best: str, lists: dict[str, Lists], holdout: Holdout, settings: Settings
) -> tuple[dict[str, Any], list[Example]]:
    """Take the scores of the best candidate apart, see `evaluation.attribution`."""
    ranker, encoders = load_ranker(candidates / best / "holdout"), Encoders.load(candidates / "encoder.json")
    found, examples = measure_attribution(ranker, lists[best].items["any"], holdout, encoders, settings.evaluation)
    return {"candidate": best, **found}, examples


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
