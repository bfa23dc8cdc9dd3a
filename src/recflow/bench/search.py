"""How well search finds what shoppers mean, and how fast: by kind of query, with and without the shopper, by size.

Queries and what answers them are those of `search_queries`. Ways of searching:

- `lexical`: the words as they are understood (spelling, forms, synonyms, translations), nothing else;
- `semantic`: the likeness of the text as typed to the titles, nothing else;
- `fused`: the parts together, with the weights in force;
- `personal`: the same with the taste of a shopper, see `search_personal`.

MRR and success@10 count an item that gains anything; NDCG@10 counts what it gains.

Letters: Q queries, V items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recflow.bench.search_queries import Asked, made_queries, written_queries
from recflow.console import log, track
from recflow.metrics import graded_ndcg_at_k, hit_rate_at_k, reciprocal_rank_at_k
from recflow.models.text import TextEncoder
from recflow.retrieval.languages import Words, load_words
from recflow.retrieval.search import Taste, Weights
from recflow.retrieval.understanding import understand
from recflow.serving.search.part import SearchPart
from recflow.settings import Settings
from recflow.storage import write_json

Way = Literal["lexical", "semantic", "fused"]
WAYS: tuple[Way, ...] = ("lexical", "semantic", "fused")
FIGURES = ("ndcg_at_10", "mrr_at_10", "success_at_10")
TABLES = (*FIGURES, "personal", "speed")
_K = 10
_DAY_US = 86_400_000_000
_NOTHING_ELSE = {"taste": 0.0, "popularity": 0.0, "freshness": 0.0}


@dataclass(frozen=True)
class Engine:
    """A catalogue that can be asked as a bundle's can. V items."""

    part: SearchPart
    words: Words
    encoder: TextEncoder
    weights: Weights

    @classmethod
    def of(
        cls,
        items: pa.Table,
        vectors: NDArray[np.float32],  # (V, T)
        *,
        popularity: NDArray[np.floating[Any]],  # (V,)
        until: date,
        settings: Settings,
        encoder: TextEncoder,
    ) -> Self:
        """Index a catalogue with what is in force where nothing was learned.

        Args:
            items: schema.ITEMS.
            vectors: of the titles.
            popularity: of each item as known at the end of `until`.
            until: last day of data.
            settings: those of search.
            encoder: of titles and queries.
        """
        first_seen = items["first_seen"].cast(pa.int64()).fill_null(-1).to_numpy() // _DAY_US  # -1: unknown
        is_known = first_seen <= (until - date(1970, 1, 1)).days  # that an item will be new says that it will be sold
        part = SearchPart.build(
            items,
            vectors,
            popularity=popularity,
            first_seen_day=np.where(is_known, first_seen, -1),
            until=until,
            language=settings.search.language,
        )
        own = [[file] if file else [] for file in (settings.search.synonyms, settings.search.dictionary)]
        words = load_words(part.vocabulary.language, synonyms=own[0], dictionaries=own[1])
        return cls(part, words, encoder, Weights.from_json(dict(settings.search.weights)))

    def saved_and_loaded(self, folder: Path, items: pa.Table, vectors: NDArray[np.float32]) -> Self:
        """Return the same as it is served: written into an existing folder, and read back."""
        self.part.save(folder)
        return replace(self, part=SearchPart.load(folder, items, vectors))

    def find(
        self, text: str, way: Way = "fused", *, taste: Taste | None = None, limit: int = _K
    ) -> NDArray[np.int32]:  # (N,)
        """Return the best items, N at most `limit`."""
        weights = self.weights
        if way != "fused":
            alone = {"words": float(way == "lexical"), "meaning": float(way == "semantic")}
            weights = Weights.from_json(weights.to_json() | _NOTHING_ELSE | alone)
        understood = understand(text, self.part.vocabulary, self.words)
        vector = self.encoder.vectors([text if way == "semantic" else understood.meaning])[0]
        return self.part.index.search(understood, vector, limit=limit, taste=taste, weights=weights).items


