"""A retrieval model with the engagement stage above it, as one `Ranker`: its best items in order of what they're worth.

The rest stay behind, as the retrieval has them. Scores stay on the retrieval's scale, for what comes after may mix
them: among the items that are put in order, an item's lies as far between the last score and the first as its worth
lies between nothing and the greatest.

Letters as in `interactions`; N best items of the retrieval, R rows asked for, K items of a list.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from recflow.models.attribution import Attribution, Expected, Ranking, Rows
from recflow.models.engagement import Engagement
from recflow.models.engagement_inputs import Retrieved
from recflow.models.interactions import Context, Interactions, Ranker, top_k
from recflow.models.slates import OUTCOMES

FOLDER: Final = "engagement"  # below the retrieval model's own files


class EngagedRanker:
    """A retrieval model and the stage that was trained on its scores."""

    reads_features = True  # the stage does, see `engagement_inputs`

    def __init__(self, retrieval: Ranker, stage: Engagement) -> None:
        """Put the stage above the model, whose name stays."""
        self.retrieval, self.stage, self.name = retrieval, stage, retrieval.name

    def fit(self, interactions: Interactions) -> Self:
        """Refuse: the stage learns from impressions, see `training.engagement`."""
        raise TypeError("an engagement stage is trained by recflow.training.engagement, not fitted on interactions")

    def score(self, context: Context) -> NDArray[np.float32]:  # (B, V)
        """Score every item."""
        return self.rank(context).scores

    def rank(self, context: Context) -> "EngagedRanking":
        """Rank with the retrieval model; its best are put in order when that is first asked for."""
        return self.over(self.retrieval.rank(context), context)

    def over(self, ranking: Ranking, context: Context) -> "EngagedRanking":
        """Put the best of a ranking that the retrieval model made of the context in order."""
        return EngagedRanking(ranking, self.stage, context)

    def save(self, folder: Path) -> None:
        """Write the retrieval model's files, and the stage's below them."""
        self.retrieval.save(folder)
        (folder / FOLDER).mkdir()
        self.stage.save(folder / FOLDER)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        from recflow.models.catalog import load_retrieval

        return cls(load_retrieval(folder), Engagement.load(folder / FOLDER))


@dataclass(frozen=True)
class EngagedRanking:
    """The retrieval's ranking of B shoppers with its best items in another order."""

    retrieval: Ranking
    stage: Engagement
    context: Context

    @cached_property
    def scores(self) -> NDArray[np.float32]:  # (B, V)
        """Return a score for every item, see the module."""
        retrieved = self.retrieval.scores
        if not len(self._judged.worth):
            return retrieved
        (shopper, item, _, best, last, *_), worth = self._judged.pairs, self._judged.worth
        greatest = np.zeros(len(retrieved), np.float32)
        np.maximum.at(greatest, shopper, worth)
        # Where all of them score alike there is no room for an order: a little of their size makes some.
        span = np.maximum(best - last, 1e-3 * np.maximum(np.abs(best), 1))  # (B,)
        scores = retrieved.copy()
        share = worth / np.maximum(greatest[shopper], np.finfo(np.float32).tiny)
        scores[shopper, item] = last[shopper] + span[shopper] * share
        return scores

    @cached_property
    def _judged(self) -> "_Judged":
        retrieved = self.retrieval.scores
        items, found = top_k(retrieved, self.stage.depth)  # (B, N)
        shopper, place = np.nonzero(items >= 0)
        item = items[shopper, place].astype(np.int64)
        n_known = (items >= 0).sum(axis=1)
        best, last = found[:, 0], found[np.arange(len(found)), np.maximum(n_known, 1) - 1]  # (B,)
        pairs = Retrieved(shopper, item, found[shopper, place], best, last, place + 1, items.shape[1])
        inputs = self.stage.inputs(self.context, pairs)
        chances = self.stage.calibrated(self.stage.chances(inputs))
        return _Judged(pairs, chances, self.stage.values(chances, inputs))

    def expected(self, items: NDArray[np.int32], rows: Rows | None = None) -> Expected:  # (R, K)
        """Return the retrieval's scores of items, and the chances by which the stage put them in order."""
        rows = np.arange(len(items)) if rows is None else rows
        base = np.where(items >= 0, self.retrieval.scores[rows[:, None], np.maximum(items, 0)], np.nan)
        pairs, n_items = self._judged.pairs, self.retrieval.scores.shape[1]
        keys = pairs.shopper * n_items + pairs.item
        order, wanted = np.argsort(keys), np.where(items >= 0, rows[:, None] * n_items + items, -1)
        at = np.append(order, -1)[np.searchsorted(keys, wanted, sorter=order)]
        is_judged = np.append(keys, -2)[at] == wanted
        judged = np.append(self._judged.chances, np.full((1, len(OUTCOMES)), np.nan, np.float32), axis=0)
        return Expected(base.astype(np.float32), judged[np.where(is_judged, at, -1)])

    def attribute(self, items: NDArray[np.int32], rows: Rows | None = None) -> Attribution:
        """Take scores apart as the retrieval does; what the stage adds or takes off is in the rest."""
        found = self.retrieval.attribute(items, rows)
        return Attribution(found.events, found.rest + self.added(items, rows))

    def added(self, items: NDArray[np.int32], rows: Rows | None = None) -> NDArray[np.float32]:  # (R, K)
        """Return what the stage adds to the retrieval's scores of items; 0 for an item of -1."""
        at = (np.arange(len(items)) if rows is None else rows)[:, None], np.maximum(items, 0)
        return np.where(items >= 0, self.scores[at] - self.retrieval.scores[at], 0).astype(np.float32)


class _Judged(NamedTuple):
    """The best items of B shoppers, as the stage sees them."""

    pairs: Retrieved
    chances: NDArray[np.float32]  # (P, 3) calibrated
    worth: NDArray[np.float32]  # (P,)
