"""Logged searches, what they showed and what was taken -> how much each part of a search's score is to say.

How much words say stays as it is: the other parts are held against it. Taste keeps its weight, too: what the model of
that day thought of the items isn't logged. The parts are computed anew by an index of the catalogue; popularity and
freshness as they were on the day of the search.

Letters: P items shown, of all searches below each other; V items, Q queries, F parts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recflow.models.dataset import TrainingSet
from recflow.models.text import text_encoder, title_vectors
from recflow.retrieval.clicks import LookedAt, learn_parts, looked_at, weighted_ndcg
from recflow.retrieval.languages import Words, load_words
from recflow.retrieval.search import DEFAULT, FRESH_DAYS, SearchIndex, Weights
from recflow.retrieval.understanding import understand
from recflow.retrieval.vocabulary import Vocabulary
from recflow.searches import SearchLog
from recflow.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

LEARNED: Final = ("words", "meaning", "popularity", "freshness")
_MOST_SEARCHES: Final = 5_000  # before the hold-out and in it, the newest: a query takes some milliseconds
_HELD_OUT_SHARE: Final = 0.2  # of `search.min_clicked_searches` that the hold-out must have
_DAY_US: Final = 86_400_000_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shown:
    """Items that searches showed, with what followed; one row an item shown, ordered by search."""

    search: NDArray[np.int64]  # (P,)
    pair: NDArray[np.int64]  # (P,) number of the query and item
    position: NDArray[np.int64]  # (P,) 1-based
    level: NDArray[np.int64]  # (P,) see `searches.LEVELS`
    is_held_out: NDArray[np.bool_]  # (P,)
    parts: Floats  # (P, F)


def learn_weights(log: SearchLog, training: TrainingSet, settings: Settings) -> tuple[Weights | None, dict[str, Any]]:
    """Return learned weights, None where those in force stay, and the facts: rules, figures, a sentence."""
    in_force = weights_in_force(settings)
    log = replace(log, shown=log.shown[log.shown["item_id"].isin(training.item_index.keys())])
    enough = _enough(_clicked(log), training.holdout_start, settings.search.min_clicked_searches)
    if not all(rule["passed"] for rule in enough):
        return None, _facts(enough, in_force)
    shown = read_shown(log, training, settings)
    gains = np.append(0, np.cumsum(settings.training.engagement.gains))[shown.level]  # a purchase is a click as well
    before, after = ~shown.is_held_out, shown.is_held_out
    glance = _glance(shown, before)
    worth = gains / glance.at(shown.position)
    tried = _learn(shown, worth, before, in_force)
    figures = {
        name: weighted_ndcg(_scores(shown, weights)[after], shown.search[after], worth[after])
        for name, weights in (("learned", tried), ("in_force", in_force))
    }
    better = {
        "name": "not_worse",
        "passed": figures["learned"] >= figures["in_force"],
        "sentence": f"NDCG of the held-out searches, clicks weighed by one over how often their position is looked at: "
        f"{figures['learned']:.4f} with learned weights, {figures['in_force']:.4f} with those in force.",
    }
    facts = _facts([*enough, better], in_force) | {"ndcg": figures}
    if not better["passed"]:
        return None, facts
    glance = _glance(shown, slice(None))
    learned = _learn(shown, gains / glance.at(shown.position), slice(None), in_force)
    facts["looked_at"] = {"of_band": glance.of_band.round(4).tolist(), "clicks": glance.clicks}
    return learned, facts | {"weights": {name: getattr(learned, name) for name in LEARNED}}


def weights_in_force(settings: Settings) -> Weights:
    """Return our weights with what the shop set in their place."""
    known = asdict(DEFAULT)
    said = {name: type(known[name])(value) for name, value in settings.search.weights.items() if name in known}
    return Weights.from_json(said)


def read_shown(log: SearchLog, training: TrainingSet, settings: Settings) -> Shown:
    """Return what the newest searches with a click showed, before the hold-out and in it, with each item's parts."""
    clicked, shown = _clicked(log), log.shown
    is_held_out = clicked["moment"] >= np.datetime64(training.holdout_start, "us")
    newest = [clicked.index[mask][-_MOST_SEARCHES:] for mask in (~is_held_out, is_held_out)]
    shown = shown[shown["search"].isin(np.concatenate(newest))]
    item = training.item_index
    shown = shown.assign(item=shown["item_id"].map(item)).dropna(subset="item")
    shown = shown.assign(item=shown["item"].astype(int)).sort_values(["search", "position", "item"], kind="stable")
    of_search = log.searches.loc[shown["search"]]
    queries, query = np.unique(of_search["query"].to_numpy(str), return_inverse=True)
    items = shown["item"].to_numpy(np.int64)
    moment = of_search["moment"].to_numpy("datetime64[us]")
    fit = _query_parts(queries.tolist(), query, items, training, settings)  # (P, 3)
    popularity, freshness = _day_parts(items, moment, training, settings)
    return Shown(
        search=shown["search"].to_numpy(np.int64),
        pair=np.unique(query * len(training.items) + items, return_inverse=True)[1],
        position=shown["position"].to_numpy(np.int64),
        level=shown["level"].to_numpy(np.int64),
        is_held_out=moment >= np.datetime64(training.holdout_start, "us"),
        parts=np.column_stack([fit[:, 0], fit[:, 1], fit[:, 2] * popularity, fit[:, 2] * freshness]),
    )


# -- rules


def _clicked(log: SearchLog) -> "pd.DataFrame":
    """Return the searches of which something shown was clicked on or more, and something else wasn't."""
    by_search = log.shown.groupby("search")["level"].agg(["min", "max"])
    return log.searches.loc[by_search.index[(by_search["max"] > 0) & (by_search["min"] == 0)]]


def _enough(clicked: "pd.DataFrame", holdout_start: date, least: int) -> list[dict[str, Any]]:
    is_held_out = clicked["moment"] >= np.datetime64(holdout_start, "us")
    rules = []
    for name, count, wanted, when in (
        ("enough_searches", int((~is_held_out).sum()), least, "before the hold-out"),
        ("enough_held_out", int(is_held_out.sum()), max(1, round(_HELD_OUT_SHARE * least)), "in the hold-out"),
    ):
        sentence = f"{count:,} searches with a click on what was shown {when}; at least {wanted:,} are needed."
        rules.append({"name": name, "passed": count >= wanted, "sentence": sentence})
    return rules


def _facts(rules: Sequence[dict[str, Any]], in_force: Weights) -> dict[str, Any]:
    failed = [rule["sentence"] for rule in rules if not rule["passed"]]
    sentence = f"Search weights stay as they are: {' '.join(failed)}" if failed else "Search weights were learned."
    return {
        "learned": not failed,
        "sentence": sentence,
        "rules": list(rules),
        "in_force": {name: getattr(in_force, name) for name in LEARNED},
    }


# -- learning


def _glance(shown: Shown, rows: Any) -> LookedAt:
    return looked_at(shown.pair[rows], shown.position[rows], shown.level[rows] > 0)


def _learn(shown: Shown, worth: Floats, rows: Any, in_force: Weights) -> Weights:
    now = np.array([getattr(in_force, name) for name in LEARNED])
    found = learn_parts(shown.parts[rows], shown.search[rows], worth[rows], now)
    learned = {name: round(float(each), 4) for name, each in zip(LEARNED, found, strict=True)}
    return Weights.from_json({**in_force.to_json(), **learned})


def _scores(shown: Shown, weights: Weights) -> Floats:  # (P,)
    scores: Floats = shown.parts @ np.array([getattr(weights, name) for name in LEARNED])
    return scores


# -- parts


def _query_parts(
    queries: Sequence[str],  # (Q,)
    query: NDArray[np.intp],  # (P,)
    items: NDArray[np.int64],  # (P,)
    training: TrainingSet,
    settings: Settings,
) -> Floats:  # (P, 3)
    """Return words, meaning, and what the other parts are shrunk by, of each item for its query."""
    rows = training.items.drop_columns(["item_idx"])
    titles = rows["title"].to_pylist()
    vocabulary = Vocabulary.build(catalogue_texts(rows), language=settings.search.language)
    # Every item as popular as can be: what the index then gives for popularity is what it is shrunk by.
    alike = np.ones(len(rows))
    index = SearchIndex.build(
        rows,
        title_vectors(titles, encoder=settings.training.text_encoder),
        popularity=alike,
        first_seen_day=np.zeros(len(rows), np.int64),
        until_day=0,
        language=vocabulary.language,
    )
    unit = replace(weights_in_force(settings), words=1.0, meaning=1.0, popularity=1.0, alike=0.0, most_alike=len(rows))
    words, encoder = shop_words(vocabulary.language, settings), text_encoder(settings.training.text_encoder)
    parts = np.zeros((len(items), 3))
    order = np.argsort(query, kind="stable")
    ends = np.searchsorted(query[order], np.arange(len(queries) + 1))
    for number, text in enumerate(queries):
        mine = order[ends[number] : ends[number + 1]]
        allowed = np.zeros(len(rows), bool)
        allowed[items[mine]] = True
        understood = understand(text, vocabulary, words)
        vector = encoder.vectors([understood.meaning])[0]
        found = index.search(understood, vector, limit=len(mine), allowed=allowed, weights=unit)
        place = np.full(len(rows), -1)
        place[found.items] = np.arange(len(found.items))
        at = place[items[mine]]
        values = np.column_stack([found.parts[name] for name in ("words", "meaning", "popularity")])
        parts[mine[at >= 0]] = values[at[at >= 0]]
    return parts


def _day_parts(
    items: NDArray[np.int64],  # (P,)
    moment: NDArray[np.datetime64],  # (P,)
    training: TrainingSet,
    settings: Settings,
) -> tuple[Floats, Floats]:  # (P,), (P,)
    """Return popularity and freshness as they were at the midnight (UTC) before each search."""
    bought = training.interactions()
    bought_day = bought.timestamp.astype("datetime64[D]").astype(np.int64)
    is_purchase, n_items = bought.is_purchase, len(training.items)
    day = moment.astype("datetime64[D]").astype(np.int64)
    popularity = np.zeros(len(items))
    for today in np.unique(day):
        rows = is_purchase & (bought_day < today) & (bought_day >= today - settings.serving.popularity_days)
        customers = np.unique(bought.user_idx[rows].astype(np.int64) * n_items + bought.item_idx[rows]) % n_items
        level = np.log1p(np.bincount(customers, minlength=n_items))
        popularity[day == today] = level[items[day == today]] / max(float(level.max()), 1e-9)
    first = training.items["first_seen"].cast(pa.int64()).to_numpy()[items] // _DAY_US  # NaN where unknown
    age = np.maximum(day - first, 0)
    return popularity, np.where(np.isnan(first), 0.0, 0.5 ** (age / FRESH_DAYS))


def catalogue_texts(items: pa.Table) -> list[str]:
    """Return of each item what a vocabulary is made of."""
    columns = [items[name].to_pylist() for name in ("title", "category", "brand")]
    return [" ".join(text for text in row if text) for row in zip(*columns, strict=True)]


def shop_words(language: str, settings: Settings) -> Words:
    """Return the words that stand for others, ours and the shop's own; nothing that was learned."""
    own, other = settings.search.synonyms, settings.search.dictionary
    return load_words(language, synonyms=[own] if own else [], dictionaries=[other] if other else [])
