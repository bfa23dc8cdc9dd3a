"""Ranking metrics at k: lists of items and what was relevant in, one figure a user or a list out.

Letters: B users, K items of a list, V items of the catalogue, D dimensions of a vector, M figures, R resamples.

A list is a row of item indices, best first, distinct, with -1 where it ends early. `k` counts slots: a list that ends
early is scored as if its missing slots held wrong items. A user without relevant items has no recall, MAP or NDCG:
the figure is nan, and callers leave such users out before they take means.

All examples below use two users. The first is shown items 4, 2, 7 and wanted 2 and 9; the second is shown 1, 3 and
an empty slot, and wanted 1:

    shown = np.array([[4, 2, 7], [1, 3, -1]])
    wanted = Relevant.from_lists([[2, 9], [1]])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Items = NDArray[np.integer]
Figures = NDArray[np.float64]

_RESAMPLING_CELLS = 4_000_000  # weights held at once while bootstrapping: 32 MB


@dataclass(frozen=True)
class Relevant:
    """The relevant items of B users, ragged: user b's are `items[offsets[b]:offsets[b + 1]]`, distinct."""

    offsets: NDArray[np.int64]  # (B + 1,)
    items: NDArray[np.int64]

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int] | Items]) -> Self:
        """Return the relevant items given as one sequence a user; repeats count once.

        >>> Relevant.from_lists([[5, 5], [], [1]]).counts()
        array([1, 0, 1])
        """
        distinct = [np.unique(np.asarray(items, dtype=np.int64)) for items in lists]
        offsets = np.concatenate([[0], np.cumsum([len(items) for items in distinct])]).astype(np.int64)
        return cls(offsets, np.concatenate([np.empty(0, dtype=np.int64), *distinct]))

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_]) -> Self:  # (B, V)
        """Return the relevant items given as a table of users by items.

        >>> Relevant.from_mask(np.array([[True, False, True], [False, False, False]])).items
        array([0, 2])
        """
        offsets = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int64)
        return cls(offsets, np.nonzero(mask)[1].astype(np.int64))

    def __len__(self) -> int:
        """Return B."""
        return len(self.offsets) - 1

    def counts(self) -> NDArray[np.int64]:  # (B,)
        """Return how many relevant items each user has."""
        return np.diff(self.offsets)


Truth = Relevant | NDArray[np.bool_]  # (B, V) where it is a table


class Interval(NamedTuple):
    """A mean with the ends of its percentile interval."""

    value: float
    low: float
    high: float


# -- one figure a user


