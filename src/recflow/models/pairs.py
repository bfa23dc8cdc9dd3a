"""The events of a batch by pairs of a shopper and an item of its history: sums and shares without a (B, L, L).

N events and P pairs of the batch together; other letters as in `interactions`.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pairs:
    """Pairs of a shopper and an item of its history, ordered by (shopper, item), and where their events are."""

    shopper: NDArray[np.int64]  # (P,) row
    item: NDArray[np.int64]  # (P,) item_idx
    starts: NDArray[np.int64]  # (P,) where the events of each pair start in `at`
    at: NDArray[np.int64]  # (N,) the events, as places in the flattened (B, L): those of a pair together, oldest first

    @classmethod
    def of(cls, items: NDArray[np.int32]) -> Self:  # (B, L) item_idx + 1; 0 is padding
        """Find the pairs."""
        at = items.ravel().nonzero()[0]
        width = int(items.max(initial=0)) + 1
        keys = at // max(items.shape[1], 1) * width + items.ravel()[at]
        keys, at = np.divmod(np.sort(keys * max(items.size, 1) + at), max(items.size, 1))
        is_first = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
        starts = is_first.nonzero()[0]
        shopper, item = np.divmod(keys[starts], width)
        return cls(shopper, item - 1, starts, at)

    def __len__(self) -> int:
        """Return P."""
        return len(self.starts)

    @property
    def newest(self) -> NDArray[np.int64]:  # (P,)
        """Return each pair's newest event, as a place in the flattened (B, L)."""
        newest: NDArray[np.int64] = self.at[self.starts + self.counts - 1]
        return newest

    @property
    def counts(self) -> NDArray[np.int64]:  # (P,)
        """Return how many events each pair has."""
        ends = np.empty_like(self.starts)
        ends[:-1], ends[-1:] = self.starts[1:], len(self.at)
        return ends - self.starts

    def of_rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # (R,) each
        """Return the first pair of each of some shoppers, and how many pairs that shopper has."""
        starts = self.shopper.searchsorted(rows)
        return starts, self.shopper.searchsorted(rows, "right") - starts

    def reduce(self, ufunc: np.ufunc, values: NDArray[Any], *, axis: int = 0) -> NDArray[Any]:  # N of the axis -> P
        """Reduce what stands for each event, in the order of `at`, to one for each pair."""
        if not len(self):
            return np.zeros_like(values)
        reduced: NDArray[Any] = ufunc.reduceat(values, self.starts, axis=axis)
        return reduced

    def among_events(self, values: NDArray[np.float32], is_counted: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Share each pair's value (P,) alike among those of its events that count (B, L); 0 for the others (B, L)."""
        counted = is_counted.ravel()[self.at]
        counts = self.reduce(np.add, counted.astype(np.int64))
        shares = np.zeros(is_counted.size, np.float32)
        shares[self.at] = np.repeat(values / np.maximum(counts, 1), self.counts) * counted
        return shares.reshape(is_counted.shape)

    def strongest(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:  # (B, L) -> (B, L)
        """Share each pair's greatest weight alike among those of its events that have it; 0 for the others."""
        of_events = weights.ravel()[self.at]
        greatest = self.reduce(np.maximum, of_events)
        has_it = np.zeros(weights.size, bool)
        has_it[self.at] = of_events == np.repeat(greatest, self.counts)
        return self.among_events(greatest, has_it.reshape(weights.shape))


def sums_of_runs(values: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[Any]:  # (*, P, X), (R,) -> (*, R, X)
    """Add up runs that lie behind each other; 0 where there is nothing."""
    some = lengths.nonzero()[0]
    starts = (lengths.cumsum() - lengths)[some]
    if len(some) == len(lengths):
        return np.asarray(np.add.reduceat(values, starts, axis=-2))
    sums = np.zeros((*values.shape[:-2], len(lengths), values.shape[-1]), values.dtype)
    if len(some):
        sums[..., some, :] = np.add.reduceat(values, starts, axis=-2)
    return sums
