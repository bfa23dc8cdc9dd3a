"""Slates that were shown, as a training set has them: arrays, and the contexts in which shoppers saw them.

Letters as in `interactions`; S slates, P impressions (items shown) of all slates together.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recflow.models.context import Timelines
from recflow.models.dataset import Rows, TrainingSet
from recflow.models.features import Encoders
from recflow.models.interactions import Context

FILE: Final = "impressions.parquet"
OUTCOMES: Final = ("click", "cart", "purchase")  # each is one of those before it, too


@dataclass(frozen=True)
class Slates:
    """What known users were shown and what followed, ordered by time; grain: one row per slate."""

    user_idx: NDArray[np.int32]  # (S,)
    cut: NDArray[np.datetime64]  # (S,) datetime64[D], the midnight before the slate: what features are as of
    moment_us: NDArray[np.int64]  # (S,) microseconds since 1970 (UTC)
    history_start: NDArray[np.int64]  # (S,) offset into the training set's events
    history_end: NDArray[np.int64]  # (S,) offset of the shopper's first event that isn't before the moment
    ends: NDArray[np.int64]  # (S + 1,) slate s has the impressions [ends[s], ends[s + 1])
    item: NDArray[np.int32]  # (P,) item_idx
    position: NDArray[np.int32]  # (P,) 1-based
    outcome: NDArray[np.int8]  # (P,) how far it led: 0 no further, then 1 to 3 as in OUTCOMES
    user_features: pa.Table  # (S,) raw columns as of the cut

    @classmethod
    def open(cls, training: TrainingSet) -> Self | None:
        """Read the slates of a training set; None where it has none."""
        file = training.folder / FILE
        if not Path(file).exists():
            return None
        table = pq.read_table(file)
        columns = {name: table[name].combine_chunks() for name in ("items", "positions", "outcomes")}
        return cls(
            user_idx=table["user_idx"].to_numpy(),
            cut=table["cut"].to_numpy().astype("datetime64[D]"),
            moment_us=table["moment"].cast(pa.int64()).to_numpy(),
            history_start=table["history_start"].to_numpy(),
            history_end=table["history_end"].to_numpy(),
            ends=np.concatenate([[0], np.cumsum(columns["items"].value_lengths().to_numpy())]).astype(np.int64),
            item=columns["items"].flatten().to_numpy(),
            position=columns["positions"].flatten().to_numpy(),
            outcome=columns["outcomes"].flatten().to_numpy(),
            user_features=table.select(training.manifest["user_features"]),
        )

    def __len__(self) -> int:
        """Return S."""
        return len(self.user_idx)

    @property
    def slate(self) -> NDArray[np.int64]:  # (P,)
        """Return the slate of each impression."""
        return np.repeat(np.arange(len(self)), np.diff(self.ends))

    @property
    def labels(self) -> NDArray[np.bool_]:  # (P, 3)
        """Return which impressions led to each of OUTCOMES."""
        return np.asarray(self.outcome[:, None] > np.arange(len(OUTCOMES)), bool)

    def impressions_of(self, rows: Rows) -> NDArray[np.int64]:
        """Return the places of some slates' impressions among all."""
        sizes = np.diff(self.ends)[rows]
        return np.repeat(self.ends[rows] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())

    def take(self, rows: Rows) -> "Slates":
        """Return some of the slates."""
        sizes, at = np.diff(self.ends)[rows], self.impressions_of(rows)
        return Slates(
            **{name: getattr(self, name)[rows] for name in _OF_SLATES},
            **{name: getattr(self, name)[at] for name in ("item", "position", "outcome")},
            ends=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            user_features=self.user_features.take(rows),
        )

    def context(self, training: TrainingSet, encoders: Encoders, *, item_features: NDArray[np.float32]) -> Context:
        """Return the shoppers' contexts: events before each slate's moment, features as of the slates' cut.

        Args:
            training: whose slates these are.
            encoders: as fitted.
            item_features: (V, G) encoded, as of the cut.

        Raises:
            ValueError: the slates are of several cuts.
        """
        if len(np.unique(self.cut)) > 1:
            raise ValueError("features are as of one cut; the slates have several")
        return Timelines.gather(
            training.events, self.history_start, self.history_end, length=training.history_length
        ).context(
            self.moment_us, user_features=encoders.user.transform(self.user_features), item_features=item_features
        )


_OF_SLATES = ("user_idx", "cut", "moment_us", "history_start", "history_end")