def hits(recommended: Items, relevant: Truth) -> NDArray[np.bool_]:  # (B, K)
    """Return which slots hold a relevant item.

    >>> shown = np.array([[4, 2, 7], [1, 3, -1]])
    >>> wanted = Relevant.from_lists([[2, 9], [1]])
    >>> hits(shown, wanted)
    array([[False,  True, False],
           [ True, False, False]])

    Raises:
        ValueError: a list holds an item twice, which would count it twice, or there is not one list a user.
    """
    truth = relevant if isinstance(relevant, Relevant) else Relevant.from_mask(relevant)
    if len(recommended) != len(truth):
        raise ValueError(f"{len(recommended)} lists for {len(truth)} users; expected one list a user.")
    ordered = np.sort(recommended, axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    if twice.any():
        raise ValueError(f"The list of row {int(twice.argmax())} holds an item twice; expected distinct items.")
    # One number for a user and an item, so that a single set lookup answers for all users.
    span = 1 + max(int(recommended.max(initial=0)), int(truth.items.max(initial=0)))
    wanted = np.repeat(np.arange(len(truth)), truth.counts()) * span + truth.items
    offered = np.arange(len(truth))[:, None] * span + recommended  # (B, K)
    return np.isin(offered, wanted) & (recommended >= 0)


def recall_at_k(recommended: Items, relevant: Truth, *, k: int) -> Figures:  # (B,)
    """Return the share of a user's relevant items that are among the first k.

    recall@k = |relevant in the first k| / |relevant|  (van Rijsbergen, Information Retrieval, 1979)

    The first user gets 1 of 2 relevant items, the second 1 of 1:

    >>> shown = np.array([[4, 2, 7], [1, 3, -1]])
    >>> wanted = Relevant.from_lists([[2, 9], [1]])
    >>> recall_at_k(shown, wanted, k=2)
    array([0.5, 1. ])
    """
    return _ratio(hits(recommended, relevant)[:, :k].sum(axis=1), _counts(relevant))


def precision_at_k(recommended: Items, relevant: Truth, *, k: int) -> Figures:  # (B,)
    """Return the share of the first k slots that hold a relevant item.

    precision@k = |relevant in the first k| / k  (van Rijsbergen, Information Retrieval, 1979)

    >>> shown = np.array([[4, 2, 7], [1, 3, -1]])
    >>> wanted = Relevant.from_lists([[2, 9], [1]])
    >>> precision_at_k(shown, wanted, k=2)
    array([0.5, 0.5])
    """
    found = hits(recommended, relevant)[:, :k].sum(axis=1) / k
    return np.where(_counts(relevant) > 0, found, np.nan)


def hit_rate_at_k(recommended: Items, relevant: Truth, *, k: int) -> Figures:  # (B,)
    """Return 1 for users with any relevant item among the first k, else 0; the mean is the hit rate.

    (Deshpande and Karypis, ACM TOIS 22(1), 2004)

    >>> shown = np.array([[4, 2, 7], [1, 3, -1]])
    >>> wanted = Relevant.from_lists([[2, 9], [1]])
    >>> hit_rate_at_k(shown, wanted, k=1)
    array([0., 1.])
    """
    found = hits(recommended, relevant)[:, :k].any(axis=1).astype(np.float64)
    return np.where(_counts(relevant) > 0, found, np.nan)


def ndcg_at_k(recommended: Items, relevant: Truth, *, k: int) -> Figures:  # (B,)
    """Return the discounted gain of the first k slots over that of the best possible list; gains are 0 or 1.

    DCG@k = sum over ranks r = 1..k of gain(r) / log2(r + 1);  NDCG@k = DCG@k / DCG@k of min(k, |relevant|) hits
    (Järvelin and Kekäläinen, ACM TOIS 20(4), 2002)

    The first user's hit is at rank 2 and two were possible: (1 / log2 3) / (1 / log2 2 + 1 / log2 3):

    >>> shown = np.array([[4, 2, 7], [1, 3, -1]])
    >>> wanted = Relevant.from_lists([[2, 9], [1]])
    >>> ndcg_at_k(shown, wanted, k=3).round(4)
    array([0.3869, 1.    ])
    """
    slots = hits(recommended, relevant)[:, :k]
    discounts = 1 / np.log2(np.arange(2, k + 2))  # (k,)
    best = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(_counts(relevant), k)]  # (B,)
    return _ratio(slots @ discounts[: slots.shape[1]], best)


def graded_ndcg_at_k(recommended: Items, gains: NDArray[np.number], *, k: int) -> Figures:  # (B, K), (B, V)
    """Return NDCG at k with gains of any size: what the first k slots gain over the best possible list.

    DCG@k as in `ndcg_at_k`, with gain(r) the gain of the item at rank r; nan where nothing gains anything.

    The first user gains 2 at rank 2 and 1 was possible beside it: (2 / log2 3) / (2 / log2 2 + 1 / log2 3):

    >>> shown = np.array([[4, 2, 7], [1, 3, -1]])
    >>> gains = np.zeros((2, 10)); gains[0, 2], gains[0, 9], gains[1, 1] = 2, 1, 1
    >>> graded_ndcg_at_k(shown, gains, k=3).round(4)
    array([0.4796, 1.    ])
    """
    shown = recommended[:, :k]
    gained = np.where(shown >= 0, np.take_along_axis(gains, np.maximum(shown, 0), axis=1), 0)
    ideal = np.sort(gains, axis=1)[:, ::-1][:, :k]
    discounts = 1 / np.log2(np.arange(2, k + 2))  # (k,)
    return _ratio(gained @ discounts[: gained.shape[1]], ideal @ discounts[: ideal.shape[1]])


