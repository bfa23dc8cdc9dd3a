"""What a run of the whole line made: collected from the manifests that the steps left, shown as tables."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from recflow.console import table_console
from recflow.schema import Days
from recflow.settings import Settings
from recflow.storage import Storage

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

TASKS = ("any", "new")
SHOWN = (  # header, task, metric; five columns fit a terminal of 80
    ("ndcg@10 any", "any", "ndcg_at_10"),
    ("recall@20 any", "any", "recall_at_20"),
    ("coverage any", "any", "coverage_at_20"),
    ("ndcg@10 new", "new", "ndcg_at_10"),
    ("recall@20 new", "new", "recall_at_20"),
)

_MOVED_SHOWN = 12


# -- collect


def collect(days: Days, settings: Settings, *, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the steps made of the days; JSON values only.

    Args:
        days: what was prepared; the model's `until` is their end.
        settings: of the run.
        records: of the steps that ran, as `runlog` keeps them.
    """
    from recflow.registry.versions import champion_version

    storage, until = Storage(settings), str(days.end)
    published = [storage.partition_manifest("events", day) for day in days.dates()]
    by_rule: Counter[str] = Counter()
    for manifest in published:
        by_rule.update(manifest["quarantined_by_rule"])
    verdict = storage.read_folder("verdicts", until).manifest
    return {
        "lines_read": sum(storage.partition_manifest("staged_events", day)["lines"] for day in days.dates()),
        "events_published": sum(manifest["published"] for manifest in published),
        "rows_quarantined": by_rule.total(),
        "rows_quarantined_by_rule": dict(by_rule.most_common()),
        "days": len(days),
        "closed_days": sum(bool(manifest["closed"]) for manifest in published),
        "features": _features(days, settings, records),
        "models": _models(until, storage),
        "training": storage.read_folder("candidates", until).manifest["start"]["sentence"],
        "drift": _drift(until, storage),
        "gate": {name: verdict[name] for name in ("passed", "candidate", "sentences")},
        "version": champion_version(settings),
        "steps": [
            {name: record.get(name) for name in ("step", "subject", "outcome", "seconds", "peak_mib")}
            for record in records
        ],
    }


