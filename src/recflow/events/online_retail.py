"""Adapter of Online Retail (UCI 352): daily CSVs of invoice lines → staged events and items.

What a line means stands in `invoice_lines`; here is what a file has to be.
"""

import csv
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from recflow import engine
from recflow.errors import FeedError
from recflow.events.files import FeedFile, Staged, first_line, list_days, quoted, scan_file
from recflow.events.invoice_lines import COLUMNS, USER_COLUMN, stage_lines
from recflow.events.people import hide_in_column
from recflow.schema import STAGED_EVENTS
from recflow.settings import Settings

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

SUFFIX: Final = ".csv"
_NAMED: Final = 8  # wrong columns that a message lists
_AGAIN: Final = "Deliver the file again, whole."


def list_files(folder: Path) -> dict[date, Path]:
    """Return the feed's files by day, oldest first.

    Raises:
        FeedError: the folder isn't there.
    """
    return list_days(folder, SUFFIX)


def scan(path: Path, *, day: date, max_line_bytes: int) -> FeedFile:
    """Look through a day's file before it is parsed: text, line lengths, header.

    Raises:
        FeedError: it can't be a day of invoice lines; the message says why.
    """
    file = scan_file(path, day=day, batch=path.name, max_line_bytes=max_line_bytes)
    if not file.size:
        raise FeedError(
            f"{path}: truncated: expected at least the header {','.join(COLUMNS)}, found 0 bytes. A closed day has no "
            "file, or the header alone. Deliver the file again, or remove it."
        )
    _check_header(path, first_line(path, max_line_bytes))
    return file


def read(files: Sequence[FeedFile], settings: Settings) -> Staged:
    """Read daily files of invoice lines in one pass; one row per line, lines that can't be understood included.

    Raises:
        FeedError: a file's lines aren't what its header promises; the message names file and line.
    """
    backend = engine.connect(settings)
    lines = _read_lines(backend, files, settings.feed.max_line_bytes)
    return stage_lines(backend, hide_in_column(lines, USER_COLUMN, settings))


def restage(rows: pa.Table, settings: Settings) -> pa.Table:
    """Read rows again from their (mended) `raw`; one staged event per row, in their order and with their ids."""
    import numpy as np

    backend = engine.connect(settings)
    backend.con.register("mended", rows.append_column("n", pa.array(np.arange(rows.num_rows))))
    structure = quoted(json.dumps(dict.fromkeys(COLUMNS, "VARCHAR")))
    fields = ", ".join(f"coalesce(fields.{name}, '') AS {name}" for name in COLUMNS)
    lines = backend.con.sql(
        f"SELECT {fields}, n, row_id, batch, event_date AS day FROM (SELECT *,"
        f" json_transform(CASE WHEN json_valid(raw) THEN raw END, {structure}) AS fields FROM mended) ORDER BY n"
    ).to_arrow_table()
    events = stage_lines(backend, hide_in_column(lines, USER_COLUMN, settings)).events
    return events.set_column(0, STAGED_EVENTS.field(0), rows["event_id"].combine_chunks())


def _check_header(path: Path, line: str) -> None:
    found = next(csv.reader([line]), [])
    if found == list(COLUMNS):
        return
    expected = ",".join(COLUMNS)
    delimiter = next((mark for mark in (";", "\t", "|") if line.count(mark) >= len(COLUMNS) - 1), None)
    odd = {
        "missing": [name for name in COLUMNS if name not in found],
        "extra": [repr(name[:40]) for name in found if name not in COLUMNS][:_NAMED],
    }
    if delimiter:
        wrong = f"fields separated by {delimiter!r}"
    elif any(odd.values()):
        wrong = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in odd.items() if names)
    else:
        wrong = f"another order or repeated columns: {','.join(found)}"
    raise FeedError(
        f"{path}: expected the columns {expected} with commas between, found {wrong}. Export the file again like that."
    )


