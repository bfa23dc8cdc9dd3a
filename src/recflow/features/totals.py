"""Running totals: what makes a day's snapshot cost that day's events and not the history.

Measures are whole numbers per entity and day. Their running totals at the end of a day are the state; a window of w
days at day D is totals(D) - totals(D - w), so D needs the state of three earlier days and no older event. Sums of
whole numbers are exact in any order: a backfill in one pass and day by day give identical rows.

How a measure runs on is said by its name:

- `first_...`: the smallest so far (a day);
- `last_...`: the latest that isn't null;
- any other: the sum so far. Only these have windows.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ibis.expr.types as ir

WINDOW_DAYS: Final = (7, 30, 90)
LIFETIME: Final = "lifetime"
SPANS: Final = (*(f"{days}d" for days in WINDOW_DAYS), LIFETIME)


def ratio(part: "ir.NumericValue", whole: "ir.NumericValue") -> "ir.FloatingValue":
    """Divide; null where there is nothing to divide by."""
    return part.cast("float64") / whole.nullif(0).cast("float64")


def summed(columns: Iterable[str], entity: str) -> list[str]:
    """Return those of the columns of measures or totals that are sums."""
    return [name for name in columns if name not in (entity, "day") and not name.startswith(("first_", "last_"))]


def running_totals(measures: "ir.Table", entity: str, first_day: int, last_day: int) -> "ir.Table":
    """Add up measures; one row per entity seen so far and day from first_day to last_day (days since 1970-01-01).

    Args:
        measures: one row per (entity, day); the totals of the day before `first_day`, where there are any, are rows
            like others.
        entity: the id's column.
        first_day: the first day wanted.
        last_day: the last day wanted.
    """
    import ibis

    so_far = ibis.window(group_by=entity, order_by="day", preceding=None, following=0)
    names = [name for name in measures.columns if name not in (entity, "day")]
    runs: dict[str, ir.Value] = {}
    for name in names:
        column = measures[name]
        if name.startswith("first_"):
            runs[name] = column.min().over(so_far)
        elif name.startswith("last_"):
            # How many values there were so far numbers the runs; each run begins with its only value.
            runs[name] = column
            runs[f"run_{name}"] = column.notnull().sum().over(so_far)
        else:
            runs[name] = column.fill_null(0).sum().over(so_far).cast("int64")
    following = measures.day.lead().over(ibis.window(group_by=entity, order_by="day"))
    steps = measures.select(entity, "day", **runs, until=following.fill_null(last_day + 1))
    filled = {
        name: steps[name].max().over(ibis.window(group_by=[entity, f"run_{name}"]))
        for name in names
        if name.startswith("last_")
    }
    steps = steps.mutate(**filled).select(entity, "day", "until", *names)
    calendar = ibis.memtable({"as_of": list(range(first_day, last_day + 1))}, schema={"as_of": "int64"})
    dense = steps.join(calendar, [calendar.as_of >= steps.day, calendar.as_of < steps.until])
    return dense.select(entity, *names, day="as_of").select(entity, "day", *names)


def over_spans(totals: "ir.Table", earlier: "ir.Table", entity: str) -> "ir.Table":
    """Put each sum over each of `SPANS` beside the totals; one row per row of `totals`.

    Args:
        totals: one row per (entity, day).
        earlier: the totals of the days that windows start from, those of `totals` included. An entity that isn't
            there on that day was unknown then: its window is its lifetime.
        entity: the id's column.
    """
    sums = summed(totals.columns, entity)
    wide = totals.rename({f"{name}_{LIFETIME}": name for name in sums})
    for days in WINDOW_DAYS:
        before = earlier.select(
            **{f"{entity}_{days}": entity, f"day_{days}": earlier.day + days},
            **{f"{name}_{days}": earlier[name] for name in sums},
        )
        joined = wide.left_join(before, [wide[entity] == before[f"{entity}_{days}"], wide.day == before[f"day_{days}"]])
        windows = {
            f"{name}_{days}d": joined[f"{name}_{LIFETIME}"] - joined[f"{name}_{days}"].fill_null(0) for name in sums
        }
        wide = joined.select(*wide.columns, **windows)
    return wide
