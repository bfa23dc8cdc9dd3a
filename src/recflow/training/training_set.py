"""The lake as of a day -> a training set: shoppers at cuts, what was known of them then, what they bought after.

    training_sets/<until>/
        items.parquet          item_idx, then schema.ITEMS as in force at the end of `until`; ordered by item_id
        users.parquet          user_idx, user_id, country; ordered by user_id
        events.parquet         user_idx, item_idx, event_timestamp, event_type, quantity, unit_price; by user and time
        examples.parquet       one row per (user, cut) with a purchase in the window; raw user features as of the cut
        item_features.parquet  one row per (cut, item); raw item features as of the cut, and as of the end of `until`
        impressions.parquet    one row per slate that was shown, see `impressions`; only where they are logged

A cut is a moment, UTC midnight before its day. Features as known at the cut: the snapshot of the day before. Targets
within [cut, cut + holdout_days). The last cut is the hold-out; the windows of all others end at or before it.
"""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recflow import featurestore
from recflow.errors import FeatureError, MissingInput, TrainingError
from recflow.models.interactions import PURCHASE
from recflow.models.slates import FILE
from recflow.schema import EVENT_TYPES, HISTORY_EVENT_TYPES, ITEMS, TIMESTAMP
from recflow.settings import Settings
from recflow.storage import Artifact, Storage, content_hash
from recflow.training.impressions import counts_of, logged_slates
from recflow.training.impressions import cuts_of as slate_cuts

_EVENT_COLUMNS = ["user_id", "item_id", "event_timestamp", "event_type", "quantity", "unit_price", "country"]
_TABLES: dict[Literal["user", "item"], str] = {"user": "user_purchase_stats", "item": "item_sales_stats"}


def build_training_set(until: date, settings: Settings) -> Artifact:
    """Write the training set whose data end with the day `until`, inclusive.

    Raises:
        MissingInput: the lake's tables don't reach `until`.
        TrainingError: nobody bought in the hold-out, or there are too few examples before it.
    """
    storage = Storage(settings)
    names = {entity: featurestore.feature_names(settings, entity) for entity in _TABLES}
    items = _items(storage, until)
    users, events = _events(storage, until, items)
    cuts = cuts_of(_first_day(events, until), until, settings)
    examples = _examples(events, cuts, settings)
    holdout_start = cuts[-1]
    _refuse_too_little(examples, holdout_start, until, settings)
    slates = logged_slates(storage, cuts, until, users=users, items=items, events=events, settings=settings.training)
    with storage.writing_folder("training_sets", str(until)) as (folder, manifest):
        pq.write_table(items, folder / "items.parquet", compression="zstd")
        pq.write_table(users, folder / "users.parquet", compression="zstd")
        pq.write_table(events, folder / "events.parquet", compression="zstd")
        examples = _with_user_features(storage, examples, users, names["user"])
        pq.write_table(examples, folder / "examples.parquet", compression="zstd")
        shown_on = [day for day in slate_cuts(slates) if day > holdout_start]
        item_features = _item_features(storage, items, [*cuts, *shown_on], until, names["item"])
        pq.write_table(item_features, folder / "item_features.parquet", compression="zstd")
        hashed = [content_hash(table) for table in (items, events, examples, item_features)]
        if slates.num_rows:
            slates = _with_user_features(storage, slates, users, names["user"])
            pq.write_table(slates, folder / FILE, compression="zstd")
            hashed.append(content_hash(slates))
        by_cut = dict(zip(*np.unique(examples["cut"].to_numpy(), return_counts=True), strict=True))
        manifest |= {
            "until": str(until),
            "holdout_start": str(holdout_start),
            "window_days": settings.training.holdout_days,
            "history_length": settings.features.history_length,
            "feature_service": featurestore.FEATURE_SERVICE,
            "user_features": names["user"],
            "item_features": names["item"],
            "cuts": [str(cut) for cut in cuts],
            "impressions": counts_of(slates, holdout_start),
            "counts": {
                "items": items.num_rows,
                "users": users.num_rows,
                "events": events.num_rows,
                "examples": examples.num_rows,
                "holdout_examples": int(by_cut[np.datetime64(holdout_start, "D")]),
                "targets": len(examples["targets"].combine_chunks().flatten()),
            },
            "snapshot_hash": "-".join(hashed),
        }
    return Artifact(str(storage.folder("training_sets", str(until))), manifest)


