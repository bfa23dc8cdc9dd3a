"""Do shoppers find what they search for? Figures of the last days' searches, in the folder of the drift report.

    searches.json   totals, by day, queries that fail
    searches.html   the same to read, with searches.png

What can't be told stays null: which searches find nothing, or give something up, is asked of the champion as it answers
today. A query is only shown where enough shoppers typed it, `search.min_query_shoppers`: what few type may tell who
they are. All who aren't signed in count as one, except where every word is the catalogue's own.
"""

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pyarrow.parquet as pq

from recflow.models.weights import read_arrays
from recflow.monitoring.searches_page import draw, write_page
from recflow.schema import Days
from recflow.searches import SearchLog, read_searches
from recflow.settings import Settings
from recflow.storage import Release, Storage, write_json

if TYPE_CHECKING:
    import pandas as pd

_MOST_ASKED: Final = 500  # different queries that the champion is asked, the most frequent: some 5 ms each
_MOST_FAILING: Final = 25  # queries that are shown
_FAILS: Final = 0.5  # share of a query's searches without a click from which it fails


def report_searches(until: date, champion: Release | None, folder: Path, settings: Settings) -> dict[str, Any]:
    """Write the report on the last `drift.current_days`, and return its totals; without searches a sentence alone."""
    days = Days(until - timedelta(days=settings.drift.current_days - 1), until)
    log = read_searches(Storage(settings), days)
    if log.searches.empty:
        return {"sentence": f"No report on searches: from {days} the feed has none with a request_id."}
    answers = None if champion is None else Answers.of(log, champion.folder, settings)
    searches = _figured(log, answers)
    totals, by_day = _totals(searches), searches.groupby(searches["moment"].dt.floor("D"))
    figures = {
        "start": str(days.start),
        "until": str(until),
        "totals": totals,
        "asked": None if answers is None else answers.share,
        "days": [{"day": str(day.date()), **_totals(part)} for day, part in by_day],
        "failing": _failing(searches, settings.search.min_query_shoppers),
        "min_shoppers": settings.search.min_query_shoppers,
    }
    write_json(folder / "searches.json", figures)
    write_page(figures, draw(figures, folder / "searches.png"), folder / "searches.html")
    return {"sentence": _sentence(totals), **totals}


@dataclass(frozen=True)
class Answers:
    """What the champion finds for the most frequent queries, without filters and for nobody in particular."""

    found: "pd.DataFrame"  # by query: is_nothing, is_relaxed, is_known (the catalogue has every word)
    share: float  # of the searches whose query was asked

    @classmethod
    def of(cls, log: SearchLog, bundle: Path, settings: Settings) -> Self | None:
        """Ask the champion's search index; None where its bundle has none."""
        import json

        import pandas as pd

        from recflow.models.text import text_encoder
        from recflow.retrieval.analysis import words
        from recflow.retrieval.languages import load_words
        from recflow.retrieval.search import SearchIndex
        from recflow.retrieval.understanding import understand
        from recflow.retrieval.vocabulary import Vocabulary

        part = bundle / "search"
        if not part.is_dir():
            return None
        facts = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
        vectors = read_arrays(bundle / "vectors.safetensors")["vectors"]
        index = SearchIndex.load(part, pq.read_table(bundle / "items.parquet"), vectors)
        vocabulary = Vocabulary.load(part / "vocabulary")
        own, learned = settings.search, part / "synonyms.json"
        known = load_words(
            vocabulary.language,
            synonyms=[own.synonyms] if own.synonyms else [],
            dictionaries=[own.dictionary] if own.dictionary else [],
            learned=json.loads(learned.read_text(encoding="utf-8")) if learned.exists() else [],
        )
        encoder = text_encoder(facts.get("text_encoder", settings.training.text_encoder))
        counts = log.searches["query"].value_counts(sort=False).sort_index()
        asked = counts.sort_values(ascending=False, kind="stable").index[:_MOST_ASKED]
        rows = []
        for query in asked:
            understood = understand(query, vocabulary, known)
            found = index.search(understood, encoder.vectors([understood.meaning])[0], limit=10)
            is_nothing = not (found.parts["words"].any() or found.parts["meaning"].any())
            is_known = all(vocabulary.exact_count(word) for word in words(query))
            rows.append((is_nothing, bool(found.relaxed or understood.notes) and not is_nothing, is_known))
        found_by_query = pd.DataFrame(rows, index=asked, columns=["is_nothing", "is_relaxed", "is_known"], dtype=bool)
        return cls(found_by_query, float(log.searches["query"].isin(asked).mean()))


