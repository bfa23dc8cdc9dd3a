"""Contexts and a retrieval model's scores -> what the engagement stage reads of pairs of a shopper and an item.

Training and serving both come here, with a `Context` and scores alone, so that both see the same.

Letters as in `interactions`; P pairs, N best items of the retrieval.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recflow.models.interactions import PREFERENCE, Context

# What is said of a pair beside the shopper's and the item's own features.
PAIR_INPUTS: Final = (
    "is_scored",  # whether the retrieval's view of the pair is known; the next two are 0 where it isn't
    "score",  # of the retrieval: 1 its best item's, 0 that of the last one that is put in order
    "rank",  # logarithm of it: 0 the first, 1 the last that is put in order
    "is_own",  # whether the item is in the history
    "events",  # of the history, logarithm
    "brand",  # how often the history has the brand, against how often the catalogue has it, logarithm
    "category",  # the same of the finest category
    "price",  # logarithm of the item's price against the category's mean
    "price_ratio",  # the same less the mean over the history: what this shopper takes for its kind
)
_LEAST_SCORE: Final = -3.0  # further below the last one is as far as can be
_SMOOTHING: Final = 2.0  # events as the catalogue has them, that a history is taken to begin with


class Retrieved(NamedTuple):
    """Pairs, and where a retrieval model has them among the shopper's items."""

    shopper: NDArray[np.int64]  # (P,) row of the context
    item: NDArray[np.int64]  # (P,) item_idx
    score: NDArray[np.float32]  # (P,)
    best: NDArray[np.float32]  # (B,) each shopper's first score
    last: NDArray[np.float32]  # (B,) its N-th
    rank: NDArray[np.int64]  # (P,) 1-based
    depth: int  # N

    @classmethod
    def unknown(cls, shopper: NDArray[np.int64], item: NDArray[np.int64]) -> Self:
        """Take pairs of which there are no scores."""
        nothing = np.zeros(int(shopper.max(initial=-1)) + 1, np.float32)
        return cls(shopper, item, np.full(len(shopper), np.nan, np.float32), nothing, nothing, np.ones_like(item), 2)

    @classmethod
    def of(
        cls, scores: NDArray[np.float32], shopper: NDArray[np.int64], item: NDArray[np.int64], *, depth: int
    ) -> Self:
        """Look pairs up in the scores (B, V) of whole catalogues."""
        depth = min(depth, scores.shape[1])
        order = np.argsort(-scores, axis=1, kind="stable")  # (B, V) equal scores in catalogue order, as in a list
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(1, scores.shape[1] + 1)[None], axis=1)
        ends = np.take_along_axis(scores, order[:, [0, depth - 1]], axis=1)  # (B, 2)
        return cls(shopper, item, scores[shopper, item], ends[:, 0], ends[:, 1], ranks[shopper, item], depth)


@dataclass(frozen=True)
class Shelf:
    """The catalogue as the stage looks at it. Codes are below the number of their kind; 0: the item has none."""

    brand: NDArray[np.int32]  # (V,)
    category: NDArray[np.int32]  # (V,)
    price: NDArray[np.float32]  # (V,) logarithm, less the mean of the category; 0 where there is none

    @classmethod
    def of(cls, items: pa.Table) -> Self:
        """Read a catalogue in order of item_idx."""
        category = _codes(items["category"])
        price = np.log(np.maximum(items["price"].to_numpy().astype(np.float64), 0.01))  # null: NaN
        is_known = np.isfinite(price)
        counts = np.bincount(category[is_known], minlength=category.max(initial=0) + 1)
        means = np.bincount(category[is_known], price[is_known], minlength=len(counts)) / np.maximum(counts, 1)
        return cls(
            brand=_codes(items["brand"]),
            category=category,
            price=np.where(is_known, price - means[category], 0).astype(np.float32),
        )


def pair_inputs(context: Context, retrieved: Retrieved, shelf: Shelf) -> NDArray[np.float32]:  # (P, C)
    """Return PAIR_INPUTS, then the shopper's features, then the item's; all about -3 to 3."""
    shopper, item = retrieved.shopper, retrieved.item
    events = context.items > 0
    weights = PREFERENCE[context.event_types] * events  # (B, L)
    owner, column = np.nonzero(weights)
    of_event, weight = context.items[owner, column] - 1, weights[owner, column]
    total = np.bincount(owner, weight, minlength=len(context)).astype(np.float64)  # (B,)
    mean_price = np.bincount(owner, weight * shelf.price[of_event], minlength=len(context)) / (total + _SMOOTHING)
    n_items = len(shelf.price)
    own = np.isin(shopper * n_items + item, owner * n_items + of_event)
    span = np.maximum(retrieved.best - retrieved.last, np.finfo(np.float32).tiny)[shopper]
    score = (retrieved.score - retrieved.last[shopper]) / span
    columns: dict[str, NDArray[Any]] = {
        "is_scored": ~np.isnan(score),
        "score": np.nan_to_num(np.clip(score, _LEAST_SCORE, 1)),
        "rank": np.log(retrieved.rank) / np.log(max(retrieved.depth, 2)),
        "is_own": own,
        "events": np.log1p(events.sum(axis=1))[shopper] / 2,
        "price": shelf.price[item],
        "price_ratio": shelf.price[item] - mean_price[shopper],
    }
    for name, codes in (("brand", shelf.brand), ("category", shelf.category)):
        columns[name] = _liking(codes, shopper, item, of_event=of_event, owner=owner, weight=weight, total=total)
    pairs = np.stack([np.asarray(columns[name], np.float32) for name in PAIR_INPUTS], axis=1)
    return np.concatenate([pairs, context.user_features[shopper], context.item_features[item]], axis=1)


def _liking(
    codes: NDArray[np.int32],  # (V,)
    shopper: NDArray[np.int64],  # (P,)
    item: NDArray[np.int64],  # (P,)
    *,
    of_event: NDArray[np.integer],  # (N,) item_idx
    owner: NDArray[np.int64],  # (N,) row of the context
    weight: NDArray[np.float32],  # (N,)
    total: NDArray[np.floating],  # (B,)
) -> NDArray[np.floating]:  # (P,)
    """Return the log of the share of a shopper's events with the item's code, over the catalogue's share of it."""
    n_codes = int(codes.max(initial=0)) + 1
    usual = np.bincount(codes, minlength=n_codes) / max(len(codes), 1)
    counted = np.bincount(owner * n_codes + codes[of_event], weight, minlength=len(total) * n_codes)
    code = codes[item]
    share = (counted[shopper * n_codes + code] + _SMOOTHING * usual[code]) / (total[shopper] + _SMOOTHING)
    liking: NDArray[np.floating] = np.log(share / np.maximum(usual[code], 1e-9)) * (code > 0)
    return liking


def _codes(column: pa.ChunkedArray) -> NDArray[np.int32]:
    """Return each text as a number from 1; 0 for null."""
    names = pc.unique(column.drop_null()).sort()
    codes: NDArray[np.int32] = pc.fill_null(pc.index_in(column, names), -1).to_numpy().astype(np.int32) + 1
    return codes