def _features(days: Days, settings: Settings, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    from recflow.features.views import declared_views

    storage = Storage(settings)
    timed: dict[str, Any] = {}
    for record in records:
        timed.update(record.get("views") or {})
    rows = []
    for view in declared_views():
        # A full snapshot holds all entities; of a view of changes, every day is looked at.
        held = days.dates() if view.changes_only else [days.end]
        rows.append(
            {
                "view": view.name,
                "entity": view.entity,
                "features": len(view.features),
                "entities": len(_ids(view.name, view.entity, held, storage)),
                "seconds": (timed.get(view.name) or {}).get("seconds"),
            }
        )
    return rows


def _ids(noun: str, column: str, days: Iterable[Any], storage: Storage) -> set[str]:
    import pyarrow.parquet as pq

    ids: set[str] = set()
    for day in days:
        with storage.filesystem.open(storage.partition_uri(noun, day), "rb") as stream:
            ids.update(pq.read_table(stream, columns=[column])[column].to_pylist())
    return ids


def _models(until: str, storage: Storage) -> list[dict[str, Any]]:
    """Return each candidate's, baseline's and the champion's figures on both tasks, the gate's choice order first."""
    from recflow.evaluation.figures import read_figures

    figures = read_figures(storage.read_folder("evaluations", until))
    order = sorted(figures["models"], key=lambda name: -(figures["selection"].get(name) or 0.0))
    return [
        {
            "model": name,
            "selection": figures["selection"].get(name),
            **{task: {metric: entry["value"] for metric, entry in figures["models"][name][task].items()}
               for task in TASKS},
        }
        for name in order
    ]  # fmt: skip


def _drift(until: str, storage: Storage) -> dict[str, Any]:
    report = storage.read_folder("drift_reports", until)
    kept = ("column", "part", "statistic", "value", "threshold", "level")
    return {
        "verdict": report.manifest["verdict"],
        "sentences": report.manifest["sentences"],
        "moved": [{name: column[name] for name in kept} for column in report.manifest["moved"]],
        "columns": len(report.manifest["columns"]),
        "report": f"{report.uri}/drift.html",
    }


# -- show


def show(summary: Mapping[str, Any]) -> None:
    """Print a summary as tables."""
    console = table_console()
    for part in (*_data_tables(summary), *_model_tables(summary), *_customer_tables(summary["recommendations"])):
        console.print(part)
    console.print(_steps_table(summary))


def _table(title: str, *columns: str) -> "Table":
    """Return a table; a column whose name ends with a bar holds numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column.rstrip("|"), justify="right" if column.endswith("|") else "left")
    return table


def _data_tables(summary: Mapping[str, Any]) -> "list[RenderableType]":
    source = summary["source"]
    data = _table(f"Data: {source['which']}, {source['start']} to {source['end']}", "what", "rows|")
    for what, count in (
        ("lines read", summary["lines_read"]),
        ("events published", summary["events_published"]),
        ("rows quarantined", summary["rows_quarantined"]),
        *((f"  {rule}", count) for rule, count in summary["rows_quarantined_by_rule"].items()),
    ):
        data.add_row(what, f"{count:,}")
    features = _table("Features", "view", "entity", "features|", "entities|", "seconds|")
    for row in summary["features"]:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        features.add_row(row["view"], row["entity"], str(row["features"]), f"{row['entities']:,}", seconds)
    return [data, features]


def _model_tables(summary: Mapping[str, Any]) -> "list[RenderableType]":
    from rich.text import Text

    models = _table("Models on the held-out days", "model", *(f"{header}|" for header, _, _ in SHOWN))
    for row in summary["models"]:
        figures = [row[task].get(metric) for _, task, metric in SHOWN]
        models.add_row(row["model"], *("" if figure is None else f"{figure:.3f}" for figure in figures))
    drift = _table(f"Drift: {summary['drift']['verdict']}", "column", "of", "statistic", "value|", "threshold|", "")
    moved = summary["drift"]["moved"]
    for row in moved[:_MOVED_SHOWN]:
        figures = [f"{row['value']:.3f}", f"{row['threshold']:.3f}"]
        drift.add_row(row["column"], row["part"], row["statistic"], *figures, row["level"])
    if len(moved) > _MOVED_SHOWN:
        drift.add_row(f"... and {len(moved) - _MOVED_SHOWN} more", "", "", "", "", "")
    gate = _table("Gate", "sentence")
    for sentence in summary["gate"]["sentences"]:
        gate.add_row(sentence)
    served = f"{summary['training']}\nServed: version {summary['version']}\n"
    return [models, drift, gate, Text(served, style="bold")]


def _customer_tables(asked: Mapping[str, Any]) -> "list[RenderableType]":
    event = asked["event"]
    tables: list[RenderableType] = []
    for title, answer in (
        (f"Customer {asked['user_id']}", asked["before"]),
        (f"The same customer, after buying {event['title']} ({event['item_id']})", asked["after"]),
    ):
        table = _table(title, "#|", "item", "title", "score|", "why")
        for item in answer["items"]:
            reason = (item["reason"] or {}).get("text") or ""
            table.add_row(str(item["rank"]), item["item_id"], item["title"] or "", f"{item['score']:.3f}", reason)
        tables.append(table)
    return tables


def _steps_table(summary: Mapping[str, Any]) -> "Table":
    steps = _table(f"Steps: {summary['seconds']:.0f} s in all", "step", "for", "seconds|", "peak MiB|")
    for row in summary["steps"]:
        steps.add_row(row["step"], row["subject"], f"{row['seconds']:.1f}", str(row["peak_mib"]))
    return steps
