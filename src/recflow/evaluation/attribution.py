"""Where a candidate's scores come from, over the hold-out's shoppers: by age of the event, and for single shoppers.

A share is a part of an item's score against the sum of all its parts' sizes, so that items and shoppers compare: the
sizes of an item's shares add up to 1. Parts are what `Ranking.attribute` says, with the weights that never saw the
hold-out.

Letters: S shoppers drawn, K items of a list, L events of a history, C columns.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recflow.evaluation.holdout import Holdout
from recflow.models.features import Encoders
from recflow.models.interactions import Context, Ranker
from recflow.settings import EvaluationSettings

_SHOPPERS = 200  # drawn for the means: a mean share's standard error stays below 0.04, whatever the shares are
_AT_ONCE = 100  # shoppers whose parts are held: 160 MB of float32 for lists of 10 over 400 events, with copies
_K = 10
_BANDS_DAYS: Final = (7, 30, 90, 180)  # ages at which the next band begins
_BANDS: Final = ("to 1 week", "to 30 days", "to 90 days", "to 180 days", "older")
_EVENTS_SHOWN = 14  # of one shopper: columns that can still be read
_TITLE = 28  # characters

COLUMNS: Final = (
    *(f"same item, {band}" for band in _BANDS),
    *(f"other items, {band}" for band in _BANDS),
    "rest",
)


@dataclass(frozen=True)
class Example:
    """One shopper's list and what it came from; nothing in it says who the shopper is."""

    items: list[str]  # (K,) titles, best first
    columns: list[str]  # (C,) events by time, oldest first, all other events together, the rest
    shares: NDArray[np.float32]  # (K, C) from -1 to 1


class _Parts(NamedTuple):
    """Lists of some shoppers, and shares of their scores."""

    context: Context
    items: NDArray[np.int32]  # (S, K) -1 where a list ends early
    events: NDArray[np.float32]  # (S, K, L)
    rest: NDArray[np.float32]  # (S, K)


def measure_attribution(
    ranker: Ranker,
    shown: NDArray[np.int32],  # (B, >= K) the lists that it makes for the hold-out's shoppers
    holdout: Holdout,
    encoders: Encoders,
    settings: EvaluationSettings,
) -> tuple[dict[str, Any], list[Example]]:
    """Return mean shares of scores by group of shoppers and items, and single shoppers' lists taken apart.

    Shoppers without a history are left out: all of their scores is rest. Single shoppers are picked by the length of
    their histories, from short to long.
    """
    known = np.flatnonzero(holdout.has_history)
    drawn = np.random.default_rng(settings.seed).permutation(known)[:_SHOPPERS]
    drawn.sort()
    training = holdout.training
    features = training.encoded_items(training.holdout_start, encoders)
    parts = []
    for first in range(0, len(drawn), _AT_ONCE):
        shoppers = drawn[first : first + _AT_ONCE]
        context = training.context(holdout.rows[shoppers], encoders, item_features=features)
        parts.append(_take_apart(ranker, context, shown[shoppers, :_K]))
    means = _means(parts, holdout, drawn)
    titles = [title or "untitled" for title in training.items["title"].to_pylist()]
    picked = _spread(parts, settings.example_shoppers)
    examples = [_example(parts[at // _AT_ONCE], at % _AT_ONCE, titles) for at in picked]
    return {"shoppers": len(drawn), "columns": list(COLUMNS), "rows": means}, examples


def _take_apart(ranker: Ranker, context: Context, items: NDArray[np.int32]) -> _Parts:
    found = ranker.rank(context).attribute(items)
    sizes = np.abs(found.events).sum(axis=2) + np.abs(found.rest)
    sizes = np.maximum(sizes, np.finfo(np.float32).tiny)
    return _Parts(context, items, found.events / sizes[..., None], found.rest / sizes)


# -- means


def _means(parts: list[_Parts], holdout: Holdout, drawn: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return a row a group: how many listed items it has, and the mean size of each column's shares."""
    shares = np.concatenate([_by_column(part) for part in parts])  # (S, K, C)
    items = np.concatenate([part.items for part in parts])  # (S, K)
    is_own = holdout.bought[drawn[:, None], np.maximum(items, 0)]
    groups = {"all": np.ones(len(drawn), bool)}
    groups |= {name: holdout.slices[f"{name}_users"].users[drawn] for name in ("light", "heavy")}
    rows = []
    for name, shoppers in groups.items():
        for kind, is_kind in (("bought before", is_own), ("new", ~is_own)):
            counted = (items >= 0) & is_kind & shoppers[:, None]
            if counted.any():
                mean = shares[counted].mean(axis=0).tolist()
                rows.append({"group": f"{name} shoppers, {kind}", "items": int(counted.sum()), "shares": mean})
    return rows


def _by_column(parts: _Parts) -> NDArray[np.float64]:  # (S, K, C)
    """Add the sizes of shares up by the event's age, and by whether the event is with the item itself."""
    context, (n_shoppers, n_items) = parts.context, parts.items.shape
    band = np.searchsorted(_BANDS_DAYS, context.ages_days, side="left")  # (S, L)
    is_other = context.items[:, None] != parts.items[..., None] + 1  # (S, K, L)
    column = band[:, None] + len(_BANDS) * is_other
    row = np.arange(n_shoppers * n_items).reshape(n_shoppers, n_items, 1)
    cell = row * len(COLUMNS) + column
    sums = np.bincount(cell.ravel(), np.abs(parts.events).ravel(), n_shoppers * n_items * len(COLUMNS))
    shares = np.asarray(sums, np.float64).reshape(n_shoppers, n_items, len(COLUMNS))
    shares[..., -1] = np.abs(parts.rest)
    return shares


# -- single shoppers


def _spread(parts: list[_Parts], n: int) -> list[int]:
    """Return numbers of n shoppers, or of all where there are fewer, evenly from short to long histories."""
    lengths = np.concatenate([(part.context.items > 0).sum(axis=1) for part in parts])
    order = np.argsort(lengths, kind="stable")
    places = (2 * np.arange(n) + 1) * len(order) // max(2 * n, 1)
    return list(dict.fromkeys(order[places].tolist()))


def _example(parts: _Parts, row: int, titles: list[str]) -> Example:
    """Show the events that weigh most in a list, in order of time, the others together, and the rest."""
    items, context = parts.items[row][parts.items[row] >= 0], parts.context
    events, rest = parts.events[row, : len(items)], parts.rest[row, : len(items)]
    past = np.flatnonzero(context.items[row])
    weight = np.abs(events).sum(axis=0)
    own = np.sort(past[np.argsort(-weight[past], kind="stable")[:_EVENTS_SHOWN]])  # the newest is in the last column
    others = events.sum(axis=1) - events[:, own].sum(axis=1)
    labels = [
        f"{titles[item][:_TITLE]}, {int(age)} d"
        for item, age in zip((context.items[row, own] - 1).tolist(), context.ages_days[row, own].tolist(), strict=True)
    ]
    return Example(
        items=[titles[item][:_TITLE] for item in items.tolist()],
        columns=[*labels, f"{len(past) - len(own)} other events", "rest"],
        shares=np.column_stack([events[:, own], others, rest]).astype(np.float32),
    )
