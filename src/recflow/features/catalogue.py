"""The catalogue as in force at the end of a day: of each item ever listed, the last that was said of it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from recflow.schema import ITEMS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def catalogue_by_day(items: pa.Table, days: range) -> Iterator[tuple[int, pa.Table]]:
    """Fill in what each listing leaves out from those before it; per day one row per item_id listed so far, by id.

    Args:
        items: `schema.ITEMS` with `day` (since 1970-01-01); the catalogue of the day before, where there is one,
            comes first. Of an item's rows of one day the last is in force.
        days: the days wanted, one after the other.
    """
    import numpy as np

    by_id = items["item_id"].combine_chunks().dictionary_encode()
    ids = by_id.indices.to_numpy().astype(np.int64)
    order = np.lexsort((np.arange(len(ids)), items["day"].to_numpy(), ids))
    items, ids = items.take(pa.array(order)), ids[order]
    filled = pa.table({name: items[name].take(_said(items, name, ids)) for name in ITEMS.names}, schema=ITEMS)
    moments = items["day"].to_numpy()
    in_force = np.full(len(by_id.dictionary), -1, dtype=np.int64)
    alphabetical = pc.array_sort_indices(by_id.dictionary).to_numpy()
    # Rows up to the eve of the first day are the state; each day moves on the items that were listed on it.
    by_day = np.argsort(moments, kind="stable")
    starts = np.searchsorted(moments[by_day], np.array([*days, days.stop]), side="left")
    before = by_day[: starts[0]]
    in_force[ids[before]] = before
    for day, start, end in zip(days, starts, starts[1:], strict=False):
        today = by_day[start:end]
        in_force[ids[today]] = today
        rows = in_force[alphabetical]
        yield day, filled.take(pa.array(rows[rows >= 0]))


def _said(items: pa.Table, name: str, ids: "NDArray[np.int64]") -> pa.Array:
    """Return for each row of the sorted listings the row of its item that says what is in force then.

    `first_seen` is what was said first, all else what was said last; where nothing was, the row itself.
    """
    import numpy as np

    rows = np.arange(len(ids))
    is_said = items[name].is_valid().to_numpy()
    own = np.searchsorted(ids, ids, side="left")  # the item's first row
    if name == "first_seen":
        said = np.append(np.flatnonzero(is_said), len(ids))
        first = said[np.searchsorted(said, own)]
        return pa.array(np.where(first <= rows, first, rows))
    last = np.maximum.accumulate(np.where(is_said, rows, -1))
    return pa.array(np.where(last >= own, last, rows))
