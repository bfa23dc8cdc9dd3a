"""build_features: validated events and items -> a snapshot of every view for every calendar day.

One algorithm for one day and for a whole history: a block of days is computed from the state at the end of the day
before it. A backfill is one long block, a day's increment a block of one.
"""

import contextlib
import time
from collections.abc import Iterator
from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from recflow.engine import connect
from recflow.errors import MissingInput
from recflow.features import lineage
from recflow.features.catalogue import catalogue_by_day
from recflow.features.history import latest_lists, mark_new_pairs, new_pairs, user_history, user_items
from recflow.features.totals import WINDOW_DAYS, over_spans, running_totals
from recflow.features.views import (
    CATALOGUE,
    EVENT_COLUMNS,
    ITEM_COLUMNS,
    STATS_VIEWS,
    USER_HISTORY,
    USER_ITEMS,
    StatsView,
    definition,
)
from recflow.schema import EVENTS, ITEMS, TIMESTAMP, Days
from recflow.settings import Settings
from recflow.storage import Artifact, Manifest, Storage

_EPOCH = date(1970, 1, 1)
_ONE_DAY = timedelta(days=1)
_MICROSECONDS_PER_DAY = 86_400_000_000
_SLICE_DAYS = 31  # of a block's snapshots, how many are in memory at once


def build_features(days: Days, settings: Settings) -> Artifact:
    """Compute the snapshots of the given days, and of any others that are missing or out of date.

    Point-in-time: the snapshot of a day is a function of the events and items up to its end. Where nothing changed,
    nothing is written. A day that is missing between others counts as closed until it comes.

    Raises:
        MissingInput: the last of the days has no validated events.
    """
    storage = Storage(settings)
    work = lineage.outstanding(days, storage, definition(settings))
    seconds: dict[str, float] = {}
    if work.start is not None:
        chain, start = work.chain, work.start
        while start <= work.end:
            end = min(work.end, start + timedelta(days=settings.features.bulk_days - 1))
            chain = _Block(Days(start, end), work.first, storage, settings, seconds).build(chain)
            start = end + _ONE_DAY
    manifest = {
        "days": str(days),
        "computed": str(Days(work.start, work.end)) if work.start else None,
        "through": str(work.end),
        "views": {
            noun: {
                "rows": storage.partition_manifest(noun, days.end).get("rows"),
                "seconds": round(seconds.get(noun, 0.0), 3),
            }
            for noun in (*(view.name for view in STATS_VIEWS), USER_HISTORY, CATALOGUE)
        },
    }
    return Artifact(storage.table_uri(STATS_VIEWS[0].name), manifest)


