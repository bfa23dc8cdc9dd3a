"""Items taken out of all that is learned from -> how well content alone ranks them, against the nearest by content.

Of a shop's days (Online Retail's form), at each cut-off:

- `withheld`: a fifth of the items, drawn at random, is taken out of all histories before the cut-off, then ranked
  among each other for the shoppers who bought any of them after it;
- `launched`: those first sold after the cut-off are ranked among each other; few, but what it is about.

Task *new* leaves out what a shopper had bought before, as nobody has bought what is new; *any* leaves it in. Of a
file of sequences (`bench sequences`) a fifth of the items is taken out of what is learned from, and ranked for the
users whose validation item is one of them; the test items are left alone.

The yardsticks are nearest neighbours by content, by words (TF-IDF) or vectors of titles: the mean over a shopper's
history, faded by 60 days where there are times, or the greatest. `cold` is held against the best of them, picked on
the shoppers that are judged, which is kind to the yardstick.

Letters as in `models.cold_items`; B shoppers, N of all tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recflow.bench.retail import clustered_mean, prepared
from recflow.errors import FeedError
from recflow.evaluation.holdout import Holdout, open_holdout
from recflow.metrics import Relevant, ndcg_at_k
from recflow.models.cold_items import ColdItems, ItemContent, most_wanted, weighed, what_items_say
from recflow.models.dataset import TrainingSet
from recflow.models.histories import SequenceFile
from recflow.models.interactions import PREFERENCE, Interactions, top_k
from recflow.models.linear import EASE, preference_matrix
from recflow.models.text import title_vectors
from recflow.settings import Settings
from recflow.storage import write_json

COLD = "cold"
_K = 10
_SHARE = 5  # one item of so many is withheld
_HALF_LIFE_DAYS = 60.0  # as where new arrivals are served
_AT_ONCE = 128  # histories whose items' likeness is held
_DAY = np.timedelta64(1, "D")

Scores = dict[str, NDArray[np.float32]]  # by scorer: (B, C)


@dataclass(frozen=True)
class Judged:
    """NDCG@10 of one test's shoppers."""

    test: str
    user_ids: NDArray[Any]  # (B,)
    ndcg: dict[str, dict[str, NDArray[np.float64]]]  # by scorer and task: (B,), NaN where nothing was wanted


def bench_cold(
    data: Path,
    cutoffs: Sequence[date],
    settings: Settings,
    *,
    attributes: Path | None = None,
    json_path: Path | None = None,
) -> dict[str, Any]:
    """Withhold items and return what content makes of them: figures, lead over the yardstick, the full list.

    Args:
        data: folder of daily files in Online Retail's form, or a file of sequences.
        cutoffs: first held-out days; of a folder.
        settings: the training and evaluation in force; their home gets the folder's days, see `bench retail`.
        attributes: JSON object of item ids and lists of attribute ids; of a file.
        json_path: where to write the same as JSON.

    Raises:
        FeedError: days without a cut-off, or sequences without attributes.
    """
    parts: list[Judged]
    full: list[dict[str, Any]] = []
    if data.is_file():
        if attributes is None:
            raise FeedError(f"{data} has sequences: what is new is known by attributes alone. Add --attributes FILE.")
        parts = [_of_sequences(data, attributes, settings)]
    else:
        if not cutoffs:
            raise FeedError(f"{data} has days: say from which on they are held out. Add --cutoffs D1,D2.")
        parts, full = _of_days(data, sorted(set(cutoffs), reverse=True), settings)
    report = {"data": str(data), "seed": settings.training.seed, **summarize(parts), "full_list": full}
    if json_path:
        write_json(json_path, report)
    return report


def summarize(parts: Sequence[Judged]) -> dict[str, Any]:
    """Return every scorer's mean for each test and task, and what `cold` adds to the best yardstick."""
    figures, leads = [], []
    for test in dict.fromkeys(part.test for part in parts):
        own = [part for part in parts if part.test == test]
        users = np.concatenate([part.user_ids for part in own])
        for task in own[0].ndcg[COLD]:
            values = {name: np.concatenate([part.ndcg[name][task] for part in own]) for name in own[0].ndcg}
            counted = ~np.isnan(values[COLD])
            means = {name: float(of[counted].mean()) if counted.any() else 0.0 for name, of in values.items()}
            figures += [{"test": test, "task": task, "scorer": name, "ndcg": round(means[name], 4)} for name in means]
            best = max((name for name in means if name.startswith("nearest")), key=means.__getitem__)
            lead, error = clustered_mean((values[COLD] - values[best])[counted], users[counted])
            leads.append(
                {
                    "test": test,
                    "task": task,
                    "users": int(counted.sum()),
                    "against": best,
                    "ratio": round(means[COLD] / means[best], 3) if means[best] else None,
                    "difference": round(lead, 4),
                    "standard_error": round(error, 4),
                }
            )
    return {"figures": figures, "leads": leads}


