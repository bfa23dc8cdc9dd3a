"""The items of the greatest inner product with a query: exactly in a small catalogue, by an index in a large one.

A bias of the items is one of the D numbers, with 1 in its place in the queries.

The index cuts the catalogue into lists of vectors that point the same way (faiss, IVF), keeps eight bits a number, and
reads the lists that the query points to. What it finds is scored again from the vectors as they are, so scores are
exact and only an item that was never looked at can be missing. How many lists are read is not guessed but measured, on
queries like those to come. The longest vectors stand in no list: they are best-sellers, which everybody's list may need
and whose lists point elsewhere. See infra/adr/0008-vector-index.md.

Letters: V items, B queries, D numbers of a vector, K items of a list.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recflow.errors import BundleInvalid
from recflow.models.interactions import top_k

RECALL_AT = 100  # best items that recall is measured on

Vectors = NDArray[np.float32]
Found = tuple[NDArray[np.int32], NDArray[np.float32]]  # items and scores, (B, K) each

_FILE = "index.faiss"
_FACTS = "index.json"
_LANES = 16  # numbers that the processor multiplies at once: vectors are padded with zeros to a multiple
_TRAINED_ON = 50  # vectors a list that k-means looks at; faiss calls for 39 at least
_LONG = 500  # one item in so many is scored for every query: those with the longest vectors
_SPARE = 2  # times k items are taken from the index, since eight bits put some into the wrong order
_CUT_OFF = 0.1  # share of numbers that differ at most from what the index kept; of other vectors nine in ten do
_ADDED_AT_ONCE = 100_000  # vectors, so that no second copy of a large catalogue is made
_SCORES_AT_ONCE = 8_000_000  # of exact search: with what sorting them takes 150 MB
_ASKED_AT_ONCE = 64  # queries of the index: their candidates' vectors take 3 MB for lists of 100


class Index(Protocol):
    """What finds the best items for queries."""

    vectors: Vectors  # (V, D)

    def search(self, queries: Vectors, k: int, *, allowed: NDArray[np.bool_] | None = None) -> Found:
        """Return the K = min(k, V) items of the greatest inner product with each query, best first.

        Equal scores stand in catalogue order. Where fewer than K items are allowed, the rest is -1 with score -inf.

        Args:
            queries: (B, D).
            k: length of the lists.
            allowed: items that may be found, (V,) for all queries or (B, V); None: all.
        """


def build_index(
    vectors: Vectors,  # (V, D)
    queries: Vectors,  # (Q, D)
    *,
    exact_below: int,
    recall: float,
) -> "Index":
    """Return what finds the best of these vectors.

    Args:
        vectors: of the items; finite.
        queries: some hundred of the kind that will be asked; the index is tuned on them and on nothing else.
        exact_below: catalogues with fewer items are searched whole.
        recall: share of the best `RECALL_AT` items that the index has to find for these queries, on average.

    Raises:
        ValueError: a number isn't finite, or vectors and queries differ in width.
    """
    if vectors.shape[1] != queries.shape[1]:
        raise ValueError(f"vectors have {vectors.shape[1]} numbers, queries {queries.shape[1]}")
    if not np.isfinite(vectors).all():
        raise ValueError("vectors must be finite: mask an item instead of giving it an infinite bias")
    if len(vectors) < max(exact_below, _TRAINED_ON):
        return ExactIndex(vectors)
    return ListIndex.build(vectors, queries, recall=recall, exact_below=exact_below)


def load_index(folder: Path, vectors: Vectors, *, exact_below: int) -> "Index":
    """Return the index that `ListIndex.save` wrote into a folder, or exact search where there is none.

    Raises:
        BundleInvalid: the index is damaged or was made of other vectors.
    """
    if not (folder / _FACTS).is_file():
        return ExactIndex(vectors)
    return ListIndex.load(folder, vectors, exact_below=exact_below)


class ExactIndex:
    """Every item scored for every query."""

    def __init__(self, vectors: Vectors) -> None:
        """Take the items' vectors (V, D)."""
        self.vectors = vectors

    def search(self, queries: Vectors, k: int, *, allowed: NDArray[np.bool_] | None = None) -> Found:
        """Return the best items, see `Index`."""
        parts = []
        at_once = max(1, _SCORES_AT_ONCE // max(1, len(self.vectors)))
        for first in range(0, len(queries), at_once):
            rows = slice(first, first + at_once)
            mask = None if allowed is None else np.atleast_2d(allowed if allowed.ndim == 1 else allowed[rows])
            parts.append(top_k(queries[rows] @ self.vectors.T, k, exclude=None if mask is None else ~mask))
        return _stacked(parts, min(k, len(self.vectors)))


class ListIndex:
    """Lists of vectors that point the same way, of which a query reads some."""

    def __init__(
        self,
        vectors: Vectors,  # (V, D)
        lists: Any,
        long: NDArray[np.int32],
        *,
        n_read: int,
        recall: float,
        exact_below: int,
    ) -> None:
        """Put vectors together with the items that are always scored and a faiss index of all others.

        `build` and `load` make one.
        """
        self.vectors = vectors
        self._long = long  # ascending
        self._long_ones = ExactIndex(vectors[long])
        self.n_read = n_read  # lists that a query reads
        self.recall = recall  # found for the queries that it was tuned on
        self.n_lists = int(lists.nlist)
        self._lists = lists
        self._exact_below = exact_below
        self._exact = ExactIndex(vectors)

    @classmethod
    def build(cls, vectors: Vectors, queries: Vectors, *, recall: float, exact_below: int) -> "ListIndex":
        """Cut the catalogue into lists and measure how many of them have to be read."""
        import faiss

        n_items = len(vectors)
        n_lists = max(1, min(round(4 * n_items**0.5), n_items // _TRAINED_ON))
        width = vectors.shape[1] + -vectors.shape[1] % _LANES
        metric = faiss.METRIC_INNER_PRODUCT
        lists = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlat(width, metric), width, n_lists, faiss.ScalarQuantizer.QT_8bit, metric
        )
        by_length = np.argsort(-np.linalg.norm(vectors, axis=1), kind="stable").astype(np.int32)
        long, others = np.sort(by_length[: n_items // _LONG]), np.sort(by_length[n_items // _LONG :])
        sample = np.random.default_rng(0).permutation(others)[: _TRAINED_ON * n_lists]
        lists.train(_padded(vectors[np.sort(sample)]))
        for first in range(0, len(others), _ADDED_AT_ONCE):
            added = others[first : first + _ADDED_AT_ONCE]
            lists.add_with_ids(_padded(vectors[added]), added.astype(np.int64))
        index = cls(vectors, lists, long, n_read=max(1, n_lists // 64), recall=0.0, exact_below=exact_below)
        best = index._exact.search(queries, RECALL_AT)[0]
        while True:
            # Not `search`: where the lists hold too few items, it would look elsewhere.
            index.recall = recall_of(index._read(queries, best.shape[1], None, n_items)[0], best)
            if index.recall >= recall or index.n_read == n_lists:
                return index
            index.n_read = min(n_lists, max(index.n_read + 1, round(index.n_read * 1.25)))

    def search(self, queries: Vectors, k: int, *, allowed: NDArray[np.bool_] | None = None) -> Found:
        """Return the best items of the lists that are read, see `Index`."""
        length = min(k, len(self.vectors))
        if allowed is not None and allowed.ndim == 2:
            rows = [self.search(queries[row : row + 1], k, allowed=mask) for row, mask in enumerate(allowed)]
            return _stacked(rows, length)
        n_allowed = len(self.vectors) if allowed is None else int(np.count_nonzero(allowed))
        if allowed is not None and n_allowed < self._exact_below:
            return self._among(np.flatnonzero(allowed), queries, length)
        parts = [
            self._read(queries[first : first + _ASKED_AT_ONCE], length, allowed, n_allowed)
            for first in range(0, len(queries), _ASKED_AT_ONCE)
        ]
        items, scores = _stacked(parts, length)
        short = np.flatnonzero((items >= 0).sum(axis=1) < min(length, n_allowed))  # the lists held too few
        if len(short):
            items[short], scores[short] = self._exact.search(queries[short], k, allowed=allowed)
        return items, scores

    def _n_read(self, k: int, n_allowed: int) -> int:
        """Return how many lists to read for the best k of the allowed items.

        They reach as deep as the best k x V / allowed of all do, and those lie in more lists than the best
        `RECALL_AT`, which `n_read` was measured on. The exponent keeps recall level from 100 to 1,000, as measured.
        """
        depth = k * len(self.vectors) / max(1, n_allowed) / RECALL_AT
        return min(self.n_lists, int(self.n_read * max(1.0, depth) ** 0.2))

    def _read(self, queries: Vectors, k: int, allowed: NDArray[np.bool_] | None, n_allowed: int) -> Found:
        import faiss

        selector = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        parameters = faiss.SearchParametersIVF(nprobe=self._n_read(k, n_allowed), sel=selector)
        near = self._lists.search(_padded(queries), _SPARE * k, params=parameters)[1]  # (B, 2 K), -1: no more
        scores = np.einsum("bd,bkd->bk", queries, self.vectors[near])
        scores[near < 0] = -np.inf
        places, own = self._long_ones.search(queries, k, allowed=None if allowed is None else allowed[self._long])
        items = np.concatenate([near, np.where(places < 0, -1, self._long[places])], axis=1)
        scores = np.concatenate([scores, own], axis=1)
        order = np.lexsort((items, -scores))[:, :k]  # equal scores in catalogue order
        return np.take_along_axis(items, order, axis=1).astype(np.int32), np.take_along_axis(scores, order, axis=1)

    def _among(self, chosen: NDArray[np.intp], queries: Vectors, length: int) -> Found:
        """Search a few items whole."""
        places, scores = ExactIndex(self.vectors[chosen]).search(queries, length)
        items = np.full((len(queries), length), -1, np.int32)
        values = np.full((len(queries), length), -np.inf, np.float32)
        items[:, : places.shape[1]] = chosen[places]
        values[:, : places.shape[1]] = scores
        return items, values

    # -- files

    def save(self, folder: Path) -> None:
        """Write `index.faiss` and `index.json` into an existing folder; the vectors are kept by whoever made them."""
        import faiss

        faiss.write_index(self._lists, str(folder / _FILE))
        facts = {
            "n_items": len(self.vectors),
            "width": self.vectors.shape[1],
            "n_lists": self.n_lists,
            "n_read": self.n_read,
            "recall": self.recall,
            "long": self._long.tolist(),
            "sha256": _hash(folder / _FILE),
        }
        (folder / _FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, vectors: Vectors, *, exact_below: int) -> "ListIndex":
        """Read back what `save` wrote, for the same vectors.

        Raises:
            BundleInvalid: a file is missing or altered, or the vectors are others.
        """
        import faiss

        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            if _hash(folder / _FILE) != facts["sha256"]:  # before faiss reads it: it trusts its files
                raise ValueError(f"{_FILE} was altered")
            lists = faiss.read_index(str(folder / _FILE))
            if (facts["n_items"], facts["width"]) != vectors.shape:
                raise ValueError(f"an index of {facts['n_items']} x {facts['width']} numbers for {vectors.shape}")
            long, figures = np.array(facts["long"], np.int32), (facts["n_read"], facts["recall"])
            index = cls(vectors, lists, long, n_read=figures[0], recall=figures[1], exact_below=exact_below)
            if lists.ntotal + len(long) != len(vectors):
                raise ValueError(f"{lists.ntotal} items in lists and {len(long)} besides, of {len(vectors)}")
            index._check_vectors()
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            raise BundleInvalid(f"Index {folder}: {error}. Publish the model again.") from error
        return index

    def _check_vectors(self) -> None:
        """Compare some of the vectors with what the index kept of them, eight bits a number.

        Raises:
            ValueError: they are others.
        """
        asked = self.vectors[:: max(1, len(self.vectors) // 16)]
        _, items, kept = self._lists.search_and_reconstruct(_padded(asked), 4)
        known = self.vectors[items]  # (16, 4, D)
        # Twice a step of the quantizer, which cuts the range of each number into 255. The range is that of the vectors
        # that it was trained on: what lies outside of it is cut off.
        allowed = 2 * (np.ptp(self.vectors, axis=0) + 1e-6) / 255
        if (np.abs(kept[..., : known.shape[2]] - known)[items >= 0] > allowed).mean() > _CUT_OFF:
            raise ValueError("it was made of other vectors")


def recall_of(items: NDArray[np.int32], best: NDArray[np.int32]) -> float:
    """Return the share of the best items (B, K) that were found (B, K), on average over the queries."""
    hits = [len(np.intersect1d(found, wanted)) for found, wanted in zip(items, best, strict=True)]
    return sum(hits) / best.size


def _padded(vectors: Vectors) -> Vectors:
    """Return the vectors with zeros up to a multiple of `_LANES`; inner products stay what they are."""
    padding = -vectors.shape[1] % _LANES
    return np.ascontiguousarray(np.pad(vectors, ((0, 0), (0, padding))), dtype=np.float32)


def _stacked(parts: list[Found], k: int) -> Found:
    if not parts:
        return np.empty((0, k), np.int32), np.empty((0, k), np.float32)
    return np.concatenate([items for items, _ in parts]), np.concatenate([scores for _, scores in parts])


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