class _Block:
    """The computation of consecutive days, given that all days before them are in place."""

    def __init__(
        self, days: Days, first: date, storage: Storage, settings: Settings, seconds: dict[str, float]
    ) -> None:
        self.days = days
        self.first = first  # the first day of all
        self.storage = storage
        self.settings = settings
        self.seconds = seconds
        self.manifests: dict[date, Manifest] = {}

    def build(self, chain: str) -> str:
        """Compute and write all tables of the block's days, given the chain of the day before; return the last one."""
        with self._timed("reading"):
            events, items = self._read_inputs(chain)
        with self._timed(USER_HISTORY):
            pairs = self._write_lists(events)
        with self._timed(CATALOGUE):
            self._write_catalogue(items)
        events = mark_new_pairs(events, pairs).select(list(EVENT_COLUMNS))
        items = items.select(list(ITEM_COLUMNS))
        # The view whose state says that a day is done goes last.
        for view in sorted(STATS_VIEWS, key=lambda view: view.state == lineage.COMMITTED):
            with self._timed(view.name):
                self._write_stats(view, events, items)
        return str(self.manifests[self.days.end]["chain"])

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        clock = time.monotonic()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - clock

    # -- input

    def _read_inputs(self, chain: str) -> tuple[pa.Table, pa.Table]:
        """Read the block's events and items, and note what every partition of a day will say it was made of."""
        inputs: dict[str, list[pa.Table]] = {"events": [], "items": []}
        for day in self.days.dates():
            parts = {noun: self._read_input(noun, day) for noun in inputs}
            self.manifests[day] = lineage.day_manifest(chain, parts)
            chain = self.manifests[day]["chain"]
            for noun, part in parts.items():
                inputs[noun] += [part] if part is not None else []
        return _numbered(inputs["events"], EVENTS), _numbered(inputs["items"], ITEMS)

    def _read_input(self, noun: str, day: date) -> pa.Table | None:
        try:
            return self.storage.read_partition(noun, day)
        except MissingInput:
            return None

    def _opening(self, noun: str) -> pa.Table | None:
        """Return a table of the state at the end of the day before the block, with `day`; None before the first."""
        if self.days.start == self.first:
            return None
        return _with_day(self.storage.read_partition(noun, self.days.start - _ONE_DAY))

    # -- lists

    def _write_lists(self, events: pa.Table) -> pa.Table:
        """Write what users did and bought so far; return the pairs of user and item that are new."""
        active, known_items, known_history = self._opening(lineage.COMMITTED), None, None
        if active is not None:
            active = active.filter(pc.is_in(active["user_id"], pc.unique(events["user_id"])))
            known_items = latest_lists(self.storage, USER_ITEMS, active["user_id"], active["last_purchase_day"])
            known_history = latest_lists(self.storage, USER_HISTORY, active["user_id"], active["last_history_day"])
        pairs = new_pairs(events, known_items)
        self._write(USER_ITEMS, user_items(events, pairs, known_items))
        length = self.settings.features.history_length
        self._write(USER_HISTORY, _stamped(user_history(events, known_history, length)))
        return pairs

    def _write_catalogue(self, items: pa.Table) -> None:
        opening = self._opening(CATALOGUE)
        if opening is not None:
            items = pa.concat_tables([opening.select([*ITEMS.names, "day"]), items.select([*ITEMS.names, "day"])])
        for day, catalogue in catalogue_by_day(items, range(_day(self.days.start), _day(self.days.end) + 1)):
            self._write_day(CATALOGUE, day, catalogue)

    # -- snapshots

    def _write_stats(self, view: StatsView, events: pa.Table, items: pa.Table) -> None:
        """Write a view's snapshots and, after each, the running totals that the next days start from."""
        import ibis

        engine = connect(self.settings)
        measures = engine.to_pyarrow(view.measures(ibis.memtable(events), ibis.memtable(items)))
        opening = self._opening(view.state)
        if opening is not None:
            measures = pa.concat_tables([measures, opening.select(measures.column_names)])
        first, last = _day(self.days.start), _day(self.days.end)
        running = running_totals(ibis.memtable(measures), view.entity, first, last)
        totals = engine.to_pyarrow(running.order_by("day", view.entity))
        earlier = pa.concat_tables([*self._earlier(view, totals.schema), totals])
        for start in range(first, last + 1, _SLICE_DAYS):
            end = min(last, start + _SLICE_DAYS - 1)
            current = _between(totals, start, end)
            before = _between(earlier, start - max(WINDOW_DAYS), end)
            wide = over_spans(ibis.memtable(current), ibis.memtable(before), view.entity)
            snapshot = engine.to_pyarrow(view.stats(wide).order_by("day", view.entity))
            self._write(view.name, _stamped(snapshot, created=True), (start, end))
            self._write(view.state, current, (start, end))

    def _earlier(self, view: StatsView, schema: pa.Schema) -> list[pa.Table]:
        """Read the totals of those days before the block that its windows start from, oldest first."""
        starts = {day - timedelta(days=window) for day in self.days.dates() for window in WINDOW_DAYS}
        days = sorted(day for day in starts if self.first <= day < self.days.start)
        if not days:
            return []
        return [_with_day(self.storage.read_partitions(view.state, days)).select(schema.names)]

    # -- output

    def _write(self, noun: str, table: pa.Table, between: tuple[int, int] | None = None) -> None:
        """Write the days of a table that is sorted by `day`; by default all of the block's."""
        first, last = between or (_day(self.days.start), _day(self.days.end))
        for day in range(first, last + 1):
            self._write_day(noun, day, _between(table, day, day).drop_columns("day"))

    def _write_day(self, noun: str, day: int, rows: pa.Table) -> None:
        event_date = _EPOCH + timedelta(days=day)
        manifest = {**self.manifests[event_date], "rows": rows.num_rows}
        self.storage.write_partition(noun, event_date, rows, manifest)


def _numbered(parts: list[pa.Table], schema: pa.Schema) -> pa.Table:
    """Put days below each other, with `day` and `sequence`, the row's place in time."""
    empty = schema.append(pa.field("event_date", pa.date32())).empty_table()
    cast = [part.select(empty.column_names).cast(empty.schema) for part in parts]
    table = _with_day(pa.concat_tables([empty, *cast]))
    return table.append_column("sequence", pa.array(range(table.num_rows), pa.int64()))


def _with_day(table: pa.Table) -> pa.Table:
    """Add `day`, days since 1970-01-01, for `event_date`."""
    return table.append_column("day", table["event_date"].cast(pa.int32()).cast(pa.int64())).drop_columns("event_date")


def _stamped(table: pa.Table, *, created: bool = False) -> pa.Table:
    """Add the end of the row's day as `event_timestamp`, after the id.

    `created_timestamp` is the same moment: a function of the data, so that a day computed again is the same.
    """
    moments = pc.multiply(pc.add(table["day"], 1), _MICROSECONDS_PER_DAY).cast(TIMESTAMP)
    table = table.add_column(1, "event_timestamp", moments)
    return table.add_column(2, "created_timestamp", moments) if created else table


def _between(table: pa.Table, first: int, last: int) -> pa.Table:
    """Return the rows of a range of days of a table that is sorted by `day`."""
    days = table["day"].to_numpy()
    start, end = days.searchsorted(first, side="left"), days.searchsorted(last, side="right")
    return table.slice(start, end - start)


def _day(day: date) -> int:
    return (day - _EPOCH).days
