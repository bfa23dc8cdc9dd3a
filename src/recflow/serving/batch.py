"""The champion -> recommendations for many users at once, from the lake; one row per (user_id, rank)."""

import uuid
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recflow.console import log
from recflow.errors import MissingInput, RecflowError, RegistryError
from recflow.models.context import EventColumns, assemble
from recflow.models.interactions import PURCHASE, top_k
from recflow.privacy import check_home, pseudonyms
from recflow.schema import EVENT_TYPES, HISTORY_EVENT_TYPES, day_end
from recflow.serving.bundle import Bundle, load_bundle
from recflow.serving.feedback import to_us
from recflow.serving.rules import Rules
from recflow.serving.stock import Stock
from recflow.settings import Settings
from recflow.storage import Release, Storage

_CHUNK = 512  # users scored at once: 512 x 4,000 items are 8 MB a matrix
_COLUMNS = ["user_id", "item_id", "event_timestamp", "event_type", "quantity"]


class _Lake(NamedTuple):
    """What the lake knows of users at the end of its last day. U users, N events."""

    day: date
    user_ids: pa.Array  # (U,) who did anything, sorted
    events: EventColumns  # (N,) with items of the catalogue, by user and time
    ends: NDArray[np.int64]  # (U + 1,) user u's events are [ends[u], ends[u + 1])
    features: pa.Table  # (U,) raw user features


def recommend_batch(
    users: Sequence[str] | None, *, k: int, new_only: bool, settings: Settings, champion: Release | None
) -> pa.Table:
    """Recommend k items to each user; columns user_id, item_id, rank (from 1), score.

    Histories and features are those at the end of the lake's last day, as the online store has them; unknown users get
    what is popular. Items that aren't offered or in stock, or that the settings block, are never recommended.

    Args:
        users: ids as in the feed, each answered once in this order; None: every user of the lake. Where ids are
            pseudonyms, those of the feed or pseudonyms; the answers have pseudonyms.
        k: items a user; fewer where the catalogue has no more.
        new_only: leave out what the user ever bought, however long ago.
        settings: where the lake is.
        champion: the version that answers.

    Raises:
        RegistryError: there is no champion.
        BundleInvalid: its bundle is incomplete or altered.
    """
    check_home(settings)
    if champion is None:
        raise RegistryError("There is no champion to recommend from. Run `recflow line` or publish a version first.")
    bundle = load_bundle(champion.folder)
    lake = _read_lake(Storage(settings), bundle)
    wanted = lake.user_ids if users is None else pseudonyms(pa.array(users, pa.string()), settings).unique()
    places = _places(wanted, lake.user_ids)
    unknown = int((places < 0).sum())
    if unknown:
        log.info("%d of %d users aren't in the lake; they get what is popular", unknown, len(places))
    rules = Rules.of(bundle, settings.serving.rules).with_out_of_stock(Stock(settings).out())
    hidden = ~rules.showable()
    items, scores = [], []
    for start in range(0, len(places), _CHUNK):
        chunk = places[start : start + _CHUNK]
        found = _recommend_chunk(chunk, bundle, lake, hidden, k=k, new_only=new_only)
        items.append(found[0])
        scores.append(found[1])
    return _table(wanted, bundle, items, scores)


def write_batch(table: pa.Table, out: Path) -> None:
    """Write recommendations as Parquet, whole or not at all.

    Raises:
        RecflowError: the file can't be written there.
    """
    aside = out.parent / f".writing-{out.name}-{uuid.uuid4().hex}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, aside, compression="zstd")
        aside.replace(out)
    except OSError as error:
        raise RecflowError(f"{out}: can't be written ({error.strerror or error}). Choose another place.") from error
    finally:
        aside.unlink(missing_ok=True)


def _places(wanted: pa.Array, user_ids: pa.Array) -> NDArray[np.int64]:
    """Return where each wanted user stands among the lake's, -1 for a stranger.

    Spreadsheets and data frames write the number 17850 as 17850.0: where the feed's own spelling isn't found, the
    other one is looked for.
    """
    exact = pc.index_in(wanted, user_ids)
    as_number = pc.index_in(_plain_number(wanted), _plain_number(user_ids))
    places: NDArray[np.int64] = pc.fill_null(pc.coalesce(exact, as_number), -1).to_numpy().astype(np.int64)
    return places