def bench_search(
    data: Path,
    settings: Settings,
    *,
    until: date = date(2011, 11, 30),
    sizes: Sequence[int] = (4_000, 100_000, 1_000_000),
    personal: bool = True,
    json_path: Path | None = None,
) -> dict[str, Any]:
    """Measure search over the catalogue of a shop's days.

    The days are taken in once, into `<home>/bench/retail`, as `bench retail` does.

    Returns:
        `ndcg_at_10`, `mrr_at_10`, `success_at_10`: a row a kind of query, a column a way; `personal`: see
        `search_personal`; `speed`: a row a size, see `search_speed`; `answers`: of each written query what was found.

    Args:
        data: folder of daily files in Online Retail's form.
        settings: those of search and training in force; their home gets the folder.
        until: last day of data; the shoppers' purchases of the last `training.holdout_days` are held out.
        sizes: of the made-up catalogues whose speed is measured.
        personal: also train and measure the order for a shopper.
        json_path: where to write the same as JSON.
    """
    from recflow.bench.retail import prepared
    from recflow.bench.search_personal import Shop
    from recflow.bench.search_speed import bench_speed

    own = prepared(data, until, settings)
    shop = Shop.open(until, own)
    encoder = TextEncoder(settings.training.text_encoder)
    titles = shop.items["title"].to_pylist()
    engine = Engine.of(
        shop.items,
        encoder.vectors(titles),
        popularity=shop.popularity,
        until=shop.cut - timedelta(days=1),
        settings=settings,
        encoder=encoder,
    )
    asked = written_queries(titles).joined(made_queries(titles, seed=settings.training.seed))
    log.info("%d queries, each in %d ways", len(asked.queries), len(WAYS))
    shown = {way: _lists(engine, asked, way) for way in WAYS}
    report: dict[str, Any] = {"data": str(data), "until": str(until), "weights": engine.weights.to_json()}
    report |= tables(asked, shown)
    report["personal"] = shop.measure(engine) if personal else []
    report["speed"] = bench_speed(titles, [query.text for query in asked.queries], settings, sizes=sizes)
    report["answers"] = _answers(asked, shown["fused"], titles)
    if json_path:
        write_json(json_path, report)
    return report


def tables(asked: Asked, shown: Mapping[Way, NDArray[np.int32]]) -> dict[str, list[dict[str, Any]]]:
    """Return a table a figure: a row a kind of query, a column a way; rows of means over the kinds."""
    rows = [(query.half, query.kind) for query in asked.queries]
    groups = {key: np.array([row == key for row in rows]) for key in dict.fromkeys(rows)}
    every = {way: figures(lists, asked.gains) for way, lists in shown.items()}
    return {name: _table({way: of[name] for way, of in every.items()}, groups) for name in FIGURES}


def figures(shown: NDArray[np.int32], gains: NDArray[np.number[Any]]) -> dict[str, NDArray[np.float64]]:
    """Return each figure of each list; `shown` is (Q, K), `gains` (Q, V)."""
    return {
        "ndcg_at_10": graded_ndcg_at_k(shown, gains, k=_K),
        "mrr_at_10": reciprocal_rank_at_k(shown, gains > 0, k=_K),
        "success_at_10": hit_rate_at_k(shown, gains > 0, k=_K),
    }


def _table(
    values: Mapping[Way, NDArray[np.float64]],  # (Q,) by way
    groups: Mapping[tuple[str, str], NDArray[np.bool_]],  # (Q,) by who made the queries and kind
) -> list[dict[str, Any]]:
    table = []
    for half in dict.fromkeys(half for half, _ in groups):
        kinds = {kind: rows for (own, kind), rows in groups.items() if own == half}
        means = {kind: {way: float(of[rows].mean()) for way, of in values.items()} for kind, rows in kinds.items()}
        counts = {kind: int(rows.sum()) for kind, rows in kinds.items()}
        counts["mean of kinds"] = sum(counts.values())
        means["mean of kinds"] = {way: float(np.mean([each[way] for each in means.values()])) for way in values}
        table += [
            {"queries": half, "kind": kind, "n": counts[kind]} | {way: round(mean, 4) for way, mean in of_ways.items()}
            for kind, of_ways in means.items()
        ]
    return table


def _lists(engine: Engine, asked: Asked, way: Way) -> NDArray[np.int32]:  # (Q, 10)
    lists = np.full((len(asked.queries), _K), -1, np.int32)
    for row, query in enumerate(track(asked.queries, description=f"search, {way}", total=len(asked.queries))):
        found = engine.find(query.text, way)
        lists[row, : len(found)] = found
    return lists


def _answers(asked: Asked, shown: NDArray[np.int32], titles: Sequence[str | None]) -> list[dict[str, Any]]:
    """Return what each query found with what it gains, but of the held ones, which nobody should tune on."""
    ndcg = graded_ndcg_at_k(shown, asked.gains, k=_K)
    return [
        {
            "query": query.text,
            "kind": query.kind,
            "ndcg_at_10": round(float(ndcg[row]), 4),
            "found": [[titles[item], int(asked.gains[row, item])] for item in shown[row].tolist() if item >= 0],
        }
        for row, query in enumerate(asked.queries)
        if query.half != "held"
    ]
