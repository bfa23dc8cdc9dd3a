"""Shoppers -> scores: of the whole catalogue, or of what is worth scoring where it is too large for that.

With an index a shopper's candidates are the best of what may be shown, as far as the index finds them, the items of the
shopper's own history, whose scores the index knows only in part, and what is pinned. All of them are scored exactly: an
item that the index misses is missing, and nothing else differs. Where no more may be shown than would be looked for (a
shop's own list, a cart, a narrow filter), all of that is scored. Where rules look further down than the candidates
reach, as a category's cap may, the whole catalogue is scored after all.

Whom the model doesn't score gets the tables' scores.

Letters: V items, B shoppers, N candidates of each, L events of a history.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from recflow.models.attribution import FactoredRanking, Ranking
from recflow.models.interactions import Context, top_k
from recflow.retrieval.dense import Index
from recflow.serving.bundle import Bundle
from recflow.serving.rules import Ask, Rules, Slate
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
    # (B,) items that aren't candidates and may be shown have no better scores; -inf where there are none
    floors: Sequence[float] = ()


class Search(Protocol):
    """How a version finds what it shows."""

    def all_scores(self, ranked: "Ranked") -> Scores | None:  # (B, V)
        """Return the scores of the whole catalogue, or None where only candidates are scored."""

    def sample(self, ranking: Ranking, context: Context) -> Scores:
        """Return scores of each shopper that tell whether the model works."""

    def find(
        self, ranked: "Ranked", asks: Sequence[Ask], allowed: Sequence[Mask | None], *, rules: Rules
    ) -> Candidates:
        """Return what the rules choose each shopper's list from; `allowed` by the request's own filters, None: all."""

    def choose(
        self, found: Candidates, ranked: "Ranked", asks: Sequence[Ask], allowed: Sequence[Mask | None], *, rules: Rules
    ) -> list[Slate]:
        """Return each shopper's list: what the rules make of what was found for the same arguments."""

    def scores_of(self, ranked: "Ranked", row: int, items: NDArray[np.integer] | None = None) -> Scores:
        """Return how some items (A,) score for one shopper, or the whole catalogue (V,)."""


def search_of(bundle: Bundle) -> Search:
    """Return how a bundle's catalogue is searched."""
    if bundle.index is None:
        return WholeCatalogue(bundle.tables)
    return CandidateSearch(bundle.index, bundle.tables, history_length=bundle.history_length)


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

    def find(
        self, ranked: "Ranked", asks: Sequence[Ask], allowed: Sequence[Mask | None], *, rules: Rules
    ) -> Candidates:
        """Return all items."""
        scores = cast(Scores, ranked.scores)
        may_show = np.ones(scores.shape, dtype=bool)
        for row, mask in enumerate(allowed):
            if mask is not None:
                may_show[row] = mask
        return Candidates(None, scores, may_show)

    def choose(
        self, found: Candidates, ranked: "Ranked", asks: Sequence[Ask], allowed: Sequence[Mask | None], *, rules: Rules
    ) -> list[Slate]:
        """Return what the rules make of all items."""
        return rules.apply_many(found.scores, found.allowed, asks)

    def scores_of(self, ranked: "Ranked", row: int, items: NDArray[np.integer] | None = None) -> Scores:
        """Return one shopper's scores."""
        scores: Scores = cast(Scores, ranked.scores)[row]
        return scores if items is None else scores[items]


class _Wanted(NamedTuple):
    """The best `depth` items of those that a mask lets through; None: of all."""

    mask: Mask | None
    depth: int
    is_shown: bool  # what the list is chosen from; else only notes are


