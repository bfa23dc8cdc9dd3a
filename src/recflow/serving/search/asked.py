"""Searches in the lake -> what many shoppers ask for: what may be suggested to others; one row per query."""

from collections.abc import Sequence
from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from recflow.retrieval.analysis import clean
from recflow.settings import Settings
from recflow.storage import Storage

_COLUMNS = ("event_type", "query", "user_id", "session_id")


def popular_queries(until: date, settings: Settings) -> dict[str, int]:
    """Return the queries of the last `serving.popularity_days` and how many shoppers asked for each.

    A query that fewer than `search.min_query_shoppers` asked for may name somebody, and is nobody else's to see. Of an
    anonymous visitor the session stands for the shopper.
    """
    storage, first = Storage(settings), until - timedelta(days=settings.serving.popularity_days)
    days = [day for day in storage.days("events") if first < day <= until]
    if not days:
        return {}
    events = storage.read_partitions("events", days, list(_COLUMNS))
    searches = events.filter(pc.and_(pc.equal(events["event_type"], "search"), pc.is_valid(events["query"])))
    shoppers = pc.coalesce(searches["user_id"], searches["session_id"])
    return _asked_by_many(searches["query"].to_pylist(), shoppers.to_pylist(), settings.search.min_query_shoppers)


def _asked_by_many(queries: Sequence[str], shoppers: Sequence[str | None], least: int) -> dict[str, int]:
    asked = pa.table(
        {"query": [clean(query).casefold() for query in queries], "shopper": pa.array(shoppers, pa.string())}
    )
    counts = asked.group_by("query").aggregate([("shopper", "count_distinct")])
    many = counts.filter(pc.greater_equal(counts["shopper_count_distinct"], least)).sort_by("query")
    pairs = zip(many["query"].to_pylist(), many["shopper_count_distinct"].to_pylist(), strict=True)
    return {query: count for query, count in pairs if query}
