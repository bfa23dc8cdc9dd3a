"""Items that nobody, or hardly anybody, took yet -> how far what a shopper took speaks for each of them.

What the known items say of one another is carried over to those that are like them in content, by kernel ridge
regression: of a new item c,

    w_c = S (K + lambda I)^-1 k_c,   S = (EASE + share I) diag(sells) + following

S_ij is how far having wanted the known item i speaks for buying the known item j, k_c how alike c is to each of them
and K they to one another. A shopper's score of c is the sum of w_c over what it wanted. So an item is shown to those
who take what goes with items like it, not only to those who have the like already, and one that resembles what sells
comes before others.

Letters: V items, M known ones, C new ones, S known items that speak for each, W words, T numbers of a title's vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recflow.models.assortment import following_weights
from recflow.models.interactions import Interactions
from recflow.models.linear import drop_unsupported, ease_weights, preference_matrix

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix, spmatrix

_OWN_SHARE = 0.1  # how far an item speaks for those like itself, beside what goes with it; ADR 0018 for all of these
_TITLE_WEIGHT = 0.3  # of vectors of titles, beside their words
_PRICE_WIDTH = 0.5  # of a logarithm: a price and its double are 0.38 alike
_RIDGE = 1.0  # lambda; an item is about 1.6 alike to itself
_LINKS = 200  # known items kept of each new one, the strongest: with all it is no better
_SALES_DAYS = 28.0
_LEAST_KNOWN = 100  # items to learn from; with fewer a title says more
_AT_ONCE = 512  # new items


@dataclass(frozen=True)
class ItemContent:
    """What is known of V items before anybody takes them."""

    words: "csr_matrix"  # (V, W) see `weighed`
    titles: NDArray[np.float32]  # (V, T) of length 1 or 0
    log_prices: NDArray[np.float32]  # (V,) NaN where there is none

    @classmethod
    def of(
        cls, titles: Sequence[str | None], vectors: NDArray[np.float32], prices: NDArray[np.floating[Any]]
    ) -> "ItemContent":
        """Take titles (V,), their vectors (V, T) and prices (V,), NaN where there is none."""
        logs = np.log(np.maximum(prices, 0.01)).astype(np.float32)
        return cls(title_words(titles), vectors, logs)

    def alike(self, one: NDArray[np.integer[Any]], other: NDArray[np.integer[Any]]) -> NDArray[np.float32]:  # (A, B)
        """Return how alike items (A,) and (B,) are: (words + 0.3 titles) (1 + price) / 2 + 0.3 price.

        Price is 1 for equal ones, exp(-(difference of logs)^2 / (2 0.5^2)); one that is missing is the mean.
        """
        text = np.asarray((self.words[one] @ self.words[other].T).todense(), np.float32)
        text += _TITLE_WEIGHT * (self.titles[one] @ self.titles[other].T)
        known = np.isfinite(self.log_prices)
        logs = np.where(known, self.log_prices, self.log_prices[known].mean() if known.any() else 0)
        price = np.exp(-((logs[one][:, None] - logs[other]) ** 2) / (2 * _PRICE_WIDTH**2))
        return np.asarray(text * (1 + price) / 2 + _TITLE_WEIGHT * price, np.float32)


def title_words(titles: Sequence[str | None]) -> "csr_matrix":  # (V, W)
    """Return the words of titles, lower case, digits too, as `weighed` has them."""
    from scipy.sparse import csr_matrix

    text = pc.fill_null(pc.utf8_lower(pa.array(titles, pa.string())), "")
    lists = pc.split_pattern_regex(text, r"[^\p{L}\p{N}]+")
    words, rows = lists.flatten(), pc.list_parent_indices(lists)
    is_word = pc.not_equal(words, "")
    encoded, rows = words.filter(is_word).dictionary_encode(), rows.filter(is_word).to_numpy()
    shape = (len(titles), len(encoded.dictionary))
    cells = (np.ones(len(rows), np.float32), (rows, encoded.indices.to_numpy()))
    return weighed(csr_matrix(cells, shape=shape))


def weighed(has: "spmatrix") -> "csr_matrix":  # (V, W) -> (V, W)
    """Weigh words or attributes by their rarity, log((1 + V) / (1 + items with it)) + 1; rows of length 1 or 0."""
    from scipy.sparse import csr_matrix, diags

    found = csr_matrix(has, dtype=np.float32)
    found.data[:] = 1  # named twice is named once
    rarity = np.log((1 + found.shape[0]) / (1 + np.bincount(found.indices, minlength=found.shape[1]))) + 1
    found = found @ diags(rarity)
    lengths = np.sqrt(np.asarray(found.multiply(found).sum(axis=1)).ravel())
    return csr_matrix(diags(1 / np.maximum(lengths, 1e-9)) @ found, dtype=np.float32)


@dataclass(frozen=True)
class ColdItems:
    """New items and what speaks for them."""

    items: NDArray[np.int32]  # (C,) item_idx
    known: NDArray[np.int32]  # (C, S) item_idx
    weight: NDArray[np.float32]  # (C, S) how far having wanted each speaks for the item
    n_items: int

    @classmethod
    def learn(
        cls,
        interactions: Interactions,
        content: ItemContent,
        items: NDArray[np.integer[Any]],  # (C,) item_idx
        *,
        regularization: float = 300.0,  # of both matrices, in shoppers
        max_items: int = 8000,  # to learn from, the most wanted ones: time grows with their cube
        min_support: int = 1,  # shoppers with both items of a pair; with fewer it says nothing
    ) -> Self | None:
        """Learn from all interactions as of their `until`; None where there is too little to learn from."""
        wanted = preference_matrix(interactions)
        known = most_wanted(wanted, max_items)
        if len(known) < _LEAST_KNOWN or not len(items):
            return None
        since = interactions.until - np.timedelta64(round(_SALES_DAYS * 86_400e6), "us")
        sales = np.bincount(interactions.since(since).purchases().item_idx, minlength=interactions.n_items)
        says = what_items_say(wanted[:, known], sales[known], regularization=regularization, min_support=min_support)
        says += following_weights(interactions, known, regularization, min_support)
        return cls.carry_over(says, known, content, items)

    @classmethod
    def carry_over(
        cls,
        says: NDArray[np.float32],  # (M, M) how far wanting an item speaks for each
        known: NDArray[np.int32],  # (M,) item_idx, ascending
        content: ItemContent,
        items: NDArray[np.integer[Any]],  # (C,) item_idx
    ) -> Self | None:
        """Say of new items what is said of known ones that are alike; None where these are too few."""
        from scipy.linalg import cho_factor, cho_solve

        if len(known) < _LEAST_KNOWN or not len(items):
            return None
        gram = content.alike(known, known)
        gram[np.diag_indices_from(gram)] += _RIDGE
        factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
        n = min(_LINKS, len(known))
        places, weights = np.empty((len(items), n), np.int64), np.empty((len(items), n), np.float32)
        for first in range(0, len(items), _AT_ONCE):
            at = slice(first, first + _AT_ONCE)
            mix = cho_solve(factor, content.alike(known, items[at]), overwrite_b=True, check_finite=False)
            speaks = (says @ mix).T  # (*, M)
            places[at] = np.sort(np.argpartition(np.abs(speaks), -n, axis=1)[:, -n:], axis=1)
            weights[at] = np.take_along_axis(speaks, places[at], axis=1)
        return cls(np.asarray(items, np.int32), known[places], weights, len(content.log_prices))

    @cached_property
    def table(self) -> "csr_matrix":  # (V, C)
        """Return how far wanting each item speaks for each new one."""
        from scipy.sparse import csr_matrix

        columns = np.repeat(np.arange(len(self.items)), self.known.shape[1])
        shape = (self.n_items, len(self.items))
        return csr_matrix((self.weight.ravel(), (self.known.ravel(), columns)), shape=shape)

    def score(self, wanted: "spmatrix | NDArray[np.float32]") -> NDArray[np.float32]:  # (B, V) -> (B, C)
        """Score the new items for shoppers by how strongly they want each item."""
        scores = wanted @ self.table
        return np.asarray(scores if isinstance(scores, np.ndarray) else scores.todense(), np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is to be kept of it, by name."""
        return {"items": self.items, "known": self.known, "weight": self.weight}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], *, n_items: int) -> Self:
        """Take back what `arrays` gave, of a catalogue of so many items."""
        return cls(arrays["items"], arrays["known"], arrays["weight"], n_items)


def most_wanted(wanted: "csr_matrix", max_items: int) -> NDArray[np.int32]:  # (U, V) -> (M,)
    """Return the items that anybody wants, the most wanted where there are too many, ascending."""
    total = np.asarray(wanted.sum(axis=0)).ravel()
    first = np.argsort(-total, kind="stable")[:max_items]
    return np.sort(first[total[first] > 0]).astype(np.int32)


def what_items_say(
    wanted: "csr_matrix",  # (U, M)
    sales: NDArray[np.integer[Any]],  # (M,) lately
    *,
    regularization: float,
    min_support: int = 1,
) -> NDArray[np.float32]:  # (M, M)
    """Return EASE's weights and a share of each item's own, times the root of how items sell against the best."""
    says = ease_weights(np.asarray((wanted.T @ wanted).todense(), np.float32), regularization)
    drop_unsupported(says, wanted, wanted, min_support)
    says[np.diag_indices_from(says)] = _OWN_SHARE
    says *= np.sqrt(sales / max(sales.max(initial=0), 1)).astype(np.float32)
    return says
