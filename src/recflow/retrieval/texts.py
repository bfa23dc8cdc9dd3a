"""Items' texts as numbers: a forward index of the catalogue's words, with what finding each of them says.

Letters: R items, P words of all texts in reading order, W different words.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recflow.models.weights import read_arrays
from recflow.retrieval.analysis import stem, words

FIELDS = ("title", "category", "brand", "description")
_SAVED = ("counts", "words", "fields", "starts")
_LONGEST = 128  # words of one field

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Texts:
    """Words of each item's fields, in reading order."""

    language: str
    names: tuple[str, ...]  # (W,)
    counts: NDArray[np.int32]  # (W,) items that have the word
    words: NDArray[np.int32]  # (P,) place in `names`
    fields: NDArray[np.int8]  # (P,) place in FIELDS
    starts: NDArray[np.int64]  # (R + 1,)
    around: Self | None = None  # the catalogue that these items belong to, where they aren't all of it

    @classmethod
    def of(cls, items: Any, language: str, *, around: Self | None = None) -> Self:
        """Read the texts of items, a pyarrow table of `schema.ITEMS`."""
        place: dict[str, int] = {}
        columns = [_numbered(items[field], place) for field in FIELDS]
        lengths = np.stack([lengths for _, lengths in columns], axis=1)  # (R, fields)
        starts = np.concatenate([[0], np.cumsum(lengths.sum(axis=1))]).astype(np.int64)
        firsts = starts[:-1, None] + np.cumsum(lengths, axis=1) - lengths  # (R, fields)
        numbers, fields = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.int8)
        for field, (values, own) in enumerate(columns):
            places = spread(firsts[:, field], own)
            numbers[places], fields[places] = values, field
        rows = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths.sum(axis=1))
        once = np.unique(rows * max(1, len(place)) + numbers)  # a word that stands twice in an item counts once
        counts = np.bincount(once % max(1, len(place)), minlength=len(place)).astype(np.int32)
        return cls(language, tuple(place), counts, numbers, fields, starts, around)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.starts) - 1

    @cached_property
    def stems(self) -> list[str]:  # (W,)
        """Return the stem of each word."""
        return [stem(name, self.language) for name in self.names]

    @cached_property
    def groups(self) -> dict[str, list[int]]:
        """Return stem -> the words that have it."""
        groups: dict[str, list[int]] = {}
        for place, name in enumerate(self.stems):
            groups.setdefault(name, []).append(place)
        return groups

    @cached_property
    def n_with(self) -> dict[str, int]:
        """Return stem -> the items of the catalogue that have it, about: twice those that have two of its forms."""
        n_with = dict(self.around.n_with) if self.around else {}
        for name, count in zip(self.stems, self.counts.tolist(), strict=True):
            n_with[name] = n_with.get(name, 0) + count
        return n_with

    @cached_property
    def rarity(self) -> Floats:  # (W,)
        """Return what finding a word says: all words of a stem say the same."""
        return self.rarity_of(np.array([self.n_with[name] for name in self.stems], np.int64))

    def rarity_of(self, n_with: NDArray[np.int64]) -> Floats:
        """Return BM25's inverse document frequency (Robertson and Zaragoza, 2009), never below zero."""
        n_items = len(self) + (len(self.around) if self.around else 0)
        return np.log1p((n_items - np.minimum(n_with, n_items) + 0.5) / (n_with + 0.5)).astype(np.float32)

    @cached_property
    def title_weights(self) -> Floats:  # (R,)
        """Return the weight of each title's words."""
        of_title = np.where(self.fields == 0, self.rarity[self.words], np.float32(0))
        sums = np.concatenate([[0], np.cumsum(of_title, dtype=np.float64)])
        return np.asarray(sums[self.starts[1:]] - sums[self.starts[:-1]], np.float32)

    @cached_property
    def has_words(self) -> NDArray[np.bool_]:  # (R,)
        """Return which items have any word at all."""
        return np.asarray(np.diff(self.starts) > 0)

    # -- files

    def save(self, folder: Path) -> None:
        """Write `texts.safetensors` and `words.json` into an existing folder."""
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in _SAVED}, folder / "texts.safetensors")
        content = {"language": self.language, "words": list(self.names)}
        (folder / "words.json").write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        content = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        arrays = read_arrays(folder / "texts.safetensors")
        return cls(content["language"], tuple(content["words"]), **{name: arrays[name] for name in _SAVED}, around=None)


def _numbered(column: Any, place: dict[str, int]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the words of a column of texts as numbers, (P,), and how many each text has, (R,); learn new words."""
    numbers: list[int] = []
    lengths = []
    for text in column.to_pylist():
        found = words(text)[:_LONGEST] if text else ()
        numbers += [place.setdefault(word, len(place)) for word in found]
        lengths.append(len(found))
    return np.array(numbers, np.int32), np.array(lengths, np.int64)


def spread(firsts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places of runs, one after the other, that begin at `firsts` and are `lengths` long."""
    return np.arange(lengths.sum()) + np.repeat(firsts - np.cumsum(lengths) + lengths, lengths)
