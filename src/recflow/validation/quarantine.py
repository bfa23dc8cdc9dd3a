"""Rows that broke a rule: count them, look at them, mend them, put them back.

`show_quarantine(..., out=FILE)` writes the rows as JSON Lines: day, batch, row id, rule and `raw`, the row as it came.
A person mends `raw`; `replay` keeps the mended rows as fixes (see `fixes.py`), and the next `validate` of their days
judges them like any other row. A row that is still wrong goes back to quarantine, as it then is.
"""

import json
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from recflow.errors import FeedError
from recflow.schema import STAGED_EVENTS, Days
from recflow.settings import Settings
from recflow.storage import Artifact, Storage
from recflow.validation.fixes import FIXED_EVENTS, FIXES, locate, read_fixes

if TYPE_CHECKING:
    import numpy as np

# Staged rows whose `raw` is new -> the same rows, in the same order, with all event columns and `parse_error` read
# from it; day, batch and row id stay.
Reparse = Callable[[pa.Table], pa.Table]

_SHOWN = ["event_date", "batch", "row_id", "rule", "parse_error", "raw"]


def list_quarantine(settings: Settings) -> list[dict[str, Any]]:
    """Count the rows in quarantine; one entry per day and rule, oldest day first, from the manifests alone."""
    storage = Storage(settings)
    return [
        {"event_date": str(day), "rule": rule, "rows": count}
        for day in storage.days("quarantine")
        for rule, count in storage.partition_manifest("quarantine", day)["quarantined_by_rule"].items()
    ]


def show_quarantine(
    day: date, settings: Settings, *, rule: str | None = None, out: Path | None = None
) -> list[dict[str, Any]]:
    """Return a day's rows in quarantine in the feed's order, those of one rule if asked, and write them to `out`.

    Raises:
        MissingInput: the day wasn't validated.
    """
    rows = Storage(settings).read_partition("quarantine", day).select(_SHOWN)
    if rule is not None:
        rows = rows.filter(pc.equal(rows["rule"], rule))
    entries: list[dict[str, Any]] = rows.to_pylist()
    for entry in entries:
        entry["event_date"] = str(entry["event_date"])
    if out is not None:
        lines = (json.dumps({**entry, "raw": _readable(entry["raw"])}, ensure_ascii=False) for entry in entries)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return entries


def replay(file: Path, settings: Settings, *, parse: Reparse) -> Artifact:
    """Mended rows -> `fixed_events`, ready for the next `validate` of their days; rows left as they were are skipped.

    `days` of the manifest are all that the file names: what was kept by a run that died is validated by the next.
    All rows are looked at before the first is kept, and a day is kept whole. Replaying a file twice changes nothing.

    Raises:
        FeedError: the file isn't one that `show_quarantine` wrote, or names a row that isn't in quarantine.
    """
    storage = Storage(settings)
    wanted = _read_mended(file)
    changed = {day: _changed_rows(rows, day, file=file, storage=storage) for day, rows in wanted.items()}
    changed = {day: rows for day, rows in changed.items() if rows.num_rows}
    fixes = {day: _fixes(rows, parse) for day, rows in changed.items()}
    for day, fresh in fixes.items():
        older = read_fixes(Days.one(day), storage)
        kept = older.filter(pa.array(locate(older, fresh) < 0))
        rows = pa.concat_tables([kept, fresh]).sort_by([("batch", "ascending"), ("row_id", "ascending")])
        storage.write_partition(FIXES, day, rows, {"rows": rows.num_rows})
    total, replayed = (sum(table.num_rows for table in group.values()) for group in (wanted, fixes))
    return Artifact(
        storage.table_uri(FIXES),
        {"days": [str(day) for day in sorted(wanted)], "replayed": replayed, "unchanged": total - replayed},
    )


def _readable(raw: str) -> Any:
    """Return a row as an object that a person can edit; as the text that it is where it is no JSON."""
    try:
        return json.loads(raw)
    except json.JSONDecodeError:
        return raw