def _figured(log: SearchLog, answers: Answers | None) -> "pd.DataFrame":
    """Return the searches with what came of each."""
    steps = log.next_searches()
    queries = log.searches["query"].to_numpy()
    clicks = log.chosen[log.chosen["position"] > 0].groupby("search")["position"].agg(["sum", "count"])
    searches = log.searches.assign(
        is_clicked=steps["is_clicked"],
        is_replaced=steps["next"] >= 0,
        instead=np.where(steps["is_next_clicked"], queries[steps["next"]], None),
        position_sum=clicks["sum"],
        position_count=clicks["count"],
        is_nothing=None,
        is_relaxed=None,
    )
    if answers is None:
        return searches.assign(who=searches["person"])
    asked = answers.found.reindex(searches["query"])
    return searches.assign(
        is_nothing=asked["is_nothing"].to_numpy(),
        is_relaxed=asked["is_relaxed"].to_numpy(),
        who=searches["shopper"].where(asked["is_known"].eq(True).to_numpy(), searches["person"]),
    )


def _totals(searches: "pd.DataFrame") -> dict[str, Any]:
    clicks = searches["position_count"].sum()
    return {
        "searches": len(searches),
        "without_result": _share(searches["is_nothing"]),
        "relaxed": _share(searches["is_relaxed"]),
        "without_click": _share(~searches["is_clicked"]),
        "reformulated": _share(searches["is_replaced"]),
        "mean_click_position": round(float(searches["position_sum"].sum() / clicks), 2) if clicks else None,
    }


def _share(flags: "pd.Series[Any]") -> float | None:
    """Return the share of those that are known; None where none is."""
    known = flags.dropna()
    return round(float(known.astype(float).mean()), 4) if len(known) else None


def _failing(searches: "pd.DataFrame", min_shoppers: int) -> list[dict[str, Any]]:
    """Return the queries that most searches without a click are of, those of few shoppers left out."""
    support = searches.groupby("query")["who"].nunique()
    kept = searches[searches["query"].isin(support[support >= min_shoppers].index)]
    steps = kept.dropna(subset="instead").groupby(["query", "instead"])["who"].nunique()
    steps = steps[steps >= min_shoppers].reset_index().sort_values(["who", "instead"], ascending=[False, True])
    instead = steps.drop_duplicates("query").set_index("query")["instead"]
    # What was typed instead is a query like any other.
    instead = instead[instead.map(support) >= min_shoppers]
    rows = []
    for query, part in kept.groupby("query"):
        figures = _totals(part)
        if figures["without_click"] >= _FAILS:
            known = {"query": query, "shoppers": int(support[query]), "instead": instead.get(query)}
            rows.append(known | figures)
    rows.sort(key=lambda row: (-round(row["searches"] * row["without_click"]), row["query"]))
    return rows[:_MOST_FAILING]


def _sentence(totals: dict[str, Any]) -> str:
    said = f"{totals['searches']:,} searches: {totals['without_click']:.1%} without a click"
    said += f", {totals['reformulated']:.1%} soon replaced by another"
    if totals["without_result"] is not None:
        said += f", {totals['without_result']:.1%} that the champion finds nothing for"
    return said + "."
