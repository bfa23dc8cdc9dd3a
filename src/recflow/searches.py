"""Events -> what shoppers searched for, what they were shown for it, and what followed.

A search is an event of its own; impressions, clicks, carts and purchases follow it by its answer's `request_id`. What
names no request can't be told from browsing and is left out.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from recflow.schema import EVENTS, Days
from recflow.storage import Storage

if TYPE_CHECKING:
    import pandas as pd

# How far an item led: a view is a click, since some shops log one of them.
LEVELS: Final = {"click": 1, "view": 1, "add_to_cart": 2, "purchase": 3}
NEXT_MINUTES: Final = 5.0  # within which a search takes the place of the one before
_COLUMNS: Final = [
    "event_timestamp", "event_type", "user_id", "session_id", "item_id", "query", "position", "request_id",
]  # fmt: skip


@dataclass(frozen=True)
class SearchLog:
    """Searches and what came of them; `search` is the row of `searches`."""

    # One row per search, by time: moment (UTC), query (lower case, one space between words), shopper (number of a user
    # or, where nobody is signed in, of a session), person (the shopper; -1 for all who aren't signed in, for several
    # sessions may be one person), visit (number of a session, or the shopper where there is none).
    searches: "pd.DataFrame"
    # One row per search and item shown: search, item_id, position (1-based), level (0, or as in LEVELS).
    shown: "pd.DataFrame"
    # One row per search and item that was clicked on or more, shown or not: search, item_id, position (0: unknown),
    # level.
    chosen: "pd.DataFrame"

    def next_searches(self) -> "pd.DataFrame":
        """Return row by row with `searches`: is_clicked; next, is_next_clicked: the search that took its place.

        That is the next one of the visit, within NEXT_MINUTES, if it asks for something else; -1: none.
        """
        import pandas as pd

        frame = self.searches.assign(is_clicked=self.searches.index.isin(self.chosen["search"]))
        ordered = frame.assign(next=frame.index).sort_values(["visit", "moment"], kind="stable")
        following = ordered.groupby("visit")[["next", "moment", "query", "is_clicked"]].shift(-1)
        soon = (following["moment"] - ordered["moment"]) <= pd.Timedelta(minutes=NEXT_MINUTES)
        is_next = soon & (following["query"] != ordered["query"])
        found = pd.DataFrame(
            {
                "is_clicked": ordered["is_clicked"],
                "next": following["next"].where(is_next, -1).astype(int),
                "is_next_clicked": is_next & following["is_clicked"].eq(True),
            }
        )
        return found.sort_index()


def read_searches(storage: Storage, days: Days) -> SearchLog:
    """Read the searches of some days that have a `request_id` and a query."""
    import pandas as pd

    parts, kinds = [EVENTS.empty_table().select(_COLUMNS)], pa.array(["search", "impression", *LEVELS])
    for day in sorted(set(days.dates()).intersection(storage.days("events"))):
        part = storage.read_partition("events", day).select(_COLUMNS)
        parts.append(part.filter(pc.and_(pc.is_valid(part["request_id"]), pc.is_in(part["event_type"], kinds))))
    log = pa.concat_tables(parts).combine_chunks()
    searches = _searches(log.filter(pc.equal(log["event_type"], "search")))
    row = pc.index_in(log["request_id"], pa.array(searches.pop("request_id"), pa.string()))
    led = log.append_column("search", row).filter(pc.and_(pc.is_valid(row), pc.is_valid(log["item_id"])))
    followed = led.select(["search", "item_id", "position", "event_type"]).to_pandas()
    followed["position"] = followed["position"].fillna(0).astype(int)
    followed["level"] = followed["event_type"].map(LEVELS).fillna(0).astype(int)
    is_shown = (followed["event_type"] == "impression") & (followed["position"] > 0)
    by_item = followed[followed["level"] > 0].groupby(["search", "item_id"], as_index=False)
    chosen = by_item.agg(position=("position", "max"), level=("level", "max"))
    shown = followed[is_shown].groupby(["search", "item_id"], as_index=False)["position"].min()
    shown = shown.merge(chosen[["search", "item_id", "level"]], "left", on=["search", "item_id"])
    shown["level"] = shown["level"].fillna(0).astype(int)
    place = ["search", "position", "item_id"]
    known: pd.DataFrame = shown.sort_values(place, ignore_index=True)
    return SearchLog(searches, known, chosen)


def _searches(log: pa.Table) -> "pd.DataFrame":
    """Return the searches, each `request_id` once, by time."""
    query = pc.utf8_trim_whitespace(pc.replace_substring_regex(pc.utf8_lower(log["query"]), r"\s+", " "))
    shopper = pc.coalesce(
        pc.binary_join_element_wise("user ", log["user_id"], ""),
        pc.binary_join_element_wise("session ", log["session_id"], ""),
        pc.binary_join_element_wise("search ", log["request_id"], ""),
    )
    visit = pc.coalesce(pc.binary_join_element_wise("session ", log["session_id"], ""), shopper)
    frame: pd.DataFrame = pa.table(
        {
            "moment": log["event_timestamp"].cast(pa.timestamp("us")),
            "query": query,
            "request_id": log["request_id"],
            "shopper": shopper.combine_chunks().dictionary_encode().indices,
            "visit": visit.combine_chunks().dictionary_encode().indices,
            "is_named": pc.is_valid(log["user_id"]),
        }
    ).to_pandas()
    frame = frame[frame["query"].fillna("") != ""]
    frame = frame.sort_values(["moment", "request_id"], kind="stable").drop_duplicates("request_id")
    frame["person"] = frame["shopper"].where(frame.pop("is_named"), -1)
    return frame.reset_index(drop=True)
