"""Shoppers -> scores: of the whole catalogue, or of what is worth scoring where it is too large for that.

With an index a shopper's candidates are the best of what may be shown, as far as the index finds them, the items of the
shopper's own history, whose scores the index knows only in part, and what is pinned. All of them are scored exactly: an
item that the index misses is missing, and nothing else differs. Where no more may be shown than would be looked for (a
shop's own list, a cart, a narrow filter), all of that is scored.

Whom the model doesn't score gets the tables' scores.

Letters: V items, B shoppers, N candidates of each, L events of a history.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from recflow.models.attribution import FactoredRanking, Ranking
from recflow.models.interactions import Context, top_k
from recflow.retrieval.dense import Index
from recflow.serving.bundle import Bundle
from recflow.serving.rules import Ask, Rules
from recflow.serving.tables import Tables

if TYPE_CHECKING:
    from recflow.serving.recommend import Ranked

Items = NDArray[np.int32]
Scores = NDArray[np.float32]
Mask = NDArray[np.bool_]  # (V,)


class Candidates(NamedTuple):
    """What lists are chosen from."""

    items: Items | None  # (B, N) item_idx, ascending, -1 behind them; None: all V in their order
    scores: Scores  # (B, N), or (B, V); -inf where there is no item
    allowed: NDArray[np.bool_]  # the same; by the requests' own filters, False where there is no item


class Search(Protocol):
    """How a version finds what it shows."""

    def all_scores(self, ranked: "Ranked") -> Scores | None:  # (B, V)
        """Return the scores of the whole catalogue, or None where only candidates are scored."""

    def sample(self, ranking: Ranking, context: Context) -> Scores:
        """Return scores of each shopper that tell whether the model works."""

    def find(self, ranked: "Ranked", asks: Sequence[Ask], allowed: Sequence[Mask | None]) -> Candidates:
        """Return what the rules choose each shopper's list from; `allowed` by the request's own filters, None: all."""

    def scores_of(self, ranked: "Ranked", row: int) -> Scores:  # (V,)
        """Return how the whole catalogue scores for one shopper."""


def search_of(bundle: Bundle, rules: Rules) -> Search:
    """Return how a bundle's catalogue is searched."""
    if bundle.index is None:
        return WholeCatalogue(bundle.tables)
    return CandidateSearch(bundle.index, bundle.tables, rules, history_length=bundle.history_length)


class WholeCatalogue:
    """Scores every item for every shopper."""

    def __init__(self, tables: Tables) -> None:
        """Take what scores where the model doesn't."""
        self._tables = tables

    def all_scores(self, ranked: "Ranked") -> Scores:  # (B, V)
        """Return the model's scores, and those of the tables where it has none."""
        by_model = ranked.rows >= 0
        if ranked.ranking is not None and by_model.all():
            return ranked.ranking.scores
        scores = np.empty((len(by_model), len(self._tables.customers)), np.float32)
        if ranked.ranking is not None:
            scores[by_model] = ranked.ranking.scores
        for row in np.flatnonzero(~by_model).tolist():
            scores[row] = self._tables.scores_for(_history(ranked, row), ranked.shoppers[row].country)
        return scores

    def sample(self, ranking: Ranking, context: Context) -> Scores:
        """Return all scores: they are needed anyway."""
        return ranking.scores

    def find(self, ranked: "Ranked", asks: Sequence[Ask], allowed: Sequence[Mask | None]) -> Candidates:
        """Return all items."""
        scores = cast(Scores, ranked.scores)
        may_show = np.ones(scores.shape, dtype=bool)
        for row, mask in enumerate(allowed):
            if mask is not None:
                may_show[row] = mask
        return Candidates(None, scores, may_show)

    def scores_of(self, ranked: "Ranked", row: int) -> Scores:  # (V,)
        """Return one shopper's scores."""
        scores: Scores = cast(Scores, ranked.scores)[row]
        return scores


class _Wanted(NamedTuple):
    """The best `depth` items of those that a mask lets through; None: of all."""

    mask: Mask | None
    depth: int


