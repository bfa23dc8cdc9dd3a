"""The ranking of a `CandidateRanker`: scores of all items, and what of them each event of the history adds.

Letters as in `candidates`; R rows asked for, K items of a list, W ways in which the history leads to items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recflow.models.assortment import Assortment
from recflow.models.attribution import Attribution, Rows
from recflow.models.candidate_scoring import CandidateScorer, Silence
from recflow.models.candidates import FIT, Candidates
from recflow.models.interactions import PREFERENCE, Context
from recflow.models.ranker import dense_scores

_OWN_HALF_LIFE_DAYS = 60.0  # of an event's share in what is said of its own item: the habit
_LEAST_SUM = 0.3  # of what events add against its root of squares, where they nearly cancel out
_TINY = np.finfo(np.float32).tiny


class _Way(NamedTuple):
    """A matrix of items by items, what weighs the events before it, and the features that come of both."""

    matrix: str
    weight: str
    features: tuple[str, ...]


_WAYS: Final = (
    _Way("ease", "all", ("ease", "ease_recent", "ease_rank")),
    _Way("ease", "last", ("ease_last",)),
    _Way("ease", "faded", ("ease_faded",)),
    _Way("following", "all", ("following",)),
    _Way("text", "faded", ("text",)),
    _Way("text", "last", ("text_last",)),
)
_OF_OTHERS: Final = 0  # the way to items that are no candidates
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
        return dense_scores(self.candidates, self.scorer.score(self.candidates))

    @cached_property
    def silence(self) -> Silence:
        """Return each shopper's score of an item of average facts that the history says nothing of."""
        return self.scorer.silence(self.candidates)

    def attribute(self, items: NDArray[np.int32], rows: Rows | None = None) -> Attribution:
        """Take the scores of items apart, against an item of average facts that the history says nothing of.

        - What the shopper's events with a candidate itself add is theirs, the newer ones' most.
        - What a candidate adds by fitting the history, in one of the linear scores or in its rank by it, is the events'
          by their terms of that sum: weight times the matrix's entry.
        - An item that is no candidate scores by the first of those sums alone.

        Left out: that the shopper's own figures, as the days between its orders, would be others without an event.
        The rest is what remains: how the item sells, its price.
        """
        n_events = self.context.items.shape[1]
        if not items.size:
            return Attribution.nothing(items, n_events)
        rows = np.arange(len(items)) if rows is None else rows
        is_item, wanted = items >= 0, np.maximum(items, 0)
        asked = self._asked(wanted, rows)
        events = asked.own[..., None] * self._own_shares(wanted, rows)
        events += self._by_links(asked)
        events += self._by_text(asked)
        events *= is_item[..., None]
        silence = self.silence.scores[rows]
        rest = self.scores[rows[:, None], wanted] - silence[:, None] - events.sum(axis=-1)
        return Attribution(events, (rest * is_item).astype(np.float32))

    def _asked(self, items: NDArray[np.int32], rows: Rows) -> "_Asked":
        n_items = len(self.assortment.facts)
        keys = self.candidates.shopper * n_items + self.candidates.item  # ascending
        wanted = rows[:, None] * n_items + items
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        is_candidate = keys[at] == wanted
        found = self.scorer.effects(self.candidates, self.silence, at[is_candidate])
        own, by_way = np.zeros(at.shape, np.float32), np.zeros((*at.shape, len(_WAYS)), np.float32)
        own[is_candidate] = found.own + found.fit[:, FIT.index("recency_rank")]  # a rank among what was bought
        by_way[is_candidate] = found.fit @ _OF_WAYS
        weights = {name: weight[rows] for name, weight in self.candidates.weights.items()}
        return _Asked(items, rows, self.context.items[rows], is_candidate, own, by_way, weights)

    def _own_shares(self, items: NDArray[np.int32], rows: Rows) -> NDArray[np.float32]:  # (R, K, L)
        """Share 1 among the events with each item itself, the newer ones more; returns say nothing for it."""
        source = self.context.items[rows]
        weights = PREFERENCE[self.context.event_types[rows]]
        weights *= np.exp2(self.context.ages_days[rows] * np.float32(-1 / _OWN_HALF_LIFE_DAYS))
        shares = np.zeros((*items.shape, source.shape[1]), np.float32)
        at = np.flatnonzero(items[..., None] + 1 == source[:, None])
        of_item = at // source.shape[1]
        weight = weights.ravel()[of_item // items.shape[1] * source.shape[1] + at % source.shape[1]]
        total = np.bincount(of_item, weight, minlength=items.size)
        shares.ravel()[at] = weight / np.maximum(total, _TINY)[of_item]
        return shares

    def _by_links(self, asked: "_Asked") -> NDArray[np.float32]:  # (R, K, L)
        """Return what events add by what the matrices say of the items."""
        known, items, pairs = self.assortment, asked.items, self.candidates.events.pairs
        (n_rows, n_places), n_events, n_items = items.shape, asked.source.shape[1], len(known.facts)
        parts = np.zeros((n_rows, n_places, n_events), np.float32)
        place_of = np.full((n_rows, n_items), -1, np.int32)
        place_of[np.arange(n_rows)[:, None], items] = np.arange(n_places)
        # What the histories' items say, looked up once for all events with the item.
        row, pair = _runs(*pairs.of_rows(asked.rows))
        of_matrix = known.place[pairs.item[pair]]
        linking = (of_matrix >= 0).nonzero()[0]
        row, pair, of_matrix = row[linking], pair[linking], of_matrix[linking]
        of_others = known.recency[items] / self.candidates.greatest_of_others[asked.rows, None]
        for matrix in ("ease", "following"):
            to, entry = known.links(of_matrix, matrix)
            place = place_of.take(to + (row * n_items)[:, None]).ravel()
            met = (place >= 0).nonzero()[0]
            met_pair = met // max(to.shape[1], 1)
            of_met, at = _runs(pairs.starts[pair[met_pair]], pairs.counts[pair[met_pair]])  # their events
            event = pairs.at[at] % n_events
            of_row, entry = row[met_pair][of_met], entry.take(met)[of_met]
            item = of_row * n_places + place[met][of_met]  # of (R, K)
            added = np.zeros(len(event))
            for way, (_, weight, _) in _ways_of(matrix):
                terms = entry * asked.weights[weight][of_row, event]
                total, squares = (np.bincount(item, values, minlength=items.size) for values in (terms, terms**2))
                of_terms = _factors(asked.by_way[..., way].ravel(), total, squares)
                if way == _OF_OTHERS:
                    of_terms = np.where(asked.is_candidate.ravel(), of_terms, of_others.ravel())
                added += terms * of_terms[item]
            parts.ravel()[item * n_events + event] += added.astype(np.float32)
        first = place_of[np.arange(n_rows)[:, None], items]  # an item that stands in a list twice was met once
        return np.take_along_axis(parts, first[..., None], axis=1) if (first != np.arange(n_places)).any() else parts

    def _by_text(self, asked: "_Asked") -> NDArray[np.float32]:  # (R, K, L)
        """Return what events add by titles that are like those of the items."""
        text, ways = self.assortment.text, _ways_of("text")
        alike = text[asked.items] @ text[np.maximum(asked.source - 1, 0)].transpose(0, 2, 1)
        weights = np.stack([asked.weights[way.weight] for _, way in ways], axis=1)  # (R, 2, L)
        total, squares = alike @ weights.transpose(0, 2, 1), alike**2 @ weights.transpose(0, 2, 1) ** 2
        factors = _factors(asked.by_way[..., [way for way, _ in ways]], total, squares)
        return np.asarray(alike * (factors @ weights), np.float32)


class _Asked(NamedTuple):
    """Items whose scores are taken apart, and what is known of them."""

    items: NDArray[np.int32]  # (R, K)
    rows: Rows  # (R,)
    source: NDArray[np.int32]  # (R, L) the events' items + 1; 0 is padding
    is_candidate: NDArray[np.bool_]  # (R, K)
    own: NDArray[np.float32]  # (R, K) what the events with the item itself add; 0 for what is no candidate
    by_way: NDArray[np.float32]  # (R, K, W) what each way adds; 0 for what is no candidate
    weights: Mapping[str, NDArray[np.float32]]  # (R, L) each event's part of what is wanted


def _ways_of(matrix: str) -> list[tuple[int, _Way]]:
    return [(number, way) for number, way in enumerate(_WAYS) if way.matrix == matrix]


def _factors(effects: NDArray[Any], total: NDArray[Any], squares: NDArray[Any]) -> NDArray[Any]:
    """Return what the terms of each sum over events are multiplied with, so that they add up to its effect.

    Where terms nearly cancel out, they'd each be blown up without limit: there they add up to less.
    """
    factors: NDArray[Any] = effects * total / np.maximum(np.maximum(total**2, _LEAST_SUM**2 * squares), _TINY)
    return factors


def _runs(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Write runs of numbers out below each other: which run each number is of, and the number."""
    run = np.arange(len(starts)).repeat(lengths)
    return run, np.arange(len(run)) + (starts - lengths.cumsum() + lengths)[run]