def cuts_of(first_day: date, until: date, settings: Settings) -> list[date]:
    """Return the cuts, oldest first: the hold-out's, and before it one every `cut_every_days`.

    The last window before the hold-out ends where the hold-out starts. Windows start at least `holdout_days` after
    the first day of data: before that nobody has a history.
    """
    window = timedelta(days=settings.training.holdout_days)
    holdout_start = until + timedelta(days=1) - window
    cuts = [holdout_start]
    cut = holdout_start - window
    while cut >= first_day + window and len(cuts) <= settings.training.max_windows:
        cuts.append(cut)
        cut -= timedelta(days=settings.training.cut_every_days)
    return cuts[::-1]


def features_as_of(
    storage: Storage, entity: Literal["user", "item"], cut: date, ids: pa.Array, names: Sequence[str]
) -> pa.Table:
    """Return an entity's features as known at a cut, a row for each id in their order; unknown ones are null.

    The latest snapshot stamped at or before the cut is in force. A day on which the shop was closed may have none.

    Raises:
        FeatureError: the snapshot lacks a feature.
    """
    noun = _TABLES[entity]
    for day in _days_before(storage, noun, cut):
        snapshot = storage.read_partition(noun, day)
        if snapshot.num_rows:
            missing = [name for name in names if name not in snapshot.column_names]
            if missing:
                raise FeatureError(
                    f"{noun} {day} lacks {', '.join(missing)}, which the feature service has: the snapshot is older "
                    "than the expression. Run build_features again over all days that training reads."
                )
            at = pc.index_in(ids, snapshot[f"{entity}_id"].combine_chunks())
            return snapshot.select(list(names)).take(at)
    empty = storage.read_partition(noun, storage.days(noun)[0]).schema
    return pa.table({name: pa.nulls(len(ids), empty.field(name).type) for name in names})


def _days_before(storage: Storage, noun: str, cut: date) -> Iterator[date]:
    days = storage.days(noun)
    if not days:
        raise MissingInput(f"{noun}: no snapshot below {storage.lake_uri}. Run build_features first.")
    yield from (day for day in reversed(days) if day < cut)


def _items(storage: Storage, until: date) -> pa.Table:
    """Return the catalogue as of the end of `until`, ordered and numbered by item_id."""
    catalogue = storage.read_partition("catalogue", until).select(ITEMS.names).sort_by("item_id")
    return catalogue.add_column(0, "item_idx", pa.array(np.arange(catalogue.num_rows, dtype=np.int32)))


