"""Scores -> one list under pins, caps and diversity; arrays in, item_idx out.

Letters: V items, D width of the vectors, P items of the pool, K items of the list.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recflow.models.interactions import top_k

_NO_CATEGORY = -1
# Items that diversity and the category cap choose from at once: an item below the best 200 (or five times the list)
# is no longer what the shopper asked for, however different it is.
_POOL = 200
_POOL_PER_PLACE = 5


def pool_size(k: int) -> int:
    """Return how many items a list of k is chosen from at once."""
    return max(_POOL, _POOL_PER_PLACE * k)


class GrowingSlate:
    """One list while it grows: pins first, then place by place. Afterwards it knows what each rule did."""

    def __init__(
        self,
        left: NDArray[np.float32],  # (V,) scores of what may come in, -inf for the rest; used up
        categories: NDArray[np.int32],  # (V,) codes; -1: none, never capped
        vectors: NDArray[np.float32],  # (V, D) of length 1; zeros: like nothing
        *,
        items: NDArray[np.int32] | None = None,  # (V,) their rows in `vectors`, where they aren't one for one
        k: int,
        pins: Mapping[int, int],  # position -> item_idx that may come in
        tired: Iterable[int],  # come after all others; where pinned, at their places
        cap: int | None,  # items of one category
        diversity: float,  # 0 to 1
    ) -> None:
        """Take what the list is made of; `grow` makes it."""
        self._left = left
        self._categories = categories
        self._vectors = vectors
        self._rows = items
        self._pins = pins
        self._tired = list(tired)
        self._cap = cap
        self._diversity = diversity
        self._n_items = min(k, int((left > -np.inf).sum()))
        self._pool_size = pool_size(k)
        self._in_category: Counter[int] = Counter()
        self._is_full = np.zeros(int(categories.max(initial=_NO_CATEGORY)) + 2, dtype=bool)  # the last: no category
        self._items: list[int] = []  # pins, then the others in the order they came
        self._n_fresh = self._n_capped = 0  # places filled before a tired item came, and before the cap was lifted
        self.lowest = np.inf  # score that the choice among those behind the pins depends on; those below don't matter
        self.diversified: list[int] = []  # items that went before a higher-scored one for being different

    def grow(self) -> NDArray[np.int32]:  # (K,)
        """Fill the list and put the pins to their places."""
        for position in sorted(self._pins):
            self._take(self._pins[position])
        fresh = self._left.copy()
        fresh[self._tired] = -np.inf
        self._fill(fresh, is_capped=True)
        self._n_fresh = len(self._items)
        self._fill(self._left, is_capped=True)
        self._n_capped = len(self._items)
        self._fill(fresh, is_capped=False)
        self._fill(self._left, is_capped=False)
        return np.array(self._placed(), dtype=np.int32)

    def held_back(self, items: Iterable[int]) -> tuple[list[int], list[int]]:
        """Return which of these items made room for others: the tired ones, and those of a full category."""
        behind = set(self._tired) - set(self._items[: self._n_fresh])
        within = set(self._items[: self._n_capped])
        tired = [item for item in items if item in behind]
        over = [item for item in items if item not in within and self._is_full[self._categories[item]]]
        return tired, over

    def beyond_cap(self) -> list[int]:
        """Return the items for which the cap was lifted."""
        return self._items[self._n_capped :]

    def _placed(self) -> list[int]:
        others = iter(self._items[len(self._pins) :])
        # A pin below a short list's end moves up, as far as the pins behind it need.
        end = self._n_items - len(self._pins) + 1
        places = {min(position, end + rank): self._pins[position] for rank, position in enumerate(sorted(self._pins))}
        return [places[place] if place in places else next(others) for place in range(1, self._n_items + 1)]

    def _fill(self, left: NDArray[np.float32], *, is_capped: bool) -> None:
        """Add items of `left` until the list is full or nothing is left that fits."""
        is_capped = is_capped and self._cap is not None
        left[self._items] = -np.inf
        while len(self._items) < self._n_items:
            # A pool may run out of items that fit; then the next one is without the categories that are full.
            fitting = np.where(self._is_full[self._categories], -np.inf, left) if is_capped else left
            best, values = top_k(fitting[None], self._pool_size if is_capped or self._diversity else self._n_items)
            pool, relevance = best[0][best[0] >= 0], values[0][best[0] >= 0]
            if not len(pool):
                self.lowest = -np.inf
                return
            added = len(self._items)
            if self._diversity:
                self._add_diverse(pool, relevance, is_capped=is_capped)
                # What is behind a pool that isn't full would have been in it.
                self.lowest = min(self.lowest, float(relevance[-1]) if len(pool) == self._pool_size else -np.inf)
            else:
                self._add_best(pool, is_capped=is_capped)
                self.lowest = min(self.lowest, float(left[self._items[-1]]))
            left[self._items[added:]] = -np.inf

    def _add_best(self, pool: NDArray[np.int32], *, is_capped: bool) -> None:
        for item, category in zip(pool.tolist(), self._categories[pool].tolist(), strict=True):
            if len(self._items) == self._n_items:
                return
            if not (is_capped and self._is_full[category]):
                self._take(item)

    def _add_diverse(self, pool: NDArray[np.int32], relevance: NDArray[np.float32], *, is_capped: bool) -> None:
        """Add items of a pool (P,), best first, by maximal marginal relevance."""
        vectors = self._vectors_of(pool)  # (P, D)
        categories = self._categories[pool]
        spread = float(relevance[0] - relevance[-1])
        value = (relevance - relevance[-1]) * np.float32((1 - self._diversity) / spread if spread > 0 else 0.0)  # (P,)
        weighted = vectors * np.float32(self._diversity)
        likeness = (weighted @ self._vectors_of(self._items).T).max(axis=1) if self._items else None  # (P,)
        margin, first = np.empty_like(value), 0
        while len(self._items) < self._n_items:
            while first < len(pool) and value[first] == -np.inf:  # taken, or of a full category
                first += 1
            if first == len(pool):
                return
            chosen = first
            if likeness is not None:
                chosen = int(np.subtract(value, likeness, out=margin).argmax())
            self._take(int(pool[chosen]))
            if chosen != first:
                self.diversified.append(int(pool[chosen]))
            value[chosen] = -np.inf
            if is_capped and self._is_full[categories[chosen]]:
                value[categories == categories[chosen]] = -np.inf
            new = weighted @ vectors[chosen]
            likeness = new if likeness is None else np.maximum(likeness, new, out=likeness)

    def _vectors_of(self, items: Any) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self._vectors[items if self._rows is None else self._rows[items]]
        return vectors

    def _take(self, item: int) -> None:
        self._items.append(item)
        category = int(self._categories[item])
        if self._cap is not None and category != _NO_CATEGORY:
            self._in_category[category] += 1
            self._is_full[category] = self._in_category[category] >= self._cap
