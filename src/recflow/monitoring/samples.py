"""Samples of fixed size of what was learned from (reference) and of what is now (current), column by column."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from recflow.engine import connect, read_table
from recflow.schema import EVENT_TYPES, Days
from recflow.settings import DriftSettings, Settings
from recflow.storage import Storage

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pandas as pd

Part = Literal["user features", "item features", "events", "scores"]

# Table -> part of the report and key column.
FEATURE_TABLES: dict[str, tuple[Part, str]] = {
    "user_purchase_stats": ("user features", "user_id"),
    "item_sales_stats": ("item features", "item_id"),
}
_STAMPS = {"event_timestamp", "created_timestamp", "event_date"}
_WINDOW = re.compile(r"_(\d+)d(?:_|$)")  # user_orders_30d, item_returns_30d_ratio
_LONGEST_DAYS = 90  # the longest window of the features


@dataclass(frozen=True)
class Windows:
    """The two stretches of days that are compared; no day is in both."""

    reference: Days | None  # None: the shop is too young to have one
    current: Days


@dataclass(frozen=True)
class Column:
    """One column as sampled on both sides: floats, or text (object) for everything that is no number."""

    name: str
    part: Part
    reference: "pd.Series[Any]"
    current: "pd.Series[Any]"
    unjudged: str = ""  # why it is shown only; empty: it counts

    @property
    def is_numeric(self) -> bool:
        """Return whether the values are numbers."""
        return bool(self.reference.dtype == float)


def choose_windows(until: date, learned_until: date | None, first_day: date, settings: DriftSettings) -> Windows:
    """Return the last days and, before them, the days that the champion learned from.

    The reference ends where the champion's data end, and before the current days in any case: on a first run without
    a champion it is what lies just before them. It ends on the weekday that `until` is, so that both sides of
    a feature's weekly window hold the same weekdays.
    """
    current = Days(until - timedelta(days=settings.current_days - 1), until)
    end = current.start - timedelta(days=1)
    if learned_until is not None and learned_until < end:
        end -= timedelta(weeks=-(-(end - learned_until).days // 7))
    start = max(first_day, end - timedelta(days=settings.reference_days - 1))
    return Windows(Days(start, end) if start <= end else None, current)


class Sampler:
    """Reads samples of the lake: the rows whose key hashes lowest, the same ones on every run."""

    def __init__(self, windows: Windows, settings: Settings) -> None:
        """Open the lake; nothing is read yet."""
        self._windows = windows
        self._drift = settings.drift
        self._storage = Storage(settings)
        self._backend = connect(settings)

    def tallies(self, noun: str) -> "tuple[pd.DataFrame, pd.DataFrame]":
        """Count rows and missing values by day, exactly, in the reference and now.

        Grain: one row per day with rows; column `rows`, and a column of missing values for each of the table's.
        For events also `kind_<event type>`: the rows of each type.
        """
        reference, current = (self._tally(noun, window) for window in self._both())
        return reference, current

    def event_columns(self) -> Iterator[Column]:
        """Events of both windows -> what happens, who, where, when, how much and for how much."""
        sides = [self._event_tables(window) for window in self._both()]
        for reference, current in zip(*sides, strict=False):
            for name in current.column_names:
                yield from _column(name, "events", reference, current)

    def feature_columns(self) -> Iterator[Column]:
        """Snapshots of both windows -> the columns of the feature views.

        A snapshot a week is read, back from the last day of each window. Users and items without a purchase of late
        are left out: they only pile up as the shop grows older. So do lifetime sums and ages, which are shown and not
        judged.
        """
        for noun, (part, key) in FEATURE_TABLES.items():
            reference_days, current_days = (self._weekly(noun, window) for window in self._both())
            if not reference_days or not current_days:
                continue
            spans, first_day = self._spans(noun), self._storage.days(noun)[0]
            active = _active_span(spans, reference_days, first_day)
            reference_days = [day for day in reference_days if _is_full(active, day, first_day)]
            reference, current = (self._snapshots(noun, key, days, active) for days in (reference_days, current_days))
            for name in [name for name in current.column_names if name not in {key, *_STAMPS}]:
                why = "grows with the shop's age" if re.search(self._drift.growing, name) else ""
                # A window that is part empty fills up: that would look like drift.
                why = "looks back beyond the shop's first days" if _looks_back(name, spans, active) > active else why
                yield from _column(name, part, reference, current, unjudged=why)

    def _tally(self, noun: str, window: Days | None) -> "pd.DataFrame":
        import pandas as pd

        days = self._days(noun, window) if noun == "events" else self._weekly(noun, window)
        if not days:
            return pd.DataFrame(columns=["event_date", "rows"])
        table = read_table(self._backend, self._storage, noun, days, union_by_name=True)
        names = [name for name in table.columns if name not in _STAMPS]
        counts = {name: table[name].isnull().sum() for name in names}
        if noun == "events":
            counts |= {f"kind_{kind}": (table.event_type == kind).sum() for kind in EVENT_TYPES}
        tally = table.group_by("event_date").agg(rows=table.count(), **counts).order_by("event_date")
        return tally.to_pyarrow().to_pandas()

    def _both(self) -> tuple[Days | None, Days]:
        return self._windows.reference, self._windows.current

    def _spans(self, noun: str) -> list[int]:
        """Return the lengths of the windows that a view's features have, in days, shortest first."""
        names = read_table(self._backend, self._storage, noun, self._storage.days(noun)[-1:]).columns
        return sorted({int(window[1]) for name in names if (window := _WINDOW.search(name))})

    def _days(self, noun: str, window: Days | None) -> list[date]:
        if window is None:
            return []
        return [day for day in self._storage.days(noun) if window.start <= day <= window.end]

    def _event_tables(self, window: Days | None) -> list[pa.Table]:
        """Return samples of events, of purchases and of orders, each a table of its own; none without a day."""
        days = self._days("events", window)
        if not days:
            return []
        events = read_table(self._backend, self._storage, "events", days)
        # An order of 500 lines is one visit from one country at one hour.
        visit = events.session_id.fill_null(events.event_id)
        visits = events.group_by(visit=visit, event_type=events.event_type).agg(
            lines=lambda of: of.count(),
            moment=events.event_timestamp.min(),
            country=events.country.min(),
            known=events.user_id.notnull().any(),
        )
        visits = visits.mutate(shopper=visits.known.ifelse("known", "anonymous"))
        orders = visits.filter(visits.event_type == "purchase").select("visit", lines_per_order="lines")
        purchases = events.filter(events.event_type == "purchase")
        return [
            self._with_clock(self._sample(visits, "visit", "event_type")),
            self._sample(purchases, "event_id").select(["quantity", "unit_price"]),
            self._sample(orders, "visit").select(["lines_per_order"]),
        ]

    def _with_clock(self, visits: pa.Table) -> pa.Table:
        clock = visits["moment"].cast(pa.timestamp("us", tz=self._drift.time_zone))
        times = {"hour": pc.strftime(clock, format="%H"), "weekday": pc.strftime(clock, format="%A")}
        kept = {name: visits[name] for name in ("event_type", "country", "shopper")}
        return pa.table(kept | times)

    def _weekly(self, noun: str, window: Days | None) -> list[date]:
        return [day for day in self._days(noun, window) if window and (window.end - day).days % 7 == 0]

    def shoppers(self, day: date, rows: int) -> pa.Table:
        """Return a sample of the users who bought of late, with their raw features at the end of a day."""
        noun, key = "user_purchase_stats", "user_id"
        return self._snapshots(noun, key, [day], self._active_users(), rows=rows)

    def items(self, day: date, item_ids: pa.Array) -> pa.Table:
        """Return the raw features of items at the end of a day, in the order of their ids; nulls for unknown ones."""
        snapshot = self._storage.read_partition("item_sales_stats", day)
        return snapshot.take(pc.index_in(item_ids, snapshot["item_id"].combine_chunks()))

    def histories(self, day: date, user_ids: pa.ChunkedArray) -> pa.Table:
        """Return the last events of users at the end of a day, each user's newest row of `user_history`."""
        import ibis

        # Who bought within the span has a row on that day.
        first = day - timedelta(days=self._active_users() or day.toordinal() - 1)
        days = [other for other in self._storage.days("user_history") if first <= other <= day]
        table = read_table(self._backend, self._storage, "user_history", days)
        rows = table.filter(table.user_id.isin(user_ids.to_pylist()))
        newest = ibis.row_number().over(ibis.window(group_by="user_id", order_by=ibis.desc("event_timestamp")))
        return rows.mutate(_age=newest).filter(ibis._._age == 0).drop("_age").to_pyarrow()

    def _active_users(self) -> int:
        noun = "user_purchase_stats"
        days = self._weekly(noun, self._windows.reference)
        return _active_span(self._spans(noun), days, self._storage.days(noun)[0])

    def _snapshots(
        self, noun: str, key: str, days: Sequence[date], active_span: int, *, rows: int | None = None
    ) -> pa.Table:
        """Sample the rows with anything in a window of at most `active_span` days; all rows where that is 0."""
        import ibis

        # A feature that was added later is null in older snapshots.
        table = read_table(self._backend, self._storage, noun, days, union_by_name=True)
        windowed = [
            table[name].fill_null(0) != 0
            for name, dtype in table.schema().items()
            if dtype.is_numeric() and (window := _WINDOW.search(name)) and int(window[1]) <= active_span
        ]
        active = table.filter(ibis.or_(*windowed)) if windowed else table
        return self._sample(active, key, "event_date", rows=rows)

    def _sample(self, table: "ir.Table", *key: str, rows: int | None = None) -> pa.Table:
        lot = table[key[0]].cast("string")
        for name in key[1:]:
            lot = lot + "|" + table[name].cast("string")
        lot = (lot + f"|{self._drift.seed}").hash()
        limit = rows or self._drift.sample_rows
        return table.mutate(_lot=lot).order_by("_lot").limit(limit).drop("_lot").to_pyarrow()


