"""Shops' user ids in the lines of a feed -> pseudonyms, before anything is made of the lines.

Nothing behind this knows the ids: not the events, not the rows kept as they came, not the event ids that are hashes of
them. See `recflow.privacy`.
"""

from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from recflow.events.files import quoted
from recflow.privacy import pseudonyms
from recflow.settings import Settings

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

_IS_OBJECT: Final = "json_valid(raw) AND CASE WHEN json_valid(raw) THEN json_type(raw) END = 'OBJECT'"


def hide_in_column(lines: pa.Table, column: str, settings: Settings) -> pa.Table:
    """Return lines with the ids of a column as pseudonyms."""
    if settings.privacy.pseudonym_key is None:
        return lines
    place = lines.schema.get_field_index(column)
    return lines.set_column(place, column, pseudonyms(lines[column].combine_chunks(), settings))


def hide_in_json(backend: "Backend", lines: pa.Table, settings: Settings, key: str = "user_id") -> pa.Table:
    """Return lines of JSON objects in `raw` with the id of a key as a pseudonym.

    Where a line is no object nobody can say which of its words is an id: its hash stands for it, so that different
    lines stay different.
    """
    if settings.privacy.pseudonym_key is None:
        return lines
    backend.con.register("plain", lines.select(["raw", "n"]))
    path = quoted(f"$.{key}")
    found = backend.con.sql(
        f"SELECT raw, n, {_IS_OBJECT} AS is_object,"
        f" CASE WHEN is_object THEN nullif(json_extract_string(raw, {path}), '') END AS user_id FROM plain"
    ).to_arrow_table()
    named = pc.if_else(found["is_object"], found["user_id"], pc.binary_join_element_wise("line", found["raw"], " "))
    found = found.append_column("hidden", pseudonyms(named.combine_chunks(), settings))
    backend.con.register("plain", found)
    hidden = backend.con.sql(
        f"SELECT CASE WHEN NOT is_object THEN 'withheld: ' || hidden"
        f" WHEN user_id IS NOT NULL THEN json_merge_patch(raw, json_object({quoted(key)}, hidden))::VARCHAR"
        " ELSE raw END AS raw FROM plain ORDER BY n"
    ).to_arrow_table()
    backend.con.unregister("plain")
    return lines.sort_by("n").set_column(lines.schema.get_field_index("raw"), "raw", hidden["raw"])
