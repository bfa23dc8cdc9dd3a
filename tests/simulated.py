"""A simulated shop with impressions in a lake, as ingest and validation would leave it, without their work."""

from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from recflow.events.simulator import START, simulate
from recflow.schema import EVENTS, ITEMS, Days
from recflow.settings import Settings
from recflow.storage import Storage


def fill_lake(settings: Settings, feed: Path, *, days: int, users: int, items: int, seed: int = 0) -> Days:
    """Simulate a shop and write its events and items as partitions."""
    simulate(feed, days, users, items, seed)
    storage, whole = Storage(settings), Days(START, START + timedelta(days=days - 1))
    for noun, schema in (("events", EVENTS), ("items", ITEMS)):
        parts = []
        for file in sorted((feed / noun).glob("*.jsonl")):
            if not file.stat().st_size:
                continue
            table = pj.read_json(file)
            columns = [_cast(table, field) for field in schema]
            day = pa.repeat(pa.scalar(file.stem).cast(pa.date32()), table.num_rows)
            parts.append(pa.table(columns, schema=schema).append_column("event_date", day))
        storage.write_partitions(noun, pa.concat_tables(parts), {day: {} for day in whole.dates()})
    return whole


def _cast(table: pa.Table, field: pa.Field) -> pa.Array:
    if field.name not in table.column_names:
        return pa.nulls(table.num_rows, field.type)
    column = table[field.name]
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("us")).cast(field.type)
    if pa.types.is_timestamp(field.type):
        return pc.strptime(pc.utf8_slice_codeunits(column, 0, 19), "%Y-%m-%dT%H:%M:%S", "us").cast(field.type)
    return column.cast(field.type)