class CandidateSearch:
    """Scores what an index finds."""

    def __init__(self, index: Index, tables: Tables, *, history_length: int) -> None:
        """Take what knows the items."""
        self._index = index
        self._tables = tables
        self._history_length = history_length
        tables.bestsellers(None)  # puts all countries in order: no request shall wait for it

    def all_scores(self, ranked: "Ranked") -> None:
        """Return nothing: nobody asks for so many."""

    def sample(self, ranking: Ranking, context: Context) -> Scores:  # (B, L)
        """Return the scores of the histories' items: a number of a shopper's that is NaN is in all scores."""
        return cast(FactoredRanking, ranking).score_items(context.items - 1)

    def find(
        self, ranked: "Ranked", asks: Sequence[Ask], allowed: Sequence[Mask | None], *, rules: Rules
    ) -> Candidates:
        """Return the best items that may be shown, those of the history and those that are pinned."""
        found: list[list[Items]] = [
            [_history(ranked, row), np.array(rules.pinned(ask.placement), np.int32)] for row, ask in enumerate(asks)
        ]
        floors: list[float] = [-np.inf] * len(asks)
        # Equal searches are made together. The masks are kept here, so none gets the id of another.
        together: dict[tuple[int, int, bool], tuple[_Wanted, list[int]]] = {}
        for row, (ask, mask) in enumerate(zip(asks, allowed, strict=True)):
            for wanted in self._wanted(ask, mask, rules):
                together.setdefault((id(wanted.mask), *wanted[1:]), (wanted, []))[1].append(row)
        for wanted, rows in together.values():
            for row, (items, floor) in zip(rows, self._best(ranked, np.array(rows), wanted), strict=True):
                found[row].append(items)
                if wanted.is_shown:
                    floors[row] = floor
        return self._scored(ranked, [np.unique(np.concatenate(parts)) for parts in found], allowed, floors)

    def _wanted(self, ask: Ask, mask: Mask | None, rules: Rules) -> Iterator[_Wanted]:
        """Say what a list has to be chosen from."""
        # As many more as may turn out to score lower than the index says: those of the history.
        yield _Wanted(_may_show(ask, mask, rules), rules.reach(ask) + self._history_length, is_shown=True)
        if ask.explain:  # what would stand there if the shop hid nothing
            yield _Wanted(mask, ask.k + self._history_length, is_shown=False)

    def _best(self, ranked: "Ranked", rows: NDArray[np.int64], wanted: _Wanted) -> list[tuple[Items, float]]:
        """Find what is wanted for some shoppers: items in any order, -1 is none, and what no other scores above."""
        mask, depth, _ = wanted
        if mask is not None and np.count_nonzero(mask) <= depth:
            return [(np.flatnonzero(mask).astype(np.int32), -np.inf)] * len(rows)
        best: list[tuple[Items, float]] = [(np.empty(0, np.int32), -np.inf)] * len(rows)
        by_model = np.flatnonzero(ranked.rows[rows] >= 0)
        if len(by_model):
            queries = cast(FactoredRanking, ranked.ranking).queries[ranked.rows[rows[by_model]]]
            found, scores = self._index.search(queries, depth, allowed=mask)
            for place, items, last in zip(by_model, found, scores[:, -1].tolist(), strict=True):
                best[place] = (items, last if len(items) < len(self._tables.customers) else -np.inf)
        for place in np.flatnonzero(ranked.rows[rows] < 0):
            best[place] = self._by_table(ranked, int(rows[place]), wanted)
        return best

    def _by_table(self, ranked: "Ranked", row: int, wanted: _Wanted) -> tuple[Items, float]:
        mask, depth, _ = wanted
        n_items, history, country = len(self._tables.customers), _history(ranked, row), ranked.shoppers[row].country
        if not len(history):
            best = self._tables.bestsellers(country)
            found: Items = best if mask is None else best[mask[best]]
            if len(found) >= depth:
                last = self._tables.scores_for(history, country, found[depth - 1 : depth])
                return found[:depth], float(last[0])
            if len(best) == n_items:
                return found, -np.inf
        items = np.arange(n_items) if mask is None else np.flatnonzero(mask)
        places, scores = top_k(self._tables.scores_for(history, country, items)[None], depth)
        is_all = len(items) <= depth
        return cast(Items, items[places[0]].astype(np.int32)), -np.inf if is_all else float(scores[0, -1])

    def choose(
        self, found: Candidates, ranked: "Ranked", asks: Sequence[Ask], allowed: Sequence[Mask | None], *, rules: Rules
    ) -> list[Slate]:
        """Return what the rules make of the candidates, or of all items where they look further down."""
        slates = rules.apply_many(found.scores, found.allowed, asks, items=found.items)
        for row, (slate, ask, mask) in enumerate(zip(slates, asks, allowed, strict=True)):
            if slate.lowest < found.floors[row]:
                scores = self.scores_of(ranked, row)
                slates[row] = rules.apply(scores, np.ones(len(scores), bool) if mask is None else mask, ask)
            elif ask.explain:
                slates[row] = replace(slate, n_open=int(np.count_nonzero(_may_show(ask, mask, rules))))
        return slates

    def _scored(
        self, ranked: "Ranked", found: list[Items], masks: Sequence[Mask | None], floors: Sequence[float]
    ) -> Candidates:
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
        return Candidates(items, scores, allowed, floors)

    def scores_of(self, ranked: "Ranked", row: int, items: NDArray[np.integer] | None = None) -> Scores:
        """Score items, or the whole catalogue for what can't do with candidates: a pass over all vectors."""
        history = _history(ranked, row)
        if ranked.rows[row] < 0:
            return self._tables.scores_for(history, ranked.shoppers[row].country, items)
        ranking, rows = cast(FactoredRanking, ranked.ranking), ranked.rows[row : row + 1]
        if items is not None:
            some: Scores = ranking.score_items(items[None].astype(np.int32), rows)[0]
            return some
        scores: Scores = self._index.vectors @ ranking.queries[rows[0]]
        scores[history] = ranking.score_items(history[None], rows)[0]
        return scores


def _may_show(ask: Ask, mask: Mask | None, rules: Rules) -> Mask:
    """Return what a request's filters and the shop let through."""
    showable = rules.showable(in_stock=ask.in_stock)
    return showable if mask is None else showable & mask


def _history(ranked: "Ranked", row: int) -> Items:
    """Return the items of a shopper's events."""
    events = ranked.timelines.items[row]
    items: Items = events[events > 0] - 1  # 0 was padding
    return items
