"""Figures -> pictures, and one HTML page that a person reads without anything else at hand."""

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recflow.evaluation.attribution import Example
from recflow.evaluation.attribution_page import heatmaps
from recflow.evaluation.engagement_page import draw_reliability
from recflow.evaluation.figures import CHAMPION, SELECTED_BY
from recflow.evaluation.holdout import TASKS
from recflow.evaluation.report_page import PAGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"any": "#33658a", "new": "#f26419"}
_TASKS_IN_WORDS = {
    "any": "all items bought count, repeats too",
    "new": "only items never bought before count, and only such are listed",
}
_INCHES_A_ROW = 0.42


def write_report(figures: Mapping[str, Any], folder: Path, *, examples: Sequence[Example] = ()) -> None:
    """Write `report.html`, pictures inside, and the same pictures as PNG files beside it."""
    from jinja2 import Environment, StrictUndefined

    models = _all_models(figures)
    pictures = {"ndcg": _draw_ndcg, "differences": _draw_differences, "slices": _draw_slices}
    if (figures.get("engagement") or {}).get("chances"):
        pictures["reliability"] = draw_reliability
    for name, draw in pictures.items():
        draw(models, figures).savefig(folder / f"{name}.png", dpi=110, metadata={"Software": ""})
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = _figure
    environment.filters["interval"] = _interval
    page = environment.from_string(PAGE).render(
        figures=figures,
        models=models,
        tasks=_TASKS_IN_WORDS,
        metrics=_metric_names(figures),
        selected_by=SELECTED_BY,
        heatmaps=heatmaps(figures.get("attribution"), examples),
        pictures={name: base64.b64encode((folder / f"{name}.png").read_bytes()).decode() for name in pictures},
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def _all_models(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return candidates by selection score, best first, then yardsticks, then the champion where it was scored."""
    ordered = sorted(figures["models"], key=lambda name: -figures["selection"].get(name, 0.0))
    models = {name: figures["models"][name] for name in ordered}
    champion = figures["champion"]
    return {**models, CHAMPION: champion["figures"]} if champion and champion["figures"] else models


def _metric_names(figures: Mapping[str, Any]) -> list[str]:
    """Return the columns of the tables: every figure at 10 and 20, and at other lengths in force."""
    any_model = next(iter(figures["models"].values()))
    return sorted(any_model["any"], key=lambda name: (int(name.rsplit("_", 1)[-1]), list(any_model["any"]).index(name)))


def _figure(entry: Mapping[str, Any] | None) -> str:
    value = None if entry is None else entry["value"]
    return "–" if value is None else f"{value:.3f}"  # noqa: RUF001 - a dash for a reader, where there is no figure


def _interval(entry: Mapping[str, Any] | None) -> str:
    low = None if entry is None else entry.get("low")
    return "" if entry is None or low is None else f"{low:.3f} to {entry['high']:.3f}"


# -- pictures


def _new_figure(rows: int, *, panels: int = 2) -> "tuple[Figure, Any]":
    # No pyplot: it keeps every figure of the process and asks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + _INCHES_A_ROW * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels, sharey=True)


def _draw_ndcg(models: Mapping[str, Any], figures: Mapping[str, Any]) -> "Figure":
    """Draw each model's ndcg_at_10 with its interval, a panel a task."""
    return _draw_intervals(models, lambda model, task: model[task][SELECTED_BY], title=SELECTED_BY, kind="bar")


def _draw_differences(models: Mapping[str, Any], figures: Mapping[str, Any]) -> "Figure":
    """Draw each model's paired difference from the champion, or from the best baseline where there is none."""
    against = "vs_champion" if CHAMPION in models else "vs_best_baseline"
    named = "champion" if CHAMPION in models else "best baseline"
    return _draw_intervals(
        models, lambda model, task: model[against][task][SELECTED_BY], title=f"{SELECTED_BY} minus {named}", kind="dot"
    )


def _draw_intervals(
    models: Mapping[str, Any], pick: Callable[[Mapping[str, Any], str], Mapping[str, Any]], *, title: str, kind: str
) -> "Figure":
    figure, panels = _new_figure(len(models))
    names = list(models)[::-1]
    for panel, task in zip(panels, TASKS, strict=True):
        shown = [name for name in names if pick(models[name], task)["value"] is not None]
        entries = [pick(models[name], task) for name in shown]
        values = [entry["value"] for entry in entries]
        at = [names.index(name) for name in shown]
        ends = [
            [max(0.0, entry["value"] - entry["low"]) for entry in entries],
            [max(0.0, entry["high"] - entry["value"]) for entry in entries],
        ]
        if kind == "bar":
            panel.barh(at, values, color=_COLOURS[task], alpha=0.85)
        panel.errorbar(values, at, xerr=ends, fmt="none" if kind == "bar" else "o", color="#222222", capsize=3)
        if kind == "dot":
            panel.axvline(0, color="#888888", linewidth=1)
        panel.set_yticks(range(len(names)), names)
        panel.locator_params(axis="x", nbins=5)
        panel.set_title(f"{title} ({task})", fontsize=10)
    return figure


def _draw_slices(models: Mapping[str, Any], figures: Mapping[str, Any]) -> "Figure":
    """Draw ndcg_at_10 by slice and model as a table of shades, a panel a task."""
    import numpy as np

    slices = list(figures["slices"]["any"])
    figure, panels = _new_figure(len(slices) + 1)
    for panel, task in zip(panels, TASKS, strict=True):
        values = np.array(
            [
                [_slice_value(model["slices"][task].get(name)) for model in models.values()]
                for name in slices
            ],
            dtype=float,
        )  # fmt: skip
        panel.imshow(np.nan_to_num(values), cmap="Blues", aspect="auto", vmin=0)
        middle = np.nanmax(values, initial=0.0) / 2
        for row, column in np.argwhere(~np.isnan(values)):
            colour = "white" if values[row, column] > middle else "black"
            panel.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", color=colour, fontsize=8)
        panel.set_xticks(range(len(models)), list(models), rotation=30, ha="right", fontsize=8)
        labels = [f"{name.replace('_', ' ')}" for name in slices]
        panel.set_yticks(range(len(slices)), labels, fontsize=8)
        panel.set_title(f"{SELECTED_BY} ({task})", fontsize=10)
    return figure


def _slice_value(entry: Mapping[str, Any] | None) -> float:
    value = None if entry is None else entry[SELECTED_BY]["value"]
    return float("nan") if value is None else float(value)
