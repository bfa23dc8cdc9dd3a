"""Adapter of JSON Lines feeds in canonical columns: what the simulator and the endpoint write.

`<folder>/events/YYYY-MM-DD.jsonl` holds one event of schema.EVENTS a line, `<folder>/items/YYYY-MM-DD.jsonl` the items
that are new or changed that day (schema.ITEMS); a missing key is null, and so is an empty text. Moments are ISO 8601
with an offset. An event without an id gets one from its line, the day and its place among equal lines. Of an item's
lines of one day the last counts. A feed without a folder of items has the items of its events, with the price of
their last purchase.
"""

import difflib
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from recflow import engine
from recflow.errors import FeedError
from recflow.events.files import ITEMS_DATED, FeedFile, Staged, list_days, quoted, scan_file
from recflow.events.json_fields import FOUND, errors_of, parsed, value_of
from recflow.events.people import hide_in_json
from recflow.schema import EVENTS, ITEMS, STAGED_EVENTS
from recflow.settings import Settings

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

SUFFIX: Final = ".jsonl"
SOURCE: Final = "jsonl"


def list_files(folder: Path) -> dict[date, Path]:
    """Return the feed's files of events by day, oldest first.

    Raises:
        FeedError: the folder or its `events` isn't there.
    """
    return list_days(folder / "events" if folder.is_dir() else folder, SUFFIX)


def list_item_files(folder: Path) -> dict[date, Path] | None:
    """Return the feed's files of items by day, or None where the feed has no folder of items."""
    return list_days(folder / "items", SUFFIX) if (folder / "items").exists() else None


def scan(path: Path, *, day: date, max_line_bytes: int, prefix: str = "") -> FeedFile:
    """Look through a day's file before it is parsed: text and line lengths; no lines at all is a closed day.

    Raises:
        FeedError: it can't be a file of JSON lines; the message says why.
    """
    return scan_file(path, day=day, batch=prefix + path.name, max_line_bytes=max_line_bytes)


def read(files: Sequence[FeedFile], settings: Settings, *, source: str = SOURCE, has_items: bool = True) -> Staged:
    """Read daily files of events in one pass; one row per line, lines that can't be understood included.

    `source` is kept where an event names none. Items come by `read_items`, or from the events where the feed has no
    files of them (`has_items` false).

    Raises:
        FeedError: an event has a key that no event has, or a file was cut inside its last line.
    """
    backend = engine.connect(settings)
    events = _stage(backend, hide_in_json(backend, _lines(files), settings), source)
    backend.con.register("events", events)
    items = ITEMS_DATED.empty_table() if has_items else backend.con.sql(_ITEMS_OF_EVENTS).to_arrow_table()
    return Staged(events, items.cast(ITEMS_DATED), _count_quirks(backend))


def read_items(files: Sequence[FeedFile], settings: Settings) -> pa.Table:
    """Read daily files of items in one pass; one row per item and day, with `event_date`.

    Raises:
        FeedError: a line is no item, or has a key that no item has; the message names file and line.
    """
    backend = engine.connect(settings)
    backend.con.register("lines", _lines(files))
    _refuse_unknown_keys(backend, ITEMS.names, "items/")
    _refuse_broken_items(backend)
    columns = ", ".join(f"{value_of(field)} AS {field.name}" for field in ITEMS)
    items = backend.con.sql(
        f"SELECT {columns}, day AS event_date FROM ({parsed(ITEMS.names)})"
        " QUALIFY row_number() OVER (PARTITION BY day, fields.item_id ORDER BY n DESC) = 1"
        " ORDER BY event_date, item_id"
    )
    return items.to_arrow_table().cast(ITEMS_DATED)


def restage(rows: pa.Table, settings: Settings) -> pa.Table:
    """Read rows again from their (mended) `raw`; one staged event per row, in their order."""
    import numpy as np

    backend = engine.connect(settings)
    backend.con.register("mended", rows.append_column("n", pa.array(np.arange(rows.num_rows))))
    # A line that is no JSON was kept as {"line": ...}: as it stands it fails again, like the first time.
    lines = backend.con.sql(
        "SELECT CASE WHEN json_valid(raw) AND json_extract_string(raw, '$.line') IS NOT NULL"
        " THEN json_extract_string(raw, '$.line') ELSE raw END AS raw, n, row_id, batch, event_date AS day,"
        " event_id AS known_id, source AS known_source FROM mended ORDER BY n"
    ).to_arrow_table()
    return _stage(backend, hide_in_json(backend, lines, settings), SOURCE)


def _lines(files: Sequence[FeedFile]) -> pa.Table:
    """Return the files' lines that aren't blank: raw, n (over all), row_id (over the file), batch and day."""
    import numpy as np
    import pyarrow.compute as pc

    parts, counts = [], []
    for file in files:
        lines = file.path.read_text(encoding="utf-8-sig").split("\n")
        if not file.is_terminated and file.batch == file.path.name:
            _check_last(file, lines)
        kept = pa.array(lines, pa.string())
        kept = kept.filter(pc.not_equal(pc.utf8_trim_whitespace(kept), ""))
        parts.append(kept)
        counts.append(len(kept))
    of_file = np.repeat(np.arange(len(files)), counts)  # (lines,)
    order = np.arange(len(of_file))
    return pa.table(
        {
            "raw": pa.chunked_array(parts, pa.string()),
            "n": order,
            "row_id": order - np.searchsorted(of_file, np.arange(len(files)))[of_file],
            "known_id": pa.nulls(len(order), pa.string()),
            "known_source": pa.nulls(len(order), pa.string()),
            "batch": pa.array([file.batch for file in files], pa.string()).take(pa.array(of_file)),
            "day": pa.array([file.day for file in files], pa.date32()).take(pa.array(of_file)),
        }
    )


