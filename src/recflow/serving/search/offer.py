"""A bundle and what was said of its items since -> the catalogue as it is now: what search and lists show.

Letters: V items of the bundle, A items that it doesn't have, after them.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recflow.schema import ITEMS
from recflow.serving.bundle import Bundle
from recflow.serving.catalogue import Codes, find_item
from recflow.serving.feedback import to_us
from recflow.serving.requests import Filters
from recflow.serving.search.changes import Change, Changes
from recflow.settings import RuleSettings, plain_id

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SEARCHED = ("title", "description", "category", "brand", "active")


@dataclass(frozen=True)
class Added:
    """The A items that the bundle doesn't have, in the order of their numbers."""

    items: pa.Table  # (A,) schema.ITEMS

    def __len__(self) -> int:
        """Return A."""
        return int(self.items.num_rows)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Return the items."""
        rows: list[dict[str, Any]] = self.items.to_pylist()
        return rows

    @cached_property
    def categories(self) -> Codes:
        """Return their categories."""
        return Codes.of_tree(self.items["category"])

    @cached_property
    def brands(self) -> Codes:
        """Return their brands."""
        return Codes.of(self.items["brand"])

    @cached_property
    def stores(self) -> Codes:
        """Return their stores."""
        return Codes.of(self.items["store_id"])

    @cached_property
    def prices(self) -> NDArray[np.float64]:  # (A,) NaN where there is none
        """Return their prices."""
        return np.asarray(self.items["price"].to_numpy(), dtype=np.float64)

    @cached_property
    def first_seen_day(self) -> NDArray[np.int32]:  # (A,) days since 1970-01-01 (UTC)
        """Return the days on which they were first spoken of."""
        return np.array([(row["first_seen"] - _EPOCH).days for row in self.rows], dtype=np.int32)

    def allowed(self, filters: Filters) -> NDArray[np.bool_]:  # (A,)
        """Return which of them the filters let through; nobody has bought one yet."""
        ids = [row["item_id"] for row in self.rows]
        allowed = np.ones(len(ids), dtype=bool)
        if filters.include_item_ids is not None:
            allowed &= np.isin(ids, filters.include_item_ids)
        if filters.exclude_item_ids:
            allowed &= ~np.isin(ids, filters.exclude_item_ids)
        if filters.categories is not None:
            allowed &= self.categories.mask(filters.categories)
        if filters.brands is not None:
            allowed &= self.brands.mask(filters.brands)
        if filters.store_ids is not None:
            allowed &= self.stores.mask(filters.store_ids)
        if filters.price_min is not None:
            allowed &= self.prices >= filters.price_min
        if filters.price_max is not None:
            allowed &= self.prices <= filters.price_max
        return allowed

    def offered(self, rules: RuleSettings) -> NDArray[np.bool_]:  # (A,)
        """Return which of them the shop's rules don't hide."""
        blocked = {plain_id(item_id) for item_id in rules.blocked_item_ids}
        is_blocked = np.array([plain_id(row["item_id"]) in blocked for row in self.rows], dtype=bool)
        return ~(is_blocked | self.categories.mask(rules.blocked_categories) | self.brands.mask(rules.blocked_brands))


@dataclass(frozen=True)
class Offer:
    """The catalogue as it is now."""

    bundle: Bundle  # with what was said of its items
    added: Added
    changed: pa.Table  # (U,) schema.ITEMS: items of the bundle of which something was said, then the added ones
    changed_idx: NDArray[np.int32]  # (U,) their numbers: of the bundle's, then V, V + 1, ...
    is_read_anew: NDArray[np.bool_]  # (U,) what search looks at isn't as the bundle has it

    @cached_property
    def added_index(self) -> dict[str, int]:
        """Return item_id -> number of the added items."""
        first = len(self.bundle.item_ids)
        return {row["item_id"]: first + place for place, row in enumerate(self.added.rows)}

    def __len__(self) -> int:
        """Return V + A."""
        return len(self.bundle.item_ids) + len(self.added)

    def find(self, item_id: str) -> int | None:
        """Return an item's number; None where there is no such item."""
        found = self.bundle.find(item_id)
        return find_item(self.added_index, item_id) if found is None else found

    def item_id(self, item: int) -> str:
        """Return an item's id."""
        first = len(self.bundle.item_ids)
        if item < first:
            return self.bundle.item_ids[item]
        found: str = self.added.rows[item - first]["item_id"]
        return found

    def shown(self, item: int) -> tuple[str | None, float | None, str | None]:
        """Return an item's title, price and currency."""
        first, bundle = len(self.bundle.item_ids), self.bundle
        if item < first:
            return bundle.titles[item], bundle.shown_prices[item], bundle.currencies[item]
        row = self.added.rows[item - first]
        return row["title"], row["price"], row["currency"]

    def row(self, item: int) -> dict[str, Any]:
        """Return all that the catalogue says of an item."""
        first = len(self.bundle.item_ids)
        if item >= first:
            return self.added.rows[item - first]
        place = np.flatnonzero(self.changed_idx == item)
        table, at = (self.changed, int(place[0])) if len(place) else (self.bundle.items, item)
        found: dict[str, Any] = table.slice(at, 1).to_pylist()[0]
        return found

    def about(self, item: int) -> str:
        """Return what is searched in of an item beside its title."""
        row = self.row(item)
        return " ".join(row[name] for name in ("category", "brand", "description") if row[name])

    @cached_property
    def prices(self) -> NDArray[np.float64]:  # (V + A,) NaN where there is none
        """Return the prices."""
        return np.concatenate([self.bundle.prices, self.added.prices])

    @cached_property
    def first_seen_day(self) -> NDArray[np.int32]:  # (V + A,) -1 where unknown
        """Return the days on which the catalogue first had the items."""
        return np.concatenate([self.bundle.first_seen_day, self.added.first_seen_day])

    @cached_property
    def popularity(self) -> NDArray[np.float32]:  # (V + A,)
        """Return how popular the items are in the whole shop; what nobody bought yet: 0."""
        known = self.bundle.tables.popularity_scores(None)
        return np.concatenate([known, np.zeros(len(self.added), np.float32)]).astype(np.float32)


