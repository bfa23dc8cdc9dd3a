"""What a user did up to each day, as lists: the last events, and every item ever bought.

A day's partition holds only the users who were active on it. Their state before is in the partition of the day on
which they were active last, which the running totals name: no history is scanned.
"""

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from recflow.features.views import HISTORY_FEATURES
from recflow.schema import HISTORY_EVENT_TYPES
from recflow.storage import Storage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_USER_ITEMS_LISTS = {"item_ids": "item_id"}  # list -> what it lists
_HISTORY_LISTS = dict(zip(HISTORY_FEATURES, ("item_id", "event_type", "timestamp_us", "quantity"), strict=True))


def latest_lists(storage: Storage, noun: str, users: pa.Array, active_days: pa.Array) -> pa.Table | None:
    """Read the lists that users had when they were active last, from the partitions of those days alone.

    Args:
        storage: where the lists lie.
        noun: `user_history` or `state_user_items`.
        users: user_ids.
        active_days: beside each, the day (since 1970-01-01); null where there was none.
    """
    wanted = pa.table({"user_id": users, "day": active_days}).drop_null()
    if not wanted.num_rows:
        return None
    days = pc.unique(wanted["day"]).cast(pa.int32()).cast(pa.date32()).to_pylist()
    found = storage.read_partitions(noun, sorted(days))
    found = found.append_column("day", found["event_date"].cast(pa.int32()).cast(pa.int64())).drop_columns("event_date")
    # Joins don't carry lists: join the row numbers, then take the rows.
    rows = found.select(["user_id", "day"]).append_column("row", pa.array(range(found.num_rows), pa.int64()))
    return found.take(rows.join(wanted, ["user_id", "day"], join_type="inner").sort_by("row")["row"])


def new_pairs(events: pa.Table, known: pa.Table | None) -> pa.Table:
    """Find what each user bought for the first time; one row per new (user_id, item_id), with the `day`.

    Args:
        events: validated events with `day`.
        known: `state_user_items` of the users as before those events.
    """
    bought = pc.and_(
        pc.equal(events["event_type"], "purchase"),
        pc.and_(pc.is_valid(events["user_id"]), pc.is_valid(events["item_id"])),
    )
    pairs = events.filter(bought).group_by(["user_id", "item_id"]).aggregate([("day", "min")])
    pairs = pairs.rename_columns(["user_id", "item_id", "day"])
    if known is not None:
        pairs = pairs.join(_flat(known, _USER_ITEMS_LISTS), ["user_id", "item_id"], join_type="left anti")
    return pairs.sort_by([("user_id", "ascending"), ("day", "ascending"), ("item_id", "ascending")])


def mark_new_pairs(events: pa.Table, pairs: pa.Table) -> pa.Table:
    """Add `is_new_pair`: the user bought the item for the first time on the event's day. Keep the rows' order."""
    marks = pairs.append_column("is_new_pair", pa.repeat(pa.scalar(True), pairs.num_rows))
    joined = events.join(marks, ["user_id", "item_id", "day"], join_type="left outer").sort_by("sequence")
    column = joined.schema.get_field_index("is_new_pair")
    return joined.set_column(column, "is_new_pair", pc.fill_null(joined["is_new_pair"], False))


def user_items(events: pa.Table, pairs: pa.Table, known: pa.Table | None) -> pa.Table:
    """List every item that a user ever bought, oldest first; one row per (user_id, day) with a purchase."""
    buying = events.filter(pc.and_(pc.equal(events["event_type"], "purchase"), pc.is_valid(events["item_id"])))
    return _lists_by_day(pairs, known, _USER_ITEMS_LISTS, active=buying, limit=None)


def user_history(events: pa.Table, known: pa.Table | None, history_length: int) -> pa.Table:
    """List a user's last events, oldest first; one row per (user_id, day) with such an event."""
    kept = pc.and_(
        pc.is_in(events["event_type"], pa.array(HISTORY_EVENT_TYPES)),
        pc.and_(pc.is_valid(events["user_id"]), pc.is_valid(events["item_id"])),
    )
    events = events.filter(kept)
    entries = pa.table(
        {
            "user_id": events["user_id"],
            "day": events["day"],
            "item_id": events["item_id"],
            "event_type": events["event_type"],
            "timestamp_us": events["event_timestamp"].cast(pa.int64()),
            # Feast's lists hold no nulls: 0 is a quantity that the feed didn't give.
            "quantity": pc.fill_null(events["quantity"].cast(pa.float64()), 0.0),
        }
    )
    return _lists_by_day(entries, known, _HISTORY_LISTS, active=entries, limit=history_length)


def _lists_by_day(
    entries: pa.Table, known: pa.Table | None, lists: dict[str, str], *, active: pa.Table, limit: int | None
) -> pa.Table:
    """Cut one list per active (user_id, day) out of the entries up to that day, after what was known before."""
    import numpy as np

    active = active.filter(pc.is_valid(active["user_id"])).group_by(["user_id", "day"]).aggregate([])
    active = active.sort_by([("day", "ascending"), ("user_id", "ascending")])
    if not active.num_rows:
        empty = {name: pa.array([], pa.list_(entries.schema.field(inner).type)) for name, inner in lists.items()}
        return pa.table({"user_id": active["user_id"], "day": active["day"], **empty})
    # What was known comes first, in its order: as of day 0.
    entries = entries.select(["user_id", "day", *lists.values()])
    if known is not None:
        before = _flat(known, lists)
        before = before.append_column("day", pa.repeat(pa.scalar(0, pa.int64()), before.num_rows))
        entries = pa.concat_tables([before.select(entries.column_names), entries])
    users = pa.concat_arrays([*entries["user_id"].chunks, *active["user_id"].chunks])
    codes = users.dictionary_encode().indices.to_numpy().astype(np.int64)
    codes, rows = codes[: entries.num_rows], codes[entries.num_rows :]
    keys = _keys(codes, entries["day"].to_numpy())
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    ends = np.searchsorted(keys, _keys(rows, active["day"].to_numpy()), side="right")
    starts = np.searchsorted(keys, _keys(rows, np.zeros_like(rows)), side="left")
    starts = starts if limit is None else np.maximum(starts, ends - limit)
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    taken = pa.array(order[np.repeat(starts - offsets[:-1], ends - starts) + np.arange(offsets[-1])])
    columns = {
        name: pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), entries[inner].combine_chunks().take(taken))
        for name, inner in lists.items()
    }
    return pa.table({"user_id": active["user_id"], "day": active["day"], **columns})


def _keys(codes: "NDArray[np.int64]", days: "NDArray[np.int64]") -> "NDArray[np.int64]":
    return (codes << 32) + days  # days since 1970-01-01 stay far below 2**32


def _flat(known: pa.Table, lists: dict[str, str]) -> pa.Table:
    """Turn lists back into entries, in their order; one row per entry."""
    first = known[next(iter(lists))].combine_chunks()
    columns: dict[str, Any] = {"user_id": known["user_id"].combine_chunks().take(pc.list_parent_indices(first))}
    for name, inner in lists.items():
        columns[inner] = pc.list_flatten(known[name].combine_chunks())
    return pa.table(columns)
