"""Where scores come from, in the evaluation report: a section of the page, a jinja2 template, and what it draws.

What shows single shoppers stands between two marks: who asks to be forgotten has it cut out, see `training.erase`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recflow.evaluation.attribution import Example

_FOR: Final = (178, 24, 43)  # RGB of a share of 1 of the largest, and below of -1; 0 is white
_AGAINST: Final = (33, 102, 172)
_LEAST_SAID = 0.005  # smaller shares are shades without a number: they would read 0

SECTION = """
{% macro heatmap(map) %}
{% set bottom, width = 24 + 20 * map.rows | length, 240 + 44 * map.columns | length %}
<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{{ map.title }}" font-size="11" width="{{ width }}"
viewBox="0 0 {{ width }} {{ bottom + 150 }}" style="max-width: 100%; height: auto">
<text x="230" y="14" font-size="13">{{ map.title }}</text>
{% for cells in map.cells %}{% set top = 24 + 20 * loop.index0 %}
<text x="224" y="{{ top + 14 }}" text-anchor="end">{{ map.rows[loop.index0] }}</text>
{% for cell in cells %}{% set left = 230 + 44 * loop.index0 %}
<rect x="{{ left }}" y="{{ top }}" width="43" height="19" fill="{{ cell.fill }}"/>
{% if cell.text %}<text x="{{ left + 21 }}" y="{{ top + 13 }}" font-size="9" text-anchor="middle"
fill="{{ cell.ink }}">{{ cell.text }}</text>{% endif %}
{% endfor %}{% endfor %}
{% for column in map.columns %}{% set left = 254 + 44 * loop.index0 %}
<text transform="translate({{ left }} {{ bottom + 10 }}) rotate(-40)" text-anchor="end">{{ column }}</text>
{% endfor %}
</svg>
{% endmacro %}
{% if figures.get("attribution") %}
<h2>Where scores come from</h2>
<p>Best ten items of {{ "{:,}".format(figures.attribution.shoppers) }} shoppers by {{ figures.attribution.candidate }},
each score taken apart: what each past event adds, and the rest, which is what the item is to anybody. Mean share of
the parts' sizes; a row adds up to 1.</p>
{{ heatmap(heatmaps[0]) }}
{% if heatmaps | length > 1 %}
<!-- shoppers -->
<h3>Single shoppers</h3>
<p>Recommended items, best first, against the events that weigh most in them, the newest on the right, with their age
in whole days. Red speaks for the item, blue against it.</p>
{% for map in heatmaps[1:] %}
{{ heatmap(map) }}
{% endfor %}
<!-- /shoppers -->
{% endif %}
{% endif %}
"""


def heatmaps(attribution: Mapping[str, Any] | None, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Return what the section draws: mean shares of groups, then single shoppers, who have numbers and no names."""
    if not attribution:
        return []
    rows = [f"{row['group']} ({row['items']:,})" for row in attribution["rows"]]
    means = np.array([row["shares"] for row in attribution["rows"]])
    columns = attribution["columns"]
    return [_heatmap("mean share by kind and age of the event", rows, columns, means)] + [
        _heatmap(f"shopper {number}", example.items, example.columns, example.shares)
        for number, example in enumerate(examples, start=1)
    ]


def _heatmap(title: str, rows: list[str], columns: list[str], shares: NDArray[np.floating]) -> dict[str, Any]:
    """Return a table of shades: rows and columns by name, and of each cell its colours and what stands in it."""
    depth = np.abs(shares) / max(float(np.abs(shares).max(initial=0)), 1e-9)  # (K, C)
    full = np.where(shares[..., None] >= 0, _FOR, _AGAINST)
    colours = np.rint(255 + (full - 255) * depth[..., None]).astype(int)  # (K, C, 3)
    cells = [
        [
            {
                "fill": "#{:02x}{:02x}{:02x}".format(*colour),
                "ink": "white" if deep > 0.5 else "black",
                "text": f"{share:.2f}" if abs(share) >= _LEAST_SAID else "",
            }
            for share, deep, colour in zip(*row, strict=True)
        ]
        for row in zip(shares.tolist(), depth.tolist(), colours.tolist(), strict=True)
    ]
    return {"title": title, "rows": rows, "columns": columns, "cells": cells}
