"""What is taken after what: a graph of items that needs no training.

An edge i -> j weighs the sum over users who took j some time after i of 1 / (places between them). A shopper's score of
j is the sum over the items of the history of their edges to j, each item's edges divided by the root of their sum, the
k-th newest item by k. Of the family of item-to-item transition models (Rendle, Freudenthaler and Schmidt-Thieme, WWW
2010); the decays are as in sequential rules (Ludewig and Jannach, UMUAI 2018).

Letters: U users, N interactions, V items, B histories.
"""

from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recflow.models.histories import Histories

_LONGEST_GAP = 50  # places from which on an item says nothing of another
_MOST_EDGES = 50_000_000  # before equal ones are joined, 400 MB: of more interactions than a million, the nearest alone
_DAMPING = 0.5  # power of an item's edges' sum that they are divided by


class TransitionGraph:
    """Edges between items, fitted on histories."""

    def __init__(self, edges: sparse.csr_array) -> None:
        """Take the edges (V, V), each row divided already."""
        self.edges = edges

    @classmethod
    def fit(cls, histories: Histories) -> Self:
        """Count who took what after what."""
        ends = np.repeat(histories.offsets[1:], histories.lengths)
        places = np.arange(len(histories.items))
        shape = (histories.n_items, histories.n_items)
        edges = sparse.csr_array(shape, dtype=np.float32)
        longest = min(_LONGEST_GAP, max(2, 1 + _MOST_EDGES // max(len(places), 1)))
        for gap in range(1, min(longest, int(histories.lengths.max(initial=0)))):
            first = places[places + gap < ends]
            weights = np.full(len(first), 1 / gap, np.float32)
            pairs = (histories.items[first], histories.items[first + gap])
            edges = edges + sparse.csr_array((weights, pairs), shape=shape)
        sums = np.maximum(edges.sum(axis=1), np.finfo(np.float32).tiny)
        return cls((sparse.diags_array(sums**-_DAMPING) @ edges).tocsr().astype(np.float32))

    def score(self, histories: Histories) -> NDArray[np.float32]:  # (B, V)
        """Score every item for every history; 0 or more."""
        scores: NDArray[np.float32] = self.near(histories).toarray()
        return scores

    def near(self, histories: Histories) -> sparse.csr_array:  # (B, V)
        """Return the scores above 0."""
        recent = histories.last(_LONGEST_GAP)
        age = np.repeat(recent.offsets[1:], recent.lengths) - np.arange(len(recent.items))  # 1: the newest
        weights = (1 / age).astype(np.float32)
        seen = sparse.csr_array((weights, recent.items, recent.offsets), shape=(len(recent), recent.n_items))
        return (seen @ self.edges).tocsr()