def _check_last(file: FeedFile, lines: list[str]) -> None:
    """Refuse a file that was cut inside its last line (a file of feedback may be: the endpoint died, unanswered)."""
    try:
        json.loads(lines[-1] or "{}")
    except json.JSONDecodeError as error:
        raise FeedError(  # without a word of the line: it may be about a person, and messages are logged
            f"{file.path}: truncated: expected a JSON object and a line end as line {len(lines)}, the last, found "
            f"{len(lines[-1])} characters that are none. Deliver the file again, whole."
        ) from error


def _stage(backend: "Backend", lines: pa.Table, source: str) -> pa.Table:
    """Turn lines into staged events, in their order."""
    backend.con.register("lines", lines)
    _refuse_unknown_keys(backend, EVENTS.names)
    columns = {field.name: value_of(field) for field in EVENTS}
    columns["event_id"] = f"coalesce({columns['event_id']}, known_id, md5(concat_ws(chr(31), day, raw, occurrence)))"
    columns["source"] = f"coalesce({columns['source']}, known_source, {quoted(source)})"
    selected = ", ".join(f"{expression} AS {name}" for name, expression in columns.items())
    errors = ", ".join(errors_of(EVENTS, required=("event_timestamp", "event_type")))
    events = backend.con.sql(
        f"SELECT {selected}, row_id, CASE WHEN is_object THEN raw ELSE to_json({{line: raw}})::VARCHAR END AS raw,"
        f" CASE WHEN NOT is_object THEN 'line: not a JSON object' ELSE nullif(concat_ws('; ', {errors}), '') END"
        f" AS parse_error, batch, day AS event_date FROM ({parsed(EVENTS.names)}) ORDER BY n"
    ).to_arrow_table()
    backend.con.unregister("lines")
    return events.select(STAGED_EVENTS.names).cast(STAGED_EVENTS)


def _refuse_unknown_keys(backend: "Backend", known: Sequence[str], prefix: str = "") -> None:
    names = ", ".join(map(quoted, known))
    unknown = backend.con.sql(
        f"SELECT batch, row_id + 1, key FROM (SELECT n, batch, row_id, unnest(json_keys(raw)) AS key FROM"
        f" ({parsed(known)}) WHERE is_object) WHERE key NOT IN ({names}) ORDER BY n, key LIMIT 1"
    ).fetchall()
    if unknown:
        batch, line, key = unknown[0]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise FeedError(
            f"{prefix}{batch}: line {line}: unknown key '{key[:FOUND]}'{hint} Expected keys: {', '.join(known)}. "
            "Correct the feed's export and deliver the file again."
        )


def _refuse_broken_items(backend: "Backend") -> None:
    errors = ", ".join(errors_of(ITEMS, required=("item_id",)))
    broken = backend.con.sql(
        "SELECT batch, row_id + 1, CASE WHEN NOT is_object THEN 'line: not a JSON object'"
        f" ELSE nullif(concat_ws('; ', {errors}), '') END AS wrong"
        f" FROM ({parsed(ITEMS.names)}) WHERE wrong IS NOT NULL ORDER BY n LIMIT 1"
    ).fetchall()
    if broken:
        batch, line, wrong = broken[0]
        raise FeedError(f"items/{batch}: line {line}: expected an item, found {wrong}. Correct the line and try again.")


def _count_quirks(backend: "Backend") -> dict[date, dict[str, int]]:
    counted = backend.con.sql(
        "SELECT event_date AS day, count(*) FILTER (WHERE user_id IS NULL) AS anonymous_lines,"
        " count(*) - count(DISTINCT (batch, raw)) AS duplicate_lines,"
        " count(parse_error) AS parse_errors FROM events GROUP BY day"
    ).to_arrow_table()
    rows: list[dict[str, Any]] = counted.to_pylist()
    return {row.pop("day"): row for row in rows}


_ITEMS_OF_EVENTS: Final = """
SELECT item_id, NULL AS title, NULL AS description, NULL AS category, NULL AS brand,
  arg_max(unit_price, row_id) FILTER (WHERE event_type = 'purchase' AND unit_price > 0) AS price,
  arg_max(currency, row_id) FILTER (WHERE event_type = 'purchase' AND unit_price > 0) AS currency,
  NULL AS image_uri, NULL AS store_id, min(event_timestamp) AS first_seen,
  CASE WHEN count(*) FILTER (WHERE event_type = 'purchase') > 0 THEN true END AS active,
  event_date
FROM events WHERE item_id IS NOT NULL AND parse_error IS NULL
GROUP BY event_date, item_id ORDER BY event_date, item_id
"""
