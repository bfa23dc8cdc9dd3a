"""The champion and what is known of it -> where a training starts: from nothing, or from the champion's networks.

    full          all windows, networks from scratch
    incremental   the champion's networks go on, for a fraction of the work on the newest windows; all else is anew

Nothing leaks: the part `holdout` goes on from the champion's part `holdout`, which knows nothing of its own, earlier
hold-out, and `release` from `release`. The encoders stay the champion's too, for its weights were learned with them.

Which of them it is `full_or_not` says.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recflow.errors import MissingInput
from recflow.models.dataset import TrainingSet
from recflow.settings import Settings, TrainingSettings
from recflow.storage import Release, Storage
from recflow.training.full_or_not import Case, Kind, judge


@dataclass(frozen=True)
class Origin:
    """The training that an incremental one goes on from."""

    version: str | None  # of the champion; None outside of the line
    folder: Path  # candidates/<until>
    key: str  # of all that its candidates are a function of
    until: date  # last day of its data
    full_until: date  # last day of data of the full training that it goes back to
    kept: float  # NDCG@10, as a share of that full training's on the same hold-outs
    item_ids: list[str]  # the catalogue that its networks know, in order of item_idx


@dataclass(frozen=True)
class Start:
    """Where a training starts, and why there."""

    sentence: str
    origin: Origin | None = None  # None: in full

    @property
    def kind(self) -> Kind:
        """Return what this makes of the training."""
        return "full" if self.origin is None else "incremental"

    def facts(self, until: date) -> dict[str, Any]:
        """Return what the candidates' manifest says of it; the next training reads that."""
        origin = self.origin
        facts: dict[str, Any] = {"kind": self.kind, "sentence": self.sentence}
        if origin is None:
            return facts | {"full_until": str(until), "kept": 1.0}
        came_from = {"version": origin.version, "until": str(origin.until), "key": origin.key}
        return facts | {"full_until": str(origin.full_until), "kept": origin.kept, "origin": came_from}


def decide(training_set: TrainingSet, champion: Release | None, settings: Settings) -> Start:
    """Say where the training on a training set starts."""
    storage = Storage(settings)
    case = _case(training_set, champion, settings, storage)
    kind, sentence = judge(case)
    if kind == "full" or champion is None or case.bundle is None or case.candidates is None:
        return Start(sentence)
    return Start(
        sentence,
        Origin(
            version=champion.version,
            folder=storage.folder("candidates", case.bundle["until"]),
            key=case.candidates["key"],
            until=date.fromisoformat(case.bundle["until"]),
            full_until=case.full_until,
            kept=round(case.kept, 6),
            item_ids=pq.read_table(champion.folder / "items.parquet", columns=["item_id"])["item_id"].to_pylist(),
        ),
    )


def is_enough(start: Mapping[str, Any], until: date, settings: Settings) -> bool:
    """Return whether a finished training of the same data and settings, which started so, still does."""
    if start["kind"] == "full" or settings.training.retrain == "incremental":
        return True
    alarms = [day for day in _alarms(Storage(settings), until) if day > date.fromisoformat(start["full_until"])]
    return settings.training.retrain == "auto" and not alarms


def shortened(settings: TrainingSettings) -> TrainingSettings:
    """Return the settings of an incremental step: one epoch over the newest windows, at a lower rate.

    Warm-up and decay stay: they are shares of the steps.
    """
    rate = settings.incremental_rate
    return settings.model_copy(
        update={
            "max_epochs": 1,
            "learning_rate": settings.learning_rate * rate,
            "ranker_epochs": 1,
            "ranker_windows": min(settings.ranker_windows, settings.incremental_windows),
            "ranker_learning_rate": settings.ranker_learning_rate * rate,
        }
    )


def _case(training_set: TrainingSet, champion: Release | None, settings: Settings, storage: Storage) -> Case:
    until = training_set.until
    case = Case(until, training_set.manifest, settings.training)
    if champion is None:
        return case
    bundle = json.loads((champion.folder / "bundle.json").read_text(encoding="utf-8"))
    candidates = _manifest(storage, "candidates", bundle["until"])
    if candidates and candidates.get("key") != bundle.get("candidates_key"):
        candidates = None  # trained again since, after the champion was published
    learned_from = _manifest(storage, "training_sets", bundle["until"])
    judged = {day: _manifest(storage, "verdicts", str(day)) for day in _days(storage, "verdicts")}
    return Case(
        until,
        training_set.manifest,
        settings.training,
        version=champion.version,
        bundle=bundle,
        candidates=candidates,
        learned_from=None if learned_from is None else learned_from["snapshot_hash"],
        alarms=_alarms(storage, until),
        verdicts={
            day: verdict
            for day, verdict in judged.items()
            if verdict and date.fromisoformat(bundle["until"]) <= day < until
        },
    )


def _alarms(storage: Storage, until: date) -> list[date]:
    """Return the days on which drift reports began to ask for a new model.

    They ask on while the last weeks differ from those before, whatever was trained meanwhile.
    """
    alarms, asked_before = [], False
    for day in _days(storage, "drift_reports"):
        report = _manifest(storage, "drift_reports", str(day)) if day <= until else None
        if report:
            asks = report["verdict"] == "retrain"
            alarms += [day] if asks and not asked_before else []
            asked_before = asks
    return alarms


def _days(storage: Storage, noun: str) -> list[date]:
    return sorted(date.fromisoformat(path.name) for path in storage.folder(noun, "").glob("[0-9]*"))


def _manifest(storage: Storage, noun: str, name: str) -> Mapping[str, Any] | None:
    try:
        return storage.read_folder(noun, name).manifest
    except MissingInput:
        return None
