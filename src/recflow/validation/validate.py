"""Staged rows -> `events`, `items` and `quarantine`, or BatchRejected and the lake as it was.

Row rules send a row to quarantine with the first rule that it breaks; batch rules stop the whole run before anything
is published. A day's `events` are put in place last: where they are, its items and its quarantine are too. Run twice,
the same rows; in any order of days. What was said of the rows lies in `validation_reports/<days>/index.html`, and of
a rejected run in `validation_reports/<days>-rejected/`.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from recflow.console import log
from recflow.errors import BatchRejected
from recflow.schema import EVENTS, ITEMS, QUARANTINE, STAGED_EVENTS, Days
from recflow.settings import Settings
from recflow.storage import Artifact, Storage
from recflow.validation import checks
from recflow.validation.fixes import apply_fixes
from recflow.validation.profile import (
    count_by_day,
    day_profile,
    first_other_day,
    rows_before,
    sources,
    worst_rule,
)
from recflow.validation.rows import event_frame, item_frame
from recflow.validation.suites import Judgement, Suites

if TYPE_CHECKING:
    import pandas as pd

_SHOWN_FAILURES = 5  # days and rules that a rejection spells out; the report has them all


@dataclass(frozen=True)
class Staged:
    """What ingest left for a range of days, with the rows that a person mended in their place."""

    days: Days
    events: pa.Table
    items: pa.Table
    is_mended: pa.Array
    manifests: Mapping[date, Mapping[str, Any]]


@dataclass(frozen=True)
class Judged:
    """What the checks said of staged rows."""

    events: Judgement
    items: Judgement
    batches: Judgement
    profile: "pd.DataFrame"


def validate(days: Days, settings: Settings) -> Artifact:
    """`staged_events` and `staged_items` of the days -> `events`, `items` and `quarantine`, one partition a day each.

    Raises:
        BatchRejected: a batch rule stopped a day; nothing was published.
        MissingInput: a day wasn't ingested.
    """
    storage, suites = Storage(settings), Suites()
    staged = read_staged(days, storage)
    judged = judge(staged, suites, settings=settings, storage=storage)
    is_rejected = not judged.batches.is_good.all()
    report = _write_report(staged, judged, suites, storage=storage, is_rejected=is_rejected)
    if is_rejected:
        raise BatchRejected(_rejection(staged, judged, report))
    return _publish(staged, judged, storage, report=report)


def read_staged(days: Days, storage: Storage) -> Staged:
    """Read what ingest left for the days, and put mended rows in the place of those that came.

    Raises:
        BatchRejected: a partition isn't of the staged schema.
        MissingInput: a day wasn't ingested.
    """
    dates = days.dates()
    events = _read("staged_events", days, pa.schema([*STAGED_EVENTS]), storage)
    items = _read("staged_items", days, pa.schema([*ITEMS, STAGED_EVENTS.field("event_date")]), storage)
    manifests = {day: storage.partition_manifest("staged_events", day) for day in dates}
    events, is_mended = apply_fixes(events, days, storage)
    return Staged(days, events, items, is_mended, manifests)


def _read(noun: str, days: Days, schema: pa.Schema, storage: Storage) -> pa.Table:
    """Read days of a staged table: the batch rule `schema`, which all others stand on."""
    try:
        table = storage.read_partitions(noun, days.dates())
        odd = sorted(set(table.column_names) ^ set(schema.names))
        if odd:
            raise pa.ArrowInvalid(f"missing or unknown columns: {', '.join(odd)}")
        return table.select(schema.names).cast(schema)
    except pa.ArrowInvalid as error:
        raise BatchRejected(
            f"validate {days}: nothing was published. {noun} breaks the rule schema: expected the columns of this "
            f"version's schema on every day, found {error}. Run ingest for these days again."
        ) from error


def judge(staged: Staged, suites: Suites, *, settings: Settings, storage: Storage) -> Judged:
    """Staged rows -> what the row, item and batch checks say of them."""
    rules = settings.validation
    events = suites.run("rows", checks.row_checks(rules), event_frame(staged.events, rules))
    items = suites.run("items", checks.item_checks(rules), item_frame(staged.items))
    profile = day_profile(
        staged.events,
        events,
        earlier=rows_before(staged.days, storage, rules),
        settings=rules,
    )
    return Judged(events, items, suites.run("batches", checks.batch_checks(rules), profile), profile)


def _publish(staged: Staged, judged: Judged, storage: Storage, *, report: str) -> Artifact:
    is_good = pa.array(judged.events.is_good)
    events = staged.events.filter(is_good)
    # A stable sort: what happened at the same moment stays in the feed's order.
    events = events.sort_by([("event_date", "ascending"), ("event_timestamp", "ascending")])
    mended = staged.events.filter(pc.and_(is_good, staged.is_mended))
    items = pa.concat_tables(
        [staged.items.filter(pa.array(judged.items.is_good)), _items_only_mended(mended, staged.items)]
    )
    rules = [check.name for check in judged.events.checks]
    quarantine = staged.events.append_column(
        "rule", pa.array(rules).take(pa.array(judged.events.broken, mask=judged.events.is_good))
    ).filter(pc.invert(is_good))
    manifests = _manifests(staged, judged, events=events, items=items, report=report)
    storage.write_partitions("quarantine", _cast(quarantine, QUARANTINE), manifests)
    storage.write_partitions("items", items, manifests)
    storage.write_partitions("events", _cast(events.select([*EVENTS.names, "event_date"]), EVENTS), manifests)
    return Artifact(storage.table_uri("events"), _totals(manifests, judged, report))


def _manifests(
    staged: Staged, judged: Judged, *, events: pa.Table, items: pa.Table, report: str
) -> dict[date, dict[str, Any]]:
    """Return per day: rows in, published, quarantined by rule, and where the report lies."""
    import pandas as pd

    dates = staged.days.dates()
    published, kept = (count_by_day(table["event_date"], dates) for table in (events, items))
    mended = count_by_day(staged.events.filter(staged.is_mended)["event_date"], dates)
    came = pd.crosstab(staged.events["event_date"].to_pandas(), sources(staged.events).to_pandas())
    broken = _by_rule(judged.events, staged.events)
    left_out = _by_rule(judged.items, staged.items)
    manifests = {}
    for day in dates:
        by_source = {str(name): int(count) for name, count in came.loc[day].items()} if day in came.index else {}
        manifests[day] = {
            "closed": bool(staged.manifests[day].get("closed", False)),
            "rows_in": sum(by_source.values()),
            "rows_by_source": {name: count for name, count in by_source.items() if count},
            "published": published[day],
            "quarantined": sum(broken.get(day, {}).values()),
            "quarantined_by_rule": broken.get(day, {}),
            "mended": mended[day],
            "items": kept[day],
            "items_left_out_by_rule": left_out.get(day, {}),
            "report": report,
        }
    return manifests


def _by_rule(judgement: Judgement, table: pa.Table) -> dict[date, dict[str, int]]:
    """Return per day how many rows broke each check first."""
    import numpy as np

    bad = np.flatnonzero(~judgement.is_good)
    broken = pa.table({"event_date": table["event_date"].take(pa.array(bad)), "number": judgement.broken[bad]})
    counted = broken.group_by(["event_date", "number"]).aggregate([([], "count_all")])
    by_rule: dict[date, dict[str, int]] = {}
    for entry in counted.sort_by([("event_date", "ascending"), ("number", "ascending")]).to_pylist():
        by_rule.setdefault(entry["event_date"], {})[judgement.checks[entry["number"]].name] = entry["count_all"]
    return by_rule


def _totals(manifests: Mapping[date, Mapping[str, Any]], judged: Judged, report: str) -> dict[str, Any]:
    summed = ("rows_in", "published", "quarantined", "mended", "items")
    return {
        "days": len(manifests),
        "closed_days": [str(day) for day, manifest in manifests.items() if manifest["closed"]],
        **{name: sum(manifest[name] for manifest in manifests.values()) for name in summed},
        "quarantined_by_rule": judged.events.counts(),
        "items_left_out_by_rule": judged.items.counts(),
        "report": report,
    }


def _items_only_mended(mended: pa.Table, staged_items: pa.Table) -> pa.Table:
    """Mended, published events -> a row for each item that the day's feed names nowhere else; its title isn't known."""
    import pandas as pd

    key = ["event_date", "item_id"]
    seen = mended.select([*key, "unit_price", "currency", "event_timestamp"]).to_pandas().dropna(subset=["item_id"])
    known = pd.MultiIndex.from_frame(staged_items.select(key).to_pandas())
    seen = seen[~pd.MultiIndex.from_frame(seen[key]).isin(known)]
    seen = seen.rename(columns={"unit_price": "price", "event_timestamp": "first_seen"})
    seen = seen.sort_values("first_seen", kind="stable").drop_duplicates(key).assign(active=True)
    return pa.Table.from_pandas(
        seen.reindex(columns=staged_items.column_names), staged_items.schema, preserve_index=False
    )


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a table the published schema, `event_date` kept beside it."""
    fields = [*(field for field in schema if field.name != "event_date"), pa.field("event_date", pa.date32())]
    return table.select([field.name for field in fields]).cast(pa.schema(fields))


