"""Made-up catalogues for the vector index, since no shop at hand has a million items.

`clustered` is like what the sequence model learns: its 3,924 items of Online Retail were measured and the numbers here
set by them. `gaussian` is the worst case: no structure that an index could use.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["clustered", "gaussian"]
Vectors = NDArray[np.float32]

# Of the sequence model on Online Retail: the scale of its cosines, and the range of its biases with their mode at
# a third of it.
_SCALE = 8.4
_BIAS_LOW, _BIAS_WIDTH, _BIAS_SHAPE = -1.1, 3.7, (2.0, 3.5)
_SPREAD = 0.75  # of a cluster's items around its centre: the nearest of 4,000 has a cosine of 0.8; there 0.89, easier
_MEAN = 0.8  # of all centres: the cosine of two random items is 0.08; there 0.15
_HISTORY = 3  # items of several clusters that a query lies between


def make_vectors(kind: Kind, n_items: int, n_queries: int, *, dim: int, seed: int = 0) -> tuple[Vectors, Vectors]:
    """Return items (V, D + 1) and queries (Q, D + 1); the last number is the item's bias, and 1 in the queries.

    - `clustered`: 4 sqrt(V) clusters with sizes of a power law, whose centres and spread both have a spectrum that
      falls with the rank, as the model's has; cosines times the model's scale, plus a bias that differs by 0.65. A
      query is a direction between three items of any clusters, blurred.
    - `gaussian`: every number independent and normal.
    """
    rng = np.random.default_rng(seed)
    if kind == "gaussian":
        items = rng.standard_normal((n_items, dim + 1), dtype=np.float32)
        queries = rng.standard_normal((n_queries, dim + 1), dtype=np.float32)
        queries[:, -1] = 1
        return items, queries
    n_clusters = max(4, round(4 * n_items**0.5))
    centres = _falling(rng, n_clusters, dim)
    centres[:, 0] += _MEAN
    sizes = np.arange(1, n_clusters + 1) ** -0.8
    cluster = rng.choice(n_clusters, n_items, p=sizes / sizes.sum())
    # Within a cluster items differ along other directions than clusters do.
    spread = _unit(_falling(rng, n_items, dim)[:, rng.permutation(dim)])
    directions = _unit(_unit(centres)[cluster] + _SPREAD * spread)
    between = directions[rng.integers(0, n_items, (n_queries, _HISTORY))].mean(axis=1)
    wanted = _unit(between + 0.5 * _unit(_falling(rng, n_queries, dim)))
    bias = rng.beta(*_BIAS_SHAPE, n_items) * _BIAS_WIDTH + _BIAS_LOW
    items = np.concatenate([_SCALE * directions, bias[:, None]], axis=1, dtype=np.float32)
    return items, np.concatenate([wanted, np.ones((n_queries, 1))], axis=1, dtype=np.float32)


def _falling(rng: np.random.Generator, rows: int, dim: int) -> Vectors:
    """Return normal vectors whose variance along the r-th axis is 1 / r."""
    scale = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    return rng.standard_normal((rows, dim), dtype=np.float32) * scale


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)