class CandidateSearch:
    """Scores what an index finds."""

    def __init__(self, index: Index, tables: Tables, rules: Rules, *, history_length: int) -> None:
        """Take what knows the items."""
        self._index = index
        self._tables = tables
        self._rules = rules
        self._history_length = history_length
        tables.bestsellers(None)  # puts all countries in order: no request shall wait for it

    def all_scores(self, ranked: "Ranked") -> None:
        """Return nothing: nobody asks for so many."""

    def sample(self, ranking: Ranking, context: Context) -> Scores:  # (B, L)
        """Return the scores of the histories' items: a number of a shopper's that is NaN is in all scores."""
        return cast(FactoredRanking, ranking).score_items(context.items - 1)

    def find(self, ranked: "Ranked", asks: Sequence[Ask], allowed: Sequence[Mask | None]) -> Candidates:
        """Return the best items that may be shown, those of the history and those that are pinned."""
        found: list[list[Items]] = [
            [_history(ranked, row), np.array(self._rules.pinned(ask.placement), np.int32)]
            for row, ask in enumerate(asks)
        ]
        # Equal searches are made together. The masks are kept here, so none gets the id of another.
        together: dict[tuple[int, int], tuple[_Wanted, list[int]]] = {}
        for row, (ask, mask) in enumerate(zip(asks, allowed, strict=True)):
            for wanted in self._wanted(ask, mask):
                together.setdefault((id(wanted.mask), wanted.depth), (wanted, []))[1].append(row)
        for wanted, rows in together.values():
            for row, items in zip(rows, self._best(ranked, np.array(rows), wanted), strict=True):
                found[row].append(items)
        return self._scored(ranked, [np.unique(np.concatenate(parts)) for parts in found], allowed)

    def _wanted(self, ask: Ask, mask: Mask | None) -> Iterator[_Wanted]:
        """Say what a list has to be chosen from."""
        showable = self._rules.showable(in_stock=ask.in_stock)
        # As many more as may turn out to score lower than the index says: those of the history.
        yield _Wanted(showable if mask is None else showable & mask, self._rules.reach(ask) + self._history_length)
        if ask.explain:  # what would stand there if the shop hid nothing
            yield _Wanted(mask, ask.k + self._history_length)

    def _best(self, ranked: "Ranked", rows: NDArray[np.int64], wanted: _Wanted) -> list[Items]:
        """Find what is wanted for some shoppers: one array each, in any order; -1 is no item."""
        mask, depth = wanted
        if mask is not None and np.count_nonzero(mask) <= depth:
            return [np.flatnonzero(mask).astype(np.int32)] * len(rows)
        best: list[Items] = [np.empty(0, np.int32)] * len(rows)
        by_model = np.flatnonzero(ranked.rows[rows] >= 0)
        if len(by_model):
            queries = cast(FactoredRanking, ranked.ranking).queries[ranked.rows[rows[by_model]]]
            for place, items in zip(by_model, self._index.search(queries, depth, allowed=mask)[0], strict=True):
                best[place] = items
        for place in np.flatnonzero(ranked.rows[rows] < 0):
            best[place] = self._by_table(ranked, int(rows[place]), wanted)
        return best

    def _by_table(self, ranked: "Ranked", row: int, wanted: _Wanted) -> Items:
        mask, depth = wanted
        n_items, history, country = len(self._tables.customers), _history(ranked, row), ranked.shoppers[row].country
        if not len(history):
            best = self._tables.bestsellers(country)
            found: Items = best if mask is None else best[mask[best]]
            if len(found) >= depth or len(best) == n_items:
                return found[:depth]
        items = np.arange(n_items) if mask is None else np.flatnonzero(mask)
        scores = self._tables.scores_for(history, country, items)
        return cast(Items, items[top_k(scores[None], depth)[0][0]].astype(np.int32))

    def _scored(self, ranked: "Ranked", found: list[Items], masks: Sequence[Mask | None]) -> Candidates:
        items = np.full((len(found), max(map(len, found))), -1, np.int32)
        for row, own in enumerate(found):
            known = own[own >= 0]  # ascending
            items[row, : len(known)] = known
        scores = np.full(items.shape, -np.inf, np.float32)
        by_model = np.flatnonzero(ranked.rows >= 0)
        if len(by_model):
            ranking = cast(FactoredRanking, ranked.ranking)
            scores[by_model] = ranking.score_items(items[by_model], ranked.rows[by_model])
        for row in np.flatnonzero(ranked.rows < 0).tolist():
            known = items[row][items[row] >= 0]
            country = ranked.shoppers[row].country
            scores[row, : len(known)] = self._tables.scores_for(_history(ranked, row), country, known)
        allowed = items >= 0
        for row, mask in enumerate(masks):
            if mask is not None:
                allowed[row] &= mask[items[row]]
        return Candidates(items, scores, allowed)

    def scores_of(self, ranked: "Ranked", row: int) -> Scores:  # (V,)
        """Score the whole catalogue for what can't do with candidates: a pass over all vectors."""
        history = _history(ranked, row)
        if ranked.rows[row] < 0:
            return self._tables.scores_for(history, ranked.shoppers[row].country)
        ranking, rows = cast(FactoredRanking, ranked.ranking), ranked.rows[row : row + 1]
        scores: Scores = self._index.vectors @ ranking.queries[rows[0]]
        scores[history] = ranking.score_items(history[None], rows)[0]
        return scores


def _history(ranked: "Ranked", row: int) -> Items:
    """Return the items of a shopper's events."""
    events = ranked.timelines.items[row]
    items: Items = events[events > 0] - 1  # 0 was padding
    return items
