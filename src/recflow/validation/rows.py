"""Staged rows -> the frames that the row and item checks look at: slim columns, and helpers computed vectorized."""

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from recflow.settings import ValidationSettings

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_AS_THEY_ARE = (
    "parse_error",
    "event_id",
    "event_timestamp",
    "event_type",
    "item_id",
    "unit_price",
    "quantity",
    "rating",
    "position",
    "dwell_seconds",
)


def event_frame(staged: pa.Table, settings: ValidationSettings) -> "pd.DataFrame":
    """Staged events (with `event_date`) -> one row each, in the same order, with the helper columns of the checks."""
    is_sale = pc.fill_null(pc.is_in(staged["event_type"], pa.array(["purchase", "return"])), False)
    is_search = pc.fill_null(pc.equal(staged["event_type"], "search"), False)
    has_shopper = pc.or_(pc.is_valid(staged["user_id"]), pc.is_valid(staged["session_id"]))
    # A free item may be shown; only what was paid or paid back has to have a price above zero.
    paid_price = pc.if_else(is_sale, staged["unit_price"], pa.scalar(None, pa.float64()))
    frame: pd.DataFrame = staged.select(list(_AS_THEY_ARE)).to_pandas()
    frame["paid_price"] = paid_price.to_pandas()
    frame["lacks_item"] = _flags(pc.and_(pc.is_null(staged["item_id"]), pc.invert(is_search)))
    frame["lacks_shopper"] = _flags(pc.invert(has_shopper))
    frame["is_of_other_day"] = _flags(is_of_other_day(staged))
    is_repeat = repeats(staged)
    frame["is_repeat"] = is_repeat.astype("int8")
    frame["is_cancelled_at_once"] = cancelled_at_once(staged, is_repeat, settings).astype("int8")
    return frame


def item_frame(staged: pa.Table) -> "pd.DataFrame":
    """Staged items (with `event_date`) -> one row each, in the same order, with the helper columns of the checks."""
    frame: pd.DataFrame = staged.select(["event_date", "item_id", "price"]).to_pandas()
    frame["is_repeat"] = frame.duplicated(["event_date", "item_id"], keep="last").astype("int8")
    return frame.drop(columns="event_date")


def is_of_other_day(staged: pa.Table) -> pa.ChunkedArray:
    """Return whether each event happened on another UTC day than its file's; false where it has no time."""
    other = pc.not_equal(
        pc.cast(pc.floor_temporal(staged["event_timestamp"], unit="day"), pa.date32()), staged["event_date"]
    )
    return pc.fill_null(other, False)


def repeats(staged: pa.Table) -> "np.ndarray":
    """Return which rows repeat an earlier one: the same line in the same batch, or the same event id on the same day.

    A position in a dictionary stands for its text: comparing half a million lines then costs what numbers cost.
    """
    import pandas as pd

    keys = pd.DataFrame({name: _codes(staged[name]) for name in ("event_date", "batch", "raw", "event_id")}, copy=False)
    same_line = keys.duplicated(["event_date", "batch", "raw"])
    same_id = keys.duplicated(["event_date", "event_id"]) & (keys["event_id"] >= 0)
    repeated: np.ndarray = (same_line | same_id).to_numpy()
    return repeated


def cancelled_at_once(staged: pa.Table, is_repeat: "np.ndarray", settings: ValidationSettings) -> "np.ndarray":
    """Return which rows are an order or its cancellation soon after: same user, item, quantity and day.

    A cancellation meets the last such order before it; of two cancellations of one order only the first does. Repeated
    lines are left out: they break a rule of their own, and the line that they repeat would stay. Orders without a
    user are left out: nobody can say whose they were.
    """
    import numpy as np
    import pandas as pd

    large = pc.fill_null(pc.greater_equal(staged["quantity"], settings.cancelled_at_once_quantity), False)
    known = pc.and_(pc.is_valid(staged["user_id"]), pc.is_valid(staged["item_id"]))
    wanted = pc.and_(pc.and_(large, known), pc.and_(pc.is_valid(staged["event_timestamp"]), pa.array(~is_repeat)))
    positions = np.flatnonzero(wanted.to_numpy())
    pair = ["event_date", "user_id", "item_id", "quantity"]
    frame = staged.select([*pair, "event_timestamp", "event_type"]).take(positions).to_pandas()
    frame = frame.assign(row=positions).sort_values("event_timestamp", kind="stable")
    orders = frame[frame["event_type"] == "purchase"].drop(columns="event_type")
    returns = frame[frame["event_type"] == "return"].drop(columns="event_type")
    marked = np.zeros(staged.num_rows, dtype=bool)
    if orders.empty or returns.empty:
        return marked
    met = pd.merge_asof(
        returns,
        orders,
        on="event_timestamp",
        by=pair,
        tolerance=pd.Timedelta(minutes=settings.cancelled_at_once_minutes),
        suffixes=("_return", "_order"),
    )
    met = met.dropna(subset=["row_order"]).drop_duplicates("row_order")
    marked[met[["row_return", "row_order"]].to_numpy(dtype=np.int64).ravel()] = True
    return marked


def _flags(column: pa.ChunkedArray) -> "np.ndarray":
    flags: np.ndarray = column.to_numpy().astype("int8")
    return flags


def _codes(column: pa.ChunkedArray) -> "np.ndarray":
    """Return a number per distinct value, -1 for null."""
    encoded = column.combine_chunks().dictionary_encode()
    codes: np.ndarray = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes
