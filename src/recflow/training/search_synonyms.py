"""Logged searches and clicks -> words that shoppers use for what the catalogue calls otherwise.

Two sources: queries whose clicks fall on the same items, and queries that nothing was clicked on for, which the shopper
soon replaced by one that worked. Of both queries the words that they share are taken off: "xmas bauble" and "christmas
bauble" say that xmas is christmas. A pair counts by the different shoppers who say so, and what fewer than
`search.min_query_shoppers` of them typed is never kept: it may tell who they are. All who aren't signed in count as
one, except where every word is the catalogue's own.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from recflow.retrieval.analysis import stem, words
from recflow.retrieval.languages import ALIKE
from recflow.retrieval.vocabulary import Vocabulary
from recflow.searches import SearchLog

if TYPE_CHECKING:
    import pandas as pd

_MOST_QUERIES: Final = 20_000  # that clicks are compared of, most shoppers first
_MOST_PAIRS: Final = 20_000  # of queries that are looked into, most alike first
_ALIKE: Final = 0.5  # cosine of two queries' clicks from which they mean the same
_SHARE: Final = 0.2  # of the searches without a click that one other query follows, at least
_LONGEST: Final = 3  # words of what stands for other words
_DOUBT: Final = 2.0  # shoppers of whom one can't tell: a pair of as many is believed by half


class Synonym(NamedTuple):
    """Words that may be searched as others."""

    typed: str
    meant: str
    weight: float  # in (0, 1]


class _Query(NamedTuple):
    words: tuple[str, ...]
    is_known: bool  # the catalogue has all of its words


def learn_synonyms(log: SearchLog, vocabulary: Vocabulary, *, min_shoppers: int) -> list[Synonym]:
    """Return the pairs, by words; of several weights of a pair the greatest."""
    searches, queries = _read(log, vocabulary)
    best: dict[tuple[str, str], float] = {}
    found = [
        *_clicked_alike(log, searches, queries, vocabulary.language, min_shoppers),
        *_replaced(log, searches, queries, vocabulary, min_shoppers),
    ]
    for typed, meant, weight in found:
        if all(vocabulary.exact_count(word) for word in meant):
            pair = " ".join(typed), " ".join(meant)
            best[pair] = max(weight, best.get(pair, 0.0))
    return [Synonym(*pair, round(weight, 3)) for pair, weight in sorted(best.items())]


def _read(log: SearchLog, vocabulary: Vocabulary) -> tuple["pd.DataFrame", list[_Query]]:
    """Return the searches with the number of their query, and the queries by their analysed words."""
    import pandas as pd

    codes, texts = pd.factorize(log.searches["query"])
    analysed = [tuple(words(text)) for text in texts]
    numbers, distinct = pd.factorize(pd.Index(analysed, dtype=object, tupleize_cols=False))
    queries = [_Query(each, all(vocabulary.exact_count(word) for word in each)) for each in distinct]
    searches = log.searches.assign(number=numbers[codes] if len(codes) else [])
    is_known = np.array([query.is_known for query in queries], bool)
    # Who is counted: see the module's first lines.
    who = searches["shopper"].where(is_known[searches["number"].to_numpy(int)], searches["person"])
    return searches.assign(who=who), queries


Found = tuple[Sequence[str], Sequence[str], float]


def _clicked_alike(
    log: SearchLog, searches: "pd.DataFrame", queries: Sequence[_Query], language: str, min_shoppers: int
) -> Iterable[Found]:
    """Yield pairs of queries whose clicks fall on the same items; both ways."""
    from scipy.sparse import csr_matrix

    clicks = log.chosen.join(searches[["number", "who"]], on="search", how="inner")
    clicks = clicks.drop_duplicates(["number", "item_id", "who"])
    support = clicks.groupby("number")["who"].nunique()
    enough = support[support >= min_shoppers].sort_values(ascending=False, kind="stable").index[:_MOST_QUERIES]
    clicks = clicks[clicks["number"].isin(enough)]
    if clicks.empty:
        return
    numbers, row = np.unique(clicks["number"].to_numpy(int), return_inverse=True)
    column = clicks["item_id"].astype("category").cat.codes.to_numpy()
    counts = csr_matrix((np.ones(len(row)), (row, column)))
    rarity = np.log1p(counts.shape[0] / np.maximum((counts > 0).sum(axis=0).A1, 1))  # a best-seller tells little
    vectors = counts.multiply(rarity).tocsr()
    lengths = np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel())
    vectors = vectors.multiply(1 / lengths[:, None]).tocsr()
    alike = (vectors @ vectors.T).tocoo()
    kept = np.flatnonzero((alike.row < alike.col) & (alike.data >= _ALIKE))
    kept = kept[np.argsort(-alike.data[kept], kind="stable")][:_MOST_PAIRS]
    for one, other, cosine in zip(alike.row[kept], alike.col[kept], alike.data[kept], strict=True):
        # On items that both led to: each by enough shoppers.
        shared = np.intersect1d(counts[one].indices, counts[other].indices)
        sides = [clicks["who"].to_numpy()[(row == side) & np.isin(column, shared)] for side in (one, other)]
        shoppers = min(len(np.unique(side)) for side in sides)
        first, second = queries[numbers[one]].words, queries[numbers[other]].words
        pair = _differing(first, second, language)
        if shoppers >= min_shoppers and pair:
            weight = ALIKE * float(cosine) * shoppers / (shoppers + _DOUBT)
            yield *pair, weight
            yield pair[1], pair[0], weight


def _replaced(
    log: SearchLog,
    searches: "pd.DataFrame",
    queries: Sequence[_Query],
    vocabulary: Vocabulary,
    min_shoppers: int,
) -> Iterable[Found]:
    """Yield what was typed in vain and what several shoppers typed instead.

    Only of queries with a word that the catalogue doesn't have: who looks for mugs, takes none and looks for candles
    has thought of something else.
    """
    steps = log.next_searches()
    numbers = searches["number"].to_numpy()
    worked = (steps["next"] >= 0) & steps["is_next_clicked"]
    steps = searches[["number", "who"]].assign(
        next_number=np.where(worked, numbers[steps["next"]], -1), is_clicked=steps["is_clicked"]
    )
    steps = steps[~steps["is_clicked"]]
    in_vain = steps.groupby("number")["who"].nunique()
    replaced = steps[(steps["next_number"] >= 0) & (steps["next_number"] != steps["number"])]
    pairs = replaced.groupby(["number", "next_number"])["who"].nunique()
    kept = pairs[pairs >= min_shoppers]
    for (number, following), shoppers in zip(kept.index.tolist(), kept.tolist(), strict=True):
        first, second = queries[number], queries[following]
        pair = _differing(first.words, second.words, vocabulary.language)
        share = shoppers / in_vain[number]
        if pair and share >= _SHARE and not all(vocabulary.exact_count(word) for word in pair[0]):
            yield *pair, ALIKE * float(share) * shoppers / (shoppers + _DOUBT)


def _differing(
    first: Sequence[str], second: Sequence[str], language: str
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the words of each that the other hasn't, in any form; None where either has none, or too many."""
    one, other = ({stem(word, language) for word in query} for query in (first, second))
    pair = (
        tuple(word for word in first if stem(word, language) not in other),
        tuple(word for word in second if stem(word, language) not in one),
    )
    return pair if all(0 < len(side) <= _LONGEST for side in pair) else None
