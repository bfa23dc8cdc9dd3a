"""Rankers -> the lists they make for the hold-out's shoppers; the champion on its own catalogue, mapped back."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recflow.console import track
from recflow.errors import BundleInvalid, FeatureError, MissingInput
from recflow.evaluation.holdout import TASKS, Holdout, Task
from recflow.models.catalog import load_ranker
from recflow.models.features import Encoders
from recflow.models.interactions import Context, Ranker, top_k
from recflow.storage import Release

_BATCH = 256  # shoppers whose scores of the whole catalogue are held at once

Score = Callable[[Context], NDArray[np.float32]]  # B shoppers -> (B, V)


class NotComparable(Exception):
    """The champion can't be scored on this hold-out; the message says why."""


@dataclass(frozen=True)
class Lists:
    """What one ranker shows to the hold-out's B shoppers."""

    items: dict[Task, NDArray[np.int32]]  # (B, K) by task, -1 where a list ends early
    bad_scores: int  # scores that are no numbers; they are ranked last
    seconds: float  # for scoring and ranking all B


def candidate_names(candidates: Path) -> list[str]:
    """Return the candidates that have hold-out weights.

    Raises:
        MissingInput: there is none.
    """
    names = sorted(folder.parent.name for folder in candidates.glob("*/holdout") if folder.is_dir())
    if not names:
        raise MissingInput(f"{candidates}: no candidate with hold-out weights lies there. Run train first.")
    return names


def released_names(candidates: Path) -> list[str]:
    """Return the candidates that can be served; the others are yardsticks, which were fitted for the hold-out alone.

    Raises:
        MissingInput: there is none.
    """
    names = [name for name in candidate_names(candidates) if (candidates / name / "release").is_dir()]
    if not names:
        raise MissingInput(f"{candidates}: no candidate with release weights lies there. Run train again.")
    return names


def candidate_lists(candidates: Path, holdout: Holdout, *, k: int) -> dict[str, Lists]:
    """Return the lists of every candidate, each scored with the weights that never saw the hold-out."""
    encoders = Encoders.load(candidates / "encoder.json")
    contexts = list(_contexts(holdout, encoders))
    names = candidate_names(candidates)
    return {
        name: rank(load_ranker(candidates / name / "holdout").score, contexts, holdout, k=k)
        for name in track(names, description="evaluate", total=len(names))
    }


def champion_lists(champion: Release, holdout: Holdout, *, k: int) -> tuple[Lists, str]:
    """Return the champion's lists for the same shoppers, and which of its weights made them.

    Raises:
        NotComparable: both its weights have seen the hold-out, or it needs features that aren't there any more.
    """
    folder = champion.folder
    try:
        facts = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        until, own_holdout = (date.fromisoformat(facts[key]) for key in ("until", "holdout_start"))
        weights = unseen_weights(until, own_holdout, holdout.training.holdout_start)
        encoders = Encoders.load(folder / "encoder.json")
        ranker = load_ranker(folder / "model" / weights)
        item_ids = pq.read_table(folder / "items.parquet", columns=["item_id"])["item_id"].to_pylist()
        score = on_own_catalogue(ranker, item_ids, holdout.training.item_ids)
        return rank(score, list(_contexts(holdout, encoders)), holdout, k=k), weights
    except (FeatureError, BundleInvalid, OSError, KeyError, ValueError) as error:
        raise NotComparable(str(error)) from error


def unseen_weights(until: date, own_holdout: date, holdout_start: date) -> str:
    """Return which weights of a bundle have seen nothing from `holdout_start` on: `release` or `holdout`.

    `release` was fitted through `until`, `holdout` on what lies before the bundle's own hold-out.

    Raises:
        NotComparable: both have seen the first day of the hold-out, or later ones.
    """
    if until < holdout_start:
        return "release"
    if own_holdout <= holdout_start:
        return "holdout"
    raise NotComparable(
        f"it learned from data up to {until} and kept nothing before {own_holdout} apart; this hold-out starts on "
        f"{holdout_start}"
    )


def rank(score: Score, contexts: list[Context], holdout: Holdout, *, k: int) -> Lists:
    """Score the contexts, which together are the hold-out's shoppers in order, and keep each task's best k."""
    started = time.perf_counter()
    parts: dict[Task, list[NDArray[np.int32]]] = {task: [] for task in TASKS}
    bad_scores = first = 0
    for context in contexts:
        scores = score(context)
        bad = np.isnan(scores) | np.isposinf(scores)
        bad_scores += int(bad.sum())
        scores = np.where(bad, -np.inf, scores).astype(np.float32)
        bought = holdout.bought[first : first + len(context)]
        parts["any"].append(top_k(scores, k)[0])
        parts["new"].append(top_k(scores, k, exclude=bought)[0])
        first += len(context)
    items = {task: np.concatenate(lists) for task, lists in parts.items()}
    return Lists(items, bad_scores, time.perf_counter() - started)


def on_own_catalogue(ranker: Ranker, own_ids: list[str], item_ids: list[str]) -> Score:
    """Return a function that scores contexts of this catalogue with a ranker that knows another one.

    Items that the ranker doesn't know drop out of the histories, as they do at the endpoint, and score -inf: it
    can't recommend them. Items that it knows and this catalogue lacks are scored and dropped.
    """
    own_index = {item_id: index for index, item_id in enumerate(own_ids)}
    own_of = np.array([own_index.get(item_id, -1) for item_id in item_ids], dtype=np.int32)  # (V,)
    known = own_of >= 0

    def score(context: Context) -> NDArray[np.float32]:
        item_features = np.zeros((len(own_ids), context.item_features.shape[1]), dtype=np.float32)
        item_features[own_of[known]] = context.item_features[known]
        scores = np.full((len(context), len(item_ids)), -np.inf, dtype=np.float32)
        own = ranker.score(_renumbered(context, own_of, item_features))
        scores[:, known] = own[:, own_of[known]]
        return scores

    return score


def _renumbered(context: Context, own_of: NDArray[np.int32], item_features: NDArray[np.float32]) -> Context:
    """Return a context with other item numbers, what has none taken out and the rest aligned to the right again."""
    items = np.concatenate([[0], own_of + 1]).astype(np.int32)[context.items]  # (B, L), 0: padding or unknown
    order = np.argsort(items > 0, axis=1, kind="stable")  # the empty ones first, the others in their order
    columns: dict[str, NDArray[np.generic]] = {
        "items": items,
        "ages_days": context.ages_days,
        "event_types": context.event_types,
        "quantities": context.quantities,
    }
    aligned: dict[str, Any] = {
        name: np.take_along_axis(np.where(items > 0, column, 0).astype(column.dtype), order, axis=1)
        for name, column in columns.items()
    }
    return dataclasses.replace(context, **aligned, item_features=item_features)


def _contexts(holdout: Holdout, encoders: Encoders) -> Iterator[Context]:
    training = holdout.training
    item_features = training.encoded_items(training.holdout_start, encoders)
    for first in range(0, len(holdout), _BATCH):
        yield training.context(holdout.rows[first : first + _BATCH], encoders, item_features=item_features)
