"""The ranking of a `CandidateRanker`: scores of all items, and what of them each event of the history adds.

Letters as in `candidates`; R rows asked for, K items of a list, W ways in which the history leads to items. H pairs and
N events are those of the rows asked for.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recflow.models.assortment import Assortment
from recflow.models.attribution import Attribution, Rows
from recflow.models.candidate_features import Placed
from recflow.models.candidate_scoring import CandidateScorer, Inputs, Silence
from recflow.models.candidates import FIT, WANTED, Candidates
from recflow.models.interactions import PREFERENCE, Context
from recflow.models.pairs import sums_of_runs
from recflow.models.ranker import dense_scores

_OWN_HALF_LIFE_DAYS = 60.0  # of an event's share in what is said of its own item: the habit
_LEAST_SUM = 0.3  # of what events add against its root of squares, where they nearly cancel out
_TINY = np.finfo(np.float32).tiny

_MATRICES: Final = ("ease", "following", "text")  # of items by items
# What weighs the events, a matrix that it is multiplied with, and the features of both; two for each of WANTED.
_WAYS: Final = (
    ("all", "ease", ("ease", "ease_recent", "ease_rank")),
    ("all", "following", ("following",)),
    ("last", "ease", ("ease_last",)),
    ("last", "text", ("text_last",)),
    ("faded", "ease", ("ease_faded",)),
    ("faded", "text", ("text",)),
)
_OF_OTHERS: Final = 0  # the way to items that are no candidates
_WANTED_OF: Final = np.array([WANTED.index(wanted) for wanted, _, _ in _WAYS])  # (W,)
_MATRIX_OF: Final = np.array([_MATRICES.index(matrix) for _, matrix, _ in _WAYS])  # (W,)
# (W, |FIT|) 1 where a feature comes of a way
_OF_WAYS: Final = np.array([[name in features for name in FIT] for _, _, features in _WAYS], np.float32)

_Some = NDArray[np.int64] | slice


@dataclass(frozen=True)
class CandidateRanking:
    """The candidates of B shoppers, and what follows from them."""

    scorer: CandidateScorer
    assortment: Assortment
    context: Context
    candidates: Candidates

    @cached_property
    def inputs(self) -> Inputs:
        """Return what the histories bring to the network."""
        return self.scorer.read(self.candidates)

    @cached_property
    def scores(self) -> NDArray[np.float32]:  # (B, V)
        """Return a score for every item; computed when they are first asked for."""
        return dense_scores(self.candidates, self.scorer.score(self.candidates, self.inputs))

    @cached_property
    def silence(self) -> Silence:
        """Return each shopper's score of an item of average facts that the history says nothing of."""
        return self.scorer.silence(self.inputs)

    @cached_property
    def own_shares(self) -> NDArray[np.float32]:  # of each event of the candidates
        """Share 1 among the events with each item, the newer ones more; returns say nothing for it."""
        events = self.candidates.events
        weights = PREFERENCE[events.event_type] * np.exp2(events.age * (-1 / _OWN_HALF_LIFE_DAYS))
        total = events.pairs.reduce(np.add, weights)
        shares: NDArray[np.float32] = (weights / np.maximum(total, _TINY)[events.pair]).astype(np.float32)
        return shares

    def attribute(self, items: NDArray[np.int32], rows: Rows | None = None) -> Attribution:
        """Take the scores of items apart, against an item of average facts that the history says nothing of.

        - What the shopper's events with a candidate itself add is theirs, the newer ones' most.
        - What a candidate adds by fitting the history, in one of the linear scores or in its rank by it, is the events'
          by their terms of that sum: weight times the matrix's entry.
        - An item that is no candidate scores by the first of those sums alone.

        Left out: that the shopper's own figures, as the days between its orders, would be others without an event.
        The rest is what remains: how the item sells, its price.
        """
        if not items.size:
            return Attribution.nothing(items, self.context.items.shape[1])
        rows = np.arange(len(items)) if rows is None else rows
        is_item, wanted = items >= 0, np.maximum(items, 0)
        events = self._by_events(wanted, rows)
        events *= is_item[..., None]
        rest = self.scores[rows[:, None], wanted] - self.silence.scores[rows, None] - events.sum(axis=-1)
        return Attribution(events, rest * is_item)

    def _by_events(self, items: NDArray[np.int32], rows: Rows) -> NDArray[np.float32]:  # (R, K, L)
        """Return what each event adds by all ways, and as one with the item itself."""
        found, pairs, n_events = self.candidates, self.candidates.events.pairs, self.context.items.shape[1]
        row, pair, of_pair, event = self._of_rows(rows)
        source, n_pairs = pairs.item[pair], np.bincount(row, minlength=len(rows))
        own, factors, of_others = self._effects(items, rows)
        parts = np.empty((len(WANTED) + 1, len(row), items.shape[1]), np.float32)
        # Of each way the term of a pair, and what its events' terms are squared: they share alike.
        entries = self._entries(items, row, source)[_MATRIX_OF]  # (W, H, K)
        each, strongest = (of_all[:, pair][_WANTED_OF, :, None] for of_all in (found.each, found.strongest))
        terms = entries * strongest
        total = sums_of_runs(terms, n_pairs)  # (W, R, K)
        terms *= entries
        terms *= each
        squares = sums_of_runs(terms, n_pairs)
        # Where terms nearly cancel out, they'd each be blown up without limit: there they add up to less.
        factors *= total / np.maximum(np.maximum(total**2, _LEAST_SUM**2 * squares), _TINY)
        factors[_OF_OTHERS] += of_others
        entries *= factors.take(row, axis=1)
        np.add(entries[::2], entries[1::2], out=parts[:-1])  # two ways of each
        parts[-1] = own.take(row, axis=0) * (items.take(row, axis=0) == source[:, None])
        shares = np.concatenate([found.shares, self.own_shares[None]])[:, event]  # (|WANTED| + 1, N)
        events = np.zeros((len(rows), n_events, items.shape[1]), np.float32)
        events[row[of_pair], pairs.at[event] % n_events] = np.einsum("wn,wnk->nk", shares, parts.take(of_pair, axis=1))
        return events.transpose(0, 2, 1)

    def _of_rows(self, rows: Rows) -> tuple[NDArray[np.int64], _Some, NDArray[np.int64], _Some]:
        """Return the pairs of some rows: of each the row, and which it is (H,). Their events: of each the pair (N,)."""
        events, pairs = self.candidates.events, self.candidates.events.pairs
        if len(rows) == len(self.context) and (rows[1:] > rows[:-1]).all():
            return pairs.shopper, slice(None), events.pair, slice(None)
        row, pair = _runs(*pairs.of_rows(rows))
        of_pair, event = _runs(pairs.starts[pair], pairs.counts[pair])
        return row, pair, of_pair, event

    def _effects(self, items: NDArray[np.int32], rows: Rows) -> tuple[NDArray[np.float32], ...]:
        """Return what the events with each item itself add (R, K), and each way (W, R, K); 0 for what is no candidate.

        And for that alone what the way to it multiplies (R, K).
        """
        cell, wanted = self.candidates.cell, rows[:, None] * len(self.assortment.facts) + items
        at = np.minimum(cell.searchsorted(wanted), len(cell) - 1)
        is_candidate = cell[at] == wanted
        found = self.scorer.effects(self.candidates, self.inputs, self.silence, at[is_candidate])
        own, by_way = np.zeros(items.shape, np.float32), np.zeros((len(_WAYS), *items.shape), np.float32)
        own[is_candidate] = found.own + found.fit[:, FIT.index("recency_rank")]  # a rank among what was bought
        by_way[:, is_candidate] = _OF_WAYS @ found.fit.T
        of_others = self.assortment.recency[items] / self.candidates.greatest_of_others[rows, None]
        return own, by_way, of_others * ~is_candidate

    def _entries(
        self, items: NDArray[np.int32], row: NDArray[np.int64], source: NDArray[np.int64]
    ) -> NDArray[np.float32]:  # (3, H, K)
        """Return what the matrices say of the items by each item of the histories, see _MATRICES."""
        known, (n_rows, n_places), n_items = self.assortment, items.shape, len(self.assortment.facts)
        entries = np.zeros((len(_MATRICES), len(row), n_places), np.float32)
        place_of = np.full((n_rows, n_items), -1, np.int32)
        place_of[np.arange(n_rows)[:, None], items] = np.arange(n_places)
        of_matrix = known.place[source]
        linking = (of_matrix >= 0).nonzero()[0]
        of_matrix, first_cell = of_matrix[linking], (row[linking] * n_items)[:, None]
        for of_pairs, to, weight in zip(
            entries[:2], (known.ease_to, known.following_to), (known.ease, known.following), strict=True
        ):
            place = place_of.take(to.take(of_matrix, axis=0) + first_cell)
            met = (place.ravel() >= 0).nonzero()[0]
            at = met // max(to.shape[1], 1)
            of_pairs[linking[at], place.ravel()[met]] = weight[of_matrix[at], met - at * to.shape[1]]
        first = place_of[np.arange(n_rows)[:, None], items]  # an item that stands in a list twice was met once
        if (first != np.arange(n_places)).any():
            entries = np.take_along_axis(entries, first[None, row], axis=2)
        placed = Placed.of(row, n_rows)
        alike = known.text[placed.padded(source)] @ known.text[items].transpose(0, 2, 1)
        entries[2] = alike[row, placed.place]
        return entries


def _runs(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Write runs of numbers out below each other: which run each number is of, and the number."""
    run = np.arange(len(starts)).repeat(lengths)
    return run, np.arange(len(run)) + (starts - lengths.cumsum() + lengths)[run]
