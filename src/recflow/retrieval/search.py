"""A query that was understood -> the items that a shopper means, best first, and what speaks for each.

Below some ten thousand items every one is scored. In a larger catalogue the engine of `lexical` and the vectors of
`near` each deliver candidates, and the same code scores those. What was changed since the index was built stands on a
shelf of its own, which is always scored whole; what it replaces, or was withdrawn, is masked. So a change costs
milliseconds, no file is written, and whoever searches at that moment goes on with the index as it was.

Letters: V items, R items of a shelf, C candidates, N items found, T numbers of a text's vector.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recflow.errors import BundleInvalid
from recflow.models.weights import read_arrays
from recflow.retrieval.coverage import Asked, ask
from recflow.retrieval.lexical import Engine
from recflow.retrieval.near import Near
from recflow.retrieval.shelf import Candidates, Shelf
from recflow.retrieval.texts import Texts
from recflow.retrieval.understanding import Understood

EXACT_BELOW = 20_000  # items: fewer are scored whole
PARTS = ("words", "meaning", "taste", "popularity", "freshness")
_ARRAYS = "arrays.safetensors"
_SAVED = ("live", "popularity", "freshness", "ranking")
_ENGINE = "engine"
FRESH_DAYS = 30.0  # after which an item is half as fresh
_NEAR_BEST = 0.5  # share of the best coverage that an item needs to count as found by its words
_LEAST = 0.1  # coverage that it needs at least: function words alone have less
_ALIKE_ALONE = 0.45  # cosine that counts where no item has any of the words: of letters at random 3 % reach it

Floats = NDArray[np.float32]
Items = NDArray[np.int32]
Taste = Callable[[Items], NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Weights:
    """How much each part says; all parts lie in [0, 1]. A part of weight 0 finds nothing either."""

    words: float = 1.0
    meaning: float = 0.35
    taste: float = 0.5
    popularity: float = 0.15
    freshness: float = 0.02
    gate: float = 4.0  # power of an item's share of the best coverage, by which taste, popularity, freshness shrink
    precision: float = 0.1  # share of `words`: the title says little else
    order: float = 0.05  # share of `words`: it says so in the query's order
    alike: float = 0.3  # cosine from which an item that holds none of the words counts as found
    most_alike: int = 100  # of those

    def to_json(self) -> dict[str, float]:
        """Return the weights by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read weights by name; what isn't named is as in the code."""
        return replace(cls(), **content)


DEFAULT = Weights()


@dataclass(frozen=True)
class Found:
    """What was found, best first."""

    items: Items  # (N,)
    scores: Floats  # (N,)
    parts: dict[str, Floats]  # by name of PARTS, (N,) each; they sum to the score
    relaxed: tuple[str, ...]  # what was given up to find anything
    is_cut: bool  # there was more


