"""Purchases held out by time -> how much sooner a shopper's own taste brings what this shopper then buys.

The cut is the first held-out day. Everything is as known before it: the ranker, the histories, the popularity. What a
shopper bought from it on is wanted; what is asked is what this shopper may have typed for it, a word that names the
kind of thing: the last word of the title that several others have and that is no colour, size or the like. The same
queries are asked without the shopper.

Letters: B shoppers, V items, Q queries.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recflow.bench.search_queries import plain
from recflow.console import log, track
from recflow.evaluation.holdout import Holdout, open_holdout
from recflow.metrics import bootstrap_means, percentile_interval
from recflow.models.dataset import TrainingSet
from recflow.settings import Settings

if TYPE_CHECKING:
    from recflow.bench.search import Engine

_HALF_LIFE_DAYS = 30.0  # of a purchase's say in what is popular
_K = 10
_NOTHING = 1e-9  # in place of an NDCG of 0 that is divided by
_A_SHOPPER = 3  # queries at most
_MOST = 2000  # queries: their mean's standard error is below 0.01
_FREQUENT = 5  # titles that a word that names a kind of thing stands in, at least
_AT_ONCE = 256  # shoppers whose scores of everything are worked out together
_NO_KIND = frozenset(
    {"red", "blue", "green", "pink", "white", "black", "ivory", "cream", "yellow", "orange", "purple", "brown", "grey"}
    | {"gold", "silver", "small", "medium", "large", "big", "mini", "set", "pack", "box", "assorted", "design"}
    | {"vintage", "retro", "antique", "colour", "style", "pair", "piece"}
)


@dataclass(frozen=True)
class Shop:
    """A shop as it was before the hold-out, and what its shoppers bought in it."""

    training: TrainingSet
    popularity: NDArray[np.float64]  # (V,) purchases before the cut, faded
    settings: Settings

    @classmethod
    def open(cls, until: date, settings: Settings) -> Self:
        """Build the training set of the days through `until`."""
        from recflow.training.training_set import build_training_set

        training = TrainingSet.open(Path(build_training_set(until, settings).uri))
        before = training.interactions(training.holdout_start).purchases()
        ages = (np.datetime64(training.holdout_start, "us") - before.timestamp) / np.timedelta64(1, "D")  # days
        popularity = np.bincount(before.item_idx, 0.5 ** (ages / _HALF_LIFE_DAYS), minlength=before.n_items)
        return cls(training, popularity.astype(np.float64), settings)

    @property
    def items(self) -> pa.Table:
        """Return the catalogue, schema.ITEMS in order of item_idx."""
        return self.training.items

    @property
    def cut(self) -> date:
        """Return the first held-out day."""
        return self.training.holdout_start

    def measure(self, engine: "Engine") -> list[dict[str, Any]]:
        """Ask for what was bought in all ways; rows of all purchases, and of those that the shopper never made before.

        Returns:
            A row a figure: its mean for each way of `bench.search` and with the shopper's taste, and the ratio of the
            latter to the same without it, with its interval over resampled shoppers.
        """
        from recflow.bench.search import WAYS

        holdout = open_holdout(self.training, self.settings.evaluation)
        heads, words = heads_of(self.items["title"].to_pylist())
        asked = _asked(holdout, heads, seed=self.settings.training.seed)
        if not asked:
            return []
        scores = self._scores(holdout)
        lists: dict[str, list[NDArray[np.int32]]] = {way: [] for way in (*WAYS, "personal")}
        for row, word in track(asked, description="search for shoppers", total=len(asked)):
            for way in WAYS:
                lists[way].append(_ten(engine.find(word, way)))
            lists["personal"].append(_ten(engine.find(word, taste=scores[row].__getitem__)))
        shown = {way: np.stack(found) for way, found in lists.items()}
        has_word = {word: np.array([word in own for own in words]) for word in {word for _, word in asked}}
        wanted = np.stack([holdout.wanted[row] & has_word[word] for row, word in asked])  # (Q, V)
        shoppers = np.array([row for row, _ in asked])
        parts = (("all", wanted), ("new to the shopper", wanted & ~holdout.bought[shoppers]))
        return [row for purchases, relevant in parts for row in _rows(purchases, shown, relevant, shoppers)]

    def _scores(self, holdout: Holdout) -> NDArray[np.float32]:  # (B, V)
        """Return how the ranker that a champion would be scores everything, fitted on what was before the cut."""
        from recflow.models.catalog import load_ranker
        from recflow.training.fit import RANKER, Fitting

        log.info("training on what was before %s", self.cut)
        with tempfile.TemporaryDirectory(dir=self.settings.home) as work:
            fitting = Fitting(self.training, self.settings.training, Path(work))
            fitting.fit(RANKER, "holdout")
            ranker, encoders = load_ranker(Path(work) / RANKER / "holdout"), fitting.encoders
            item_features = self.training.encoded_items(self.cut, encoders)
            return np.concatenate(
                [
                    ranker.score(
                        self.training.context(holdout.rows[at : at + _AT_ONCE], encoders, item_features=item_features)
                    )
                    for at in range(0, len(holdout), _AT_ONCE)
                ]
            )


def heads_of(titles: Sequence[str | None]) -> tuple[list[str | None], list[set[str]]]:
    """Return for each title the word that says what kind of thing it is, None without one, and all its words."""
    found = [[plain(word) for word in re.findall(r"[a-z]{3,}", (title or "").lower())] for title in titles]
    counts = Counter(word for words in found for word in set(words))
    naming = {word for word, count in counts.items() if count >= _FREQUENT} - _NO_KIND
    return [next((word for word in reversed(words) if word in naming), None) for words in found], [*map(set, found)]


def _asked(holdout: Holdout, heads: Sequence[str | None], *, seed: int) -> list[tuple[int, str]]:
    """Return who asks what: some of the shoppers with a history, each with some words for what it then bought."""
    rng = np.random.default_rng(seed)
    asked: list[tuple[int, str]] = []
    for row in rng.permutation(np.flatnonzero(holdout.has_history & holdout.wanted.any(axis=1))).tolist():
        words = sorted({head for item in np.flatnonzero(holdout.wanted[row]) if (head := heads[int(item)]) is not None})
        asked += [(row, words[at]) for at in rng.permutation(len(words))[:_A_SHOPPER].tolist()]
    return asked[:_MOST]


def _ten(found: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.pad(found, (0, _K - len(found)), constant_values=-1)


def _rows(
    purchases: str,
    shown: Mapping[str, NDArray[np.int32]],  # (Q, 10) by way
    wanted: NDArray[np.bool_],  # (Q, V)
    shoppers: NDArray[np.int64],  # (Q,)
) -> list[dict[str, Any]]:
    """Return a row a figure, with the ratio of the means with and without the shopper."""
    from recflow.bench.search import figures

    counted = wanted.any(axis=1)
    if not counted.any():
        return []
    found = {way: figures(lists[counted], wanted[counted].astype(np.uint8)) for way, lists in shown.items()}
    # Queries of one shopper are alike: shoppers are resampled, not queries.
    _, own = np.unique(shoppers[counted], return_inverse=True)
    rows = []
    for name in found["fused"]:
        sums = np.stack([np.bincount(own, found[way][name]) for way in ("personal", "fused")], axis=1)  # (B, 2)
        means = np.maximum(bootstrap_means(sums.astype(np.float64), seed=0), _NOTHING)
        totals = np.maximum(sums.sum(axis=0), _NOTHING)
        ratio = percentile_interval(float(totals[0] / totals[1]), means[:, 0] / means[:, 1])
        values = {way: round(float(of[name].mean()), 4) for way, of in found.items()}
        interval = {end: round(getattr(ratio, end), 3) for end in ("low", "high")}
        row = {"purchases": purchases, "figure": name, "n": int(counted.sum()), **values}
        rows.append(row | {"ratio": round(ratio.value, 3)} | interval)
    return rows
