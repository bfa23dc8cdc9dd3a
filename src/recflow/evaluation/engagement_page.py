"""The engagement stage in the evaluation report: a section of the page, a jinja2 template, and its picture."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from recflow.models.slates import OUTCOMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECTION = """
{% if figures.get("engagement") %}
<h2>Engagement stage</h2>
<p>{{ figures.engagement.sentence }}</p>
{% if figures.engagement.get("chances") %}
<p>Judged on the hold-out's last {{ "{:,}".format(figures.engagement.slates) }} slates of known shoppers,
{{ "{:,}".format(figures.engagement.shown) }} items shown, over {{ figures.engagement.candidate }},
whose own score counts with a prior of {{ figures.engagement.prior }}.</p>
<div class="scroll"><table>
<tr><th>chance of a</th><th>happened</th><th>given by</th><th>log-loss</th><th>Brier score</th>
<th>calibration error</th></tr>
{% for outcome, head in figures.engagement.chances.items() %}{% for name, figure in head.models.items() %}
<tr><td>{{ outcome }}</td><td>{{ "{:,}".format(figures.engagement.outcomes[outcome]) }}</td>
<td>{{ name }}{{ " (" ~ head.calibrator ~ ")" if loop.first }}</td><td>{{ "{:.4f}".format(figure.log_loss) }}</td>
<td>{{ "{:.4f}".format(figure.brier) }}</td><td>{{ "{:.4f}".format(figure.ece) }}</td></tr>
{% endfor %}{% endfor %}
</table></div>
<img alt="chances given and what came, by head" src="data:image/png;base64,{{ pictures.reliability }}">
<p>NDCG within slates, outcomes weighted by how seldom their position is looked at:</p>
<div class="scroll"><table>
<tr><th>order</th>{% for what in figures.engagement.order.engagement %}<th>{{ what }}</th>{% endfor %}</tr>
{% for name, figure in figures.engagement.order.items() %}
<tr><td>{{ name }}</td>{% for entry in figure.values() %}
<td>{{ entry | figure }}<br><small>{{ entry | interval }}</small></td>{% endfor %}</tr>
{% endfor %}
</table></div>
<p>Gain, engagement minus retrieval: {{ figures.engagement.gain_vs_retrieval | figure }}
({{ figures.engagement.gain_vs_retrieval | interval }}). Whole catalogue, ndcg_at_10 of what was bought after
{{ "{:,}".format(figures.engagement.lists.slates) }} slates: {{ figures.engagement.lists.engagement | figure }},
retrieval {{ figures.engagement.lists.retrieval | figure }}.</p>
{% endif %}
{% endif %}
"""


def draw_reliability(models: Mapping[str, Any], figures: Mapping[str, Any]) -> "Figure":
    """Draw what came against the chances given, before and after calibration, a panel a head."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, outcome in zip(figure.subplots(1, len(OUTCOMES)), OUTCOMES, strict=True):
        head = figures["engagement"]["chances"][outcome]
        for name, colour in (("before", "#9aa5b1"), ("after", "#33658a")):
            chances, rates = ([each[key] for each in head[name]] for key in ("chance", "rate"))
            panel.plot(chances, rates, "o-", color=colour, label=f"{name} calibration", markersize=4)
        end = max(panel.get_xlim()[1], panel.get_ylim()[1])
        panel.plot([0, end], [0, end], color="#222222", linewidth=0.8, linestyle="--")
        panel.set_title(f"{outcome} ({head['calibrator']})", fontsize=10)
        panel.set_xlabel("chance given, bins of equal counts", fontsize=8)
    figure.axes[0].set_ylabel("share that came", fontsize=8)
    figure.axes[0].legend(fontsize=8)
    return figure
