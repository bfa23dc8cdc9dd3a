"""Movements and tallies -> a verdict by rule, in sentences.

- block: the data look broken. Nothing came in, or none of the main event type; the volume collapsed; a column that was
  filled is empty on the newest day.
- retrain: the model answers in another shop than it learned from. Its scores moved far, the volume is another one, or
  many columns moved.
- warn: worth a look. A column moved far, the scores or the volume moved, or some columns moved.
- ok: none of these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Literal

from recflow.monitoring.effects import Level, Movement
from recflow.monitoring.samples import FEATURE_TABLES, Part
from recflow.settings import DriftSettings

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["ok", "warn", "retrain", "block"]

_KIND = "kind_"
_WEEK = 7


@dataclass(frozen=True)
class Judgement:
    """What was decided and why."""

    verdict: Verdict
    sentences: list[str]
    movements: list[Movement]  # those of the columns, the volume and what is broken; furthest first


def judge(
    movements: Sequence[Movement],
    tallies: "Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]",
    until: date,
    settings: DriftSettings,
) -> Judgement:
    """Apply the rules.

    Args:
        movements: of the sampled columns.
        tallies: by table, reference and current: see `Sampler.tallies`.
        until: the last day.
        settings: the thresholds.
    """
    tallied = [
        *_volume(*tallies["events"], settings),
        *_vanished(*tallies["events"], until, settings),
        *_emptied(tallies, settings),
    ]
    everything = sorted([*movements, *tallied], key=lambda movement: -movement.value / movement.threshold)
    found: dict[Verdict, list[str]] = {
        "block": [_sentence(movement) for movement in everything if movement.level == "broken"],
        "retrain": _reasons(everything, settings, level="retrain"),
        "warn": _reasons(everything, settings, level="warn"),
    }
    judged, moved = _judged(everything)
    verdict: Verdict = next((verdict for verdict, reasons in found.items() if reasons), "ok")
    details = [_sentence(movement) for movement in everything if movement.level in ("moved", "far")]
    sentences = list(found.get(verdict, []))
    if not any(sentence.startswith(_count(judged, moved)) for sentence in sentences):
        sentences.append(f"{_count(judged, moved)}.")
    sentences += details
    return Judgement(verdict, list(dict.fromkeys(sentences)), everything)


def _reasons(movements: Sequence[Movement], settings: DriftSettings, *, level: Literal["retrain", "warn"]) -> list[str]:
    enough = ("far",) if level == "retrain" else ("far", "moved")
    whole = [m for m in movements if m.part == "scores" or m.statistic == "ratio"]
    reasons = [_sentence(movement) for movement in whole if movement.level in enough]
    judged, moved = _judged(movements)
    share = settings.retrain_share if level == "retrain" else settings.warn_share
    # One column of a few is chance, or that column's own matter.
    if len(moved) >= max(2, share * len(judged)):
        reasons.append(f"{_count(judged, moved)} (from {share:.0%}: {level}).")
    if level == "warn":
        reasons += [_sentence(movement) for movement in moved if movement.level == "far"]
    return reasons


def _judged(movements: Sequence[Movement]) -> tuple[list[Movement], list[Movement]]:
    """Return the judged columns of features and events, and those of them that moved; a column counts once."""
    by_column: dict[tuple[str, str], Movement] = {}
    for movement in movements:
        if movement.part != "scores" and movement.statistic != "ratio" and movement.level not in ("unjudged", "broken"):
            by_column.setdefault((movement.part, movement.column), movement)  # furthest first
    judged = list(by_column.values())
    return judged, [movement for movement in judged if movement.level != "still"]


def _count(judged: Sequence[Movement], moved: Sequence[Movement]) -> str:
    return f"{len(moved)} of {len(judged)} judged columns moved"


def _volume(reference: "pd.DataFrame", current: "pd.DataFrame", settings: DriftSettings) -> list[Movement]:
    """Compare events an open day: closed days say nothing about how busy the others are."""
    if not len(reference):
        return []
    before = float(reference["rows"].mean())
    words = f"{before:,.0f} events an open day"
    if not len(current):
        return [_broken("volume", words, "no event at all", value=1.0, threshold=1.0)]
    now = float(current["rows"].mean())
    factor = max(now / before, before / now)
    level: Level = "far" if factor >= settings.volume_far else "moved" if factor >= settings.volume_moved else "still"
    return [
        Movement(
            column="volume",
            part="events",
            statistic="ratio",
            value=round(factor, 4),
            threshold=settings.volume_moved,
            level=level,
            reference=words,
            current=f"{now:,.0f} events an open day",
        )
    ]


def _vanished(
    reference: "pd.DataFrame", current: "pd.DataFrame", until: date, settings: DriftSettings
) -> list[Movement]:
    """Look at the newest calendar week for a volume that collapsed and for a main event type that is gone.

    A week without any open day is left alone: shops close for the holidays.
    """
    newest = current[current["event_date"] > until - timedelta(days=_WEEK)]
    if not len(reference) or not len(newest):
        return []
    found = []
    before, now = float(reference["rows"].mean()), float(newest["rows"].mean())
    if now * settings.volume_broken < before:
        words = (f"{before:,.0f} events an open day", f"{now:,.0f} in the newest week")
        found.append(_broken("volume", *words, value=before / now, threshold=settings.volume_broken))
    kinds = [name for name in reference.columns if name.startswith(_KIND)]
    main = reference[kinds].sum().idxmax()
    share_before, share_now = (float(side[main].sum() / side["rows"].sum()) for side in (reference, newest))
    if share_now < settings.main_event_share:
        words = (f"type {main.removeprefix(_KIND)} was {share_before:.0%}", f"{share_now:.0%} in the newest week")
        fall, enough = share_before - share_now, share_before - settings.main_event_share
        found.append(_broken("event_type", *words, value=fall, threshold=enough))
    return found


def _emptied(tallies: "Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]", settings: DriftSettings) -> list[Movement]:
    """Return columns that were filled and are empty on the newest days; so many days that there are rows enough."""
    found = []
    for noun, (reference, current) in tallies.items():
        part: Part = FEATURE_TABLES[noun][0] if noun in FEATURE_TABLES else "events"
        newest_first = current.iloc[::-1]
        enough = int((newest_first["rows"].cumsum() < settings.min_rows).sum()) + 1
        newest = newest_first.head(enough)
        if not len(reference) or newest["rows"].sum() < settings.min_rows:
            continue
        for name in [name for name in current.columns if name in reference.columns and name not in _COUNTED]:
            if name.startswith(_KIND):
                continue
            before = float(reference[name].sum() / reference["rows"].sum())
            now = float(newest[name].sum() / newest["rows"].sum())
            if now >= settings.missing_broken and before < settings.missing_broken / 2:
                found.append(
                    Movement(
                        column=name,
                        part=part,
                        statistic="missing_share",
                        value=round(now, 4),
                        threshold=settings.missing_broken,
                        level="broken",
                        reference=f"{before:.0%} missing",
                        current=f"{now:.0%} missing of late",
                    )
                )
    return found


_COUNTED = {"event_date", "rows"}


def _broken(column: str, reference: str, current: str, *, value: float, threshold: float) -> Movement:
    return Movement(column, "events", "ratio", round(value, 4), round(threshold, 4), "broken", reference, current)


_STATISTICS = {
    "psi": "PSI {:.2f}",
    "jensen_shannon": "Jensen-Shannon distance {:.2f}",
    "missing_share": "share of missing values differs by {:.0%}",
    "ratio": "factor {:.2f}",
}
_LEVELS = {"broken": "is broken", "far": "moved far", "moved": "moved", "still": "stayed", "unjudged": "isn't judged"}


def _sentence(movement: Movement) -> str:
    what = _STATISTICS[movement.statistic].format(movement.value)
    return (
        f"{movement.part}, {movement.column} {_LEVELS[movement.level]} ({what}): "
        f"before {movement.reference}; now {movement.current}."
    )