def _read_lines(backend: "Backend", files: Sequence[FeedFile], max_line_bytes: int) -> pa.Table:
    """Return the files' lines as text, with n (over all), row_id (over the file), batch and day."""
    import numpy as np
    import pyarrow.compute as pc

    try:
        lines = _read_csv(backend, files, max_line_bytes)
    except Exception as error:  # the engine's own types stay in engine.py; anything raised here is about the files
        raise _blame(backend, files, max_line_bytes, error) from None  # the engine quotes lines; causes are logged
    of_file = pc.index_in(lines["filename"], pa.array([str(file.path) for file in files])).to_numpy()  # (lines,)
    order = np.arange(len(of_file))
    starts = np.searchsorted(of_file, np.arange(len(files)))  # (files,)
    lines = lines.drop_columns(["filename"])
    lines = lines.append_column("n", pa.array(order))
    lines = lines.append_column("row_id", pa.array(order - starts[of_file]))
    lines = lines.append_column("batch", pa.array([file.batch for file in files]).take(pa.array(of_file)))
    return lines.append_column("day", pa.array([file.day for file in files], pa.date32()).take(pa.array(of_file)))


def _read_csv(backend: "Backend", files: Sequence[FeedFile], max_line_bytes: int) -> pa.Table:
    columns = ", ".join(f"{name}: 'VARCHAR'" for name in COLUMNS)
    paths = ", ".join(quoted(_unglobbed(str(file.path))) for file in files)
    # Rows come in the files' order (the engine's default, preserve_insertion_order). The null marker stands for itself:
    # an empty field stays an empty text.
    fields = ", ".join(f"coalesce({name}, '\x1a') AS {name}" for name in COLUMNS)
    return backend.con.sql(
        f"SELECT {fields}, filename FROM read_csv([{paths}], columns = {{{columns}}}, auto_detect = false,"
        " header = true, delim = ',', quote = '\"', escape = '\"', strict_mode = true, filename = true,"
        f" hive_partitioning = false, nullstr = '\x1a', max_line_size = {max_line_bytes})"
    ).to_arrow_table()


def _blame(backend: "Backend", files: Sequence[FeedFile], max_line_bytes: int, error: Exception) -> FeedError:
    """Find the one file that can't be read and what is wrong with it."""
    for file in files:
        try:
            _read_csv(backend, [file], max_line_bytes)
        except Exception as one:
            return FeedError(f"{file.path}: {_diagnosis(file, str(one))}")
    return FeedError(f"{files[0].path.parent}: the files can't be read together: {str(error).splitlines()[0]}")


def _diagnosis(file: FeedFile, reported: str) -> str:
    """Say what is wrong with a file whose header is right: the first line that isn't."""
    expected = f"expected {len(COLUMNS)} fields ({','.join(COLUMNS)})"
    with file.path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        try:
            for row in rows:
                if row and len(row) != len(COLUMNS):
                    number, is_last = rows.line_num, next(rows, None) is None
                    cut = "truncated: the last line" if is_last and len(row) < len(COLUMNS) else "the line"
                    return f"line {number}: {expected}, {cut} has {len(row)}. {_AGAIN}"
        except csv.Error as error:
            if "unexpected end" in str(error):
                return f"truncated: {expected}, at the end of the file a quoted field is still open. {_AGAIN}"
            return f"line {rows.line_num}: {expected}, found no CSV ({error}). {_AGAIN}"
    content = file.path.read_bytes()
    if 0 < content.count(b"\r\n") < content.count(b"\n"):
        return "expected one kind of line end, found both LF and CR LF. Convert the file (dos2unix) and try again."
    reason = reported.partition("Original Line")[0]  # not what the line says
    return f"can't be read as CSV: {' '.join(reason.split())[:200]} {_AGAIN}"


def _unglobbed(path: str) -> str:
    """Return a path that the engine takes as it stands, wildcards in its name included."""
    return "".join(f"[{mark}]" if mark in "*?[" else mark for mark in path)