def _plain_number(ids: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(ids, r"^(\d+)\.0$", r"\1")


def _recommend_chunk(
    places: NDArray[np.int64], bundle: Bundle, lake: _Lake, hidden: NDArray[np.bool_], *, k: int, new_only: bool
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:  # (B, K) twice
    is_known = (places >= 0) & (lake.ends[places + 1] > lake.ends[places])
    popularity = bundle.tables.popularity_scores(None).astype(np.float32)
    scores = np.repeat(popularity[None], len(places), axis=0)
    exclude = np.repeat(hidden[None], len(places), axis=0)
    if is_known.any():
        known = places[is_known]
        starts, ends = lake.ends[known], lake.ends[known + 1]
        context = assemble(
            lake.events,
            starts,
            ends,
            moment_us=to_us(max(day_end(lake.day), bundle.snapshot_end)),
            length=bundle.history_length,
            user_features=bundle.encoders.user.transform(lake.features.take(pa.array(known))),
            item_features=bundle.item_features,
        )
        scores[is_known] = bundle.ranker.score(context)
        if new_only:
            rows = np.repeat(np.flatnonzero(is_known), ends - starts)
            events = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
            bought = lake.events.event_type[events] == PURCHASE
            exclude[rows[bought], lake.events.item_idx[events[bought]]] = True
    return top_k(scores, k, exclude=exclude)


def _read_lake(storage: Storage, bundle: Bundle) -> _Lake:
    day, features = _latest_features(storage)
    parts = [storage.read_partition("events", each).select(_COLUMNS) for each in storage.days("events") if each <= day]
    events = pa.concat_tables(parts)
    events = events.filter(
        pc.and_(
            pc.is_in(events["user_id"], features["user_id"].combine_chunks()),
            pc.is_in(events["event_type"], pa.array(HISTORY_EVENT_TYPES)),
        )
    )
    events = events.filter(pc.is_in(events["item_id"], pa.array(bundle.item_ids)))
    user_ids = features["user_id"].combine_chunks()
    user_idx = pc.index_in(events["user_id"], user_ids).to_numpy()
    moments = events["event_timestamp"].cast(pa.int64()).to_numpy()
    order = np.lexsort((moments, user_idx))  # stable: events of one moment stay in the feed's order
    columns = EventColumns(
        item_idx=pc.index_in(events["item_id"], pa.array(bundle.item_ids)).to_numpy()[order].astype(np.int32),
        timestamp_us=moments[order],
        event_type=pc.index_in(events["event_type"], pa.array(EVENT_TYPES)).to_numpy()[order].astype(np.int8),
        quantity=pc.fill_null(events["quantity"], 0).to_numpy()[order].astype(np.float32),
    )
    ends = np.searchsorted(user_idx[order], np.arange(len(user_ids) + 1)).astype(np.int64)
    return _Lake(day, user_ids, columns, ends, features)


def _latest_features(storage: Storage) -> tuple[date, pa.Table]:
    """Return the last day that has a snapshot of users, and the snapshot; a closed day's may be empty."""
    for day in reversed(storage.days("user_purchase_stats")):
        snapshot: pa.Table = storage.read_partition("user_purchase_stats", day)
        if snapshot.num_rows:
            return day, snapshot.sort_by("user_id")
    raise MissingInput(f"user_purchase_stats: no snapshot below {storage.lake_uri}. Run `recflow line` first.")


def _table(wanted: pa.Array, bundle: Bundle, items: list[Any], scores: list[Any]) -> pa.Table:
    chosen = np.concatenate(items) if items else np.zeros((0, 1), dtype=np.int32)  # (U, K)
    values = np.concatenate(scores) if scores else np.zeros((0, 1), dtype=np.float32)
    is_item = chosen.ravel() >= 0
    users = np.repeat(np.arange(len(chosen)), chosen.shape[1])[is_item]
    ranks = np.tile(np.arange(1, chosen.shape[1] + 1, dtype=np.int32), len(chosen))[is_item]
    return pa.table(
        {
            "user_id": wanted.take(pa.array(users)),
            "item_id": pa.array(bundle.item_ids).take(pa.array(chosen.ravel()[is_item])),
            "rank": ranks,
            "score": values.ravel()[is_item],
        }
    )
