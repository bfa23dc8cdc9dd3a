"""Rows that a person mended, as a lake table of their own: `fixed_events`, one row per mended row of a batch.

`staged_events` stays what the feed delivered. A fix names the row and the text that it replaces, and is put in that
row's place whenever its day is validated: ingesting a day again keeps it. Where the feed delivers another text
in that place by now, the fix is void.
"""

from typing import TYPE_CHECKING, Final

import pyarrow as pa

from recflow.console import log
from recflow.schema import STAGED_EVENTS, Days
from recflow.storage import Storage

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FIXES: Final = "fixed_events"

# Grain: one row per mended row, told by (event_date, batch, row_id).
FIXED_EVENTS: Final = pa.schema([*STAGED_EVENTS, pa.field("replaced_raw", pa.string(), nullable=False)])

_KEY = ["event_date", "batch", "row_id"]


def read_fixes(days: Days, storage: Storage) -> pa.Table:
    """Return the fixes of the days; none where nothing was mended."""
    dates = [day for day in storage.days(FIXES) if days.start <= day <= days.end]
    if not dates:
        return FIXED_EVENTS.empty_table()
    return storage.read_partitions(FIXES, dates).select(FIXED_EVENTS.names).cast(FIXED_EVENTS)


def apply_fixes(staged: pa.Table, days: Days, storage: Storage) -> tuple[pa.Table, pa.Array]:
    """Staged events -> the same rows in the same order, mended ones in their place; and which those are."""
    import numpy as np

    is_mended = np.zeros(staged.num_rows, dtype=bool)
    fixes = read_fixes(days, storage)
    if fixes.num_rows:
        positions = locate(fixes, staged)
        came = staged["raw"].take(pa.array(positions, mask=positions < 0)).to_numpy(zero_copy_only=False)
        holds = (positions >= 0) & (came == fixes["replaced_raw"].to_numpy())
        if not holds.all():
            log.warning("validate %s: %d fixes are void, the feed has other rows there now", days, int((~holds).sum()))
        order = np.arange(staged.num_rows)
        order[positions[holds]] = staged.num_rows + np.flatnonzero(holds)
        staged = pa.concat_tables([staged, fixes.select(STAGED_EVENTS.names)]).take(pa.array(order))
        is_mended[positions[holds]] = True
    return staged, pa.array(is_mended)


def locate(rows: pa.Table, staged: pa.Table) -> "np.ndarray":
    """Return the position in `staged` of each row, told by day, batch and row id; -1 where there is none."""
    import numpy as np

    wanted, present = _keys(rows), _keys(staged).assign(position=np.arange(staged.num_rows))
    found: np.ndarray = wanted.merge(present, on=_KEY, how="left")["position"].fillna(-1).to_numpy(dtype=np.int64)
    return found


def _keys(table: pa.Table) -> "pd.DataFrame":
    frame: pd.DataFrame = table.select(_KEY).to_pandas()
    return frame
