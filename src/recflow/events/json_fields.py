"""The engine's expressions that read the keys of JSON lines as the columns of a canonical table.

They stand over a registered table `lines` with raw (the line), n (its order), batch and what its caller needs.
"""

import json
from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from recflow.events.files import DECIMAL, WHOLE, quoted

FOUND: Final = 40  # characters of a value that an error shows

_WHAT: Final = {
    "int64": "a whole number of at most 15 digits",
    "int32": "a whole number",
    "double": "a number",
    "bool": "true or false",
    "timestamp[us, tz=UTC]": "a moment with offset like 2011-03-01T14:05:00+00:00",
}


def parsed(names: Sequence[str]) -> str:
    """Return the query of the lines with `is_object`, `occurrence` and `fields`: the named keys' values as text."""
    structure = quoted(json.dumps(dict.fromkeys(names, "VARCHAR")))
    return (
        "SELECT *, json_valid(raw) AND CASE WHEN json_valid(raw) THEN json_type(raw) END = 'OBJECT' AS is_object,"
        f" json_transform(CASE WHEN is_object THEN raw END, {structure}) AS fields,"
        " row_number() OVER (PARTITION BY batch, raw ORDER BY n) AS occurrence FROM lines"
    )


def value_of(field: pa.Field) -> str:
    """Return the expression of a key's value in its column's type; null where it can't be read."""
    text, kind = f"trim(fields.{field.name})", str(field.type)
    if kind == "string":
        return f"nullif(fields.{field.name}, '')"
    if kind in ("int64", "int32"):
        whole = f"try_cast(split_part({text}, '.', 1) AS {'BIGINT' if kind == 'int64' else 'INTEGER'})"
        return f"CASE WHEN regexp_full_match({text}, {quoted(WHOLE)}) THEN {whole} END"
    if kind == "double":
        number = f"CASE WHEN regexp_full_match({text}, {quoted(DECIMAL)}) THEN try_cast({text} AS DOUBLE) END"
        return f"CASE WHEN isfinite({number}) THEN {number} END"
    if kind == "bool":
        return f"CASE WHEN {text} IN ('true', 'false') THEN {text} = 'true' END"
    with_offset = "[T ].*(Z|[+-][0-9]{2}:?[0-9]{2})$"
    return f"CASE WHEN regexp_matches({text}, {quoted(with_offset)}) THEN try_cast({text} AS TIMESTAMPTZ) END"


def errors_of(schema: pa.Schema, *, required: Sequence[str]) -> list[str]:
    """Return the expressions that say what is wrong with a line: key, what was found, what was expected."""
    errors = [f"CASE WHEN coalesce(fields.{name}, '') = '' THEN '{name}: missing' END" for name in required]
    for field in schema:
        if what := _WHAT.get(str(field.type)):
            found = f"'{field.name}: ''' || left(fields.{field.name}, {FOUND}) || ''' is not {what}'"
            wrong = f"coalesce(fields.{field.name}, '') <> '' AND ({value_of(field)}) IS NULL"
            errors.append(f"CASE WHEN {wrong} THEN {found} END")
    return errors