def _active_span(spans: Sequence[int], days: Sequence[date], first_day: date) -> int:
    """Return the longest window, in days, that at least half of the snapshots hold in full; 0 without any.

    Who has anything in it counts as active. In a longer one more and more would, only because it fills up.
    """
    full = [span for span in spans if 2 * sum(_is_full(span, day, first_day) for day in days) >= len(days)]
    return max(full, default=0)


def _is_full(span: int, day: date, first_day: date) -> bool:
    return (day - first_day).days + 1 >= span


def _looks_back(name: str, spans: Sequence[int], active_span: int) -> int:
    """Return how many days back a feature looks, by its name; 0 where it says nothing.

    A trend compares its window with the next longer ones; a duration is at most the span of who counts as active.
    """
    if "_trend_" in name:
        return max(spans, default=0)
    window = _WINDOW.search(name)
    return int(window[1]) if window else active_span if name.endswith("_days") else 0


def _column(name: str, part: Part, reference: pa.Table, current: pa.Table, *, unjudged: str = "") -> Iterator[Column]:
    """Yield the column that both sides have; lists and moments aren't compared."""
    if name not in reference.column_names:
        return
    before, now = _values(reference[name]), _values(current[name])
    if before is not None and now is not None and before.dtype == now.dtype:
        yield Column(name, part, before, now, unjudged)


def _values(column: pa.ChunkedArray) -> "pd.Series[Any] | None":
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return column.cast(pa.float64()).to_pandas().replace([float("inf"), float("-inf")], float("nan"))
    if pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.string()).to_pandas().astype(object)
    return None
