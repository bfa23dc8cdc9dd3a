"""Judged rows -> the day profile that the batch checks look at; one row per (event_date, source) that has rows.

A range of days is judged in one pass: each day against the days before it, those of the range included.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from recflow.schema import Days
from recflow.settings import ValidationSettings
from recflow.storage import Storage
from recflow.validation.rows import is_of_other_day
from recflow.validation.suites import Judgement

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN_SOURCE = "unknown"  # rows that couldn't be read far enough to say


def sources(staged: pa.Table) -> pa.ChunkedArray:
    """Return the feed that each staged row came by."""
    return pc.fill_null(staged["source"], UNKNOWN_SOURCE)


def day_profile(
    staged: pa.Table,
    rows: Judgement,
    *,
    earlier: "pd.DataFrame",
    settings: ValidationSettings,
) -> "pd.DataFrame":
    """Staged events and what was said of them -> the figures of each day and source; null is a figure not judged.

    Args:
        staged: the staged events of all days, with `event_date`.
        rows: the row checks' judgement of them.
        earlier: rows of the days before, as `rows_before` returns them.
        settings: thresholds; the sources that aren't steady, and small days, have figures that aren't judged.
    """
    import numpy as np
    import pandas as pd

    frame = pd.DataFrame(
        {
            "event_date": staged["event_date"].to_pandas(),
            "source": sources(staged).to_pandas(),
            "batch": staged["batch"].to_pandas(),
            "rows": 1,
            "null_user_share": pc.is_null(staged["user_id"]).to_numpy(),
            "quarantined_share": rows.broken >= 0,
            "other_day_share": is_of_other_day(staged).to_numpy(),
        }
    )
    keys = ["event_date", "source"]
    profile = (
        frame.groupby(keys, sort=True)
        .agg(
            {
                "rows": "size",
                "batch": "first",
                "null_user_share": "mean",
                "quarantined_share": "mean",
                "other_day_share": "mean",
            }
        )
        .reset_index()
    )
    profile = _with_volume(profile, earlier, settings)
    is_unsteady = profile["source"].isin(settings.unsteady_sources)
    is_small = profile["rows"] < settings.min_share_rows
    profile.loc[is_unsteady, ["volume_ratio", "null_user_share", "quarantined_share"]] = np.nan
    profile.loc[is_small, ["null_user_share", "quarantined_share", "other_day_share"]] = np.nan
    return profile


def rows_before(days: Days, storage: Storage, settings: ValidationSettings) -> "pd.DataFrame":
    """Published days before a range -> rows that came in by (event_date, source), from the manifests alone.

    Looks back twice `volume_days` whole days, which holds `volume_days` with events for any shop that opens every
    other day: what a day costs mustn't grow with the shop's history.
    """
    import pandas as pd

    first = days.start - timedelta(days=2 * settings.volume_days)
    found = [
        (day, source, count)
        for day in storage.days("events")
        if first <= day < days.start
        for source, count in storage.partition_manifest("events", day).get("rows_by_source", {}).items()
    ]
    return pd.DataFrame(found, columns=["event_date", "source", "rows"])


def worst_rule(staged: pa.Table, rows: Judgement, *, day: date, source: str) -> str:
    """Return the check that most rows of a day and source break first, with their number."""
    chosen = pc.and_(pc.equal(staged["event_date"], pa.scalar(day, pa.date32())), pc.equal(sources(staged), source))
    counts = rows.counts(chosen.to_numpy())
    rule = max(counts, key=counts.__getitem__)
    return f"{rule} ({counts[rule]:,})"


def first_other_day(staged: pa.Table, *, day: date, source: str) -> str:
    """Return the time of the first event of a day's file that happened on another day."""
    chosen = pc.and_(pc.equal(staged["event_date"], pa.scalar(day, pa.date32())), pc.equal(sources(staged), source))
    first = pc.min(staged["event_timestamp"].filter(pc.and_(chosen, is_of_other_day(staged)))).as_py()
    return f"{first:%Y-%m-%d %H:%M} UTC"


def count_by_day(dates: pa.ChunkedArray, days: Sequence[date]) -> dict[date, int]:
    """Return how often each of the given days stands in a column."""
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(dates).to_pylist()}
    return {day: counts.get(day, 0) for day in days}


def _with_volume(profile: "pd.DataFrame", earlier: "pd.DataFrame", settings: ValidationSettings) -> "pd.DataFrame":
    """Add `usual_rows`, the median of the source's days with rows before each day, and `volume_ratio`."""
    import pandas as pd

    wanted = ["event_date", "source", "rows"]
    known = [part for part in (earlier.assign(is_earlier=True), profile[wanted].assign(is_earlier=False)) if len(part)]
    if not known:
        return profile.assign(usual_rows=pd.Series(dtype=float), volume_ratio=pd.Series(dtype=float))
    volume = pd.concat(known, ignore_index=True).sort_values(["source", "event_date"], kind="stable")
    volume = volume[volume["rows"] > 0]
    volume["usual_rows"] = volume.groupby("source")["rows"].transform(
        lambda rows: rows.shift().rolling(settings.volume_days, min_periods=settings.min_volume_days).median()
    )
    volume["volume_ratio"] = volume["rows"] / volume["usual_rows"]
    own = volume.loc[~volume["is_earlier"].astype(bool), [*wanted[:2], "usual_rows", "volume_ratio"]]
    return profile.merge(own, on=wanted[:2], how="left", validate="one_to_one")
