"""Item sequences of users, ragged, as a file has them: what is known of a shop that keeps no more than who took what.

    sequences.txt         a line a user: its id, then the ids of its items, oldest first, separated by blanks
    item_attributes.json  {item id: [attribute id, ...], ...}: categories, brands

Letters: U users, N interactions of all of them, V items, A attributes.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from recflow.errors import FeedError

MIN_ITEMS = 3  # of a user: one to learn from, one to validate on, one to test on


@dataclass(frozen=True)
class Histories:
    """What each of U users took, oldest first."""

    offsets: NDArray[np.int64]  # (U + 1,) user u's are items[offsets[u]:offsets[u + 1]]
    items: NDArray[np.int32]  # (N,) item_idx
    n_items: int

    def __len__(self) -> int:
        """Return U."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:  # (U,)
        """Return how many items each user took."""
        return np.diff(self.offsets)

    def without_last(self, n: int) -> "Histories":
        """Return the histories without the last n items of each user, who has more than n."""
        keep = self._places_from_end() >= n
        return dataclasses.replace(self, offsets=self.offsets - n * np.arange(len(self) + 1), items=self.items[keep])

    def last(self, n: int) -> "Histories":
        """Return at most the last n items of each user."""
        keep = self._places_from_end() < n
        return Histories.of(np.minimum(self.lengths, n), self.items[keep], self.n_items)

    def at_end(self, place: int) -> NDArray[np.int32]:  # (U,)
        """Return the item of each user that stands `place` before the last: 0 is the last."""
        return self.items[self.offsets[1:] - 1 - place]

    def take(self, users: NDArray[np.int64]) -> "Histories":
        """Return the histories of some users, in their order."""
        lengths = self.lengths[users]
        inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return Histories.of(lengths, self.items[np.repeat(self.offsets[users], lengths) + inside], self.n_items)

    def seen(self) -> NDArray[np.bool_]:  # (U, V)
        """Return which items each user took."""
        mask = np.zeros((len(self), self.n_items), dtype=bool)
        mask[self.rows(), self.items] = True
        return mask

    def taken(self) -> sparse.csr_array:  # (U, V)
        """Return how often each user took each item."""
        counts = (np.ones(len(self.items), np.float32), self.items, self.offsets)
        table = sparse.csr_array(counts, shape=(len(self), self.n_items), copy=True)  # what follows is done in place
        table.sum_duplicates()
        return table

    def rows(self) -> NDArray[np.int64]:  # (N,)
        """Return whose each interaction is."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def save(self, folder: Path) -> None:
        """Write the histories into a folder, as `open` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "offsets.npy", self.offsets)
        np.save(folder / "items.npy", self.items)
        (folder / "histories.json").write_text(json.dumps({"n_items": self.n_items}), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Return the histories of a folder, left where they lie: the system reads the parts that are asked for."""
        facts = json.loads((folder / "histories.json").read_text(encoding="utf-8"))
        offsets, items = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("offsets", "items"))
        return cls(offsets, items, facts["n_items"])

    @classmethod
    def of(cls, lengths: NDArray[np.int64], items: NDArray[np.int32], n_items: int) -> Self:
        """Return histories given by their lengths (U,) and all items (N,)."""
        return cls(np.concatenate([[0], np.cumsum(lengths)]), items, n_items)

    def _places_from_end(self) -> NDArray[np.int64]:  # (N,) 0 for each user's last item
        places: NDArray[np.int64] = np.repeat(self.offsets[1:], self.lengths) - 1 - np.arange(len(self.items))
        return places


@dataclass(frozen=True)
class SequenceFile:
    """A file of sequences, its ids put aside; item_idx is drawn at random: no number of an id tells anything."""

    user_ids: pa.Array  # (U,) in the file's order
    item_ids: pa.Array  # (V,)
    histories: Histories
    attributes: sparse.csr_array | None  # (V, A) 1 where an item has an attribute

    @classmethod
    def read(cls, file: Path, *, attributes: Path | None = None, seed: int = 0) -> Self:
        """Read sequences and, where there is one, the file of the items' attributes.

        Raises:
            FeedError: a file isn't there or isn't of the form above; the message names the line.
        """
        tokens = _tokens(file)
        lengths = pc.list_value_length(tokens).to_numpy(zero_copy_only=False).astype(np.int64)
        _check_lengths(file, lengths)
        flat, starts = tokens.flatten(), np.concatenate([[0], np.cumsum(lengths)[:-1]])
        is_item = np.ones(len(flat), bool)
        is_item[starts] = False
        user_ids = flat.take(starts)
        if len(pc.unique(user_ids)) < len(user_ids):
            twice = pc.value_counts(user_ids).filter(pc.greater(pc.value_counts(user_ids).field("counts"), 1))
            raise FeedError(f"{file}: user '{twice[0]['values']}' has two lines; expected one line a user. Join them.")
        encoded = flat.filter(pa.array(is_item)).dictionary_encode()
        n_items = len(encoded.dictionary)
        number = np.random.default_rng(seed).permutation(n_items).astype(np.int32)  # of each entry of the dictionary
        item_ids = encoded.dictionary.take(np.argsort(number))
        items = number[encoded.indices.to_numpy()]
        histories = Histories.of(lengths - 1, items, n_items)
        return cls(user_ids, item_ids, histories, _attributes(attributes, item_ids) if attributes else None)


def _tokens(file: Path) -> pa.ListArray:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FeedError(f"{file}: no such file; expected a line a user: its id, its items. Name another.") from error
    except UnicodeDecodeError as error:
        raise FeedError(f"{file}: not UTF-8 text ({error}). Save it as UTF-8.") from error
    return pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pa.array(text.rstrip().splitlines(), pa.large_string())))


def _check_lengths(file: Path, lengths: NDArray[np.int64]) -> None:
    if not len(lengths):
        raise FeedError(f"{file}: empty; expected a line a user: its id, then its items, oldest first.")
    short = np.flatnonzero(lengths < MIN_ITEMS + 1)
    if len(short):
        raise FeedError(
            f"{file}: line {short[0] + 1} has {max(lengths[short[0]] - 1, 0)} items, as have {len(short) - 1} others "
            f"too few; expected a user id and at least {MIN_ITEMS} items: one to learn from, one to validate on and "
            "one to test on. Leave such users out."
        )


def _attributes(file: Path, item_ids: pa.Array) -> sparse.csr_array:  # (V, A)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        lists = {str(item): list(attributes) for item, attributes in found.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise FeedError(
            f"{file}: not a JSON object of item ids and lists of attribute ids ({error}). Correct it or leave it out."
        ) from error
    of_items = [lists.get(item_id, []) for item_id in item_ids.to_pylist()]
    lengths = np.array([len(attributes) for attributes in of_items])
    names, columns = np.unique(np.array([str(name) for part in of_items for name in part]), return_inverse=True)
    rows = np.repeat(np.arange(len(of_items)), lengths)
    if not len(names):
        raise FeedError(f"{file}: has attributes of none of the {len(item_ids)} items. Is it of another file?")
    table = sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(of_items), len(names)))
    table.data[:] = 1  # an attribute named twice is there once
    return table