def _read_mended(file: Path) -> dict[date, pa.Table]:
    """Read a file of mended rows -> by day a table of batch, row_id and raw.

    Raises:
        FeedError: a line isn't a mended row, or a row comes twice.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FeedError(
            f"{file}: can't be read as UTF-8 text ({error}). Name a file of `quarantine show --out`."
        ) from error
    by_day: dict[date, list[dict[str, Any]]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = _mended_row(line, file=file, number=number)
            by_day.setdefault(row["event_date"], []).append(row)
    schema = pa.schema([STAGED_EVENTS.field(name) for name in ("event_date", "batch", "row_id", "raw")])
    for day, rows in by_day.items():
        (key, count), *_ = Counter((row["batch"], row["row_id"]) for row in rows).most_common(1)
        if count > 1:
            raise FeedError(f"{file}: row {key[1]} of {key[0]} ({day}) comes {count} times. Keep one line of it.")
    return {day: pa.Table.from_pylist(rows, schema) for day, rows in by_day.items()}


def _mended_row(line: str, *, file: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
        raw = row["raw"]
        return {
            "event_date": date.fromisoformat(row["event_date"]),
            "batch": str(row["batch"]),
            "row_id": int(row["row_id"]),
            "raw": raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise FeedError(
            f"{file} line {number}: expected a JSON object with event_date, batch, row_id and raw, found one that "
            f"isn't ({type(error).__name__}: {error}). Export the rows with `quarantine show --out` and mend only raw."
        ) from error


def _changed_rows(mended: pa.Table, day: date, *, file: Path, storage: Storage) -> pa.Table:
    """Return the staged rows whose text was mended, with the new `raw` and the old one as `replaced_raw`.

    Raises:
        FeedError: a row isn't in quarantine and was never mended before.
    """
    import numpy as np

    staged = storage.read_partition("staged_events", day).select(STAGED_EVENTS.names).cast(STAGED_EVENTS)
    quarantine = storage.read_partition("quarantine", day)
    fixed = read_fixes(Days.one(day), storage)
    places, held, before = (locate(mended, table) for table in (staged, quarantine, fixed))
    strangers = np.flatnonzero((places < 0) | ((held < 0) & (before < 0)))
    if len(strangers):
        row = mended.slice(int(strangers[0]), 1).to_pylist()[0]
        raise FeedError(
            f"{file}: row {row['row_id']} of {row['batch']} isn't in quarantine on {day} (and {len(strangers) - 1} "
            "more). Export the day's rows again with `quarantine show --out`; nothing was put back."
        )
    new = [_readable(raw) for raw in mended["raw"].to_pylist()]
    # Left as it was exported, or mended like this before: nothing to do.
    known = [_texts(quarantine, held), _texts(fixed, before)]
    differs = pa.array([row not in others for row, *others in zip(new, *known, strict=True)], pa.bool_())
    staged_raw = staged["raw"].take(pa.array(places))
    rows = staged.take(pa.array(places)).append_column(FIXED_EVENTS.field("replaced_raw"), staged_raw)
    return rows.set_column(rows.column_names.index("raw"), STAGED_EVENTS.field("raw"), mended["raw"]).filter(differs)


def _texts(table: pa.Table, positions: "np.ndarray") -> list[Any]:
    """Return the rows as they stand at the positions of a table, readable; an empty text where there is none."""
    found = table["raw"].take(pa.array(positions, mask=positions < 0)).fill_null("")
    return [_readable(raw) for raw in found.to_pylist()]


def _fixes(rows: pa.Table, parse: Reparse) -> pa.Table:
    read = parse(rows.select(STAGED_EVENTS.names)).select(STAGED_EVENTS.names).cast(STAGED_EVENTS)
    return read.append_column(FIXED_EVENTS.field("replaced_raw"), rows["replaced_raw"])
