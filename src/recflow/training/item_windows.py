"""Item sequences -> batches of windows, with the items that each is told from where a catalogue is too large for all.

Batches hold windows of nearly one length, so that little is padding; a batch has so many places, not so many users.
Several processes take turns in the windows of each batch: together they learn from what one process would.

Letters: B windows, L places, V items, R items of a batch, K of them that what came next is told from.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from recflow.models.histories import Histories

# A product of matrices of a size not seen before costs 10 ms more, for its code is made at run time: few sizes.
_MULTIPLE = 512
_NEVER = -1e4  # correction of a logit that is to count for nothing


class Batch(NamedTuple):
    """One process's windows of a batch; items are numbers into `rows`, or item_idx where there are none."""

    items: Tensor  # (B, L)
    nexts: Tensor  # (B, L) what came next, -1 where nothing did
    share: float  # weight of these windows' mean loss in the mean over the processes
    rows: Tensor | None = None  # (R,) item_idx; the first K are the negatives, own ones among them
    corrections: Tensor | None = None  # (K,) of their logits


class Windows(IterableDataset[Batch]):
    """The batches of an epoch; their order is told by (seed, epoch)."""

    def __init__(self, train: Histories, *, length: int, places: int, negatives: int | None, seed: int) -> None:
        """Cut the histories into windows of at most `length` places, the newest window full.

        Args:
            train: what each user took; may lie in files, see `Histories.open`.
            length: places of a window.
            places: of a batch over all processes, each with an item to predict.
            negatives: items drawn for each batch besides its own; None: the whole catalogue.
            seed: of the order, and of the draws.
        """
        steps = np.maximum(train.lengths - 1, 0)  # with an item behind them
        counts = -(-steps // length)
        user = np.repeat(np.arange(len(train)), counts)
        later = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0: the newest of the user
        end = train.offsets[user] + steps[user] - later * length
        self.start = np.maximum(end - length, train.offsets[user])
        self.lengths = (end - self.start).astype(np.int32)
        self.items, self.negatives = train.items, None if negatives is None else Negatives(train, drawn=negatives)
        self.epoch, self.part, self.parts = 0, 0, 1
        self._seed, self._places, self._length = seed, places, length

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self._cuts(np.sort(self.lengths))) + 1

    def __iter__(self) -> Iterator[Batch]:
        """Yield this process's windows of each batch of the epoch."""
        rng = np.random.default_rng([self._seed, self.epoch])
        order = rng.permutation(len(self.lengths))
        order = order[np.argsort(self.lengths[order], kind="stable")]
        batches = np.split(order, self._cuts(self.lengths[order]))
        for number in rng.permutation(len(batches)):
            yield self._batch(batches[number], int(number))

    def _cuts(self, lengths: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return where the windows are cut into batches, given their lengths in order; a window at least a process."""
        number = (np.cumsum(lengths, dtype=np.int64) - 1) // max(self._places, self.parts * self._length)
        cuts = np.flatnonzero(np.diff(number)) + 1
        return cuts[cuts <= len(lengths) - self.parts]

    def _batch(self, windows: NDArray[np.int64], number: int) -> Batch:
        column = np.arange(self.lengths[windows].max())
        at = self.start[windows][:, None] + column  # (B, L)
        is_there = column < self.lengths[windows][:, None]
        items = np.where(is_there, self.items[np.where(is_there, at, 0)], 0).astype(np.int64)
        nexts = np.where(is_there, self.items[np.where(is_there, at + 1, 0)], -1).astype(np.int64)
        own = slice(self.part, None, self.parts)
        share = self.parts * float(is_there[own].sum() / is_there.sum())
        if self.negatives is None:
            return Batch(torch.from_numpy(items[own]), torch.from_numpy(nexts[own]), share)
        # Drawn for the whole batch: however many processes there are, each tells its items from the same ones.
        rng = np.random.default_rng([self._seed, self.epoch, number])
        rows, corrections = self.negatives.draw(nexts[is_there], rng)
        rows, (items, nexts) = self.negatives.numbered(rows, items[own], nexts[own])
        return Batch(
            torch.from_numpy(items),
            torch.from_numpy(nexts),
            share,
            torch.from_numpy(rows),
            torch.from_numpy(corrections),
        )


class Negatives:
    """What the items that came next are told from: those of the whole batch, and some drawn from all alike.

    A batch's own items come as often as they are popular, which teaches most; those drawn reach the items that hardly
    ever come (mixed negatives: Yang et al., WWW 2020). A logit is corrected by the logarithm of how often its item was
    to be expected (Yi et al., RecSys 2019), so that the sum over the catalogue is estimated without bias; an item that
    came next itself is there for certain, and the loss leaves its logit alone.
    """

    def __init__(self, train: Histories, *, drawn: int) -> None:
        """Count how often each item comes next."""
        is_first = train.offsets[:-1][train.lengths > 0]
        counts = np.bincount(train.items, minlength=train.n_items)
        counts -= np.bincount(train.items[is_first], minlength=train.n_items)
        self.drawn, self.frequency = drawn, (counts / max(counts.sum(), 1)).astype(np.float32)  # (V,)
        self._number = np.full(train.n_items, -1, np.int64)

    def draw(
        self, nexts: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:  # (K,), (K,)
        """Return items, those of `nexts` among them, and the corrections of their logits.

        Each is there once, but for the last, which is repeated without weight up to a multiple of so many.
        """
        n_items = len(self.frequency)
        rows, counts = np.unique(np.concatenate([nexts, rng.integers(0, n_items, self.drawn)]), return_counts=True)
        expected = len(nexts) * self.frequency[rows] + self.drawn / n_items
        corrections = np.log(counts / expected).astype(np.float32)
        missing = -len(rows) % _MULTIPLE
        return np.pad(rows, (0, missing), mode="edge"), np.pad(corrections, (0, missing), constant_values=_NEVER)

    def numbered(
        self, rows: NDArray[np.int64], *tables: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        """Return rows, those missing behind them, and tables of item_idx as numbers into them; -1 stays."""
        self._number[rows[::-1]] = np.arange(len(rows))[::-1]  # the first of equal ones
        wanted = np.concatenate([table.ravel() for table in tables])
        missing = np.unique(wanted[(self._number[wanted] < 0) & (wanted >= 0)])
        self._number[missing] = len(rows) + np.arange(len(missing))
        found = [np.where(table < 0, -1, self._number[table]) for table in tables]
        rows = np.concatenate([rows, missing])
        self._number[rows] = -1
        return rows, found
