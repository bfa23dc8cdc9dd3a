"""The page of the evaluation report, a jinja2 template: a module, so that it is installed wherever the code is."""

from recflow.evaluation.attribution_page import SECTION as ATTRIBUTION
from recflow.evaluation.engagement_page import SECTION

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Evaluation {{ figures.until }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #d5dbe1; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e6eaee; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.chosen td { background: #eaf3ea; } small { color: #5a6875; } img { max-width: 100%; }
.note { background: #fff6e5; padding: .6rem 1rem; border-left: 4px solid #f26419; }
</style>
</head>
<body>
<h1>Evaluation of {{ figures.until }}</h1>
<p>Hold-out {{ figures.holdout_start }} to {{ figures.until }}; a catalogue of {{ "{:,}".format(figures.n_items) }}
items. Figures are means over shoppers with a history; intervals hold {{ "{:.0%}".format(figures.confidence) }} of
{{ "{:,}".format(figures.resamples) }} bootstrap resamples of them; differences are paired.</p>
{% if figures.champion is none %}
<p class="note">There is no champion yet: candidates are held against the best baseline.</p>
{% elif figures.champion.reason %}
<p class="note">Champion {{ figures.champion.version }} can't be compared: {{ figures.champion.reason }}.</p>
{% else %}
<p>Champion: version {{ figures.champion.version }}, scored again here with its {{ figures.champion.weights }} weights.
</p>
{% endif %}

{% if figures.privacy and figures.privacy.mode == "dp" %}
<p class="note">Trained with differential privacy{% for name, kept in figures.privacy.guarantees.items() %}: {{ name }}
{{ figures.models[name].any[selected_by] | figure }} / {{ figures.models[name].new[selected_by] | figure }}
({{ selected_by }}, any / new) at epsilon {{ "{:.2f}".format(kept.epsilon) }}, delta {{ kept.delta }}, for one
{{ kept.unit }} of {{ "{:,}".format(kept.shoppers) }}. Covered: {{ kept.covers }}{% endfor %}. Pairs of items count from
{{ figures.privacy.min_support }} shoppers on. The next training over the same people spends as much again.</p>
{% endif %}
<h2>In short</h2>
<div class="scroll"><table>
<tr><th>model</th><th>selection</th>
{% for task in tasks %}<th>{{ selected_by }} ({{ task }})</th><th>vs best baseline</th>
{% if figures.champion and figures.champion.figures %}<th>vs champion</th>{% endif %}{% endfor %}
<th>seconds</th></tr>
{% for name, model in models.items() %}
<tr{% if loop.first %} class="chosen"{% endif %}><td>{{ name }}</td>
<td>{{ "{:.3f}".format(figures.selection[name]) if name in figures.selection else "" }}</td>
{% for task in tasks %}
<td>{{ model[task][selected_by] | figure }}<br><small>{{ model[task][selected_by] | interval }}</small></td>
<td><small>{{ model.vs_best_baseline[task][selected_by] | interval }}</small></td>
{% if figures.champion and figures.champion.figures %}
<td><small>{{ model.vs_champion[task][selected_by] | interval }}</small></td>{% endif %}
{% endfor %}
<td>{{ "{:.2f}".format(model.seconds) }}</td></tr>
{% endfor %}
</table></div>
<p><small>Selection: mean over both tasks of {{ selected_by }} over the best candidate's. Best baselines:
{% for task in tasks %}{{ figures.best_baseline[task] }} ({{ task }}){{ ", " if not loop.last }}{% endfor %}. An
interval of differences that lies on one side of zero is no chance at that confidence.</small></p>
<img alt="{{ selected_by }} by model" src="data:image/png;base64,{{ pictures.ndcg }}">
<img alt="differences by model" src="data:image/png;base64,{{ pictures.differences }}">

{% for task, words in tasks.items() %}
<h2>Task {{ task }}: {{ words }}</h2>
<p>{{ "{:,}".format(figures.users[task]) }} shoppers.</p>
<div class="scroll"><table>
<tr><th>model</th>{% for metric in metrics %}<th>{{ metric }}</th>{% endfor %}</tr>
{% for name, model in models.items() %}
<tr><td>{{ name }}</td>{% for metric in metrics %}
<td>{{ model[task][metric] | figure }}<br><small>{{ model[task][metric] | interval }}</small></td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}

<h2>Groups of shoppers and items</h2>
<img alt="{{ selected_by }} by slice and model" src="data:image/png;base64,{{ pictures.slices }}">
{% for task in tasks %}
<h3>{{ selected_by }} ({{ task }})</h3>
<div class="scroll"><table>
<tr><th>slice</th><th>shoppers</th>{% for name in models %}<th>{{ name }}</th>{% endfor %}</tr>
{% for slice, users in figures.slices[task].items() %}
<tr><td>{{ slice.replace("_", " ") }}</td><td>{{ "{:,}".format(users) }}</td>
{% for model in models.values() %}
{% set entry = model.slices[task].get(slice, {}).get(selected_by) %}
<td>{{ entry | figure }}<br><small>{{ entry | interval }}</small></td>
{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
<p><small>Home market: the country with most shoppers. Light and heavy: at most, and more than, the median number of
events before the hold-out. Cold users: no event before it; they are in no other figure. Cold items: only wanted items
that few had bought before count.</small></p>
{attribution}
{engagement}
</body>
</html>
""".replace("{engagement}", SECTION).replace("{attribution}", ATTRIBUTION)