# -- days


def _of_days(data: Path, cutoffs: Sequence[date], settings: Settings) -> tuple[list[Judged], list[dict[str, Any]]]:
    from recflow.training.training_set import build_training_set

    window = timedelta(days=settings.training.holdout_days - 1)
    own = prepared(data, cutoffs[0] + window, settings)
    parts, full = [], []
    for cutoff in cutoffs:
        training = TrainingSet.open(Path(build_training_set(cutoff + window, own).uri))
        holdout = open_holdout(training, own.evaluation)
        before = training.interactions(training.holdout_start)
        content = _content(training, settings)
        sold = np.unique(before.item_idx)
        drawn = np.random.default_rng([settings.training.seed, cutoff.toordinal()]).permutation(sold)
        withheld = np.sort(drawn[: len(sold) // _SHARE])
        parts.append(_test("withheld", withheld, before, holdout, content, settings))
        full.append({"cutoff": str(cutoff), **_full_list(withheld, before, holdout, content, settings)})
        launched = np.setdiff1d(np.flatnonzero(holdout.wanted.any(axis=0)), sold)
        if len(launched) > 1:
            parts.append(_test("launched", launched, before, holdout, content, settings))
    return parts, full


def _content(training: TrainingSet, settings: Settings) -> ItemContent:
    """Return what is known of items; the price is the mean before the hold-out, of what is launched later the first."""
    events, price = training.interactions(), training.event_prices
    order = np.argsort(events.timestamp, kind="stable")
    order = order[np.isfinite(price[order])]
    items, first = np.unique(events.item_idx[order], return_index=True)
    prices = np.full(events.n_items, np.nan)
    prices[items] = price[order[first]]
    early = order[events.timestamp[order] < np.datetime64(training.holdout_start, "us")]
    total, times = (
        np.bincount(events.item_idx[early], weights, minlength=events.n_items) for weights in (price[early], None)
    )
    prices[times > 0] = (total / np.maximum(times, 1))[times > 0]
    titles = training.items["title"].to_pylist()
    return ItemContent.of(titles, title_vectors(titles, encoder=settings.training.text_encoder), prices)


def _test(
    test: str,
    cold: NDArray[np.integer[Any]],  # (C,)
    before: Interactions,
    holdout: Holdout,
    content: ItemContent,
    settings: Settings,
) -> Judged:
    """Rank cold items among each other for the hold-out's shoppers who took any other one before."""
    users = holdout.training.examples.user_idx[holdout.rows]
    kept = before.without_items(cold)
    scores, has_any = _scores(kept, users, content, cold, settings), np.isin(users, kept.user_idx)
    wanted, bought = holdout.wanted[:, cold] & has_any[:, None], holdout.bought[:, cold]
    ndcg = {
        name: {
            "any": _ndcg(of, wanted, np.zeros_like(bought)),
            "new": _ndcg(of, wanted & ~bought, bought),
        }
        for name, of in scores.items()
    }
    return Judged(test, users.astype(str), ndcg)


def _scores(
    kept: Interactions,
    users: NDArray[np.int32],  # (B,)
    content: ItemContent,
    cold: NDArray[np.integer[Any]],
    settings: Settings,
) -> Scores:
    taste, everything = tastes(kept)[users], preference_matrix(kept)[users]
    training = settings.training
    learned = ColdItems.learn(
        kept,
        content,
        cold,
        regularization=training.ease_regularization,
        max_items=training.ease_max_items,
        min_support=training.min_support,
    )
    scores = _nearest(taste, everything, content, cold)
    scores[COLD] = np.zeros_like(scores["nearest_words_mean"]) if learned is None else learned.score(taste)
    return scores


def tastes(known: Interactions) -> sparse.csr_matrix:  # (U, V)
    """Return what each user wanted, added up, half as much after 60 days: what new arrivals are served by."""
    ages = (known.until - known.timestamp) / _DAY
    weights = PREFERENCE[known.event_type] * np.exp2(-ages / _HALF_LIFE_DAYS)
    cells = (weights.astype(np.float32), (known.user_idx, known.item_idx))
    return sparse.csr_matrix(cells, shape=(known.n_users, known.n_items))


def _nearest(
    taste: sparse.csr_matrix,  # (B, V)
    everything: sparse.csr_matrix,  # (B, V)
    content: ItemContent,
    cold: NDArray[np.integer[Any]],
) -> Scores:
    words = np.asarray((content.words @ content.words[cold].T).todense(), np.float32)  # (V, C)
    likeness = {"words": words}
    if content.titles.shape[1]:
        likeness["vectors"] = content.titles @ content.titles[cold].T
    scores = {}
    for name, cosines in likeness.items():
        scores[f"nearest_{name}_mean"] = np.asarray(taste @ cosines, np.float32)
        scores[f"nearest_{name}_max"] = _greatest(everything, cosines)
    return scores


def _greatest(taken: sparse.csr_matrix, cosines: NDArray[np.float32]) -> NDArray[np.float32]:  # (B, V), (V, C)
    """Return how alike each new item is to the item of each history that it is most like; (B, C)."""
    greatest = np.zeros((taken.shape[0], cosines.shape[1]), np.float32)
    for first in range(0, taken.shape[0], _AT_ONCE):
        part = taken[first : first + _AT_ONCE]
        filled = np.flatnonzero(np.diff(part.indptr))
        if len(filled):
            greatest[first + filled] = np.maximum.reduceat(cosines[part.indices], part.indptr[filled], axis=0)
    return greatest


def _ndcg(
    scores: NDArray[np.float32], wanted: NDArray[np.bool_], left_out: NDArray[np.bool_]
) -> NDArray[np.float64]:  # (B, C) each -> (B,) NaN where nothing was wanted
    values, rows = np.full(len(scores), np.nan), np.flatnonzero(wanted.any(axis=1))
    shown = top_k(scores[rows], _K, exclude=left_out[rows])[0]
    values[rows] = ndcg_at_k(shown, Relevant.from_mask(wanted[rows]), k=_K)
    return values


def _full_list(
    cold: NDArray[np.integer[Any]],
    before: Interactions,
    holdout: Holdout,
    content: ItemContent,
    settings: Settings,
) -> dict[str, Any]:
    """Return what the whole list is worth by EASE and recent sales, where withheld items score nothing and as `cold`.

    Both scores are weights of what was wanted times how items sell, so they are put beside each other as they are.
    """
    training, kept = settings.training, before.without_items(cold)
    context_rows = holdout.training.examples.user_idx[holdout.rows]
    everything = preference_matrix(kept)[context_rows]
    ease = EASE(regularization=training.ease_regularization, recency_days=28, max_items=training.ease_max_items).fit(
        kept
    )
    plain = np.zeros(everything.shape, np.float32)
    plain[:, ease.items] = everything[:, ease.items] @ ease.weights
    plain *= np.sqrt(ease.popularity)
    learned = ColdItems.learn(kept, content, cold, regularization=training.ease_regularization)
    beside = plain.copy()
    if learned is not None:
        beside[:, cold] = learned.score(everything)
    has_any = np.asarray(everything.sum(axis=1)).ravel() > 0
    wanted, nothing = holdout.wanted & has_any[:, None], np.zeros(plain.shape, bool)
    of_cold = np.zeros_like(wanted)
    of_cold[:, cold] = wanted[:, cold]
    shown = top_k(beside[has_any], _K)[0]
    found: dict[str, Any] = {}
    for name, scores in (("without", plain), ("with", beside)):
        found[f"any_{name}"] = round(float(np.nanmean(_ndcg(scores, wanted, nothing))), 4)
        found[f"withheld_{name}"] = round(float(np.nanmean(_ndcg(scores, of_cold, nothing))), 4)
    return found | {"withheld_shown": round(float(np.isin(shown, cold).mean()), 4)}


# -- sequences


def _of_sequences(file: Path, attributes: Path, settings: Settings) -> Judged:
    read = SequenceFile.read(file, attributes=attributes, seed=settings.training.seed)
    histories, wanted = read.histories.without_last(2), read.histories.at_end(1)
    n_items = histories.n_items
    # Not by the seed alone: item_idx was drawn by it, in the order of the file.
    cold = np.sort(np.random.default_rng([settings.training.seed, _SHARE]).permutation(n_items)[: n_items // _SHARE])
    is_cold = np.isin(np.arange(n_items), cold)
    taken = sparse.csr_matrix(histories.taken())
    taken.data[:] = 1
    taken = sparse.csr_matrix(taken @ sparse.diags((~is_cold).astype(np.float32)))
    taken.eliminate_zeros()
    content = ItemContent(
        words=weighed(read.attributes),
        titles=np.zeros((n_items, 0), np.float32),
        log_prices=np.full(n_items, np.nan, np.float32),
    )
    known = most_wanted(taken, settings.training.ease_max_items)
    learned_from = taken[:, known]
    sales = np.bincount(learned_from.indices, minlength=len(known))
    says = what_items_say(learned_from, sales, regularization=settings.training.ease_regularization)
    learned = ColdItems.carry_over(says, known, content, cold)
    users = np.flatnonzero(is_cold[wanted] & (np.diff(taken.indptr) > 0))
    scores = _nearest(taken[users], taken[users], content, cold)
    scores[COLD] = np.zeros_like(scores["nearest_words_mean"]) if learned is None else learned.score(taken[users])
    targets = cold[None] == wanted[users][:, None]  # (B, C)
    ndcg = {name: {"validation": _ndcg(of, targets, np.zeros_like(targets))} for name, of in scores.items()}
    return Judged("withheld", read.user_ids.take(users).to_numpy(zero_copy_only=False).astype(str), ndcg)
