"""The columns that moved furthest, before and now, as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recflow.monitoring.effects import Movement
from recflow.monitoring.samples import Column

if TYPE_CHECKING:
    import pandas as pd

_PANELS = 6
_ACROSS = 3
_BINS = 20
_CATEGORIES = 8  # those whose share changed most
_NAMES = ("before", "now")
_COLOURS = ("#9aa5b1", "#d1495b")


def draw_moved(columns: Sequence[Column], movements: Sequence[Movement], file: Path) -> bool:
    """Draw the distributions of up to six moved columns; return whether there was any."""
    from matplotlib.figure import Figure

    by_name = {(column.part, column.name): column for column in columns}
    drawn = [
        movement
        for movement in movements
        if movement.level in ("moved", "far") and movement.statistic in ("psi", "jensen_shannon")
    ][:_PANELS]
    if not drawn:
        return False
    across, down = min(_ACROSS, len(drawn)), -(-len(drawn) // _ACROSS)
    figure = Figure(figsize=(4.2 * across, 3.2 * down), layout="constrained")
    for panel, movement in zip(figure.subplots(down, across, squeeze=False).flat, drawn, strict=False):
        column = by_name[movement.part, movement.column]
        (_draw_numbers if column.is_numeric else _draw_categories)(panel, column)
        panel.set_title(f"{movement.column}: {movement.statistic} {movement.value:.2f}", fontsize=9)
        panel.tick_params(labelsize=7)
        panel.set_ylabel("share of rows", fontsize=7)
    for panel in list(figure.axes)[len(drawn) :]:
        panel.set_visible(False)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(file, dpi=110)
    return True


def _draw_numbers(panel: Any, column: Column) -> None:
    """Draw histograms on a signed log1p axis, labelled with the numbers themselves."""
    sides = [_signed_log(side.dropna()) for side in (column.reference, column.current)]
    edges = np.histogram_bin_edges(np.concatenate(sides), bins=_BINS)
    for side, name, colour in zip(sides, _NAMES, _COLOURS, strict=True):
        panel.stairs(np.histogram(side, edges)[0] / len(side), edges, label=name, color=colour, linewidth=1.6)
    ticks = np.linspace(edges[0], edges[-1], 5)
    panel.set_xticks(ticks, [f"{np.sign(tick) * np.expm1(abs(tick)):.3g}" for tick in ticks])


def _draw_categories(panel: Any, column: Column) -> None:
    before, now = (side.value_counts(normalize=True) for side in (column.reference, column.current))
    change = now.sub(before, fill_value=0).abs().sort_index().sort_values(ascending=False, kind="stable")
    names = [str(name) for name in change.index[:_CATEGORIES]]
    places = np.arange(len(names))
    for offset, shares, name, colour in zip((-0.2, 0.2), (before, now), _NAMES, _COLOURS, strict=True):
        panel.bar(places + offset, [shares.get(key, 0.0) for key in names], 0.4, label=name, color=colour)
    panel.set_xticks(places, names, rotation=30, ha="right")


def _signed_log(values: "pd.Series[Any]") -> Any:
    return np.sign(values) * np.log1p(values.abs())
