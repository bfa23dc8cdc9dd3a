"""Logged impressions -> slates with what followed; what the engagement stage learns from.

    impressions.parquet    one row per slate: user_idx, cut, moment, the shopper's events before it (offsets), raw user
                           features as of the cut; lists of item_idx, position and outcome, one entry an item shown

A slate's cut, which features are as of, is the UTC midnight before it in the hold-out, and the training set's latest
cut before it in the weeks before. Only in the hold-out do scores of the candidates mean what they will at the endpoint:
their hold-out weights have seen nothing of those days.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recflow.models.slates import OUTCOMES
from recflow.schema import TIMESTAMP, Days, day_end
from recflow.settings import TrainingSettings
from recflow.storage import Storage

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ["user_id", "item_id", "event_timestamp", "event_type", "position", "request_id"]
_LEVELS = {"click": 1, "view": 1, "add_to_cart": 2, "purchase": 3}  # a view is a click: some shops log one of them


def logged_slates(
    storage: Storage,
    cuts: Sequence[date],
    until: date,
    *,
    users: pa.Table,
    items: pa.Table,
    events: pa.Table,
    settings: TrainingSettings,
) -> pa.Table:
    """Return the slates that known users were shown up to a day, ordered by time; one row per slate, without features.

    Left out: impressions without a `request_id` or a position, of anonymous visitors (nothing is known of them), of
    items that the catalogue doesn't have, and slates so late that what follows them isn't all in yet.
    """
    first = max(cuts[0], cuts[-1] - timedelta(days=settings.engagement.days))
    log = _read(storage, Days(first, until), users, items)
    window = np.timedelta64(round(settings.engagement.hours * 3600), "s")
    shown = _shown(log)
    ends = np.datetime64(day_end(until).replace(tzinfo=None), "us")
    shown = shown[shown["slate_moment"] + window <= ends]
    shown = shown.assign(outcome=follow_up(shown, log[log["event_type"].isin(_LEVELS)], window=window))
    return _by_slate(_drawn(shown, cuts[-1], settings), events, cuts)


def counts_of(slates: pa.Table, holdout_start: date) -> dict[str, int]:
    """Count the slates, the items shown, and those that led to each outcome; the hold-out's clicks by themselves."""
    outcomes = slates["outcomes"].combine_chunks()
    levels = outcomes.flatten().to_numpy()
    counts = {f"{name}s": int((levels >= level).sum()) for level, name in enumerate(OUTCOMES, start=1)}
    is_holdout = np.repeat(slates["cut"].to_numpy() >= np.datetime64(holdout_start, "D"), outcomes.value_lengths())
    held_out = int((levels[is_holdout] >= 1).sum())
    return {"slates": slates.num_rows, "shown": len(levels), **counts, "holdout_clicks": held_out}


def follow_up(shown: "pd.DataFrame", followed: "pd.DataFrame", *, window: np.timedelta64) -> NDArray[np.int8]:
    """Return how far each impression led: 0 no further, then 1 to 3 as in OUTCOMES.

    What names a request follows from that request's impression of the item; what names none, from the shopper's last
    impression of the item. Either way within `window` after it, ends included, so that nothing counts twice.
    """
    import pandas as pd

    shown = shown.reset_index(drop=True)
    by_time = shown.assign(row=shown.index).sort_values("event_timestamp", kind="stable")
    outcome = np.zeros(len(shown), np.int8)
    names_request = followed["request_id"] >= 0
    for part, by in (
        (followed[names_request], ["user_idx", "item_idx", "request_id"]),
        (followed[~names_request], ["user_idx", "item_idx"]),
    ):
        matched = pd.merge_asof(
            part.sort_values("event_timestamp", kind="stable")[["event_timestamp", "event_type", *by]],
            by_time[["event_timestamp", "row", *by]],
            on="event_timestamp",
            by=by,
            tolerance=pd.Timedelta(window),
        ).dropna(subset="row")
        levels = matched["event_type"].map(_LEVELS).to_numpy(np.int8)
        np.maximum.at(outcome, matched["row"].to_numpy(np.int64), levels)
    return outcome


def _read(storage: Storage, days: Days, users: pa.Table, items: pa.Table) -> "pd.DataFrame":
    """Return impressions and what may follow them: known users' and known items', users, items, requests as numbers."""
    parts, kinds = [], pa.array(["impression", *_LEVELS])
    for day in sorted(set(days.dates()).intersection(storage.days("events"))):
        part = storage.read_partition("events", day).select(_COLUMNS)
        parts.append(part.filter(pc.and_(pc.is_valid(part["user_id"]), pc.is_in(part["event_type"], kinds))))
    log = pa.concat_tables(parts).combine_chunks()
    requests = pc.unique(log["request_id"].drop_null())
    numbers = {
        "user_idx": pc.index_in(log["user_id"], users["user_id"].combine_chunks()),
        "item_idx": pc.index_in(log["item_id"], items["item_id"].combine_chunks()),
        "request_id": pc.index_in(log["request_id"], requests),
    }
    columns: dict[str, Any] = {name: pc.fill_null(column, -1) for name, column in numbers.items()}
    columns |= {
        "event_timestamp": log["event_timestamp"].cast(pa.timestamp("us")),
        "event_type": log["event_type"],
        "position": pc.fill_null(log["position"], 0),
    }
    frame: pd.DataFrame = pa.table(columns).to_pandas()
    return frame[(frame["user_idx"] >= 0) & (frame["item_idx"] >= 0)]


