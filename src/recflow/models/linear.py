"""Linear item-to-item models: score = what the shopper wanted, times a matrix of items by items."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from recflow.models.attribution import Attribution, Ranking, ScoredContext, preference_shares
from recflow.models.heuristics import recent_purchases
from recflow.models.interactions import PREFERENCE, Context, Interactions
from recflow.models.pairs import Pairs
from recflow.models.weights import load_model, save_model

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_CHUNK = 1024  # items whose similarities are held at once
_FACTOR_SHRINKAGE = 3.0  # about nine buyers: an item with fewer doesn't get a direction of full length
_BACKOFF = 1e-6  # far below any learned score: popularity only orders what those leave equal


def preference_matrix(known: Interactions | Context) -> "csr_matrix":  # (U, V) or (B, V) float32
    """Return how strongly each shopper has wanted each item, 0 to 1: the strongest event counts."""
    from scipy.sparse import csr_matrix

    if isinstance(known, Context):
        pairs = Pairs.of(known.items)
        rows, items, shape = pairs.shopper, pairs.item, (len(known), len(known.item_features))
        strongest = pairs.reduce(np.maximum, PREFERENCE[known.event_types.ravel()[pairs.at]])
    else:
        shape = (known.n_users, known.n_items)
        cells, inverse = np.unique(known.user_idx.astype(np.int64) * shape[1] + known.item_idx, return_inverse=True)
        strongest = np.zeros(len(cells), np.float32)
        np.maximum.at(strongest, inverse, PREFERENCE[known.event_type])
        rows, items = np.divmod(cells, shape[1])
    wanted = strongest > 0
    return csr_matrix((strongest[wanted], (rows[wanted], items[wanted])), shape=shape)


def _popularity(interactions: Interactions, *, days: float) -> NDArray[np.float32]:  # (V,) 0 to 1
    purchases = recent_purchases(interactions, days=days)
    return np.asarray(purchases / max(purchases.max(initial=0), 1), np.float32)


class ItemKNN:
    """Cosine similarity with shrinkage, the nearest neighbours of each item kept.

    s(i, j) = x_i . x_j / (|x_i| |x_j| + shrinkage), x_i the column of users who wanted i (Sarwar et al., WWW 2001;
    shrinkage as in Bell and Koren, ICDM 2007). score(u, j) = sum over i of x(u, i) s(i, j).
    """

    name = "item_knn"
    reads_features = False

    def __init__(
        self, *, neighbours: int = 100, shrinkage: float = 10.0, popularity_days: float = 30, min_support: int = 1
    ) -> None:
        """Set the model's parameters.

        Args:
            neighbours: kept for each item; ties with the last one stay too.
            shrinkage: pulls similarities of items with few buyers to 0.
            popularity_days: window of the popularity that orders items without a neighbour in the history.
            min_support: shoppers who wanted both items of a pair; with fewer their similarity is 0.
        """
        self.neighbours = neighbours
        self.shrinkage = shrinkage
        self.popularity_days = popularity_days
        self.min_support = min_support
        self.weights: Any = None  # (V, V) csr_matrix: column j holds the neighbours of j
        self.popularity = np.zeros(0, np.float32)  # (V,) 0 to 1

    def fit(self, interactions: Interactions) -> Self:
        """Compute the similarities, some columns at a time: memory grows with V x 1024, not with V x V."""
        from scipy.sparse import csr_matrix, vstack

        wanted = preference_matrix(interactions).tocsc()
        norms = np.sqrt(np.asarray(wanted.multiply(wanted).sum(axis=0)).ravel())  # (V,)
        parts = [
            self._nearest(wanted, norms, np.arange(first, min(first + _CHUNK, interactions.n_items)))
            for first in range(0, interactions.n_items, _CHUNK)
        ]
        self.weights = csr_matrix(vstack(parts).T, dtype=np.float32)
        self.weights.sort_indices()
        self.popularity = _popularity(interactions, days=self.popularity_days)
        return self

    def _nearest(self, wanted: Any, norms: NDArray[np.float32], items: NDArray[np.int64]) -> "csr_matrix":
        """Return a row for each of the items with its nearest neighbours."""
        from scipy.sparse import csr_matrix

        dots = np.asarray((wanted[:, items].T @ wanted).todense(), np.float32)  # (C, V)
        similar = dots / np.maximum(norms[items, None] * norms[None] + self.shrinkage, 1e-12)
        similar[np.arange(len(items)), items] = 0
        drop_unsupported(similar, wanted[:, items], wanted, self.min_support)
        kept = min(self.neighbours, similar.shape[1] - 1)
        if kept < similar.shape[1] - 1:
            floor = -np.partition(-similar, kept - 1, axis=1)[:, kept - 1 : kept]
            similar[similar < floor] = 0
        return csr_matrix(similar)

    def score(self, context: Context) -> NDArray[np.float32]:  # (B, V)
        """Add up the similarities to what the shopper wanted."""
        linear = np.asarray((preference_matrix(context) @ self.weights).todense(), np.float32)
        return linear + _BACKOFF * self.popularity

    def rank(self, context: Context) -> Ranking:
        """Return the scores; each is a sum over the items of the history, and its popularity."""
        return ScoredContext(context, self.score(context), self._parts)

    def _parts(self, context: Context, items: NDArray[np.int32]) -> Attribution:
        shape = (*items.shape, context.items.shape[1])  # (B, K, L)
        source = np.broadcast_to(np.maximum(context.items - 1, 0)[:, None, :], shape)
        target = np.broadcast_to(items[:, :, None], shape)
        weights = np.asarray(self.weights[source.ravel(), target.ravel()], np.float32).reshape(shape)
        events = preference_shares(context)[:, None, :] * weights
        return Attribution(events, np.float32(_BACKOFF) * self.popularity[items])

    def save(self, folder: Path) -> None:
        """Write the model's two files."""
        config = {
            "neighbours": self.neighbours,
            "shrinkage": self.shrinkage,
            "popularity_days": self.popularity_days,
            "min_support": self.min_support,
        }
        arrays = {
            "values": self.weights.data,
            "columns": self.weights.indices.astype(np.int32),
            "row_ends": self.weights.indptr.astype(np.int64),
            "popularity": self.popularity,
        }
        save_model(folder, self, config=config, arrays=arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        from scipy.sparse import csr_matrix

        config, arrays = load_model(folder)
        plain = {name: config[name] for name in ("neighbours", "shrinkage", "popularity_days")}
        model = cls(**plain, min_support=config.get("min_support", 1))
        model.popularity = arrays["popularity"]
        size = len(model.popularity)
        model.weights = csr_matrix((arrays["values"], arrays["columns"], arrays["row_ends"]), shape=(size, size))
        return model


class EASE:
    """Embarrassingly shallow autoencoder: the closed form of Steck, WWW 2019.

    P = (X'X + lambda I)^-1, W = I - P diag(1 / diag P), so that diag W = 0; score(u) = x(u) W. With
    `recency_days`, scores are multiplied by the square root of each item's purchases within these last days: what
    fits the shopper and sells now.
    """

    name = "ease"
    reads_features = False

    def __init__(
        self, *, regularization: float = 300.0, recency_days: float = 0, max_items: int = 8000, min_support: int = 1
    ) -> None:
        """Set the model's parameters.

        Args:
            regularization: lambda, in users.
            recency_days: window of the popularity weight; 0 for none.
            max_items: the most wanted items that take part, the rest score by popularity alone: time grows with the
                cube, memory with the square of their number (256 MB for 8,000).
            min_support: shoppers who wanted both items of a pair; with fewer their weight is 0.
        """
        self.min_support = min_support
        self.regularization = regularization
        self.recency_days = recency_days
        self.max_items = max_items
        self.items = np.zeros(0, np.int32)  # (M,) item_idx of those that take part, ascending
        self.weights = np.zeros((0, 0), np.float32)  # (M, M)
        self.popularity = np.zeros(0, np.float32)  # (V,) 0 to 1
        if recency_days:
            self.name = "ease_recent"

    def fit(self, interactions: Interactions) -> Self:
        """Solve the closed form in float32."""
        wanted = preference_matrix(interactions)
        total = np.asarray(wanted.sum(axis=0)).ravel()
        taking_part = np.argsort(-total, kind="stable")[: self.max_items]
        self.items = np.sort(taking_part[total[taking_part] > 0]).astype(np.int32)
        wanted = wanted[:, self.items]
        self.weights = ease_weights(np.asarray((wanted.T @ wanted).todense(), np.float32), self.regularization)
        drop_unsupported(self.weights, wanted, wanted, self.min_support)
        self.popularity = _popularity(interactions, days=self.recency_days or 30)
        return self

    def with_recency(self, interactions: Interactions, *, days: float) -> "EASE":
        """Return the fitted model with scores weighted by recent popularity; the weights are shared, not copied."""
        model = EASE(
            regularization=self.regularization,
            recency_days=days,
            max_items=self.max_items,
            min_support=self.min_support,
        )
        model.items, model.weights = self.items, self.weights
        model.popularity = _popularity(interactions, days=days)
        return model

    def score(self, context: Context) -> NDArray[np.float32]:  # (B, V)
        """Multiply what the shopper wanted with the weights: only the rows of the history's items are read."""
        scores = np.zeros((len(context), len(self.popularity)), np.float32)
        scores[:, self.items] = preference_matrix(context)[:, self.items] @ self.weights
        if self.recency_days:
            scores *= np.sqrt(self.popularity)
        return scores + np.float32(_BACKOFF) * self.popularity

    def rank(self, context: Context) -> Ranking:
        """Return the scores; each is a sum over the items of the history, and its popularity."""
        return ScoredContext(context, self.score(context), self._parts)

    def _parts(self, context: Context, items: NDArray[np.int32]) -> Attribution:
        place = np.full(len(self.popularity), -1)
        place[self.items] = np.arange(len(self.items))
        source = place[np.maximum(context.items - 1, 0)][:, None, :]  # (B, 1, L)
        target = place[items][:, :, None]  # (B, K, 1)
        weights = np.zeros((*items.shape, context.items.shape[1]), np.float32)
        if len(self.items):
            weights = np.where((source >= 0) & (target >= 0), self.weights[source, target], 0)
        events = preference_shares(context)[:, None, :] * weights
        if self.recency_days:
            events *= np.sqrt(self.popularity[items])[..., None]
        return Attribution(events.astype(np.float32), np.float32(_BACKOFF) * self.popularity[items])

    def save(self, folder: Path) -> None:
        """Write the model's two files."""
        config = {
            "regularization": self.regularization,
            "recency_days": self.recency_days,
            "max_items": self.max_items,
            "min_support": self.min_support,
        }
        arrays = {"items": self.items, "weights": self.weights, "popularity": self.popularity}
        save_model(folder, self, config=config, arrays=arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        config, arrays = load_model(folder)
        plain = {name: config[name] for name in ("regularization", "recency_days", "max_items")}
        model = cls(**plain, min_support=config.get("min_support", 1))
        model.items, model.weights, model.popularity = arrays["items"], arrays["weights"], arrays["popularity"]
        return model


def item_factors(interactions: Interactions, size: int) -> NDArray[np.float32]:  # (V, D)
    """Return vectors of items that lie near by where the same users wanted them; mean squared length 1.

    The right singular vectors of X, each column over |x_i| + shrinkage and each row over its length, times the square
    root of the singular values (PureSVD: Cremonesi, Koren and Turrin, RecSys 2010). Where there are fewer users or
    items than `size`, the rest is 0.
    """
    from scipy.sparse import diags
    from scipy.sparse.linalg import svds

    wanted = preference_matrix(interactions).astype(np.float64)
    factors = np.zeros((interactions.n_items, size), np.float32)
    rank = min(size, min(wanted.shape) - 1)
    if rank < 1 or not wanted.nnz:
        return factors
    by_item = wanted @ diags(1 / (np.sqrt(np.asarray(wanted.multiply(wanted).sum(axis=0)).ravel()) + _FACTOR_SHRINKAGE))
    lengths = np.sqrt(np.asarray(by_item.multiply(by_item).sum(axis=1)).ravel())
    even = diags(1 / np.maximum(lengths, 1e-12)) @ by_item
    start = np.random.default_rng(0).standard_normal(min(wanted.shape))  # equal input, equal factors
    _, values, vectors = svds(even, k=rank, v0=start)
    found = vectors.T * np.sqrt(np.maximum(values, 0))
    factors[:, :rank] = found / max(float(np.sqrt((found**2).sum(axis=1).mean())), 1e-12)
    return factors


def drop_unsupported(
    weights: NDArray[np.float32],  # (M, J), changed in place
    wanted: "csr_matrix",  # (U, M)
    other: "csr_matrix",  # (U, J)
    min_support: int,
) -> None:
    """Set the weights of pairs to 0 that fewer shoppers than `min_support` have: they would tell of these few.

    Of pairs that nobody has, too: else a 0 among them would say that somebody has it.
    """
    if min_support <= 1:
        return
    one, two = (matrix.astype(bool).astype(np.int32) for matrix in (wanted, other))
    both = (one.T @ two).tocsr()
    both.data = both.data >= min_support
    weights[~both.toarray()] = 0


def ease_weights(gram: NDArray[np.float32], regularization: float) -> NDArray[np.float32]:  # (M, M)
    """Return W for a Gram matrix X'X, which is overwritten.

    Cholesky, not LU: the matrix is positive definite, and this takes half the time.
    """
    from scipy.linalg.lapack import spotrf, spotri

    if not len(gram):
        return gram
    gram[np.diag_indices_from(gram)] += regularization
    factor, _ = spotrf(np.asfortranarray(gram), lower=True, overwrite_a=True)
    inverse, _ = spotri(factor, lower=True, overwrite_c=True)
    diagonal = np.diag(inverse).copy()
    inverse = np.tril(inverse)
    weights = np.asarray(-(inverse + inverse.T) / diagonal[None], np.float32, order="C")  # the diagonal is set below
    weights[np.diag_indices_from(weights)] = 0
    return weights
