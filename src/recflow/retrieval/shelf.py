"""Items that are searched together -> candidates for a query, with what they hold of its words and how alike they read.

Letters: R items of a shelf, C candidates, S stems asked for, T numbers of a text's vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recflow.retrieval.coverage import Asked, Held, hold
from recflow.retrieval.lexical import Engine
from recflow.retrieval.near import Near
from recflow.retrieval.texts import Texts

_DEEP = 400  # candidates that words and vectors each deliver where not all items are scored

Floats = NDArray[np.float32]
Items = NDArray[np.int32]


@dataclass(frozen=True)
class Candidates:
    """What may be found, in no order."""

    items: Items  # (C,)
    held: Held
    alike: Floats  # (C,) cosine of title and query; 0 where either has no vector
    is_all: bool  # nothing else holds a word of the query

    def __getitem__(self, rows: NDArray[np.intp]) -> "Candidates":
        """Return some of them."""
        return Candidates(self.items[rows], self.held[rows], self.alike[rows], self.is_all)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> "Candidates":
        """Return candidates of several shelves as one."""
        return Candidates(
            np.concatenate([part.items for part in parts]),
            Held.joined([part.held for part in parts]),
            np.concatenate([part.alike for part in parts]),
            all(part.is_all for part in parts),
        )


@dataclass(frozen=True)
class Shelf:
    """Items that are searched together."""

    items: Items  # (R,) their numbers in the catalogue
    texts: Texts
    vectors: Floats  # (R, T)
    engine: Engine | None = None  # None, as is `near`: every item is scored
    near: Near | None = None

    def prepared(self) -> Self:
        """Compute what is computed on first use, for no query shall wait for it."""
        _ = self.texts.title_weights, self.texts.has_words
        return self

    def candidates(
        self,
        asked: Asked,
        query_vector: Floats,  # (T,)
        mask: NDArray[np.bool_],  # (R,) rows that may be found
        *,
        exact_below: int,
    ) -> Candidates:
        """Return what may be found: all of `mask` where those are few, else the best by words and by vectors."""
        n_allowed = int(np.count_nonzero(mask))
        if self.engine is None or self.near is None or n_allowed < exact_below:
            rows, is_all = np.flatnonzero(mask), True
        else:
            by_words = self.engine.search(asked, mask, deep=_DEEP)
            rows = np.union1d(by_words, self.near.search(query_vector, _DEEP, allowed=mask))
            is_all = len(by_words) < _DEEP
        few = 4 * len(rows) < len(self.items)  # copying rows costs as much as scoring four
        alike = self.vectors[rows] @ query_vector if few else (self.vectors @ query_vector)[rows]
        return Candidates(self.items[rows], hold(self.texts, asked, rows), alike, is_all)
