"""Figures of searches -> a picture by day, and the page that shows them, a jinja2 template."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Searches until {{ figures.until }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e6eaee; }
th:first-child, td:first-child { text-align: left; } img { max-width: 100%; }
</style>
</head>
<body>
<h1>Searches from {{ figures.start }} to {{ figures.until }}</h1>
<p>Days are UTC. A search is reformulated where the same visit searches for something else within five minutes.
{% if figures.asked is none %}
No champion was there to say what finds nothing.
{% else %}
What finds nothing, or only after something was given up, is as the champion answers today, for the most frequent
queries: {{ figures.asked | share }} of the searches.
{% endif %}</p>
<table><tr><th></th>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
<tr><td>all</td>{{ cells(figures.totals) }}</tr>
{% for day in figures.days | reverse %}<tr><td>{{ day.day }}</td>{{ cells(day) }}</tr>
{% endfor %}</table>
<img alt="searches by day" src="data:image/png;base64,{{ picture }}">
<h2>Queries that fail most</h2>
{% if figures.failing %}
<p>At least half of their searches led to no click; only what at least {{ figures.min_shoppers }} shoppers typed.</p>
<table><tr><th>query</th><th>shoppers</th><th>typed instead</th>{% for head in heads %}<th>{{ head }}</th>{% endfor %}
</tr>
{% for row in figures.failing %}<tr><td>{{ row.query }}</td><td>{{ row.shoppers }}</td><td>{{ row.instead or "" }}</td>
{{ cells(row) }}</tr>
{% endfor %}</table>
{% else %}
<p>None that at least {{ figures.min_shoppers }} shoppers typed.</p>
{% endif %}
</body>
</html>
"""
_CELLS = """{% macro cells(row) %}<td>{{ "{:,}".format(row.searches) }}</td>
{% for name in names %}<td>{{ row[name] | share }}</td>{% endfor %}
<td>{{ "" if row.mean_click_position is none else row.mean_click_position }}</td>{% endmacro %}"""
_SHARES = {
    "without_result": "without a result",
    "relaxed": "relaxed",
    "without_click": "without a click",
    "reformulated": "reformulated",
}
_COLOURS = ("#d1495b", "#edae49", "#33658a", "#66a182")


def draw(figures: Mapping[str, Any], file: Path) -> str:
    """Draw searches and shares by day; return the picture in base64."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    days = [row["day"] for row in figures["days"]]
    places = list(range(len(days)))
    above.bar(places, [row["searches"] for row in figures["days"]], color="#9aa5b1")
    above.set_ylabel("searches", fontsize=8)
    for (name, label), colour in zip(_SHARES.items(), _COLOURS, strict=True):
        shares = [row[name] for row in figures["days"]]
        if any(share is not None for share in shares):
            known = [float("nan") if share is None else share for share in shares]
            below.plot(places, known, "o-", markersize=3, label=label, color=colour)
    below.set_ylabel("share of searches", fontsize=8)
    below.set_ylim(0, 1)
    below.legend(fontsize=7)
    shown = places[:: max(1, len(days) // 8)]
    below.set_xticks(shown, [days[place] for place in shown])
    for panel in (above, below):
        panel.tick_params(labelsize=7)
    figure.savefig(file, dpi=110)
    return base64.b64encode(file.read_bytes()).decode()


def write_page(figures: Mapping[str, Any], picture: str, file: Path) -> None:
    """Write the page; what shoppers typed is text in it, never markup."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["share"] = lambda share: "" if share is None else f"{share:.1%}"
    page = environment.from_string(_CELLS + _PAGE)
    heads = ["searches", *_SHARES.values(), "mean position of clicks"]
    file.write_text(page.render(figures=figures, picture=picture, heads=heads, names=list(_SHARES)), encoding="utf-8")