def _shown(log: "pd.DataFrame") -> "pd.DataFrame":
    """Return the impressions, an item once a slate, with the moment at which the slate was first seen."""
    shown = log[(log["event_type"] == "impression") & (log["request_id"] >= 0) & (log["position"] >= 1)]
    shown = shown.sort_values(["event_timestamp", "request_id", "position"], kind="stable")
    shown = shown.drop_duplicates(["user_idx", "request_id", "item_idx"])
    moments = shown.groupby(["user_idx", "request_id"])["event_timestamp"].transform("min")
    return shown.assign(slate_moment=moments)


def _drawn(shown: "pd.DataFrame", holdout_start: date, settings: TrainingSettings) -> "pd.DataFrame":
    """Draw slates where there are more than are needed, before the hold-out and in it; ordered by slate, by time."""
    shown = shown.sort_values(["slate_moment", "user_idx", "request_id", "position", "item_idx"], kind="stable")
    slate = shown.groupby(["slate_moment", "user_idx", "request_id"], sort=False).ngroup().to_numpy()
    moments = shown["slate_moment"].to_numpy()[np.flatnonzero(np.diff(slate, prepend=-1))]  # (S,)
    drawn = np.random.default_rng([settings.seed, len(moments)]).permutation(len(moments))
    kept, is_holdout = np.zeros(len(moments), bool), moments >= np.datetime64(holdout_start, "us")
    for part in (is_holdout, ~is_holdout):
        first = np.sort(drawn[part])[: settings.engagement.slates]
        kept |= part & (drawn <= first.max(initial=-1))
    return shown.assign(slate=slate)[kept[slate]]


def _by_slate(shown: "pd.DataFrame", events: pa.Table, cuts: Sequence[date]) -> pa.Table:
    slate = shown["slate"].to_numpy()
    starts = np.flatnonzero(np.diff(slate, prepend=-1))
    ends = pa.array(np.append(starts, len(slate)).astype(np.int32))
    user_idx = shown["user_idx"].to_numpy(np.int32)[starts]
    moments = shown["slate_moment"].to_numpy("datetime64[us]")[starts]
    history_start, history_end = events_before(events, user_idx, moments.astype(np.int64))
    return pa.table(
        {
            "user_idx": user_idx,
            "cut": pa.array(_cuts_of(moments.astype("datetime64[D]"), np.array(cuts, "datetime64[D]"))),
            "moment": pa.array(moments, pa.timestamp("us")).cast(TIMESTAMP),
            "history_start": history_start,
            "history_end": history_end,
            "items": pa.ListArray.from_arrays(ends, shown["item_idx"].to_numpy(np.int32)),
            "positions": pa.ListArray.from_arrays(ends, shown["position"].to_numpy(np.int32)),
            "outcomes": pa.ListArray.from_arrays(ends, shown["outcome"].to_numpy(np.int8)),
        }
    )


def events_before(
    events: pa.Table,
    user_idx: NDArray[np.int32],  # (S,)
    moments_us: NDArray[np.int64],  # (S,) microseconds since 1970 (UTC)
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # (S,), (S,)
    """Return where each shopper's events start, and the first that isn't before the moment; both offsets."""
    owner = events["user_idx"].to_numpy()
    at = events["event_timestamp"].cast(pa.int64()).to_numpy()
    # Moments among the events: at equal times a moment comes first, for its features are from strictly before it.
    is_event = np.repeat([False, True], [len(user_idx), len(owner)])
    order = np.lexsort((is_event, np.concatenate([moments_us, at]), np.concatenate([user_idx, owner])))
    counted = np.empty(len(order), np.int64)
    counted[order] = np.cumsum(is_event[order])
    return np.searchsorted(owner, user_idx), counted[: len(user_idx)]


def _cuts_of(
    days: NDArray[np.datetime64],  # (S,)
    cuts: NDArray[np.datetime64],  # rising, the hold-out's last
) -> NDArray[np.datetime64]:  # (S,)
    latest = cuts[np.maximum(np.searchsorted(cuts, days, side="right") - 1, 0)]
    return np.where(days >= cuts[-1], days, latest)


def cuts_of(slates: pa.Table) -> list[date]:
    """Return the cuts that slates have, oldest first."""
    return [day.item() for day in np.unique(slates["cut"].to_numpy().astype("datetime64[D]"))]
