"""A bundle's folder -> what answers. `make_bundle` makes it.

    bundles/<until>/
        bundle.json               what it is and comes from, every other file's hash, a probe with its answers
        items.parquet             the catalogue in order of item_idx
        model/release/            weights fitted through `until`: what serves
        model/holdout/            weights that never saw the hold-out: what a later champion's test may need
        encoder.json              raw features -> the model's inputs
        item_features.safetensors (V, G) encoded, as of the end of `until`
        tables.safetensors        counts of customers, orders and days, see `tables`
        vectors.safetensors       (V, D) titles as vectors
        cold.safetensors          what speaks for new items, see `models.cold_items`; only where there is enough to say
        index/                    what finds candidates, see `retrieval.dense`; only of a catalogue that is large enough
        search/                   what finds items by words, see `search.part`

No file is executed when it is read: JSON, Parquet, safetensors.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recflow.errors import BundleInvalid, RecflowError
from recflow.models.attribution import Factored
from recflow.models.catalog import load_ranker
from recflow.models.cold_items import ColdItems
from recflow.models.features import Encoders
from recflow.models.interactions import Ranker
from recflow.models.weights import read_arrays, release_pages
from recflow.retrieval.dense import Index, load_index
from recflow.schema import day_end
from recflow.serving.catalogue import Codes, came_since, find_item, first_seen_days, price_levels
from recflow.serving.probe import check_probe
from recflow.serving.search.part import SearchPart
from recflow.serving.tables import Tables

FORMAT_VERSION = 2
FACTS_FILE = "bundle.json"


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: everything an answer needs besides the shopper's own row. V items."""

    folder: Path
    facts: dict[str, Any]
    items: pa.Table  # (V,) schema.ITEMS in order of item_idx
    ranker: Ranker
    encoders: Encoders
    item_features: NDArray[np.float32]  # (V, G) encoded
    tables: Tables
    vectors: NDArray[np.float32]  # (V, D) of length 1; zeros without a title
    cold: ColdItems | None = None  # None: new items are told by their titles alone
    index: Index | None = None  # None: every item is scored for every request
    search: SearchPart | None = None  # None: the bundle was made without

    @property
    def until(self) -> date:
        """Return the last day of data."""
        return date.fromisoformat(self.facts["until"])

    @property
    def snapshot_end(self) -> datetime:
        """Return the first moment after the data."""
        return day_end(self.until)

    @property
    def history_length(self) -> int:
        """Return how many events of a shopper the model looks at."""
        return int(self.facts["history_length"])

    @cached_property
    def user_features(self) -> frozenset[str]:
        """Return the raw features of a user that the model was trained with."""
        return frozenset(self.facts["user_features"])

    # -- the catalogue, in order of item_idx

    @cached_property
    def item_ids(self) -> list[str]:
        """Return the items."""
        ids: list[str] = self.items["item_id"].to_pylist()
        return ids

    @cached_property
    def item_index(self) -> dict[str, int]:
        """Return item_id -> item_idx."""
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    def find(self, item_id: str) -> int | None:
        """Return item_idx, None where the catalogue has no such item, see `catalogue.find_item`."""
        return find_item(self.item_index, item_id)

    @cached_property
    def titles(self) -> list[str | None]:
        """Return the titles."""
        titles: list[str | None] = self.items["title"].to_pylist()
        return titles

    @cached_property
    def prices(self) -> NDArray[np.float64]:  # (V,) NaN where there is none
        """Return the prices in each item's currency."""
        return np.asarray(self.items["price"].to_numpy(), dtype=np.float64)

    @cached_property
    def shown_prices(self) -> list[float | None]:
        """Return the prices as an answer gives them."""
        prices: list[float | None] = self.items["price"].to_pylist()
        return prices

    @cached_property
    def currencies(self) -> list[str | None]:
        """Return the currencies."""
        codes = Codes.of(self.items["currency"])
        names = (*codes.names, None)  # -1: none
        return [names[code] for code in codes.of_item.tolist()]

    @cached_property
    def is_active(self) -> NDArray[np.bool_]:  # (V,)
        """Return which items the catalogue offers; unknown counts as offered."""
        return np.asarray(pc.fill_null(self.items["active"], True).to_numpy(), bool)

    @cached_property
    def price_level(self) -> NDArray[np.int8]:  # (V,) 0 cheapest to 4; -1 where the price is unknown
        """Return the fifth of its category's prices that an item is in, see `catalogue.price_levels`."""
        return price_levels(self.prices, Codes.of(self.items["currency"]).of_item, self.top_category_code)

    @cached_property
    def first_seen_day(self) -> NDArray[np.int32]:  # (V,) days since 1970-01-01 (UTC); -1 where unknown
        """Return the day on which the catalogue first had the item."""
        return first_seen_days(self.items["first_seen"])

    def first_seen_lately(self, days: int) -> NDArray[np.bool_]:  # (V,)
        """Return which items came in the last `days` of data."""
        return came_since(self.first_seen_day, self.until, days)

    def is_new(self, days: int) -> NDArray[np.bool_]:  # (V,)
        """Return which items the model can't know well: without any event, or first seen in the last `days` of data."""
        return np.asarray((self.tables.events == 0) | self.first_seen_lately(days), bool)

    @cached_property
    def category_codes(self) -> Codes:
        """Return the categories as codes: what is below one has codes within its range."""
        return Codes.of_tree(self.items["category"])

    @cached_property
    def brand_codes(self) -> Codes:
        """Return the brands as codes."""
        return Codes.of(self.items["brand"])

    @cached_property
    def store_codes(self) -> Codes:
        """Return the stores as codes."""
        return Codes.of(self.items["store_id"])

    @property
    def has_categories(self) -> bool:
        """Return whether any item has a category."""
        return bool(self.category_codes.names)

    @cached_property
    def top_category_code(self) -> NDArray[np.int32]:  # (V,) -1 where there is none
        """Return the code of each item's coarsest category."""
        return self.category_codes.coarsest()

    def in_categories(self, names: Iterable[str]) -> NDArray[np.bool_]:  # (V,)
        """Return which items are in one of the categories or in one below it."""
        return self.category_codes.mask(names)

    def of_brands(self, names: Iterable[str]) -> NDArray[np.bool_]:  # (V,)
        """Return which items are of one of the brands."""
        return self.brand_codes.mask(names)

    def of_stores(self, store_ids: Iterable[str]) -> NDArray[np.bool_]:  # (V,)
        """Return which items are sold by one of the stores."""
        return self.store_codes.mask(store_ids)


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle, check every file against its hash, and have the model answer the recorded probe.

    Raises:
        BundleInvalid: a file is missing, added or altered, the format is unknown, or an answer isn't as recorded.
    """
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        found_version = facts["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleInvalid(f"Bundle {folder}: expected a {FACTS_FILE}, found {error!r}. Publish it again.") from error
    if found_version != FORMAT_VERSION:
        raise BundleInvalid(
            f"Bundle {folder}: expected format version {FORMAT_VERSION}, found {found_version!r}. Publish it again, or "
            f"serve it with the recflow that wrote it ({facts.get('code_version', 'unknown')})."
        )
    try:
        _check_files(folder, facts["files"])
        bundle = read_bundle(folder, facts)
        check_probe(bundle)
        _prepare(bundle)
    except RecflowError:
        raise
    except Exception as error:  # broken files are met in ways that can't be listed
        raise BundleInvalid(
            f"Bundle {folder}: expected one that loads and answers its probe, found {type(error).__name__}: {error}. "
            "Publish it again."
        ) from error
    return bundle


def _check_files(folder: Path, expected: dict[str, str]) -> None:
    found = hash_files(folder)
    wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if wrong:
        raise BundleInvalid(
            f"Bundle {folder}: expected the files as published, found {', '.join(wrong)} missing, added or altered. "
            "Publish it again."
        )


def _prepare(bundle: Bundle) -> None:
    """Compute what is computed on first use, for no answer shall wait for it; let go of what no answer needs."""
    for name, member in vars(Bundle).items():
        if isinstance(member, cached_property):
            getattr(bundle, name)
    if bundle.cold is not None:
        _ = bundle.cold.table
    release_pages()


# -- what making and reading share


def read_bundle(folder: Path, facts: dict[str, Any]) -> Bundle:
    """Read a folder as its facts say, without a check."""
    ranker, item_features, index = load_ranker(folder / "model" / "release"), load_item_features(folder), None
    if "index" in facts and isinstance(ranker, Factored):
        vectors = ranker.item_vectors(item_features)
        index = load_index(folder / "index", vectors, exact_below=facts["index"]["exact_below"])
    items = pq.ParquetFile(folder / "items.parquet").read()  # read_table imports datasets first: half a second
    titles, search = read_arrays(folder / "vectors.safetensors")["vectors"], folder / "search"
    cold = folder / "cold.safetensors"
    return Bundle(
        folder=folder,
        facts=facts,
        items=items,
        ranker=ranker,
        encoders=Encoders.load(folder / "encoder.json"),
        item_features=item_features,
        tables=Tables.load(folder / "tables.safetensors", facts["tables"]),
        vectors=titles,
        cold=ColdItems.from_arrays(read_arrays(cold), n_items=len(items)) if cold.is_file() else None,
        index=index,
        search=SearchPart.load(search, items, titles) if search.is_dir() else None,
    )


def load_item_features(folder: Path) -> NDArray[np.float32]:  # (V, G)
    """Read the catalogue's encoded features."""
    features: NDArray[np.float32] = read_arrays(folder / "item_features.safetensors")["item_features"]
    return features


def hash_files(folder: Path) -> dict[str, str]:
    """Hash every file but the two that describe the others."""
    return {
        path.relative_to(folder).as_posix(): _hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in (FACTS_FILE, "manifest.json")
    }


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