def reciprocal_rank_at_k(recommended: Items, relevant: Truth, *, k: int) -> Figures:  # (B,)
    """Return 1 over the rank of the first relevant item among the first k, 0 without one; the mean is MRR@k.

    (Voorhees, TREC-8, 1999)

    >>> shown = np.array([[4, 2, 7], [1, 3, -1]])
    >>> wanted = Relevant.from_lists([[2, 9], [1]])
    >>> reciprocal_rank_at_k(shown, wanted, k=3)
    array([0.5, 1. ])
    """
    slots = hits(recommended, relevant)[:, :k]
    found = np.where(slots.any(axis=1), 1 / (slots.argmax(axis=1) + 1), 0.0)
    return np.where(_counts(relevant) > 0, found, np.nan)


def map_at_k(recommended: Items, relevant: Truth, *, k: int) -> Figures:  # (B,)
    """Return the average precision over the first k slots; the mean over users is MAP@k.

    AP@k = sum over ranks r = 1..k of hit(r) * precision@r / min(k, |relevant|)
    (Baeza-Yates and Ribeiro-Neto, Modern Information Retrieval, 1999, cut at k as in the Kaggle metric MAP@k)

    The first user: precision at rank 2 is 1/2, two items were possible, 1/2 / 2; the second 1 / 1:

    >>> shown = np.array([[4, 2, 7], [1, 3, -1]])
    >>> wanted = Relevant.from_lists([[2, 9], [1]])
    >>> map_at_k(shown, wanted, k=3)
    array([0.25, 1.  ])
    """
    slots = hits(recommended, relevant)[:, :k]
    precisions = np.cumsum(slots, axis=1) / np.arange(1, slots.shape[1] + 1)  # (B, k)
    return _ratio((slots * precisions).sum(axis=1), np.minimum(_counts(relevant), k))


# -- what lists are like, whatever was wanted


def coverage_at_k(recommended: Items, *, k: int, n_items: int) -> float:
    """Return the share of the catalogue that stands among the first k of anybody's list.

    (Ge, Delgado-Battenfeld and Jannach, RecSys 2010: catalogue coverage)

    Items 4, 2, 1 and 3 of ten:

    >>> shown = np.array([[4, 2, 7], [1, 3, -1]])
    >>> coverage_at_k(shown, k=2, n_items=10)
    0.4
    """
    shown = recommended[:, :k]
    return len(np.unique(shown[shown >= 0])) / n_items


def diversity_at_k(recommended: Items, vectors: NDArray[np.floating], *, k: int) -> Figures:  # (B,)
    """Return the mean distance 1 - cosine over the pairs of a list's first k items; nan for lists of fewer than two.

    (Ziegler, McNee, Konstan and Lausen, WWW 2005: intra-list similarity). `vectors` is (V, D); an item without a
    vector (all zeros) is at distance 1 from every other.

    Items 4 and 2 point the same way, 1 and 3 at right angles:

    >>> directions = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [2, 0]])
    >>> shown = np.array([[4, 2, 7], [1, 3, -1]])
    >>> diversity_at_k(shown, directions, k=2)
    array([0., 1.])
    """
    shown = recommended[:, :k]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, lengths, out=np.zeros(vectors.shape), where=lengths > 0)
    units = np.vstack([units, np.zeros((1, vectors.shape[1]))])  # slot -1 is the row of zeros
    sizes = (shown >= 0).sum(axis=1)
    pairs = sizes * (sizes - 1) / 2
    # |sum of units|^2 = their squared lengths + twice the cosines of all pairs: neither a table of pairs nor one of
    # (B, k, D) is needed.
    sums = np.zeros((len(shown), vectors.shape[1]))  # (B, D)
    for slot in shown.T:
        sums += units[slot]
    cosines = ((sums**2).sum(axis=1) - (units**2).sum(axis=1)[shown].sum(axis=1)) / 2
    return _ratio(pairs - cosines, pairs)