def _events(storage: Storage, until: date, items: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return users, and their history events with items of the catalogue, ordered by (user_idx, time, feed order)."""
    days = [day for day in storage.days("events") if day <= until]
    parts = []
    for day in days:  # one day at a time: unused columns never lie in memory together
        part = storage.read_partition("events", day).select(_EVENT_COLUMNS)
        known = pc.and_(pc.is_valid(part["user_id"]), pc.is_in(part["event_type"], pa.array(HISTORY_EVENT_TYPES)))
        parts.append(part.filter(known))
    if not parts:
        raise MissingInput(f"events: no day up to {until} below {storage.lake_uri}. Run ingest and validate first.")
    events = pa.concat_tables(parts)
    item_idx = pc.index_in(events["item_id"], items["item_id"].combine_chunks())
    events, item_idx = events.filter(pc.is_valid(item_idx)), item_idx.drop_null()
    user_ids = pc.unique(events["user_id"]).sort()
    user_idx = pc.index_in(events["user_id"], user_ids)
    order = np.lexsort((events["event_timestamp"].cast(pa.int64()).to_numpy(), user_idx.to_numpy()))  # stable
    types = pc.index_in(events["event_type"], pa.array(EVENT_TYPES))
    table = pa.table(
        {
            "user_idx": user_idx.cast(pa.int32()),
            "item_idx": item_idx.cast(pa.int32()),
            "event_timestamp": events["event_timestamp"].cast(TIMESTAMP),
            "event_type": types.cast(pa.int8()),
            "quantity": pc.fill_null(events["quantity"], 0).cast(pa.float32()),
            "unit_price": events["unit_price"],
            "country": events["country"],
        }
    ).take(order)
    users = pa.table(
        {
            "user_idx": pa.array(np.arange(len(user_ids), dtype=np.int32)),
            "user_id": user_ids,
            "country": _last_country(table, len(user_ids)),
        }
    )
    return users, table.drop_columns(["country"]).combine_chunks()


def _last_country(events: pa.Table, n_users: int) -> pa.Array:
    """Return each user's country of the last event that has one."""
    known = events.filter(pc.is_valid(events["country"]))
    last = np.full(n_users, -1, np.int64)
    last[known["user_idx"].to_numpy()] = np.arange(known.num_rows)  # ordered by time: the last assignment stays
    return known["country"].combine_chunks().take(pa.array(last, mask=last < 0))


def _first_day(events: pa.Table, until: date) -> date:
    if not events.num_rows:
        raise TrainingError(f"Training set {until}: no event of a known user in the lake. Ingest more days first.")
    first: date = pc.min(events["event_timestamp"]).as_py().date()
    return first


def _examples(events: pa.Table, cuts: Sequence[date], settings: Settings) -> pa.Table:
    """Return one row per (user, cut) with a purchase in the window, ordered by (cut, user_idx)."""
    user_idx = events["user_idx"].to_numpy()
    moments = events["event_timestamp"].cast(pa.int64()).to_numpy()
    is_purchase = events["event_type"].to_numpy() == PURCHASE
    n_items = int(pc.max(events["item_idx"]).as_py()) + 1
    pairs = user_idx.astype(np.int64) * n_items + events["item_idx"].to_numpy()
    bought, first_row = np.unique(pairs[is_purchase], return_index=True)
    first_bought = moments[is_purchase][first_row]  # ordered by time within a user: the first row is the first time
    user_starts = np.searchsorted(user_idx, np.arange(user_idx[-1] + 2))
    parts = []
    for cut in cuts:
        start, end = _moment_us(cut), _moment_us(cut + timedelta(days=settings.training.holdout_days))
        wanted = np.unique(pairs[is_purchase & (moments >= start) & (moments < end)])
        users, first = np.unique(wanted // n_items, return_index=True)
        older = np.concatenate([[0], np.cumsum(moments < start)])
        history_end = user_starts[users] + older[user_starts[users + 1]] - older[user_starts[users]]
        ends = np.append(first, len(wanted)).astype(np.int32)
        is_repeat = first_bought[np.searchsorted(bought, wanted)] < start
        parts.append(
            pa.table(
                {
                    "user_idx": users.astype(np.int32),
                    "cut": pa.repeat(pa.scalar(cut, pa.date32()), len(users)),
                    "history_start": np.maximum(
                        user_starts[users], history_end - settings.features.history_length
                    ).astype(np.int64),
                    "history_end": history_end.astype(np.int64),
                    "targets": pa.ListArray.from_arrays(ends, (wanted % n_items).astype(np.int32)),
                    "is_repeat": pa.ListArray.from_arrays(ends, pa.array(is_repeat)),
                }
            )
        )
    return pa.concat_tables(parts).combine_chunks()


def _refuse_too_little(examples: pa.Table, holdout_start: date, until: date, settings: Settings) -> None:
    is_holdout = examples["cut"].to_numpy() == np.datetime64(holdout_start, "D")
    held_out, before = int(is_holdout.sum()), int((~is_holdout).sum())
    needed = settings.training.min_examples
    if not held_out or before < needed:
        raise TrainingError(
            f"Training set {until}: {before} shoppers bought in the windows before {holdout_start} (at least {needed} "
            f"are needed) and {held_out} in the hold-out {holdout_start}..{until} (at least 1). Prepare more days of "
            "data, choose a later `until`, or lower training.min_examples."
        )


def _with_user_features(storage: Storage, examples: pa.Table, users: pa.Table, names: Sequence[str]) -> pa.Table:
    """Append the user features as of each row's cut."""
    parts = []
    cuts = examples["cut"].to_numpy().astype("datetime64[D]")
    for cut in np.unique(cuts):
        first, last = np.searchsorted(cuts, cut, "left"), np.searchsorted(cuts, cut, "right")
        ids = users["user_id"].take(examples["user_idx"].slice(first, last - first)).combine_chunks()
        parts.append(features_as_of(storage, "user", cut.item(), ids, names))
    features = pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    for name in names:
        examples = examples.append_column(name, features[name])
    return examples


def _item_features(
    storage: Storage, items: pa.Table, cuts: Sequence[date], until: date, names: Sequence[str]
) -> pa.Table:
    """Return the item features as of every cut and as of the end of `until`, which the bundle serves with."""
    ids = items["item_id"].combine_chunks()
    parts = []
    for cut in [*cuts, until + timedelta(days=1)]:
        features = features_as_of(storage, "item", cut, ids, names)
        head: dict[str, Any] = {
            "cut": pa.repeat(pa.scalar(cut, pa.date32()), items.num_rows),
            "item_idx": items["item_idx"],
        }
        parts.append(pa.table(head | {name: features[name] for name in names}))
    return pa.concat_tables(parts, promote_options="permissive")


def _moment_us(day: date) -> int:
    return int(np.datetime64(day, "us").astype(np.int64))