@dataclass(frozen=True)
class SearchIndex:
    """The catalogue as it is searched. V items, those added since included."""

    base: Shelf
    changed: Shelf | None
    changes: pa.Table  # schema.ITEMS and item_idx: all that was said of items since, withdrawn ones included
    changed_vectors: Floats  # (U, T) of `changes`
    live: NDArray[np.bool_]  # (R,) rows of `base` that are neither withdrawn nor changed
    popularity: Floats  # (V,) in [0, 1]
    freshness: Floats  # (V,) in [0, 1]
    ranking: Items  # (R,) rows of `base`, the most popular first
    exact_below: int  # items: fewer are scored whole

    @classmethod
    def build(
        cls,
        items: pa.Table,
        vectors: Floats,
        *,
        popularity: NDArray[np.floating[Any]],
        first_seen_day: NDArray[np.integer[Any]],
        until_day: int,
        language: str = "en",
        exact_below: int = EXACT_BELOW,
    ) -> Self:
        """Index a catalogue; until it was saved and loaded, every item of a large one is scored, too.

        Args:
            items: schema.ITEMS in order of item_idx; what isn't active or has no text can't be found.
            vectors: (V, T) of the titles, of length 1 or all zeros.
            popularity: (V,) at any scale, not negative.
            first_seen_day: (V,) days since 1970; -1 where unknown.
            until_day: the last day of data.
            language: of the texts, two letters.
            exact_below: catalogues with fewer items are scored whole.
        """
        texts = Texts.of(items, language)
        age = np.where(first_seen_day < 0, np.inf, np.maximum(0, until_day - first_seen_day))
        level = (np.log1p(popularity) / max(float(np.log1p(popularity.max(initial=0))), 1e-9)).astype(np.float32)
        shelf = Shelf(np.arange(len(items), dtype=np.int32), texts, vectors).prepared()
        arrays = {
            "live": texts.has_words & _active(items),
            "popularity": level,
            "freshness": (0.5 ** (age / FRESH_DAYS)).astype(np.float32),
            "ranking": np.argsort(-level, kind="stable").astype(np.int32),
        }
        return cls.of(shelf, arrays, items, exact_below)

    @classmethod
    def of(cls, base: Shelf, arrays: Mapping[str, NDArray[Any]], items: pa.Table, exact_below: int) -> Self:
        """Put an index together of which nothing was changed yet."""
        changes = items.slice(0, 0).append_column("item_idx", pa.array([], pa.int32()))
        nothing = np.empty((0, base.vectors.shape[1]), np.float32)
        return cls(base, None, changes, nothing, exact_below=exact_below, **arrays)

    def __len__(self) -> int:
        """Return the number of items, withdrawn ones included."""
        return len(self.popularity)

    # -- search

    def search(
        self,
        understood: Understood,
        query_vector: Floats,  # (T,)
        *,
        limit: int,
        allowed: NDArray[np.bool_] | None = None,
        taste: Taste | None = None,
        weights: Weights = DEFAULT,
    ) -> Found:
        """Return what a shopper means, best first; never empty where any item is allowed.

        Equal scores stand by popularity, then in catalogue order.

        Args:
            understood: the query.
            query_vector: of `understood.meaning`, of length 1 or all zeros.
            limit: length of the list.
            allowed: items that may be found, as many as there are or as there were at first; None: all.
            taste: items (N,) -> how well they suit the shopper, at any scale; None: nothing is known.
            weights: of the parts.
        """
        candidates, asked = self._candidates(understood, query_vector, allowed)
        is_found, relaxed = _found(candidates, asked, weights)
        if not is_found.any():
            return self._best_sellers(allowed, limit)
        chosen = candidates[np.flatnonzero(is_found)]
        parts = self._parts(chosen, taste, weights)
        scores: Floats = np.stack([parts[name] for name in PARTS]).sum(axis=0)
        order = np.lexsort((chosen.items, -self.popularity[chosen.items], -scores))[:limit]
        return Found(
            items=chosen.items[order],
            scores=scores[order],
            parts={name: part[order] for name, part in parts.items()},
            relaxed=relaxed,
            is_cut=not chosen.is_all or len(scores) > limit,
        )

    def _candidates(
        self, understood: Understood, query_vector: Floats, allowed: NDArray[np.bool_] | None
    ) -> tuple[Candidates, Asked]:
        asked = ask(self.base.texts, understood.terms)
        base = self.base.candidates(asked, query_vector, self._mask(allowed), exact_below=self.exact_below)
        if self.changed is None:
            return base, asked
        own = replace(ask(self.changed.texts, understood.terms), weights=asked.weights)
        asked = replace(asked, is_known=own.is_known)
        mask = _allowed(allowed, self.changed.items)
        changed = self.changed.candidates(own, query_vector, mask, exact_below=self.exact_below)
        return Candidates.joined([base, changed]), asked

    def _parts(self, chosen: Candidates, taste: Taste | None, weights: Weights) -> dict[str, Floats]:
        """Return what each part adds to the scores."""
        held, items = chosen.held, chosen.items
        precise = weights.precision * held.precision + weights.order * held.order
        words = weights.words * held.coverage * (1 - weights.precision - weights.order + precise)
        meaning = weights.meaning * np.clip(chosen.alike, 0, 1)
        # A best-seller mustn't pass what holds more of the query; among those that hold as much, what sells is right.
        fit = held.coverage if held.coverage.any() else np.clip(chosen.alike, 0, 1)
        gate = (fit / max(float(fit.max(initial=0)), 1e-9)) ** weights.gate
        parts = {
            "words": words,
            "meaning": meaning,
            "taste": gate * weights.taste * (np.zeros(len(items)) if taste is None else _between(taste(items))),
            "popularity": gate * weights.popularity * self.popularity[items],
            "freshness": gate * weights.freshness * self.freshness[items],
        }
        return {name: part.astype(np.float32) for name, part in parts.items()}

    def _best_sellers(self, allowed: NDArray[np.bool_] | None, limit: int) -> Found:
        """Return the most popular of what may be found, where the query says nothing."""
        mask = self._mask(allowed)
        items = self.base.items[self.ranking[mask[self.ranking]][: limit + 1]]
        if self.changed is not None:
            items = np.concatenate([items, self.changed.items[_allowed(allowed, self.changed.items)]])
        items = items[np.lexsort((items, -self.popularity[items]))]
        scores = self.popularity[items[:limit]]
        parts = {name: np.zeros_like(scores) for name in PARTS} | {"popularity": scores}
        relaxed = ("Nothing matches; these are bought most.",) if len(items) else ()
        return Found(items[:limit], scores, parts, relaxed, len(items) > limit)

    def _mask(self, allowed: NDArray[np.bool_] | None) -> NDArray[np.bool_]:  # (R,)
        return self.live if allowed is None else self.live & allowed[: len(self.live)]

    # -- changes

    def updated(self, items: pa.Table, item_idx: Items, vectors: Floats) -> Self:
        """Return the index with items added, replaced or, where not active, withdrawn; this one stays as it is.

        Args:
            items: schema.ITEMS.
            item_idx: (U,) of these rows; those of new items go on where the catalogue ended.
            vectors: (U, T) of their titles.
        """
        stays = np.isin(self.changes["item_idx"].to_numpy(), item_idx, invert=True)
        changes = pa.concat_tables(
            [self.changes.filter(pa.array(stays)), items.append_column("item_idx", pa.array(item_idx, pa.int32()))]
        )
        every = np.concatenate([self.changed_vectors[stays], vectors])
        found = np.flatnonzero(_active(changes))
        shelf = Shelf(
            items=changes["item_idx"].to_numpy()[found],
            texts=Texts.of(changes.take(found), self.base.texts.language, around=self.base.texts),
            vectors=np.ascontiguousarray(every[found], np.float32),
        )
        live = self.live.copy()
        live[item_idx[item_idx < len(live)]] = False
        n_new = max(0, int(item_idx.max(initial=-1)) + 1 - len(self))
        return replace(
            self,
            changed=shelf.prepared(),
            changes=changes,
            changed_vectors=every,
            live=live,
            popularity=np.pad(self.popularity, (0, n_new)),
            freshness=np.pad(self.freshness, (0, n_new), constant_values=1),  # new today
        )

    # -- files

    def save(self, folder: Path) -> None:
        """Write the index as it was built into an existing folder; the vectors are kept by whoever made them."""
        from safetensors.numpy import save_file

        self.base.texts.save(folder)
        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in _SAVED}, folder / _ARRAYS)
        if len(self.base.items) >= self.exact_below:
            (folder / _ENGINE).mkdir()
            Engine.build(folder / _ENGINE, self.base.texts, self.ranking)
            Near.build(self.base.vectors, exact_below=self.exact_below).save(folder)

    @classmethod
    def load(cls, folder: Path, items: pa.Table, vectors: Floats, *, exact_below: int = EXACT_BELOW) -> Self:
        """Read back what `save` wrote, for the same items and vectors.

        Raises:
            BundleInvalid: a file is missing or damaged, or was made of other items.
        """
        try:
            texts, arrays = Texts.load(folder), read_arrays(folder / _ARRAYS)
            if {len(texts), len(items), len(vectors), *map(len, arrays.values())} != {len(items)}:
                raise ValueError(f"an index of {len(texts)} items for {len(items)}")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise BundleInvalid(f"Search index {folder}: {error}. Publish the model again.") from error
        shelf = Shelf(np.arange(len(texts), dtype=np.int32), texts, vectors).prepared()
        if (folder / _ENGINE).is_dir():
            near = Near.load(folder, exact_below=exact_below)
            shelf = replace(shelf, engine=Engine.open(folder / _ENGINE), near=near)
        return cls.of(shelf, arrays, items, exact_below)


