"""The ranking of a `CandidateRanker`: scores of all items, and what of them each event of the history adds.

Letters as in `candidates`; R rows asked for, K items of a list, W ways in which the history leads to items.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recflow.models.assortment import Assortment
from recflow.models.attribution import Attribution, Rows
from recflow.models.candidate_scoring import CandidateScorer, Scored
from recflow.models.candidates import FIT, Candidates
from recflow.models.interactions import PREFERENCE, Context
from recflow.models.ranker import dense_scores, greatest_of_others

_OWN_HALF_LIFE_DAYS = 60.0  # of an event's share in what is said of its own item: the habit
_LEAST_SUM = 0.3  # of what events add against its root of squares, where they nearly cancel out
_TINY = np.finfo(np.float32).tiny


class _Way(NamedTuple):
    """A matrix of items by items, what weighs the events before it, and the features that come of both."""

    matrix: str
    weight: str
    features: tuple[str, ...]


_WAYS: Final = (
    _Way("ease", "all", ("ease", "ease_recent", "ease_rank")),  # also the way to items that are no candidates
    _Way("ease", "last", ("ease_last",)),
    _Way("ease", "faded", ("ease_faded",)),
    _Way("following", "all", ("following",)),
    _Way("text", "faded", ("text",)),
    _Way("text", "last", ("text_last",)),
)
# (|FIT|, W) 1 where a feature comes of a way
_OF_WAYS: Final = np.array([[name in way.features for way in _WAYS] for name in FIT], np.float32)


@dataclass(frozen=True)
class CandidateRanking:
    """The candidates of B shoppers, and what follows from them."""

    scorer: CandidateScorer
    assortment: Assortment
    context: Context
    candidates: Candidates

    @cached_property
    def scores(self) -> NDArray[np.float32]:  # (B, V)
        """Return a score for every item; computed when they are first asked for."""
        return dense_scores(self.candidates, self._scored.scores)

    @cached_property
    def _scored(self) -> Scored:
        return self.scorer.score(self.candidates)

    def attribute(self, items: NDArray[np.int32], rows: Rows | None = None) -> Attribution:
        """Take the scores of items apart, against an item of average facts that the history says nothing of.

        - What the shopper's events with a candidate itself add is theirs, the newer ones' most.
        - What a candidate adds by fitting the history, in one of the linear scores or in its rank by it, is the events'
          by their terms of that sum: weight times the matrix's entry.
        - An item that is no candidate scores by the first of those sums alone.

        Left out: that the shopper's own figures, as the days between its orders, would be others without an event.
        The rest is what remains: how the item sells, its price.
        """
        length = self.context.items.shape[1]
        if not items.size:
            return Attribution.nothing(items, length)
        rows = np.arange(len(items)) if rows is None else rows
        is_item, wanted = items >= 0, np.maximum(items, 0)
        at, is_candidate = self._find(wanted, rows)
        own, by_way = self._effects(at, is_candidate)
        events = own[..., None] * self._own_shares(wanted, rows)
        for matrix, of_items in self._matrices(wanted, rows).items():
            ways = [number for number, way in enumerate(_WAYS) if way.matrix == matrix]
            weights = np.stack([self.candidates.weights[_WAYS[number].weight][rows] for number in ways], axis=1)
            factors = _factors(of_items, weights, by_way[..., ways])  # (R, K, W)
            if matrix == _WAYS[0].matrix:
                of_others = self.assortment.recency[wanted] / greatest_of_others(self.candidates)[rows, None]
                factors[..., 0] = np.where(is_candidate, factors[..., 0], of_others)
            events += of_items * (factors @ weights)
        events *= is_item[..., None]
        silence = self._scored.of_silence[rows]
        rest = self.scores[rows[:, None], wanted] - silence[:, None] - events.sum(axis=-1)
        return Attribution(events.astype(np.float32), (rest * is_item).astype(np.float32))

    def _find(self, items: NDArray[np.int32], rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:  # (R, K)
        """Return where items stand among the candidates, and which are there at all."""
        n_items = len(self.assortment.facts)
        keys = self.candidates.shopper * n_items + self.candidates.item  # ascending
        wanted = rows[:, None] * n_items + items
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return at, keys[at] == wanted

    def _effects(
        self, at: NDArray[np.int64], is_candidate: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # (R, K), (R, K, W)
        """Return what an item's own events add, and what each way does; 0 for items that are no candidates."""
        found = self.scorer.effects(self.candidates, self._scored, at[is_candidate])
        own, by_way = np.zeros(at.shape, np.float32), np.zeros((*at.shape, len(_WAYS)), np.float32)
        own[is_candidate] = found.own + found.fit[:, FIT.index("recency_rank")]  # a rank among what was bought
        by_way[is_candidate] = found.fit @ _OF_WAYS
        return own, by_way

    def _matrices(self, items: NDArray[np.int32], rows: Rows) -> dict[str, NDArray[np.float32]]:  # (R, K, L) each
        """Look up what each event's item says of items (R, K); anything where an event is padding."""
        known, source = self.assortment, np.maximum(self.context.items[rows] - 1, 0)
        from_place, to_place = known.place[source][:, None], known.place[items][:, :, None]
        takes_part = (from_place >= 0) & (to_place >= 0)
        at = np.where(takes_part, from_place * len(known.items) + to_place, 0)
        looked_up = {
            name: np.where(takes_part, matrix.ravel()[at] if matrix.size else 0, 0).astype(np.float32, copy=False)
            for name, matrix in (("ease", known.ease), ("following", known.following))
        }
        return looked_up | {"text": known.text[items] @ known.text[source].transpose(0, 2, 1)}

    def _own_shares(self, items: NDArray[np.int32], rows: Rows) -> NDArray[np.float32]:  # (R, K, L)
        """Share 1 among the events with each item itself, the newer ones more; returns say nothing for it."""
        weights = PREFERENCE[self.context.event_types] * np.exp2(self.context.ages_days / -_OWN_HALF_LIFE_DAYS)
        own = self.context.items[rows, None] == items[..., None] + 1
        shares = np.where(own, weights[rows, None], 0)
        total = shares.sum(axis=-1, keepdims=True)
        return np.asarray(shares / np.maximum(total, _TINY), np.float32)


def _factors(
    of_items: NDArray[np.float32],  # (R, K, L) what an event's item says of an item
    weights: NDArray[np.float32],  # (R, W, L) of the events; 0 for padding
    effects: NDArray[np.float32],  # (R, K, W)
) -> NDArray[np.float32]:  # (R, K, W)
    """Return what the terms of each sum over events are multiplied with, so that they add up to its effect.

    Where terms nearly cancel out, they'd each be blown up without limit: there they add up to less.
    """
    transposed = weights.transpose(0, 2, 1)
    total, squares = of_items @ transposed, of_items**2 @ transposed**2
    factors: NDArray[np.float32] = effects * total / np.maximum(np.maximum(total**2, _LEAST_SUM**2 * squares), _TINY)
    return factors
