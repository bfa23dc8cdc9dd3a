"""Columns of the catalogue as numbers, so that a filter is a comparison of integers. V items, M names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recflow.settings import plain_id

PRICE_LEVELS = 5
_DAY_US = 86_400_000_000
_LEVEL_ITEMS = 20  # priced items that a category needs for levels of its own: four a level; with fewer, one moves them
_SEPARATOR = " > "  # of categories, coarse to fine


@dataclass(frozen=True)
class Codes:
    """One text column. A code stands for its name and for the names up to `ends`."""

    of_item: NDArray[np.int32]  # (V,) index into `names`; -1 where there is none
    names: tuple[str, ...]  # (M,)
    ends: NDArray[np.int32]  # (M,) after the last code that a name stands for

    @classmethod
    def of(cls, column: Any) -> Self:
        """Number the values of a column of texts (pyarrow), alphabetically; null and empty are none."""
        names, of_item = _numbered(column)
        return cls(of_item, tuple(names), np.arange(1, len(names) + 1, dtype=np.int32))

    @classmethod
    def of_tree(cls, column: Any) -> Self:
        """Number categories, coarse to fine, and those above them, each before all that is below it.

        So a category and what is below it are a range of codes.
        """
        found, of_item = _numbered(column)
        paths = [tuple(name.split(_SEPARATOR)) for name in found]
        nodes = sorted({path[:depth] for path in paths for depth in range(1, len(path) + 1)})
        code = {node: place for place, node in enumerate(nodes)}
        ends = np.arange(1, len(nodes) + 1, dtype=np.int32)
        for node in reversed(nodes):  # what is below comes first and hands its end up
            if len(node) > 1:
                ends[code[node[:-1]]] = max(ends[code[node[:-1]]], ends[code[node]])
        place = np.array([*(code[path] for path in paths), -1], dtype=np.int32)  # -1 stays -1
        return cls(place[of_item], tuple(_SEPARATOR.join(node) for node in nodes), ends)

    @cached_property
    def code(self) -> dict[str, int]:
        """Return name -> code."""
        return {name: code for code, name in enumerate(self.names)}

    def coarsest(self) -> NDArray[np.int32]:  # (V,)
        """Return the code of the name that an item's own is below, or its own; -1 where there is none."""
        is_below = np.array([_SEPARATOR in name for name in self.names], dtype=bool)
        tops = np.maximum.accumulate(np.where(is_below, 0, np.arange(len(is_below))))
        return np.append(tops, -1).astype(np.int32)[self.of_item]

    def mask(self, names: Iterable[str]) -> NDArray[np.bool_]:  # (V,)
        """Return which items have one of the names or one below it; unknown names are no item's."""
        is_wanted = np.zeros(len(self.names) + 1, dtype=bool)  # +1: the last one is -1, no name, and never wanted
        for name in names:
            if name in self.code:
                is_wanted[self.code[name] : self.ends[self.code[name]]] = True
        return is_wanted[self.of_item]

    def changed(self, rows: Sequence[int], values: Sequence[str | None], *, is_tree: bool = False) -> Self:
        """Return the same where some items have other values, new ones among them; null and empty are none."""
        import pyarrow as pa

        added = [value for value in values if value and value not in self.code]
        own = self
        if added:
            column = pa.chunked_array([[*self.names, *added]], pa.string())
            own = type(self).of_tree(column) if is_tree else type(self).of(column)
            moved = np.array([*(own.code[name] for name in self.names), -1], dtype=np.int32)  # -1 stays -1
            own = type(self)(moved[self.of_item], own.names, own.ends)
        of_item = own.of_item.copy()
        of_item[list(rows)] = [own.code[value] if value else -1 for value in values]
        return type(self)(of_item, own.names, own.ends)


def find_item(item_index: Mapping[str, int], item_id: str) -> int | None:
    """Return an item's item_idx; an id in another case or with spaces around is found where its own spelling isn't."""
    item = item_index.get(item_id)
    return item_index.get(plain_id(item_id)) if item is None else item


def price_levels(
    prices: NDArray[np.float64],  # (V,) NaN where unknown
    currencies: NDArray[np.int32],  # (V,) codes
    categories: NDArray[np.int32],  # (V,) codes of the coarsest; -1 where there is none
) -> NDArray[np.int8]:  # (V,)
    """Return the fifth of the prices that an item is in, 0 the cheapest; -1 where the price is unknown.

    Of the prices in its category where that has at least 20, else in the whole catalogue: a cheap sofa is dear among
    mugs. Prices in different currencies aren't compared. Equal prices have one level, the one of their middle place.
    """
    levels = np.full(len(prices), -1, dtype=np.int8)
    priced = np.flatnonzero(~np.isnan(prices))
    currency, category = currencies[priced].astype(np.int64), categories[priced].astype(np.int64)
    own = currency * (category.max(initial=0) + 2) + category
    in_category, n_category = _shares(prices[priced], own)
    anywhere, _ = _shares(prices[priced], currency)
    share = np.where((n_category >= _LEVEL_ITEMS) & (category >= 0), in_category, anywhere)
    levels[priced] = np.floor(share * PRICE_LEVELS)
    return levels


def first_seen_days(first_seen: Any) -> NDArray[np.int32]:  # (V,)
    """Moments, a column (pyarrow) -> days since 1970-01-01 (UTC); -1 where there is none."""
    days = first_seen.cast(pa.int64()).to_numpy() // _DAY_US
    return np.where(np.isnan(days), -1, days).astype(np.int32)


def came_since(first_seen_day: NDArray[np.int32], until: date, days: int) -> NDArray[np.bool_]:  # (V,)
    """Return which items came in the last `days` through `until`."""
    return np.asarray(first_seen_day > int(np.datetime64(until, "D").astype(np.int64)) - days, bool)


def _shares(values: NDArray[np.float64], groups: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return each value's middle place among its group's, as a share within (0, 1), and the group's size."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.lexsort((values, group))
    ordered, of_group = values[order], group[order]
    is_first = np.ones(len(values), dtype=bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]) | (of_group[1:] != of_group[:-1])
    tie = np.cumsum(is_first) - 1
    first = np.flatnonzero(is_first)
    after = np.append(first[1:], len(values))
    middle = (first + after)[tie] / 2 - (np.cumsum(sizes) - sizes)[of_group]
    shares = np.empty(len(values))
    shares[order] = middle / sizes[of_group]
    return shares, sizes[group]


def _numbered(column: Any) -> tuple[list[str], NDArray[np.int32]]:
    """Return the distinct texts, ordered, and each row's place among them; -1 where null or empty."""
    import pyarrow.compute as pc

    encoded = column.combine_chunks().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    names = sorted(text for text in texts if text)
    place = {name: code for code, name in enumerate(names)}
    codes = np.array([*(place.get(text, -1) for text in texts), -1], dtype=np.int32)
    rows = pc.fill_null(encoded.indices, len(texts)).to_numpy(zero_copy_only=False)
    return names, codes[rows]
