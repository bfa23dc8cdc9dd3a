"""The workbook that UCI publishes → the daily CSVs that the adapter reads."""

import io
import shutil
import uuid
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from recflow.console import log
from recflow.errors import FeedError
from recflow.events.invoice_lines import COLUMNS
from recflow.storage import replace_folder

if TYPE_CHECKING:
    import pandas as pd


def split_workbook(archive: Path, target: Path, *, expected_rows: int) -> None:
    """Write the workbook inside a zip archive as `target/YYYY-MM-DD.csv`, lines in their order; all days or none.

    An archive that isn't what it should be is removed, so that it is downloaded anew.

    Raises:
        FeedError: there is no workbook inside, or it has other columns, or other than `expected_rows` lines.
    """
    try:
        lines = _read_lines(archive)
        if len(lines) != expected_rows:
            raise FeedError(
                f"{archive}: expected {expected_rows:,} invoice lines, found {len(lines):,}. It was removed; fetch it "
                "again, or name a folder of daily CSVs with --from."
            )
    except FeedError:
        archive.unlink()
        raise
    aside = target.parent / f".writing-{target.name}-{uuid.uuid4().hex}"
    aside.mkdir(parents=True)
    try:
        for day, of_day in lines.groupby(lines["InvoiceDate"].str[:10]):
            of_day.to_csv(aside / f"{day}.csv", index=False, lineterminator="\n")
        replace_folder(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _read_lines(archive: Path) -> "pd.DataFrame":
    """Return the workbook's first sheet as text, in the daily CSVs' notation."""
    import pandas as pd
    from python_calamine import CalamineError, CalamineWorkbook

    log.info("reading the workbook in %s", archive)
    with zipfile.ZipFile(archive) as files:
        names = [name for name in files.namelist() if name.lower().endswith(".xlsx")]
        if len(names) != 1:
            raise FeedError(f"{archive}: expected one .xlsx inside, found {files.namelist()[:5]}. It was removed.")
        content = io.BytesIO(files.read(names[0]))
    try:
        rows = CalamineWorkbook.from_filelike(content).get_sheet_by_index(0).to_python(skip_empty_area=True)
    except CalamineError as error:
        raise FeedError(f"{archive}: {names[0]} can't be read as a workbook ({error}). It was removed.") from error
    header = [str(name) for name in rows[0]] if rows else []
    if header != list(COLUMNS):
        raise FeedError(
            f"{archive}: expected {','.join(COLUMNS)} as columns, found {','.join(header)}. It was removed."
        )
    cells = pd.DataFrame(rows[1:], columns=header, dtype=object)
    return pd.DataFrame({name: _written(cells[name], _NOTATIONS.get(name, _code)) for name in COLUMNS})


def _written(cells: "pd.Series[Any]", notation: Callable[[Any], str]) -> "pd.Series[str]":
    """Write a column's cells as text, each distinct value once."""
    return cells.map({cell: notation(cell) for cell in cells.unique()})


def _code(cell: Any) -> str:
    """Write 536365.0 as 536365: a workbook knows no whole numbers."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _decimal(cell: Any) -> str:
    """Write 5 as 5.0; an empty cell stays empty."""
    return str(float(cell)) if isinstance(cell, int | float) else str(cell)


def _moment(cell: Any) -> str:
    if not isinstance(cell, datetime):
        raise FeedError(f"Online Retail workbook: expected a moment as InvoiceDate, found {cell!r}. It was removed.")
    return f"{cell:%Y-%m-%d %H:%M:%S}"


_NOTATIONS: Final = {"InvoiceDate": _moment, "UnitPrice": _decimal, "CustomerID": _decimal}