def _active(items: pa.Table) -> NDArray[np.bool_]:
    """Return which items are sold: all that aren't said not to be."""
    return np.asarray(pc.fill_null(items["active"], True).to_numpy(zero_copy_only=False), bool)


def _allowed(allowed: NDArray[np.bool_] | None, items: Items) -> NDArray[np.bool_]:
    """Return which items a mask of the catalogue allows; those added after it was made are allowed."""
    if allowed is None:
        return np.ones(len(items), bool)
    return np.append(allowed, True)[np.minimum(items, len(allowed))]


def _found(candidates: Candidates, asked: Asked, weights: Weights) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Return which candidates count as found, and what was given up for them."""
    held = candidates.held
    least = max(_LEAST, _NEAR_BEST * float(held.coverage.max(initial=0)))
    by_words = (held.coverage >= least) & (weights.words > 0)
    floor = weights.alike if asked.is_known or not weights.words else max(weights.alike, _ALIKE_ALONE)
    alike = np.where(candidates.alike >= floor, candidates.alike, 0)
    if weights.most_alike < len(alike):
        alike[alike < np.partition(alike, -weights.most_alike)[-weights.most_alike]] = 0
    by_meaning = (alike > 0) & (weights.meaning > 0)
    if not weights.words or held.n_terms.max(initial=0) == asked.says.sum():
        relaxed: tuple[str, ...] = ()
    elif by_words.any():
        relaxed = ("No item has all of these words; the nearest have some of them, or mean much the same.",)
    else:
        relaxed = ("No item has any of these words; these mean much the same.",)
    return by_words | by_meaning, relaxed


def _between(values: NDArray[np.floating[Any]]) -> Floats:
    """Return where values lie between the least and the greatest, 0 to 1: the size of the gaps says a lot."""
    values = np.nan_to_num(np.asarray(values, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    least = values.min(initial=np.inf)
    return np.asarray((values - least) / max(float(values.max(initial=-np.inf)) - float(least), 1e-9), np.float32)