def _write_report(staged: Staged, judged: Judged, suites: Suites, *, storage: Storage, is_rejected: bool) -> str:
    """Write Data Docs; return where they begin, relative to the home."""
    published, rejected = str(staged.days), f"{staged.days}-rejected"
    name = rejected if is_rejected else published
    with storage.writing_folder("validation_reports", name) as (folder, manifest):
        suites.write_docs(folder, staged.days)
        manifest.update(
            passed=not is_rejected,
            rows=staged.events.num_rows,
            quarantined_by_rule=judged.events.counts(),
            batches_rejected_by_rule=judged.batches.counts(),
        )
    if not is_rejected:
        shutil.rmtree(storage.folder("validation_reports", rejected), ignore_errors=True)
    return f"validation_reports/{name}/index.html"


def _rejection(staged: Staged, judged: Judged, report: str) -> str:
    """Return one paragraph: which rules stopped which files, by which figures, and what to do."""
    failed = judged.profile[~judged.batches.is_good].assign(number=judged.batches.broken[~judged.batches.is_good])
    sentences = []
    for row in failed.head(_SHOWN_FAILURES).to_dict("records"):
        day, source = row["event_date"], row["source"]
        check = judged.batches.checks[row["number"]]
        if check.name == "quarantined":
            row["worst_rule"] = worst_rule(staged.events, judged.events, day=day, source=source)
        if check.name == "other_day":
            row["other_day_first"] = first_other_day(staged.events, day=day, source=source)
        figures = check.figures.format(**row)
        sentences.append(f"{source} {day} ({row['batch']}) breaks the rule {check.name}: {figures}. {check.next_step}.")
    more = f" {len(failed) - _SHOWN_FAILURES} more in the report." if len(failed) > _SHOWN_FAILURES else ""
    log.debug("validate %s: rejected by %s", staged.days, judged.batches.counts())
    return (
        f"validate {staged.days}: nothing was published. {' '.join(sentences)}{more} "
        f"Report: {report} below the home folder."
    )