def offer_of(bundle: Bundle, changes: Changes) -> Offer:
    """Return the catalogue of a bundle, as published, with what was said since."""
    known: dict[int, Change] = {}
    new: list[Change] = []
    for change in changes.values():
        item = bundle.find(change.item_id)
        if item is not None:
            known[item] = change
        elif change.fields.get("active", True):
            new.append(change)
    numbers = sorted(known)
    before = bundle.items.take(pa.array(numbers, pa.int64())).to_pylist() if numbers else []
    rows, kept, is_read_anew = [], [], []
    for item, old in zip(numbers, before, strict=True):
        if not _is_held(known[item], old, bundle):
            row = {**old, **known[item].fields}
            rows.append(row)
            kept.append(item)
            is_read_anew.append(any(row[name] != old[name] for name in _SEARCHED))
    added = [_new_row(change) for change in new]
    first = len(bundle.item_ids)
    return Offer(
        bundle=_changed(bundle, kept, rows),
        added=Added(pa.Table.from_pylist(added, schema=ITEMS)),
        changed=pa.Table.from_pylist([*rows, *added], schema=ITEMS),
        changed_idx=np.array([*kept, *range(first, first + len(added))], dtype=np.int32),
        is_read_anew=np.array([*is_read_anew, *[True] * len(added)], dtype=bool),
    )


def held(changes: Sequence[Change], bundle: Bundle) -> set[str]:
    """Return the ids of those changes that a bundle, as published, makes mean nothing."""
    items = [bundle.find(change.item_id) for change in changes]
    known = [place for place, item in enumerate(items) if item is not None]
    rows = bundle.items.take(pa.array([items[place] for place in known], pa.int64())).to_pylist()
    same = {
        changes[place].item_id for place, row in zip(known, rows, strict=True) if _is_held(changes[place], row, bundle)
    }
    gone = {
        change.item_id
        for change, item in zip(changes, items, strict=True)
        if item is None and not change.fields.get("active", True)
    }
    return same | gone


def _is_held(change: Change, row: dict[str, Any], bundle: Bundle) -> bool:
    known = row | {"active": row["active"] is not False}
    return to_us(bundle.snapshot_end) > change.put_us or all(
        known[name] == value for name, value in change.fields.items()
    )


def _new_row(change: Change) -> dict[str, Any]:
    first_seen = _EPOCH + timedelta(microseconds=change.put_us)
    own = {"item_id": change.item_id, "first_seen": first_seen, "active": True}
    return {**dict.fromkeys(ITEMS.names), **change.fields, **own}


def _changed(bundle: Bundle, numbers: Sequence[int], rows: Sequence[dict[str, Any]]) -> Bundle:
    """Return a bundle of which some items (item_idx) are as the rows say.

    What a bundle works out when it is loaded is taken over and changed in these places: a catalogue of a million
    items would take seconds to go over.
    """
    if not rows:
        return bundle
    other = copy.copy(bundle)
    columns = other.__dict__
    for name, column in (("titles", "title"), ("shown_prices", "price"), ("currencies", "currency")):
        values = list(getattr(bundle, name))
        for item, row in zip(numbers, rows, strict=True):
            values[item] = row[column]
        columns[name] = values
    prices, is_active = bundle.prices.copy(), bundle.is_active.copy()
    prices[list(numbers)] = [np.nan if row["price"] is None else row["price"] for row in rows]
    is_active[list(numbers)] = [row["active"] is not False for row in rows]
    columns |= {"prices": prices, "is_active": is_active}
    for name, column in (("category_codes", "category"), ("brand_codes", "brand"), ("store_codes", "store_id")):
        codes: Codes = getattr(bundle, name)
        columns[name] = codes.changed(numbers, [row[column] for row in rows], is_tree=column == "category")
    columns["top_category_code"] = other.category_codes.coarsest()
    columns.pop("price_level", None)
    _ = other.price_level
    return other
