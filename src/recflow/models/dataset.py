"""A training set on disk -> arrays: interactions to fit on, examples with targets, contexts as of their cut.

A training set is a folder of Parquet files; `training.training_set` writes it and says what is in each.
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recflow.errors import MissingInput
from recflow.models.context import EventColumns, assemble
from recflow.models.features import Encoders, FeatureEncoder
from recflow.models.interactions import PURCHASE, Context, Interactions

Rows = NDArray[np.int64]  # (B,) row numbers of `examples.parquet`


@dataclass(frozen=True)
class Examples:
    """Shoppers at cuts, ordered by (cut, user_idx), each with what it bought in the window [cut, cut + window).

    Grain: one row per (user, cut) with at least one purchase in the window.
    """

    user_idx: NDArray[np.int32]  # (N,)
    cut: NDArray[np.datetime64]  # (N,) datetime64[D]
    history_start: NDArray[np.int64]  # (N,) offset into the events
    history_end: NDArray[np.int64]  # (N,) offset of the first event at or after the cut
    targets: NDArray[np.int32]  # (T,) item_idx, distinct within a row, all rows below each other
    is_repeat: NDArray[np.bool_]  # (T,) whether the user had bought the item before the cut
    target_ends: NDArray[np.int64]  # (N + 1,) row n's targets are [target_ends[n], target_ends[n + 1])

    def __len__(self) -> int:
        """Return N."""
        return len(self.user_idx)

    def targets_of(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]:
        """Return (place within `rows`, item_idx, is_repeat) of every target of the given rows."""
        counts = self.target_ends[rows + 1] - self.target_ends[rows]
        place = np.repeat(np.arange(len(rows)), counts)
        first = np.repeat(self.target_ends[rows] - np.cumsum(counts) + counts, counts)
        at = first + np.arange(counts.sum())
        return place, self.targets[at], self.is_repeat[at]


@dataclass(frozen=True)
class TrainingSet:
    """All that training and evaluation read, as of `until`."""

    folder: Path
    manifest: dict[str, Any]
    items: pa.Table  # (V,) the catalogue in order of item_idx
    users: pa.Table  # (U,) user_idx, user_id, country
    user_idx: NDArray[np.int32]  # of each event
    events: EventColumns  # ordered by (user_idx, timestamp)
    event_prices: NDArray[np.float32]  # of each event, for one piece; NaN where the feed has none
    examples: Examples
    user_features: pa.Table  # raw columns, row for row with `examples`
    item_features: dict[date, pa.Table] = field(repr=False)  # raw columns by cut, in order of item_idx

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a training set's folder; all of it as one step left it, though another one may replace it meanwhile.

        Raises:
            MissingInput: the folder is no finished training set.
        """
        manifest = _manifest(folder)
        events = pq.read_table(folder / "events.parquet")
        examples = pq.read_table(folder / "examples.parquet")
        opened = cls(
            folder=folder,
            manifest=manifest,
            items=pq.read_table(folder / "items.parquet"),
            users=pq.read_table(folder / "users.parquet"),
            user_idx=events["user_idx"].to_numpy(),
            events=EventColumns(
                item_idx=events["item_idx"].to_numpy(),
                timestamp_us=events["event_timestamp"].cast(pa.int64()).to_numpy(),
                event_type=events["event_type"].to_numpy(),
                quantity=events["quantity"].to_numpy(),
            ),
            event_prices=events["unit_price"].to_numpy().astype(np.float32),  # null becomes NaN
            examples=_examples(examples),
            user_features=examples.select(manifest["user_features"]),
            item_features=_by_cut(pq.read_table(folder / "item_features.parquet"), manifest["item_features"]),
        )
        return opened if _manifest(folder) == manifest else cls.open(folder)

    @property
    def until(self) -> date:
        """Return the last day of the data."""
        return date.fromisoformat(self.manifest["until"])

    @property
    def holdout_start(self) -> date:
        """Return the first day that evaluation keeps for itself."""
        return date.fromisoformat(self.manifest["holdout_start"])

    @property
    def history_length(self) -> int:
        """Return how many events a context holds."""
        return int(self.manifest["history_length"])

    @property
    def cuts(self) -> list[date]:
        """Return the days at which examples were made, oldest first."""
        return [date.fromisoformat(cut) for cut in self.manifest["cuts"]]

    @cached_property
    def item_ids(self) -> list[str]:
        """Return the items in order of item_idx."""
        ids: list[str] = self.items["item_id"].to_pylist()
        return ids

    @cached_property
    def item_index(self) -> dict[str, int]:
        """Return item_id -> item_idx."""
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    def interactions(self, before: date | None = None) -> Interactions:
        """Return the events before a day (UTC midnight); without one, all through `until`."""
        everything = Interactions(
            user_idx=self.user_idx,
            item_idx=self.events.item_idx,
            timestamp=self.events.timestamp_us.view("datetime64[us]"),
            event_type=self.events.event_type,
            quantity=self.events.quantity,
            n_users=self.users.num_rows,
            n_items=self.items.num_rows,
            until=np.datetime64(self.until + timedelta(days=1), "us"),
        )
        return everything if before is None else everything.before(np.datetime64(before, "us"))

    def prices(self, before: date | None = None) -> NDArray[np.float32]:  # (N,)
        """Return the prices of `interactions(before)`, for one piece; NaN where there is none."""
        if before is None:
            return self.event_prices
        return self.event_prices[self.interactions().timestamp < np.datetime64(before, "us")]

    def rows_of(self, cut: date) -> Rows:
        """Return the row numbers of a cut's examples."""
        return np.flatnonzero(self.examples.cut == np.datetime64(cut, "D"))

    def holdout_rows(self) -> Rows:
        """Return the row numbers of the hold-out's examples."""
        return self.rows_of(self.holdout_start)

    def training_cuts(self, *, ending_by: date | None = None) -> list[date]:
        """Return the cuts whose windows end at or before a day (exclusive end), oldest first; without one, all."""
        window = timedelta(days=int(self.manifest["window_days"]))
        return [cut for cut in self.cuts if ending_by is None or cut + window <= ending_by]

    def fit_encoders(self, cuts: list[date]) -> Encoders:
        """Fit the encoders on the examples of the given cuts and the catalogue as of them."""
        rows = np.flatnonzero(np.isin(self.examples.cut, np.array(cuts, "datetime64[D]")))
        items = pa.concat_tables([self.item_features[cut] for cut in cuts])
        return Encoders(
            user=FeatureEncoder.fit(self.user_features.take(rows), self.manifest["user_features"]),
            item=FeatureEncoder.fit(items, self.manifest["item_features"]),
        )

    def encoded_items(self, cut: date, encoders: Encoders) -> NDArray[np.float32]:  # (V, G)
        """Return the catalogue's features as of a cut; `until + 1` is a cut for this purpose."""
        return encoders.item.transform(self.item_features[cut])

    def context(self, rows: Rows, encoders: Encoders, *, item_features: NDArray[np.float32] | None = None) -> Context:
        """Return the context of examples of one cut: events before it, features as of it.

        Args:
            rows: row numbers of the examples; all of one cut.
            encoders: as fitted.
            item_features: what `encoded_items` returned for the cut, where the caller has it.

        Raises:
            ValueError: the rows are of several cuts.
        """
        cuts = np.unique(self.examples.cut[rows])
        if len(cuts) != 1:
            raise ValueError(f"a context is of one moment; the {len(rows)} rows have {len(cuts)} cuts")
        cut = cuts[0].item()
        if item_features is None:
            item_features = self.encoded_items(cut, encoders)
        return assemble(
            self.events,
            self.examples.history_start[rows],
            self.examples.history_end[rows],
            moment_us=round(datetime(cut.year, cut.month, cut.day, tzinfo=UTC).timestamp() * 1e6),
            length=self.history_length,
            user_features=encoders.user.transform(self.user_features.take(rows)),
            item_features=item_features,
        )

    def bought_before(self, rows: Rows) -> NDArray[np.bool_]:  # (B, V)
        """Return which items each example's user had bought before the cut, however long ago."""
        first = np.searchsorted(self.user_idx, self.examples.user_idx[rows])
        counts = self.examples.history_end[rows] - first
        place = np.repeat(np.arange(len(rows)), counts)
        at = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        bought = np.zeros((len(rows), self.items.num_rows), dtype=bool)
        is_purchase = self.events.event_type[at] == PURCHASE
        bought[place[is_purchase], self.events.item_idx[at[is_purchase]]] = True
        return bought


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingInput(f"{folder}: no training set lies there. Run build_training_set first.") from error
    return manifest


def _examples(table: pa.Table) -> Examples:
    targets = table["targets"].combine_chunks()
    return Examples(
        user_idx=table["user_idx"].to_numpy(),
        cut=table["cut"].to_numpy().astype("datetime64[D]"),
        history_start=table["history_start"].to_numpy(),
        history_end=table["history_end"].to_numpy(),
        targets=targets.flatten().to_numpy(),
        is_repeat=table["is_repeat"].combine_chunks().flatten().to_numpy(zero_copy_only=False),
        target_ends=np.concatenate([[0], np.cumsum(targets.value_lengths().to_numpy())]).astype(np.int64),
    )


def _by_cut(table: pa.Table, names: list[str]) -> dict[date, pa.Table]:
    """Split a table ordered by (cut, item_idx)."""
    cuts, counts = np.unique(table["cut"].to_numpy(), return_counts=True)
    starts = np.cumsum(counts) - counts
    return {
        cut.astype("datetime64[D]").item(): table.slice(start, count).select(names)
        for cut, start, count in zip(cuts, starts, counts, strict=True)
    }