def novelty_at_k(recommended: Items, buyers: NDArray[np.integer], *, k: int, n_users: int) -> Figures:  # (B,)
    """Return the mean surprise in bits of a list's first k items; nan for an empty list.

    novelty = mean over the list of -log2 p(item), p(item) = (buyers + 1) / (n_users + 1)
    (Vargas and Castells, RecSys 2011: self-information; + 1 so that an item nobody bought has a finite figure).
    `buyers` is (V,): users who bought the item before the lists were made.

    With 7 users, of whom nobody, 1 and 3 bought items 4, 2 and 1: p = 1/8, 2/8 and 4/8:

    >>> shown = np.array([[4, 2, 7], [1, 3, -1]])
    >>> novelty_at_k(shown, np.array([0, 3, 1, 3, 0, 0, 0, 0]), k=2, n_users=7)
    array([2.5, 1. ])
    """
    shown = recommended[:, :k]
    surprise = -np.log2((buyers + 1) / (n_users + 1))
    return _ratio(np.where(shown >= 0, surprise[shown], 0).sum(axis=1), (shown >= 0).sum(axis=1))


# -- how sure a mean is


def bootstrap_means(values: Figures, *, seed: int, resamples: int = 1000) -> Figures:  # (R, M)
    """Return the means of M figures over R resamples of their B users; one resample serves all figures.

    `values` is (B, M). The same seed and number of users draw the same resamples, so that the means of two models
    over the same users may be subtracted: the difference is a paired one.
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993)

    >>> bootstrap_means(np.full((5, 1), 0.25), seed=0, resamples=3).ravel()
    array([0.25, 0.25, 0.25])
    """
    n_users = len(values)
    rng = np.random.default_rng(seed)
    chunk = max(1, _RESAMPLING_CELLS // n_users)
    means = []
    for first in range(0, resamples, chunk):
        size = min(chunk, resamples - first)
        drawn = rng.integers(0, n_users, size=(size, n_users)) + np.arange(size)[:, None] * n_users
        weights = np.bincount(drawn.ravel(), minlength=size * n_users).reshape(size, n_users)
        means.append(weights @ values / n_users)
    return np.concatenate(means)


def bootstrap_intervals(
    values: Figures,  # (B, M)
    *,
    seed: int,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> list[Interval]:
    """Return the mean and percentile interval of each of M figures over B users; for differences, pass differences.

    Percentile interval: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Half of four users were served: the mean of a resample is a number of four coin tosses over 4:

    >>> bootstrap_intervals(np.array([[1.0], [1.0], [0.0], [0.0]]), seed=0)
    [Interval(value=0.5, low=0.0, high=1.0)]
    """
    means = bootstrap_means(values, seed=seed, resamples=resamples)
    centres = values.mean(axis=0)
    return [percentile_interval(float(centre), means[:, m], confidence=confidence) for m, centre in enumerate(centres)]


def percentile_interval(value: float, means: Figures, *, confidence: float = 0.95) -> Interval:
    """Return a figure with the ends between which the given share of its R resampled means lies.

    >>> percentile_interval(0.5, np.linspace(0, 1, 101), confidence=0.5)
    Interval(value=0.5, low=0.25, high=0.75)
    """
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def _counts(relevant: Truth) -> NDArray[np.int64]:
    return relevant.counts() if isinstance(relevant, Relevant) else relevant.sum(axis=1)


def _ratio(above: NDArray[np.generic], below: NDArray[np.generic]) -> Figures:
    """Divide, with nan where there is nothing to divide by."""
    result = np.full(np.shape(below), np.nan)
    np.divide(above, below, out=result, where=np.asarray(below) > 0)
    return result
