"""How far each column moved, as an effect size: what Evidently measures, and what chance alone would make."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recflow.monitoring.samples import Column, Part
from recflow.settings import DriftSettings

if TYPE_CHECKING:
    import pandas as pd

Level = Literal["still", "moved", "far", "broken", "unjudged"]

_CHANCE = 0.999  # of samples without any drift stay below the level of chance, where no bin is rare
_FEW_VALUES = 20  # Evidently bins numbers with more distinct reference values, and counts the others one by one
_NAMED_CATEGORIES = 3  # in the words about a column


@dataclass(frozen=True)
class Movement:
    """How far one column moved."""

    column: str
    part: Part
    statistic: Literal["psi", "jensen_shannon", "missing_share", "ratio"]
    value: float
    threshold: float  # from which it counts as moved: the setting, or the level of chance where that is higher
    level: Level
    reference: str  # in words
    current: str  # in words
    note: str = ""  # why it isn't judged


def measure(columns: Sequence[Column], settings: DriftSettings, *, html: Path, json: Path) -> list[Movement]:
    """Columns -> their movements, one or (where values went missing) two each; Evidently's report is kept.

    Numbers are compared as signed log1p, as the model's encoder sees them: the bins of heavy-tailed money and counts
    would else hold everything in the first.
    """
    missing = [_missing(column, settings) for column in columns]
    comparable = [column for column in columns if _has_values(column)]
    values = _evidently(comparable, settings, html=html, json=json)
    moved = [_moved(column, value, settings) for column, value in zip(comparable, values, strict=True)]
    return [*moved, *(movement for movement in missing if movement is not None)]


def chance_level(column: Column) -> float:
    """Return the distance that samples of these sizes stay below in 999 of 1,000 draws when nothing drifts.

    PSI is about chi-square with bins - 1 degrees of freedom times (1/n + 1/m): Yurdakul and Naranjo, Statistical
    properties of the population stability index, Journal of Risk Model Validation 2020. The squared Jensen-Shannon
    distance is, to second order, an eighth of the same sum. Rare bins lie off the approximation: of samples of 250
    heavy-tailed numbers up to 2 % pass the level.
    """
    from scipy.stats import chi2

    reference, current = column.reference.dropna(), column.current.dropna()
    if not column.is_numeric or reference.nunique() <= _FEW_VALUES:
        bins = len(set(reference.unique()) | set(current.unique()))
    else:
        both = np.concatenate([reference, current])
        bins = int(np.count_nonzero(np.histogram(both, np.histogram_bin_edges(both, bins="sturges"))[0]))
    psi = float(chi2.ppf(_CHANCE, max(1, bins - 1))) * (1 / len(reference) + 1 / len(current))
    return psi if column.is_numeric else float(np.sqrt(psi / 8))


def _evidently(columns: Sequence[Column], settings: DriftSettings, *, html: Path, json: Path) -> list[float]:
    """Return Evidently's drift score of each column; its report is written as HTML and JSON."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy and plotly deprecations inside Evidently
        import pandas as pd
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift

        numeric = [_label(column) for column in columns if column.is_numeric]
        definition = DataDefinition(
            numerical_columns=numeric,
            categorical_columns=[_label(column) for column in columns if not column.is_numeric],
        )
        # Columns of different tables stand side by side; the shorter ones end in nulls, which are left out of each.
        current, reference = (
            Dataset.from_pandas(
                pd.DataFrame({_label(column): _on_scale(getattr(column, side)) for column in columns}),
                data_definition=definition,
            )
            for side in ("current", "reference")
        )
        metrics = [
            ValueDrift(
                column=_label(column),
                method="psi" if column.is_numeric else "jensenshannon",
                threshold=max(_thresholds(column, settings)[0], chance_level(column)),
            )
            for column in columns
        ]
        snapshot = Report(metrics, include_tests=True).run(current, reference)
        snapshot.save_html(str(html))
        snapshot.save_json(str(json))
    return [float(metric["value"]) for metric in snapshot.dict()["metrics"]]


def _moved(column: Column, value: float, settings: DriftSettings) -> Movement:
    moved, far = _thresholds(column, settings)
    chance = chance_level(column)
    note = column.unjudged
    fewest = min(column.reference.count(), column.current.count())
    if not note and fewest < settings.min_rows:
        note = f"{fewest} rows on one side, {settings.min_rows} needed"
    level: Level = "far" if value >= max(far, chance) else "moved" if value >= max(moved, chance) else "still"
    return Movement(
        column=column.name,
        part=column.part,
        statistic="psi" if column.is_numeric else "jensen_shannon",
        value=round(value, 4),
        threshold=round(max(moved, chance), 4),
        level="unjudged" if note else level,
        reference=_in_words(column, column.reference),
        current=_in_words(column, column.current),
        note=note,
    )


def _missing(column: Column, settings: DriftSettings) -> Movement | None:
    """Return how the share of missing values moved; None where it hardly did or there is too little to say."""
    sides = (column.reference, column.current)
    if column.unjudged or min(len(side) for side in sides) < settings.min_rows:
        return None
    before, now = (float(side.isna().mean()) for side in sides)
    difference = abs(now - before)
    if difference < settings.missing_moved:
        return None
    broken = now >= settings.missing_broken and before < settings.missing_broken / 2
    return Movement(
        column=column.name,
        part=column.part,
        statistic="missing_share",
        value=round(difference, 4),
        threshold=settings.missing_moved,
        level="broken" if broken else "far" if difference >= settings.missing_far else "moved",
        reference=f"{before:.0%} missing",
        current=f"{now:.0%} missing",
    )


def _has_values(column: Column) -> bool:
    return bool(column.reference.notna().any() and column.current.notna().any())


def _thresholds(column: Column, settings: DriftSettings) -> tuple[float, float]:
    if column.is_numeric:
        return settings.psi_moved, settings.psi_far
    return settings.js_moved, settings.js_far


def _label(column: Column) -> str:
    return f"{column.part}: {column.name}"


def _on_scale(values: "pd.Series[Any]") -> "pd.Series[Any]":
    return np.sign(values) * np.log1p(values.abs()) if values.dtype == float else values


def _in_words(column: Column, values: "pd.Series[Any]") -> str:
    """Return the middle of numbers, or the shares of the categories that changed most."""
    if column.is_numeric:
        low, middle, high = values.quantile([0.1, 0.5, 0.9])
        return f"median {middle:.4g} (80 % between {low:.4g} and {high:.4g})"
    shares = [side.value_counts(normalize=True) for side in (column.reference, column.current)]
    change = (
        shares[1].sub(shares[0], fill_value=0).abs().round(9).sort_index().sort_values(ascending=False, kind="stable")
    )
    own = values.value_counts(normalize=True)
    return ", ".join(f"{name} {own.get(name, 0):.1%}" for name in change.index[:_NAMED_CATEGORIES])
