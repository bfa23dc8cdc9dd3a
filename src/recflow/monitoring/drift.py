"""watch_drift: is the shop of the last days still the one that the model learned from?

    drift_reports/<until>/
        manifest.json   verdict, sentences, moved columns, every column's statistic, thresholds
        drift.html      Evidently's report, numbers as signed log1p
        drift.json      the same as JSON
        moved.png       the columns that moved furthest, where any did
        searches.*      whether shoppers find what they search for, see `monitoring.searches`; not without searches

On a shop too young for two windows nothing is compared: the verdict is ok, and says so.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from typing import TYPE_CHECKING, Any

from recflow.errors import FeatureError, MissingInput
from recflow.monitoring.effects import measure
from recflow.monitoring.picture import draw_moved
from recflow.monitoring.samples import FEATURE_TABLES, Column, Sampler, Windows, choose_windows
from recflow.monitoring.scores import candidate_model, champion_model, score_columns
from recflow.monitoring.searches import report_searches
from recflow.monitoring.verdict import Judgement, judge
from recflow.schema import Days
from recflow.settings import Settings
from recflow.storage import Artifact, Release, Storage

if TYPE_CHECKING:
    import pandas as pd


def watch_drift(until: date, champion: Release | None, settings: Settings) -> Artifact:
    """Compare the last days with those that the champion learned from; write the report and the verdict.

    Without a champion the reference is the time before the last days.

    Raises:
        MissingInput: the day `until` was not validated, or its snapshots are missing.
    """
    storage = Storage(settings)
    first_day = _first_day(storage, until)
    learned_until = None if champion is None else _learned_until(champion)
    windows = choose_windows(until, learned_until, first_day, settings.drift)
    sampler = Sampler(windows, settings)
    with storage.writing_folder("drift_reports", str(until)) as (folder, manifest):
        columns = [*sampler.feature_columns(), *sampler.event_columns()]
        scores, note = _scores(until, champion, windows, sampler, settings)
        columns += scores
        movements = measure(columns, settings.drift, html=folder / "drift.html", json=folder / "drift.json")
        judgement = judge(movements, _tallies(sampler), until, settings.drift)
        draw_moved(columns, judgement.movements, folder / "moved.png")
        manifest |= _manifest(until, champion, windows, judgement, settings)
        manifest["sentences"] += [note] if note else []
        manifest["searches"] = report_searches(until, champion, folder, settings)
    return Artifact(str(storage.folder("drift_reports", str(until))), manifest)


def _first_day(storage: Storage, until: date) -> date:
    for noun in ("events", *FEATURE_TABLES):
        if until not in storage.days(noun):
            step = "validate" if noun == "events" else "build_features"
            raise MissingInput(
                f"{noun} {until}: not there yet below {storage.lake_uri}. Run {step} for that day first."
            )
    return storage.days("events")[0]


def _learned_until(champion: Release) -> date:
    facts = json.loads((champion.folder / "bundle.json").read_text(encoding="utf-8"))
    return date.fromisoformat(facts["until"])


def _scores(
    until: date, champion: Release | None, windows: Windows, sampler: Sampler, settings: Settings
) -> tuple[list[Column], str]:
    """Return the columns of scores, and a sentence where there are none."""
    model = candidate_model(until, settings) if champion is None else champion_model(champion.version, champion.folder)
    if model is None:
        return [], "The scores weren't compared: there is no champion and no candidate yet."
    try:
        columns = list(score_columns(model, windows, sampler, settings))
    except FeatureError as error:
        # Features changed since: the step must go on, for it stands before the model that knows the new ones.
        return [], f"The scores of the {model.name} weren't compared: {error}"
    return columns, "" if columns else f"The scores of the {model.name} weren't compared: no shopper in both windows."


def _tallies(sampler: Sampler) -> "Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]":
    return {noun: sampler.tallies(noun) for noun in ("events", *FEATURE_TABLES)}


def _manifest(
    until: date, champion: Release | None, windows: Windows, judgement: Judgement, settings: Settings
) -> dict[str, Any]:
    """Return what other steps and people read; JSON values only."""
    sentences = list(judgement.sentences)
    if windows.reference is None:
        sentences = ["Nothing was compared: the shop is too young to have days before the last ones."]
    columns = [asdict(movement) for movement in judgement.movements]
    return {
        "until": str(until),
        "champion": None if champion is None else champion.version,
        "reference": _window(windows.reference),
        "current": _window(windows.current),
        "verdict": judgement.verdict,
        "sentences": sentences,
        "moved": [column for column in columns if column["level"] in ("moved", "far", "broken")],
        "columns": columns,
        "thresholds": settings.drift.model_dump(mode="json"),
    }


def _window(days: Days | None) -> dict[str, str] | None:
    return None if days is None else {"start": str(days.start), "end": str(days.end)}
